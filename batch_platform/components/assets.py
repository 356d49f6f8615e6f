"""The assets of a pipeline: raw sources, features, model, predictions, performance.

Each asset calls one step of `pipeline.py` for the partitions of its run and logs each partition as it commits. In a pipeline's own
jobs, the steps of model and predictions first build the features that they lack; in the job that brings a pipeline up to date,
the step of the predictions also trains the models that are due.
"""

import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import dagster as dg

from batch_platform.components import checks, commits, describe, lineage
from batch_platform.components.commits import Commit
from batch_platform.components.dagster_internals import LOGGED_IN_THE_BODY, observed_version_tags
from batch_platform.components.events import PartitionLog, engine_heard
from batch_platform.components.jobs import (
    FeaturesConfig,
    PredictionsConfig,
    TrainingConfig,
    is_of_job,
    name_of_whole,
    training_config,
    training_schema,
)
from batch_platform.components.resources import IO_MANAGER_KEY
from batch_platform.components.runs import targets
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, clear_failures, now, stamp_of
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, NoChampionError, SourceError
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import training_window
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import features_due, make_plan, with_snapshots_over
from batch_platform.pipeline.recorded import recorded_evaluations, recorded_predictions
from batch_platform.pipeline.replay import replay
from batch_platform.pipeline.steps import Step
from batch_platform.pipeline.train import Trained
from batch_platform.pipeline.wanted import Wanted, error_of, failures_of
from batch_platform.scoring.orders import Watch
from batch_platform.scoring.run import Committed


