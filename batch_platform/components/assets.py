"""The assets of a pipeline: raw sources, features, model, predictions with drift, performance.

Each asset calls one step of `pipeline.py` for the partitions of its run and logs each partition as it commits. In a pipeline's own
jobs, the steps of model and predictions first build the features that they lack; in the job that brings a pipeline up to date,
the step of the predictions also trains the models that are due.
"""

import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import dagster as dg

from batch_platform.components import checks, commits, describe, lineage
from batch_platform.components.commits import Commit
from batch_platform.components.dagster_internals import LOGGED_IN_THE_BODY
from batch_platform.components.events import PartitionLog, cluster_heard
from batch_platform.components.jobs import (
    FeaturesConfig,
    PredictionsConfig,
    TrainingConfig,
    is_of_job,
    name_of_whole,
    training_config,
    training_schema,
)
from batch_platform.components.observing import observe_sources, source_asset
from batch_platform.components.resources import IO_MANAGER_KEY
from batch_platform.components.runs import targets
from batch_platform.components.wiring import Wiring, now, stamp_of
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError, NoChampionError, listed
from batch_platform.declaration.inputs import Features
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import training_window
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan, with_snapshots_over
from batch_platform.pipeline.recorded import recorded_evaluations, recorded_predictions
from batch_platform.pipeline.replay import replay
from batch_platform.pipeline.state import features_due
from batch_platform.pipeline.train import Trained
from batch_platform.pipeline.wanted import Wanted, error_of, failures_of
from batch_platform.scoring.orders import Watch
from batch_platform.scoring.run import Committed


