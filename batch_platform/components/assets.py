"""The assets of a pipeline: raw sources, features, model, predictions with drift, performance, deliveries.

Each asset calls one step of `pipeline.py` for the partitions of its run and logs each partition as it commits. In a pipeline's own
jobs, the steps of model and predictions first build the features that they lack (see `making.py`); in the job that brings a pipeline
up to date, the step of the predictions also trains the models that are due.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from batch_platform.components import checks, describe, lineage
from batch_platform.components.automation import condition_of
from batch_platform.components.dagster_internals import LOGGED_IN_THE_BODY
from batch_platform.components.delivering import delivered_asset
from batch_platform.components.jobs import (
    FeaturesConfig,
    PredictionsConfig,
    TrainingConfig,
    announced,
    training_config,
    training_schema,
)
from batch_platform.components.making import RunStep
from batch_platform.components.observing import source_asset
from batch_platform.components.resources import IO_MANAGER_KEY
from batch_platform.components.runs import targets
from batch_platform.components.scoring import (
    bring_up_to_date,
    evaluate,
    evaluate_what_is_due,
    score,
    score_with_features,
    told_as_recorded,
)
from batch_platform.components.wiring import Wiring, now
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.inputs import Features
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest


def build_assets(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """Build all assets of a pipeline, sources first, except those that are somebody else's assets."""
    sources = [source_asset(wiring, name) for name, source in wiring.spec.sources.items() if source.asset is None]
    made = dict[str, dg.AssetsDefinition]()
    made |= {"features": _features(wiring, made), "model": _model(wiring, made)}
    made |= dict.fromkeys(("predictions", "drift"), _predictions(wiring, made))
    made["performance"] = _performance(wiring, made)
    for delivery in wiring.spec.predictions.deliver:
        made[delivery.asset] = delivered_asset(wiring, made, delivery)
    return [*sources, *dict.fromkeys(made.values())]


def _made_by(features: Features) -> str:
    """The kind that Dagster shows for what makes features."""
    if features.spark_sql is not None:
        return "spark"
    return "polars" if features.sql is None else "duckdb"


