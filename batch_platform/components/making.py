"""One step of a run at work: the features and models that it makes, also those that the partitions of another asset lack."""

import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import dagster as dg

from batch_platform.components import checks, commits, describe, lineage
from batch_platform.components.dagster_internals import assets_of_run
from batch_platform.components.events import PartitionLog, cluster_heard
from batch_platform.components.jobs import Duty, TrainingConfig, announced, is_of_job, name_of_whole
from batch_platform.components.observing import NeverMaterialized, never_materialized, observe_sources
from batch_platform.components.wiring import Wiring, now, stamp_of
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.set_apart import error_of, failures_of, setting_apart
from batch_platform.planning.artifacts import features_due, with_snapshots_over
from batch_platform.planning.plan import make_plan, remaining
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.trainings import training_asked_for
from batch_platform.warehouse.lock import folder_locked


@dataclass(frozen=True)
class RunStep:
    """One step of a run."""

    context: dg.AssetExecutionContext
    wiring: Wiring
    made: Mapping[str, dg.AssetsDefinition]  # assets of the pipeline, by name
    _logs: list[PartitionLog] = field(default_factory=list[PartitionLog], init=False, repr=False, compare=False)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline in the home of this process."""
        return self.wiring.pipeline()

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.context.run.run_id

    @property
    def partitions(self) -> list[Partition]:
        """The partitions of the run, oldest first."""
        return self.wiring.named(self.context.partition_keys)

    @property
    def of_whole_job(self) -> bool:
        """Return whether the run is of the job that brings a pipeline up to date, which makes what is due upstream."""
        return self.context.run.job_name == name_of_whole(self.wiring.spec.name)

    def is_of(self, *duties: Duty) -> bool:
        """Return whether the run is of one of these jobs of the pipeline."""
        return is_of_job(self.context.run, self.wiring, *duties)

    def is_followed_by(self, *assets: str) -> bool:
        """Return whether another step of the run makes one of some assets."""
        return not assets_of_run(self.context).isdisjoint(map(self.wiring.key, assets))

    def stamp(self) -> Stamp:
        """The stamp of work that begins now."""
        return stamp_of(self.run_id)

    @contextmanager
    def at_work(self, *, last: bool = True) -> Generator[Pipeline]:
        """The pipeline for the length of the step, also of one that fails, whose results of checks are logged at its end; see `Wiring.step`."""
        with self.wiring.step(self.context, last=last) as pipeline:
            try:
                yield pipeline
            finally:
                for log in self._logs:
                    log.flush()

    def spec(self, asset: str) -> dg.AssetSpec:
        """The spec of an asset: of the step itself as its definition stands in the run."""
        key = self.wiring.key(asset)
        own = self.context.assets_def
        return (own if key in own.keys else self.made[asset]).get_asset_spec(key)

    def log(self, asset: str, total: int) -> PartitionLog:
        """A log of so many partitions of an asset."""
        log = PartitionLog(self.context, self.spec(asset), self.wiring.spec.partitions.calendar, total)
        self._logs.append(log)
        return log

    @contextmanager
    def failing_later(self, *, later: bool = True) -> Generator[None]:
        """Warn of partitions that are set apart, where a later step of the run fails in their place by what is recorded."""
        try:
            yield
        except BatchPlatformError as error:
            recorded = {failure.partition_key for failure in failures_of(self.pipeline.state(), {self.run_id})}
            if not (later and error.set_apart and recorded.issuperset(error.set_apart)):
                raise
            self.context.log.debug(redact("".join(traceback.format_exception(error))))
            self.context.log.warning("%s The other partitions go on; then this run fails.", error)

    def require_nothing_failed(self) -> None:
        """Raise one error that names everything that failed in the run while the rest was done."""
        if error := error_of(self.wiring.spec, self.pipeline.state(), {self.run_id}):
            raise error

    def build(self, partitions: Sequence[Partition], *, force: bool = False) -> None:
        """Build the features of partitions and log them."""
        observe_sources(self.context, self.wiring, partitions)
        log = self.log("features", len(partitions))
        with cluster_heard(self.context, self.wiring):
            absent = never_materialized(self.context, self.wiring, self.pipeline.builder.feature_sources)
            builds = self.pipeline.build_features(partitions, self.stamp(), force=force, absent=absent)
            for built, commit in commits.features_in_turn(self.wiring, builds, partitions[-1].key):
                read_from = lineage.built(self.wiring, built, partitions[-1])
                log.committed(commit, metadata=read_from, findings=built.findings)

    def build_lacking(self, partitions: Sequence[Partition]) -> None:
        """Build the features that partitions lack. What fails on its own is left to the end of the step."""
        state = with_snapshots_over(self.wiring.spec, self.pipeline.state(), now())
        if lacking := [partition for partition in partitions if features_due(state, partition)]:
            with self.failing_later():
                self.build(lacking)

    def build_windows(self, periods: Sequence[Partition]) -> None:
        """Build the features that the training windows of serving periods lack."""
        dropped = self.pipeline.state().dropped
        windows = [self.wiring.spec.periods.window(period.start, dropped) for period in periods]
        self.build_lacking(list(dict.fromkeys(chain.from_iterable(windows))))

    def train(
        self,
        due: Sequence[tuple[Partition, TrainingConfig]],
        log: PartitionLog,
        still_due: Callable[[Partition], bool] = lambda _: True,
    ) -> None:
        """Train the models of serving periods and log them; one that fails alone is set apart.

        One run at a time trains models of a pipeline. One that had to wait leaves out what is no longer `still_due`, since the
        other run registered it.
        """
        stamp = self.stamp()
        pipeline, spec = self.pipeline, self.wiring.spec
        with (
            setting_apart(spec, pipeline.warehouse, pipeline.declared, "model", stamp, len(due)) as apart,
            pipeline.history.reading_once(),
        ):
            for period, config in due:
                with (
                    apart.attempt(period.key),
                    folder_locked(pipeline.home.bundles(spec.name), self._say_that_it_waits),
                ):
                    if not still_due(period):
                        self.context.log.info("model %s is not due any more: another run trained it", period.key)
                    elif config.challengers_only:
                        self._train_challengers(period, stamp, log)
                    else:
                        trained = pipeline.train(period, stamp, params=config.params, absent=self.absent_labels())
                        log.committed(commits.model(self.wiring, trained), trained=trained)

    def absent_labels(self) -> NeverMaterialized:
        """A function that gives the partitions of assets with labels that were never materialized, by source."""
        return never_materialized(self.context, self.wiring, self.pipeline.builder.label_sources)

    def is_due(self, period: Partition) -> bool:
        """Return whether the model of a serving period is due by what is recorded now."""
        state = self.pipeline.state()
        return training_asked_for(self.wiring.spec, state, now(), period.key, force=False)[1] is not None

    def _say_that_it_waits(self) -> None:
        self.context.log.info("waiting for another run that trains models of %s", self.wiring.spec.name)

    def _train_challengers(self, period: Partition, stamp: Stamp, log: PartitionLog) -> None:
        """Train the challengers that a serving period lacks; its model stays as it is."""
        key = None if self.wiring.serving_periods is None else period.key
        done = self.pipeline.challenge(period, stamp, self.absent_labels())
        log.observed(key or period.key, key, metadata=describe.trained_challengers(done))
        if done:
            log.check(checks.CHALLENGERS_TRAINED, key, [challenger.training for challenger in done])

    def make_upstream(self, request: PlanRequest) -> list[Partition]:
        """Build the features and train the models that partitions lack; returns those that are to be scored then.

        Carries out the plan that was announced, if there is one. What fails on its own is left to the end of the run.
        """
        state = self.pipeline.state(recheck=request.recheck)
        plan = announced() or make_plan(self.wiring.spec, state, request)
        for item in plan.of("model"):
            self.context.log.info("model %s is due: %s", item.partition.key, item.reason)
        for item in plan.blocked:
            self.context.log.info("predictions %s are left out: %s", item.partition.key, item.reason)
        if partitions := [item.partition for item in plan.of("features")]:
            with self.failing_later():
                self.build(partitions, force=request.force)
        if models := plan.of("model", "challengers"):
            due = [(item.partition, TrainingConfig(challengers_only=item.step == "challengers")) for item in models]

            def still_due(period: Partition) -> bool:
                state = self.pipeline.state(recheck=request.recheck)
                left = make_plan(self.wiring.spec, state, request).of("model", "challengers")
                return period.key in {item.partition.key for item in left}

            with self.failing_later():
                self.train(due, self.log("model", len(models)), still_due)
        state = self.pipeline.state(recheck=request.recheck)
        left = remaining(self.wiring.spec, state, request, {self.run_id}, plan)
        return [item.partition for item in left.of("predictions")]