def build_assets(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """Build all assets of a pipeline, sources first, except those that are somebody else's assets."""
    sources = [source_asset(wiring, name) for name, source in wiring.spec.sources.items() if source.asset is None]
    features = _features(wiring)
    model = _model(wiring, features)
    upstream = _Upstream(wiring, features, model)
    predictions = _predictions(upstream)
    return [*sources, features, model, predictions, _performance(upstream, predictions)]


def _made_by(features: Features) -> str:
    """The kind that Dagster shows for what makes features."""
    if features.spark_sql is not None:
        return "spark"
    return "polars" if features.sql is None else "duckdb"


def _features(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("features")

    @dg.asset(
        key=key,
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
    )
    def features(context: dg.AssetExecutionContext, config: FeaturesConfig) -> dg.MaterializeResult:
        followed = wiring.key("predictions") in (context.run.asset_selection or ())
        with wiring.step(context, last=not followed), _failing_later(context, later=followed):
            spec = context.assets_def.get_asset_spec(key)
            _build(context, wiring, spec, wiring.named(context.partition_keys), force=config.force)
        return dg.MaterializeResult(asset_key=key, metadata=LOGGED_IN_THE_BODY)

    return features


def _build(
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    spec: dg.AssetSpec,
    partitions: Sequence[Partition],
    *,
    force: bool,
) -> None:
    """Build the features of partitions and log them."""
    observe_sources(context, wiring, partitions)
    log = PartitionLog(context, spec, len(partitions))
    with cluster_heard(context, wiring):
        for built in wiring.pipeline().build_features(partitions, stamp_of(context.run.run_id), force=force):
            read_from = lineage.built(wiring, built, partitions[-1])
            log.committed(commits.features(wiring, built), metadata=read_from, findings=built.findings)


def _build_lacking(
    context: dg.AssetExecutionContext, wiring: Wiring, features: dg.AssetsDefinition, partitions: Sequence[Partition]
) -> None:
    """Build the features that partitions lack, in a step of another asset. What fails on its own is left to the end of the step."""
    state = with_snapshots_over(wiring.spec, wiring.pipeline().state(), now())
    if lacking := [partition for partition in partitions if features_due(state, partition)]:
        with _failing_later(context, later=True):
            _build(context, wiring, features.get_asset_spec(wiring.key("features")), lacking, force=False)


@contextmanager
def _failing_later(context: dg.AssetExecutionContext, *, later: bool) -> Generator[None]:
    """Warn of partitions that are set apart, where a later step of the run fails in their place."""
    try:
        yield
    except BatchPlatformError as error:
        if not (later and error.set_apart):
            raise
        context.log.debug(redact("".join(traceback.format_exception(error))))
        context.log.warning("%s The other partitions go on; then this run fails.", error)


def _model(wiring: Wiring, features: dg.AssetsDefinition) -> dg.AssetsDefinition:
    key = wiring.key("model")
    history = dg.AssetDep(wiring.key("features"), partition_mapping=wiring.history)
    of_challengers = [checks.CHALLENGERS_TRAINED] if wiring.spec.challengers else []

    @dg.asset(
        key=key,
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
    )
    def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        config = training_config(wiring, context.op_execution_context.op_config)
        builds = is_of_job(context.run, wiring, "train")
        with wiring.step(context) as pipeline:
            due = _asked_periods(wiring, context, config)
            if builds:
                dropped = pipeline.state().dropped
                windows = [training_window(wiring.spec, period.start, dropped) for period in due]
                _build_lacking(context, wiring, features, list(dict.fromkeys(chain.from_iterable(windows))))
            log = PartitionLog(context, context.assets_def.get_asset_spec(key), len(due))
            with _failing_later(context, later=builds):
                _train_all(context, wiring, log, [(period, config) for period in due])
            if builds and (error := error_of(wiring.spec, pipeline.state(), {context.run.run_id})):
                raise error
        return log.finish(checks.GATE, checks.NO_SUSPECTED_LEAKS, *of_challengers)

    return model


def _train_all(
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    log: PartitionLog,
    due: Sequence[tuple[Partition, TrainingConfig]],
) -> None:
    """Train the models of serving periods and log them."""
    pipeline, stamp = wiring.pipeline(), stamp_of(context.run.run_id)
    with pipeline.setting_apart("model", stamp, len(due)) as apart:
        for period, config in due:
            with apart.attempt(period.key):
                _train(wiring, pipeline, period, stamp, config, log)


def _train(  # noqa: PLR0913 - a serving period, and what all of them share
    wiring: Wiring, pipeline: Pipeline, period: Partition, stamp: Stamp, config: TrainingConfig, log: PartitionLog
) -> None:
    """Train the model of a serving period and its challengers, or only the challengers it lacks, and log them."""
    partition_key = None if wiring.serving_periods is None else period.key
    if config.challengers_only:
        done = pipeline.challenge(period, stamp)
        log.observed(partition_key or period.key, partition_key, metadata=describe.trained_challengers(done))
        for standing in _standing(pipeline, period):
            log.count(checks.GATE, standing)
            log.count(checks.NO_SUSPECTED_LEAKS, standing)
        if done:
            log.check(checks.CHALLENGERS_TRAINED, partition_key, [challenger.training for challenger in done])
    else:
        trained = pipeline.train(period, stamp, params=config.params)
        log.committed(commits.model(wiring, trained), trained=trained)


def _standing(pipeline: Pipeline, period: Partition) -> list[Trained]:
    """The newest model of a serving period with the last decision on it; none if there is no model."""
    registry = pipeline.state().registry
    newest = [version for version in registry.of_model if version.serving_period == period.key][-1:]
    return [Trained(version, last) for version in newest if (last := registry.last_decision(version.version))]


def _asked_periods(wiring: Wiring, context: dg.AssetExecutionContext, config: TrainingConfig) -> list[Partition]:
    if wiring.serving_periods is None:
        scored = [key for asset, key in targets(wiring, context.run) if asset == "predictions"]
        return [_single_period(wiring, config.until, wiring.named(scored))]
    periods = [wiring.serving_period(key) for key in context.partition_keys]
    return sorted(periods, key=lambda period: period.start)


def _single_period(wiring: Wiring, until: str | None, scored: Sequence[Partition]) -> Partition:
    """The first partition that an unpartitioned model serves: as requested, otherwise as planned, otherwise the newest.

    It has to serve the partitions that are `scored` in the same run.
    """
    calendar = wiring.spec.partitions.calendar
    if until is not None:
        return calendar.named(until)
    plan = make_plan(wiring.spec, wiring.pipeline().state(), now(), only=scored or None, serve_all=bool(scored))
    planned = plan.of("model")
    if planned:
        return planned[0].partition
    due = calendar.due(now())
    if not due:
        msg = f"{wiring.spec.name} has no partition yet."
        raise BatchPlatformError(msg, hint="see partitions.start.")
    return due[-1]


@contextmanager
def _naming_the_whole_job(wiring: Wiring) -> Generator[None]:
    """Name the job that trains a missing model first, as Dagster's own *Materialize all* does not for the same partitions."""
    try:
        yield
    except NoChampionError as error:
        hint = f"launch the job {name_of_whole(wiring.spec.name)}, which first trains the models that are due; or {error.hint}"
        named = NoChampionError(error.message, hint=hint)
        named.set_apart = error.set_apart
        raise named from error


@dataclass(frozen=True)
class _Upstream:
    """What the predictions read, and what they lack in the job that brings a pipeline up to date."""

    wiring: Wiring
    features: dg.AssetsDefinition
    model: dg.AssetsDefinition

    def is_due(self, context: dg.AssetExecutionContext) -> bool:
        """Whether a step belongs to the job that makes what is due upstream."""
        return context.run.job_name == name_of_whole(self.wiring.spec.name)

    def make(self, context: dg.AssetExecutionContext, wanted: Wanted) -> list[Partition]:
        """Build the features and train the models that partitions lack; returns those that are to be scored then.

        What fails on its own is left to the end of the run.
        """
        wiring, spec, run_id = self.wiring, self.wiring.spec, context.run.run_id
        pipeline = wiring.pipeline()
        plan = wanted.plan(spec, pipeline.state(recheck=wanted.recheck))
        for item in (*plan.of("model"), *plan.blocked):
            context.log.info("%s %s: %s", item.step, item.partition.key, item.reason)
        if partitions := [item.partition for item in plan.of("features")]:
            built = self.features.get_asset_spec(wiring.key("features"))
            with _failing_later(context, later=True):
                _build(context, wiring, built, partitions, force=wanted.force)
        if models := plan.of("model", "challengers"):
            log = PartitionLog(context, self.model.get_asset_spec(wiring.key("model")), len(models))
            due = [(item.partition, TrainingConfig(challengers_only=item.step == "challengers")) for item in models]
            with _failing_later(context, later=True):
                _train_all(context, wiring, log, due)
        state = pipeline.state(recheck=wanted.recheck)
        return [item.partition for item in wanted.rest(spec, state, {run_id}).of("predictions")]

    def retell(
        self, context: dg.AssetExecutionContext, log: "PartitionLog | _ScoringLog", due: Sequence[Partition]
    ) -> None:
        """Log the partitions of the run that are up to date: Dagster takes what a failed run does not log as failed."""
        pipeline = self.wiring.pipeline()
        pipeline.publish()
        state = pipeline.state()
        left_out = {partition.key for partition in due} | {
            failure.partition_key for failure in failures_of(state, {context.run.run_id})
        }
        keys = [key for key in context.partition_keys if key not in left_out]
        if isinstance(log, _ScoringLog):
            keys = [key for key in keys if key in state.scores]
            for scored in recorded_predictions(pipeline, state, keys):
                log.committed(scored, last=not due and scored.partition.key == keys[-1], retold=True)
            return
        keys = [key for key in keys if key in state.evaluations]
        for evaluated in recorded_evaluations(pipeline, state, keys):
            commit = commits.performance(self.wiring, evaluated)
            last = not due and commit.partition_key == keys[-1]
            whole = _as_a_whole(self.wiring, log, "performance", commit) if last else None
            log.committed(commit, metadata=whole, retold=True)


class _ScoringLog:
    """Logs committed predictions and, where it is declared, the drift that was committed with them."""

    def __init__(
        self, context: dg.AssetExecutionContext, wiring: Wiring, scoring: dg.AssetsDefinition, total: int
    ) -> None:
        """See `PartitionLog`."""
        self._wiring, self._selected = wiring, context.selected_asset_keys
        self._predictions = PartitionLog(context, scoring.get_asset_spec(wiring.key("predictions")), total)
        self._drift = None
        if wiring.spec.monitoring.drift is not None:
            self._drift = PartitionLog(context, scoring.get_asset_spec(wiring.key("drift")), total)
        self.on_the_way = self._predictions.on_the_way

    def committed(
        self, scored: Committed, *, last: bool, metadata: Mapping[str, Any] | None = None, retold: bool = False
    ) -> None:
        """Log a partition; with the `last` one, what its tables hold as a whole."""
        commit = commits.predictions(self._wiring, scored)
        whole = _as_a_whole(self._wiring, self._predictions, "predictions", commit) if last else {}
        self._predictions.committed(commit, metadata={**whole, **(metadata or {})}, retold=retold)
        if self._drift is not None:
            self._drift.made_before(self._wiring.key("predictions"), commit)
            commit = commits.drift(self._wiring, scored)
            whole = _as_a_whole(self._wiring, self._drift, "drift", commit) if last and commit.rows else {}
            self._drift.committed(commit, metadata=whole, retold=True)

    def finish(self) -> Iterator[dg.MaterializeResult]:
        """The outputs of the step that the run asks for."""
        wiring = self._wiring
        if wiring.key("predictions") in self._selected:
            yield self._predictions.finish(*checks.predictions(wiring))
        if self._drift is not None and wiring.key("drift") in self._selected:
            yield self._drift.finish(*checks.of_measures(wiring, "drift").values())


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
            **shared,
        )
        yield drift.with_io_manager_key(IO_MANAGER_KEY)


def _predictions(upstream: _Upstream) -> dg.AssetsDefinition:
    """The predictions and the drift, which one transaction commits, and so one step makes.

    With both, Dagster may ask for one of them, or for a check alone: drift without predictions is told as it is recorded.
    """
    wiring = upstream.wiring
    key = wiring.key("predictions")
    of_drift = [check.spec(wiring.key("drift")) for check in checks.of_measures(wiring, "drift").values()]

    @dg.multi_asset(
        name=key.to_python_identifier(),
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
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        if key not in context.selected_asset_keys:
            yield from _told_as_recorded(context, wiring)
            return
        followed = upstream.is_due(context) and wiring.key("performance") in (context.run.asset_selection or ())
        with wiring.step(context, last=not followed):
            partitions = wiring.named(context.partition_keys)
            if upstream.is_due(context):
                options = {
                    name: getattr(config, name) for name in ("force", "model", "recheck", "retrain", "serve_all")
                }
                partitions = upstream.make(context, Wanted(partitions, now(), **options))
            elif is_of_job(context.run, wiring, "score") and not config.replay:
                _build_lacking(context, wiring, upstream.features, partitions)
            log = _ScoringLog(context, wiring, context.assets_def, len(partitions))
            if upstream.is_due(context):
                upstream.retell(context, log, partitions)
            with _failing_later(context, later=followed), _naming_the_whole_job(wiring):
                _score(context, wiring, log, partitions, config)
        yield from log.finish()

    return predictions


def _told_as_recorded(
    context: dg.AssetExecutionContext, wiring: Wiring
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """Log the drift of partitions, or the results of checks alone, from what is recorded; nothing is scored.

    A run of checks alone may name no partition: then it is about all of them. Raises DataError if a partition is not scored.
    """
    with wiring.step(context) as pipeline:
        state = pipeline.state()
        asked = context.partition_keys if context.has_partition_key or context.has_partition_key_range else state.scores
        if missing := [name for name in asked if name not in state.scores]:
            msg = f"{wiring.spec.name}: partition {listed(missing)} is not scored yet."
            raise DataError(msg, hint=f"launch the job {name_of_whole(wiring.spec.name)}, which scores it first.")
        recorded = list(recorded_predictions(pipeline, state, sorted(asked)))
        log = PartitionLog(context, context.assets_def.get_asset_spec(wiring.key("drift")), len(recorded))
        if wiring.key("drift") in context.selected_asset_keys:
            for scored in recorded:
                log.committed(commits.drift(wiring, scored))
    if wiring.key("drift") in context.selected_asset_keys:
        yield log.finish(*checks.of_measures(wiring, "drift").values())
    for check, asset in {
        **dict.fromkeys(checks.predictions(wiring), "predictions"),
        **dict.fromkeys(checks.of_measures(wiring, "drift").values(), "drift"),
    }.items():
        key = wiring.key(asset)
        if key not in context.selected_asset_keys and check.key(key) in context.selected_asset_check_keys:
            made = [(commits.drift if asset == "drift" else commits.predictions)(wiring, it) for it in recorded]
            looked_at = [value for it in made for known, value in it.checked.items() if known.name == check.name]
            yield check.result(looked_at, key)


def _score(
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    log: _ScoringLog,
    partitions: Sequence[Partition],
    config: PredictionsConfig,
) -> None:
    """Score partitions and log them."""
    pipeline, stamp = wiring.pipeline(), stamp_of(context.run.run_id)
    with (
        cluster_heard(context, wiring),
        closing(_scored(pipeline, partitions, stamp, config, log.on_the_way)) as results,
    ):
        for done in results:
            read_from = lineage.scored(wiring, pipeline, done, partitions[-1])
            last = done.partition == partitions[-1]
            log.committed(done, last=last, metadata=read_from | describe.speed(done))


def _as_a_whole(
    wiring: Wiring, log: PartitionLog, table: Literal["predictions", "drift", "performance"], commit: Commit
) -> dict[str, Any]:
    """Metadata of a table, and its chart, for the last partition that a run logs."""
    performance, drift = wiring.spec.monitoring.performance, wiring.spec.monitoring.drift
    bound = None
    if table == "performance" and performance is not None:
        bound = performance.warn_below
    if table == "drift" and drift is not None:
        bound = drift.warn
    chart = describe.by_partition(commit.charted or "", log.charted(commit, wiring.served), bound)
    return {**chart, **commits.stored_table(wiring, table)}


def _score_what_failed(
    context: dg.AssetExecutionContext, upstream: _Upstream, predictions: dg.AssetsDefinition, wanted: Wanted
) -> None:
    """Score what an earlier run left out, where a run is executed again from its failure, which is this last step."""
    wiring = upstream.wiring
    steps = context.run.step_keys_to_execute
    if steps is None or wiring.key("predictions").to_python_identifier() in steps:
        return
    partitions = upstream.make(context, wanted)
    log = _ScoringLog(context, wiring, predictions, len(partitions))
    with _failing_later(context, later=True):
        _score(context, wiring, log, partitions, PredictionsConfig())


def _scored(
    pipeline: Pipeline, partitions: Sequence[Partition], stamp: Stamp, config: PredictionsConfig, watch: Watch
) -> Generator[Committed]:
    if not config.replay:
        yield from pipeline.score(partitions, stamp, force=config.force, version=config.model, watch=watch)
        return
    if config.force or config.model:
        msg = f"{pipeline.spec.name}: `replay` goes with neither `force` nor `model`."
        raise BatchPlatformError(msg, hint="leave `replay` out to score whole partitions.")
    yield from replay(pipeline, partitions, stamp)


def _rechecks(context: dg.AssetExecutionContext, wiring: Wiring) -> bool:
    """Return whether the run compares partitions with their sources however old they are, as its step of the predictions is told."""
    ops: Any = context.run.run_config.get("ops", {})
    config = ops.get(wiring.key("predictions").to_python_identifier(), {}).get("config", {})
    return PredictionsConfig(**config).recheck


def _performance(upstream: _Upstream, predictions: dg.AssetsDefinition) -> dg.AssetsDefinition:
    wiring = upstream.wiring
    key, measures = wiring.key("performance"), checks.of_measures(wiring, "performance")

    @dg.asset(
        key=key,
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
    )
    def performance(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with wiring.step(context) as pipeline:
            partitions, stamp = wiring.named(context.partition_keys), stamp_of(context.run.run_id)
            if upstream.is_due(context):
                wanted = Wanted(partitions, stamp.at)
                _score_what_failed(context, upstream, predictions, wanted)
                plan = wanted.rest(
                    wiring.spec, pipeline.state(recheck=_rechecks(context, wiring)), {context.run.run_id}
                )
                partitions = [item.partition for item in plan.of("performance")]
            awaited = pipeline.awaited_labels(partitions, stamp.at)
            partitions = [partition for partition in partitions if partition.key not in awaited]
            log = PartitionLog(context, context.assets_def.get_asset_spec(key), len(partitions))
            for partition_key, reason in awaited.items():
                log.waiting(partition_key, reason)
            if upstream.is_due(context):
                upstream.retell(context, log, partitions)
            with _failing_later(context, later=upstream.is_due(context)):
                for evaluated in pipeline.evaluate(partitions, stamp):
                    commit, last = commits.performance(wiring, evaluated), evaluated.partition == partitions[-1]
                    whole = _as_a_whole(wiring, log, "performance", commit) if last else None
                    log.committed(commit, metadata=whole)
            if upstream.is_due(context) and (error := error_of(wiring.spec, pipeline.state(), {context.run.run_id})):
                raise error
        return log.finish(*measures.values())

    return performance