def _features(wiring: Wiring, made: Mapping[str, dg.AssetsDefinition]) -> dg.AssetsDefinition:
    key = wiring.key("features")

    @dg.asset(
        key=key,
        op_tags=wiring.op_tags,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={_made_by(wiring.spec.features), "parquet"},
        description=describe.whole_job(wiring) + describe.features(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=wiring.pipeline().builder.code_version,
        metadata={**wiring.metadata, **lineage.features(wiring)},
        partitions_def=wiring.partitions,
        deps=[wiring.source_key(name) for name in wiring.pipeline().builder.feature_sources],
        backfill_policy=wiring.backfill_policy(wiring.partitions),
        pool=wiring.spec.dagster.pool,
        required_resource_keys=wiring.resource_keys,
        automation_condition=condition_of(wiring, "features"),
    )
    def features(context: dg.AssetExecutionContext, config: FeaturesConfig) -> dg.MaterializeResult:
        step = RunStep(context, wiring, made)
        followed = step.is_followed_by("predictions")
        with step.at_work(last=not followed), step.failing_later(later=followed):
            step.build(step.partitions, force=config.force)
        return dg.MaterializeResult(asset_key=key, metadata=LOGGED_IN_THE_BODY)

    return features


def _model(wiring: Wiring, made: Mapping[str, dg.AssetsDefinition]) -> dg.AssetsDefinition:
    key = wiring.key("model")
    history = dg.AssetDep(wiring.key("features"), partition_mapping=wiring.history)
    of_challengers = [checks.CHALLENGERS_TRAINED] if wiring.spec.challengers else []

    @dg.asset(
        key=key,
        op_tags=wiring.op_tags,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={describe.model_kind(wiring)},
        description=describe.whole_job(wiring) + describe.model(wiring),
        code_version=describe.model_code_version(wiring),
        metadata=lineage.labelled(wiring),
        partitions_def=wiring.serving_periods,
        deps=[history, *(wiring.source_key(name) for name in wiring.pipeline().builder.label_sources)],
        backfill_policy=wiring.backfill_policy(wiring.serving_periods),
        pool=wiring.spec.dagster.pool,
        check_specs=[
            checks.GATE.spec(key),
            checks.NO_SUSPECTED_LEAKS.spec(key),
            *(check.spec(key) for check in of_challengers),
        ],
        config_schema=training_schema(wiring),
        required_resource_keys=wiring.resource_keys,
        automation_condition=condition_of(wiring, "model"),
    )
    def model(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.Output[None]]:
        step = RunStep(context, wiring, made)
        config, builds = training_config(wiring, context.op_execution_context.op_config), step.is_of("train")
        with step.at_work():
            due = _asked_periods(step, config)
            if builds:
                step.build_windows(due)
            log = step.log("model", len(due))
            with step.failing_later(later=builds):
                by_record = (step.is_due,) if announced() else ()  # otherwise somebody asks for it, due or not
                step.train([(period, config) for period in due], log, *by_record)
            if builds:
                step.require_nothing_failed()
        yield from log.finish(checks.GATE, checks.NO_SUSPECTED_LEAKS, *of_challengers)

    return model


def _asked_periods(step: RunStep, config: TrainingConfig) -> list[Partition]:
    """The serving periods that a run is to train models of, oldest first.

    A single model has the first partition that it serves: as requested, otherwise as planned, otherwise the newest. It has to
    serve the partitions that are scored in the same run.
    """
    wiring, context = step.wiring, step.context
    if wiring.serving_periods is not None:
        return sorted((wiring.serving_period(key) for key in context.partition_keys), key=lambda period: period.start)
    calendar = wiring.spec.partitions.calendar
    if config.until is not None:
        return [calendar.named(config.until)]
    scored = wiring.named([key for asset, key in targets(wiring, context.run) if asset == "predictions"])
    plan = make_plan(wiring.spec, step.pipeline.state(), PlanRequest(now(), scored or None, serve_all=bool(scored)))
    if planned := plan.of("model"):
        return [planned[0].partition]
    if not (due := calendar.due(now())):
        msg = f"{wiring.spec.name} has no partition yet."
        raise BatchPlatformError(msg, hint="see partitions.start.")
    return [due[-1]]


def _scoring_specs(wiring: Wiring) -> Iterator[dg.AssetSpec]:
    """The predictions, and the drift where it is declared."""
    name = wiring.spec.name
    shared: dict[str, Any] = {"group_name": name, "owners": wiring.spec.owners, "kinds": {"duckdb", "table"}}
    model = dg.AssetDep(wiring.key("model"), partition_mapping=wiring.serving)
    predictions = dg.AssetSpec(
        wiring.key("predictions"),
        description=describe.whole_job(wiring) + describe.predictions(wiring),
        code_version=wiring.pipeline().scoring_code_version,
        metadata={"dagster/table_name": f"{name}.predictions", **lineage.predictions(wiring)},
        deps=[wiring.key("features"), model],
        freshness_policy=wiring.freshness_policy,
        partitions_def=wiring.served,
        automation_condition=condition_of(wiring, "predictions"),
        **shared,
    )
    yield predictions.with_io_manager_key(IO_MANAGER_KEY)
    if wiring.spec.monitoring.drift is not None:
        drift = dg.AssetSpec(
            wiring.key("drift"),
            description=describe.drift(wiring),
            metadata={"dagster/table_name": f"{name}.drift"},
            deps=[wiring.key("features"), wiring.key("predictions")],
            partitions_def=wiring.served,
            automation_condition=condition_of(wiring, "drift"),
            **shared,
        )
        yield drift.with_io_manager_key(IO_MANAGER_KEY)


def _predictions(wiring: Wiring, made: Mapping[str, dg.AssetsDefinition]) -> dg.AssetsDefinition:
    """The predictions and the drift, which one transaction commits, and so one step makes.

    With both, Dagster may ask for one of them, or for a check alone: drift without predictions is told as it is recorded.
    """
    key = wiring.key("predictions")
    of_drift = [check.spec(wiring.key("drift")) for check in checks.of_measures(wiring, "drift").values()]

    @dg.multi_asset(
        name=key.to_python_identifier(),
        op_tags=wiring.op_tags,
        specs=[*_scoring_specs(wiring)],
        partitions_def=wiring.served,
        backfill_policy=wiring.backfill_policy(wiring.served),
        pool=wiring.spec.dagster.pool,
        check_specs=[
            *(check.spec(key) for check in checks.predictions(wiring)),
            *of_drift,
        ],
        can_subset=bool(of_drift),
        required_resource_keys=wiring.resource_keys,
    )
    def predictions(
        context: dg.AssetExecutionContext, config: PredictionsConfig
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult | dg.Output[None]]:
        step = RunStep(context, wiring, made)
        if key not in context.selected_asset_keys:
            yield from told_as_recorded(step)
            return
        followed = step.of_whole_job and step.is_followed_by("performance")
        with step.at_work(last=not followed):
            if step.of_whole_job:
                log = bring_up_to_date(step, config)
            else:
                log = (score_with_features if step.is_of("score") else score)(step, config)
        yield from log.finish()

    return predictions


def _performance(wiring: Wiring, made: Mapping[str, dg.AssetsDefinition]) -> dg.AssetsDefinition:
    key, measures = wiring.key("performance"), checks.of_measures(wiring, "performance")

    @dg.asset(
        key=key,
        op_tags=wiring.op_tags,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb", "table"},
        description=describe.whole_job(wiring) + describe.evaluation(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=describe.evaluation_code_version(wiring),
        metadata={"dagster/table_name": f"{wiring.spec.name}.performance", **lineage.performance(wiring)},
        partitions_def=wiring.served,
        deps=[
            wiring.key("predictions"),
            *(wiring.source_key(name) for name in wiring.pipeline().builder.label_sources),
        ],
        backfill_policy=wiring.backfill_policy(wiring.served),
        pool=wiring.spec.dagster.pool,
        required_resource_keys=wiring.resource_keys,
        check_specs=[check.spec(key) for check in measures.values()],
        automation_condition=condition_of(wiring, "performance"),
    )
    def performance(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.Output[None]]:
        step = RunStep(context, wiring, made)
        with step.at_work():
            log = (evaluate_what_is_due if step.of_whole_job else evaluate)(step)
        yield from log.finish(*measures.values())

    return performance