def build_assets(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """Build all assets of a pipeline, sources first, except those that are somebody else's assets."""
    sources = [_source(wiring, name) for name, source in wiring.spec.sources.items() if source.asset is None]
    features = _features(wiring)
    model = _model(wiring, features)
    upstream = _Upstream(wiring, features, model)
    predictions = _predictions(upstream)
    return [*sources, features, model, predictions, _performance(upstream, predictions)]


def _source(wiring: Wiring, name: str) -> dg.AssetsDefinition:
    source, key = wiring.spec.sources[name], wiring.key(name)

    @dg.multi_observable_source_asset(
        name=key.to_python_identifier(),
        specs=[
            dg.AssetSpec(
                key,
                group_name=wiring.spec.name,
                owners=wiring.spec.owners,
                kinds={source.kind},
                description=describe.source(wiring, name),
                metadata=lineage.source(wiring, name),
            )
        ],
        partitions_def=wiring.partitions if source.by_partition else None,
    )
    def observe(context: dg.AssetExecutionContext) -> dg.ObserveResult:
        with clear_failures():
            if source.by_partition:
                _observe_partitions(context, wiring, name)
            else:
                _observe_whole(context, wiring, name)
        return dg.ObserveResult(asset_key=key, metadata=LOGGED_IN_THE_BODY)

    return observe


def _observe_whole(context: dg.AssetExecutionContext, wiring: Wiring, name: str) -> None:
    calendar, sources = wiring.spec.partitions.calendar, wiring.pipeline().builder.sources
    due = calendar.due(now())
    newest = due[-1] if due else calendar.holding(calendar.first_start)
    state = sources.state(name, newest)
    version = state.version if newest is None else sources.version(name, newest)
    _log_observed(context, wiring, name, None, version, describe.source_state(state, by_partition=False))


def _observe_partitions(context: dg.AssetExecutionContext, wiring: Wiring, name: str) -> None:
    """Observe the partitions of the run, or all that are due, except those whose file is missing."""
    sources = wiring.pipeline().builder.sources
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()
    for partition in wiring.named(keys) or wiring.spec.partitions.calendar.due(now()):
        try:
            sources.version(name, partition)
        except SourceError:
            continue
        state = sources.state(name, partition)
        metadata = describe.source_state(state, by_partition=True)
        _log_observed(context, wiring, name, partition.key, state.version, metadata)


def _observe_sources(context: dg.AssetExecutionContext, wiring: Wiring, partitions: Sequence[Partition]) -> None:
    """Log the state of the sources that a run reads.

    A source is opened only if its version is new, and never if it has a file for each partition. A source whose file is
    missing is left out: the build that needs it reports it. So is an asset of somebody else that has data versions of its own.
    """
    for name in wiring.pipeline().builder.feature_sources:
        if wiring.spec.sources[name].asset is not None and _has_own_versions(context, wiring.source_key(name)):
            continue
        by_partition = wiring.spec.sources[name].by_partition
        for partition in partitions if by_partition else partitions[:1]:
            with suppress(SourceError):
                version = wiring.pipeline().builder.sources.version(name, partition)
                metadata = {} if by_partition else _source_metadata(context, wiring, name, partition, version)
                _log_observed(context, wiring, name, partition.key if by_partition else None, version, metadata)


def _has_own_versions(context: dg.AssetExecutionContext, asset: dg.AssetKey) -> bool:
    """Whether an asset was materialized, or observed by anything but a pipeline."""
    record = context.instance.get_latest_data_version_record(asset)
    observation = record.event_log_entry.asset_observation if record else None
    return record is not None and (observation is None or PIPELINE_TAG not in observation.tags)


def _source_metadata(
    context: dg.AssetExecutionContext, wiring: Wiring, name: str, partition: Partition, version: str
) -> Mapping[str, Any]:
    """Describe a source: as last observed if its version is the same, else by reading it.

    A source whose rows can only be counted by reading all of them is not read here: *Observe* does that. Where equal
    versions do not mean equal rows, the number of rows is not repeated.
    """
    kind = wiring.pipeline().builder.sources.kind(name)
    record = context.instance.get_latest_data_version_record(wiring.source_key(name))
    last = record.event_log_entry.asset_observation if record else None
    if last is not None and last.metadata and last.data_version == version:
        dropped = None if kind.version_fixes_rows else describe.ROW_COUNT
        return {key: value for key, value in last.metadata.items() if key != dropped}
    if not kind.counts_quickly:
        return {}
    return describe.source_state(wiring.pipeline().builder.sources.state(name, partition), by_partition=False)


def _log_observed(  # noqa: PLR0913 - what makes up an observation
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    name: str,
    partition_key: str | None,
    version: str,
    metadata: Mapping[str, Any],
) -> None:
    tags = observed_version_tags(version) | {PIPELINE_TAG: wiring.spec.name}
    key = wiring.source_key(name)
    context.log_event(dg.AssetObservation(asset_key=key, partition=partition_key, metadata=metadata, tags=tags))


def _features(wiring: Wiring) -> dg.AssetsDefinition:
    key = wiring.key("features")

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb" if wiring.spec.features.sql else "polars", "parquet"},
        description=describe.whole_job(wiring) + describe.features(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=wiring.pipeline().builder.code_version,
        metadata={**wiring.metadata, **lineage.features(wiring)},
        partitions_def=wiring.partitions,
        deps=[wiring.source_key(name) for name in wiring.pipeline().builder.feature_sources],
        backfill_policy=wiring.backfill_policy(wiring.partitions),
        pool=wiring.spec.dagster.pool,
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
    _observe_sources(context, wiring, partitions)
    log = PartitionLog(context, spec, len(partitions))
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
                _train(wiring, pipeline, period, stamp_of(context.run.run_id), config, log)


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
        self, context: dg.AssetExecutionContext, log: PartitionLog, asset: Step, due: Sequence[Partition]
    ) -> None:
        """Log the partitions of the run that are up to date: Dagster takes what a failed run does not log as failed."""
        pipeline = self.wiring.pipeline()
        pipeline.publish()
        state = pipeline.state()
        left_out = {partition.key for partition in due} | {
            failure.partition_key for failure in failures_of(state, {context.run.run_id})
        }
        known = state.scores if asset == "predictions" else state.evaluations
        keys = [key for key in context.partition_keys if key not in left_out and key in known]
        if asset == "predictions":
            scored = recorded_predictions(pipeline, state, keys)
            made = (commits.predictions(self.wiring, it) for it in scored)
        else:
            evaluated = recorded_evaluations(pipeline, state, keys)
            made = (commits.performance(self.wiring, it) for it in evaluated)
        for commit in made:
            last = not due and commit.partition_key == keys[-1]
            whole = _as_a_whole(self.wiring, log, asset, commit) if last else None
            log.committed(commit, metadata=whole, retold=True)


def _predictions(upstream: _Upstream) -> dg.AssetsDefinition:
    wiring = upstream.wiring
    key, of_rows = wiring.key("predictions"), checks.predictions(wiring)
    of_challengers = [checks.CHALLENGERS_SCORED] if wiring.spec.challengers else []
    model = dg.AssetDep(wiring.key("model"), partition_mapping=wiring.serving)

    @dg.asset(
        key=key,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={"duckdb", "table"},
        description=describe.whole_job(wiring) + describe.predictions(wiring),
        io_manager_key=IO_MANAGER_KEY,
        code_version=wiring.pipeline().scoring_code_version,
        metadata={"dagster/table_name": f"{wiring.spec.name}.predictions", **lineage.predictions(wiring)},
        partitions_def=wiring.served,
        deps=[wiring.key("features"), model],
        backfill_policy=wiring.backfill_policy(wiring.served),
        pool=wiring.spec.dagster.pool,
        check_specs=[check.spec(key) for check in (*of_rows, *of_challengers)],
        freshness_policy=wiring.freshness_policy,
    )
    def predictions(context: dg.AssetExecutionContext, config: PredictionsConfig) -> dg.MaterializeResult:
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
            log = PartitionLog(context, context.assets_def.get_asset_spec(key), len(partitions))
            if upstream.is_due(context):
                upstream.retell(context, log, "predictions", partitions)
            with _failing_later(context, later=followed), _naming_the_whole_job(wiring):
                _score(context, wiring, log, partitions, config)
        return log.finish(*of_rows, *of_challengers)

    return predictions


def _score(
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    log: PartitionLog,
    partitions: Sequence[Partition],
    config: PredictionsConfig,
) -> None:
    """Score partitions and log them."""
    pipeline, stamp = wiring.pipeline(), stamp_of(context.run.run_id)
    with engine_heard(context), closing(_scored(pipeline, partitions, stamp, config, log.on_the_way)) as results:
        for done in results:
            commit = commits.predictions(wiring, done)
            read_from = lineage.scored(wiring, pipeline, done, partitions[-1])
            if done.partition == partitions[-1]:
                read_from |= _as_a_whole(wiring, log, "predictions", commit)
            log.committed(commit, metadata=read_from | describe.speed(done))


def _as_a_whole(wiring: Wiring, log: PartitionLog, table: Step, commit: Commit) -> dict[str, Any]:
    """Metadata of a table, and its chart, for the last partition that a run logs."""
    rule = wiring.spec.monitoring.performance if table == "performance" else None
    bound = None if rule is None else rule.warn_below
    chart = describe.by_partition(commit.charted or "", log.charted(commit, wiring.served), bound)
    return {**chart, **describe.stored_table(wiring, table)}


def _score_what_failed(
    context: dg.AssetExecutionContext, upstream: _Upstream, predictions: dg.AssetsDefinition, wanted: Wanted
) -> None:
    """Score what an earlier run left out, where a run is executed again from its failure, which is this last step."""
    wiring = upstream.wiring
    steps = context.run.step_keys_to_execute
    if steps is None or wiring.key("predictions").to_python_identifier() in steps:
        return
    partitions = upstream.make(context, wanted)
    log = PartitionLog(context, predictions.get_asset_spec(wiring.key("predictions")), len(partitions))
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


def _performance(upstream: _Upstream, predictions: dg.AssetsDefinition) -> dg.AssetsDefinition:
    wiring = upstream.wiring
    key, measures = wiring.key("performance"), checks.measures(wiring)

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
        check_specs=[check.spec(key) for check in measures.values()],
    )
    def performance(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with wiring.step(context) as pipeline:
            partitions = wiring.named(context.partition_keys)
            if upstream.is_due(context):
                wanted = Wanted(partitions, now())
                _score_what_failed(context, upstream, predictions, wanted)
                due = wanted.rest(wiring.spec, pipeline.state(), {context.run.run_id}).of("performance")
                partitions = [item.partition for item in due]
            log = PartitionLog(context, context.assets_def.get_asset_spec(key), len(partitions))
            if upstream.is_due(context):
                upstream.retell(context, log, "performance", partitions)
            with _failing_later(context, later=upstream.is_due(context)):
                for evaluated in pipeline.evaluate(partitions, stamp_of(context.run.run_id)):
                    commit, last = commits.performance(wiring, evaluated), evaluated.partition == partitions[-1]
                    whole = _as_a_whole(wiring, log, "performance", commit) if last else None
                    log.committed(commit, metadata=whole)
            if upstream.is_due(context) and (error := error_of(wiring.spec, pipeline.state(), {context.run.run_id})):
                raise error
        return log.finish(*measures.values())

    return performance
