"""The assets of a pipeline: raw sources, features, model, predictions, performance.

Each asset calls one step of `pipeline.py` for the partitions of its run and logs each partition as it commits.
"""

from collections.abc import Generator, Sequence
from contextlib import closing

import dagster as dg

from batch_platform.components import challengers, checks, describe, lineage
from batch_platform.components.dagster_internals import held_object
from batch_platform.components.events import PartitionLog
from batch_platform.components.io_manager import IO_MANAGER_KEY
from batch_platform.components.run_config import (
    FeaturesConfig,
    PredictionsConfig,
    TrainingConfig,
    training_config,
    training_schema,
)
from batch_platform.components.sources import build_sources, observe_sources
from batch_platform.components.wiring import SPEC_METADATA, Wiring, now, stamp_of
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.replay import replay
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.orders import Watch
from batch_platform.scoring.run import Committed

SINGLE_RUN = dg.BackfillPolicy.single_run()


def build_assets(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """Build all assets of a pipeline, sources first."""
    return [
        *build_sources(wiring),
        _features(wiring),
        _model(wiring),
        _predictions(wiring),
        _performance(wiring),
    ]


def _features(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("features")

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb" if wiring.spec.features.sql else "polars", "parquet"},
        description=describe.features(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=wiring.pipeline().builder.code_version,
        metadata={SPEC_METADATA: held_object(wiring), **lineage.features(wiring)},
        partitions_def=wiring.partitions,
        deps=[wiring.key(name) for name in wiring.pipeline().builder.feature_sources],
        backfill_policy=SINGLE_RUN,
    )
    def features(context: dg.AssetExecutionContext, config: FeaturesConfig) -> dg.MaterializeResult:
        followed = wiring.key("predictions") in (context.run.asset_selection or ())
        with wiring.step(context, last=not followed) as pipeline:
            partitions = wiring.named(context.partition_keys)
            observe_sources(context, wiring, partitions)
            with PartitionLog(context, key, len(partitions)) as log:
                for built in pipeline.build_features(partitions, stamp_of(context.run.run_id), force=config.force):
                    log.materialized(
                        built.partition.key,
                        data_version=built.build.sha256[:16],
                        rows=built.build.rows,
                        metadata=describe.built(built, pipeline.history.file(built.build))
                        | lineage.built(wiring, built, partitions[-1]),
                    )
        return log.finish()

    return features


def _model(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("model")
    features = dg.AssetDep(wiring.key("features"), partition_mapping=wiring.history)

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={describe.model_kind(wiring)},
        description=describe.model(wiring) + challengers.described(wiring),
        code_version=describe.model_code_version(wiring),
        metadata=lineage.labelled(wiring),
        partitions_def=wiring.serving_periods,
        deps=[features, *(wiring.key(name) for name in wiring.pipeline().builder.label_sources)],
        backfill_policy=SINGLE_RUN,
        check_specs=[checks.gate(key), *challengers.specs(wiring, key)],
        config_schema=training_schema(wiring),
    )
    def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        config, decided = training_config(wiring, context.op_execution_context.op_config), list[Trained]()
        with wiring.step(context) as pipeline:
            due = _asked_periods(wiring, context, config)
            with PartitionLog(context, key, len(due)) as log:
                for period in due:
                    partition_key = None if wiring.serving_periods is None else period.key
                    if config.challengers_only:
                        decided += challengers.challenged(
                            log, pipeline, period, partition_key, stamp_of(context.run.run_id)
                        )
                        continue
                    trained = pipeline.train(period, stamp_of(context.run.run_id), params=config.params)
                    log.materialized(
                        partition_key,
                        data_version=trained.version.sha256[:16],
                        rows=trained.version.rows_trained,
                        metadata=describe.trained(wiring, trained) | challengers.trained(trained),
                        done=trained.version.version,
                    )
                    checks.log_gate(log, partition_key, trained)
                    challengers.log_trained(log, partition_key, trained.challengers)
                    decided.append(trained)
        return log.finish(checks.gate_summary(decided), *challengers.trained_summary(wiring, decided))

    return model


def _asked_periods(wiring: Wiring, context: dg.AssetExecutionContext, config: TrainingConfig) -> list[Partition]:
    """The serving periods to train for, oldest first."""
    if wiring.serving_periods is None:
        return [_single_period(wiring, config.until)]
    periods = [wiring.serving_period(key) for key in context.partition_keys]
    return sorted(periods, key=lambda period: period.start)


def _single_period(wiring: Wiring, until: str | None) -> Partition:
    """The first partition that an unpartitioned model serves: as requested, otherwise as planned, otherwise the newest."""
    calendar = wiring.spec.partitions.calendar
    if until is not None:
        return calendar.named(until)
    planned = make_plan(wiring.spec, wiring.pipeline().state(), now()).of("model")
    if planned:
        return planned[0].partition
    due = calendar.due(now())
    if not due:
        msg = f"{wiring.spec.name} has no partition yet."
        raise BatchPlatformError(msg, hint="see partitions.start.")
    return due[-1]


def _predictions(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("predictions")
    model = dg.AssetDep(wiring.key("model"), partition_mapping=wiring.serving)

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb", "table"},
        description=describe.predictions(wiring) + challengers.described(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=wiring.pipeline().scoring_code_version,
        metadata={"dagster/table_name": f"{wiring.spec.name}.predictions", **lineage.predictions(wiring)},
        partitions_def=wiring.partitions,
        deps=[wiring.key("features"), model],
        backfill_policy=SINGLE_RUN,
        check_specs=[*checks.predictions(wiring, key), *challengers.specs(wiring, key)],
    )
    def predictions(context: dg.AssetExecutionContext, config: PredictionsConfig) -> dg.MaterializeResult:
        committed: list[Committed] = []
        budget = wiring.spec.features.max_rejected
        with wiring.step(context) as pipeline:
            partitions = wiring.named(context.partition_keys)
            stamp = stamp_of(context.run.run_id)
            with (
                PartitionLog(context, key, len(partitions)) as log,
                closing(_scored(pipeline, partitions, stamp, config, log.on_the_way)) as results,
            ):
                for done in results:
                    read_from = lineage.scored(wiring, pipeline, done, partitions[-1])
                    log.materialized(
                        done.partition.key,
                        data_version=describe.rows_version(done),
                        rows=done.run.rows_in,
                        metadata=describe.committed(done) | challengers.scored(done) | read_from | describe.speed(done),
                    )
                    checks.log_predictions(log, done, budget)
                    challengers.log_scored(log, done)
                    committed.append(done)
        summary = challengers.scored_summary(wiring, committed)
        return log.finish(*checks.predictions_summary(committed, budget), *summary)

    return predictions


def _scored(
    pipeline: Pipeline, partitions: Sequence[Partition], stamp: Stamp, config: PredictionsConfig, watch: Watch
) -> Generator[Committed]:
    """What a run does with its partitions: score them, or replay them."""
    if not config.replay:
        yield from pipeline.score(partitions, stamp, force=config.force, version=config.model, watch=watch)
        return
    if config.force or config.model:
        msg = f"{pipeline.spec.name}: `replay` goes with neither `force` nor `model`."
        raise BatchPlatformError(msg, hint="leave `replay` out to score whole partitions.")
    yield from replay(pipeline, partitions, stamp)


def _performance(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("performance")

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb", "table"},
        description=describe.evaluation(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=describe.evaluation_code_version(wiring),
        metadata={"dagster/table_name": f"{wiring.spec.name}.performance", **lineage.performance(wiring)},
        partitions_def=wiring.partitions,
        deps=[wiring.key("predictions"), *(wiring.key(name) for name in wiring.pipeline().builder.label_sources)],
        backfill_policy=SINGLE_RUN,
        check_specs=checks.measures(wiring, key),
    )
    def performance(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        judged: list[checks.Judged] = []
        with wiring.step(context) as pipeline:
            partitions = wiring.named(context.partition_keys)
            with PartitionLog(context, key, len(partitions)) as log:
                for evaluated in pipeline.evaluate(partitions, stamp_of(context.run.run_id)):
                    log.materialized(
                        evaluated.partition.key,
                        data_version=describe.evaluation_version(evaluated),
                        rows=evaluated.run.rows_labelled,
                        metadata=describe.evaluated(evaluated),
                    )
                    judged += checks.log_measures(wiring, log, evaluated)
        return log.finish(*checks.measures_summary(wiring, judged))

    return performance
