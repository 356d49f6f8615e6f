"""One pipeline as Dagster sees it: declaration, asset keys, partitions, partition mappings, steps and their errors."""

import os
import traceback
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from pathlib import Path

import dagster as dg

from batch_platform.components.dagster_internals import event_log_kept_open, steps_at_once
from batch_platform.components.held import held, hold
from batch_platform.components.processes import at_work
from batch_platform.declaration.calendar import KEY_FORMATS, LONGEST, Calendar, Duration, Every, Partition
from batch_platform.declaration.errors import BatchPlatformError, WarehouseBusyError
from batch_platform.declaration.notation import parse_deadline
from batch_platform.declaration.redaction import redact, redacted_output
from batch_platform.declaration.spec import ASSETS, PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.threads import THREADS_VARIABLE, threads
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home

NAME_METADATA, FOLDER_METADATA = "batch_platform/features_of", "batch_platform/declared_in"  # metadata of the features
PIPELINE_TAG = "batch_platform/pipeline"
SET_APART = "failed_partitions"  # metadata of a step that failed only after all other partitions were done
_CRONS: dict[Every, str] = {"hour": "0 * * * *", "day": "0 0 * * *", "week": "0 0 * * {weekday}", "month": "0 0 1 * *"}
_SHORTEST_HOURS: dict[Every, int] = {"hour": 1, "day": 24, "week": 7 * 24, "month": 28 * 24}
_ALL_HISTORY_HOURS = 20 * 366 * 24  # what "all history" means in the graph


@dataclass(frozen=True)
class Wiring:
    """One declared pipeline as Dagster sees it."""

    spec: PipelineSpec
    folder: Path  # absolute, with its SQL
    _pipelines: dict[Path, Pipeline] = field(
        default_factory=dict[Path, Pipeline], init=False, repr=False, compare=False
    )

    def pipeline(self) -> Pipeline:
        """The pipeline in the home that the environment names now."""
        home = Home.from_environment()
        return self._pipelines.setdefault(home.root, Pipeline(self.spec, self.folder, home))

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the features, by which the pipeline is found in loaded definitions."""
        return {NAME_METADATA: self.spec.name, **hold(FOLDER_METADATA, f"{self.folder}: {self.spec.name}", self)}

    @staticmethod
    def of(spec: dg.AssetSpec) -> "Wiring | None":
        """The pipeline whose features an asset is; None for any other asset."""
        wiring = held(spec, FOLDER_METADATA)
        return wiring if isinstance(wiring, Wiring) else None

    def key(self, asset: str) -> dg.AssetKey:
        """The key of one of its assets."""
        return dg.AssetKey([self.spec.name, asset])

    def source_key(self, source: str) -> dg.AssetKey:
        """The key of the asset that a source is: one of its own, or somebody else's."""
        declared = self.spec.sources[source].asset
        return self.key(source) if declared is None else dg.AssetKey(declared.split("/"))

    def keys(self, assets: Iterable[str]) -> list[dg.AssetKey]:
        """The keys of some of its assets, with that of the drift, where it is declared, beside the predictions.

        "deliveries" stands for the assets of all deliveries.
        """
        drift = ["drift"] if self.spec.monitoring.drift is not None else []
        several = {"predictions": ["predictions", *drift], "deliveries": self.deliveries}
        return [self.key(made) for asset in assets for made in several.get(asset, [asset])]

    @property
    def deliveries(self) -> list[str]:
        """The assets of the deliveries."""
        return [delivery.asset for delivery in self.spec.predictions.deliver]

    @property
    def op_tags(self) -> dict[str, str]:
        """Tags of every step that makes or checks its assets, by which records of runs tell them from steps of the user's."""
        return {PIPELINE_TAG: self.spec.name}

    @property
    def resource_keys(self) -> set[str]:
        """Keys of the user's resources that the steps need: the one that lends a session of Spark, if it is declared."""
        resource = self.spec.engine.on_spark.resource
        return set() if resource is None else {resource}

    @cached_property
    def partitions(self) -> dg.TimeWindowPartitionsDefinition:
        """The partitions of features, and of sources with a file for each."""
        return _time_windows(self.spec.partitions.calendar)

    @cached_property
    def served(self) -> dg.TimeWindowPartitionsDefinition:
        """The partitions of predictions and performance: those that a model can serve."""
        return _time_windows(self.spec.periods.served)

    @cached_property
    def serving_periods(self) -> dg.TimeWindowPartitionsDefinition | None:
        """The partitions of the model, each from its start on; None if one model serves all partitions."""
        calendar = self.spec.periods.trainable
        return None if calendar is None else _time_windows(calendar)

    def partitions_of(self, asset: str) -> dg.TimeWindowPartitionsDefinition | None:
        """The partitions of one of its assets; None for a model that serves all partitions."""
        if asset == "model":
            return self.serving_periods
        return self.served if asset in ("predictions", "drift", "performance", *self.deliveries) else self.partitions

    @cached_property
    def history(self) -> dg.TimeWindowPartitionMapping | None:
        """The features that the model of a serving period learns from: enough whole periods to cover the window."""
        train = self.spec.model.train
        if train.every is None or self.spec.partitions.snapshot:
            return None
        length = train.window_length
        hours = _ALL_HISTORY_HOURS if length is None else length.days * 24 + length.hours + ceil(length.minutes / 60)
        periods = ceil(hours / _SHORTEST_HOURS[train.every])
        return dg.TimeWindowPartitionMapping(
            start_offset=-periods, end_offset=-1, allow_nonexistent_upstream_partitions=True
        )

    @cached_property
    def serving(self) -> dg.TimeWindowPartitionMapping | None:
        """The model that scores a partition: that of its serving period."""
        if self.serving_periods is None:
            return None
        return dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)

    def backfill_policy(self, partitions: dg.PartitionsDefinition | None) -> dg.BackfillPolicy:
        """The number of partitions of an asset that one run of a backfill takes."""
        most = None if partitions is None else self.spec.dagster.max_partitions_per_run
        return dg.BackfillPolicy.single_run() if most is None else dg.BackfillPolicy.multi_run(most)

    @cached_property
    def freshness_policy(self) -> dg.FreshnessPolicy | None:
        """The rule by which Dagster calls the predictions fresh: their last materialization, whichever partition it was of.

        None where nothing is declared, and where the partitions end: after the last one nothing has to be scored.
        """
        calendar, fresh_by = self.spec.partitions.calendar, self.spec.monitoring.fresh_by
        if fresh_by is None or calendar.end is not None:
            return None
        declared, every = parse_deadline(fresh_by), calendar.every
        if isinstance(declared, Duration):
            clocks = timedelta() if every == "hour" else timedelta(hours=1)  # once a year a day has 25 hours
            return dg.FreshnessPolicy.time_window(LONGEST[every].nominal + declared.nominal + clocks)
        after_midnight = timedelta(hours=declared.hour, minutes=declared.minute)
        whole_day = every == "hour" or not after_midnight
        weekday = calendar.cron_weekday
        at_midnight = {"week": f"* * {(weekday + 1) % 7}", "month": "2 * *"}  # the day after the partition is due
        day = (at_midnight if whole_day else {"week": f"* * {weekday}", "month": "1 * *"}).get(every, "* * *")
        since_due = timedelta(days=1) if whole_day else after_midnight
        return dg.FreshnessPolicy.cron(f"{declared.minute} {declared.hour} {day}", since_due, calendar.zone.key)

    def named(self, keys: Sequence[str]) -> list[Partition]:
        """The partitions of those keys, oldest first."""
        calendar = self.spec.partitions.calendar
        return sorted((calendar.named(key) for key in keys), key=lambda partition: partition.start)

    def serving_period(self, key: str) -> Partition:
        """The serving period of that key."""
        return (self.spec.periods.serving or self.spec.partitions.calendar).named(key)

    @contextmanager
    def step(self, context: dg.AssetExecutionContext, *, last: bool = True) -> Generator[Pipeline]:
        """The pipeline for the length of a step of a run, whose errors are shown clearly.

        What the step did is published at its end; if it is not the `last` of its run, then only if it fails.
        """
        pipeline = self.pipeline()
        _share_threads(context)
        context.instance.add_run_tags(context.run.run_id, {PIPELINE_TAG: self.spec.name})
        with (
            redacted_output(),
            self._beginning_again(context),
            clear_failures(),
            event_log_kept_open(),
            at_work(context),
            pipeline.carrying(context.run.run_id),
        ):
            try:
                yield pipeline
            except BaseException:
                with suppress(BatchPlatformError):  # the first error is the one to show
                    pipeline.conclude(now())
                raise
            if last:
                pipeline.conclude(now())

    @contextmanager
    def _beginning_again(self, context: dg.AssetExecutionContext) -> Generator[None]:
        """Let the step begin again later where another process holds the warehouse, as often as is declared."""
        retry = self.spec.dagster.retry
        try:
            yield
        except dg.Failure as failure:
            if not isinstance(failure.__cause__, WarehouseBusyError) or context.retry_number >= retry.times:
                raise
            raise dg.RetryRequested(retry.times, retry.seconds) from failure


def _share_threads(context: dg.AssetExecutionContext) -> None:
    """Leave threads to the steps that work at the same time in processes of their own, unless the environment says how many."""
    at_once, all_threads = steps_at_once(context, ASSETS), threads()
    if at_once > 1 and THREADS_VARIABLE not in os.environ:
        os.environ[THREADS_VARIABLE] = str(max(1, all_threads // at_once))
        context.log.info("%d pipelines work at once: this step uses %d of %d threads.", at_once, threads(), all_threads)


def now() -> datetime:
    """The current time. Steps of Dagster runs are the edge where the clock may be read."""
    return datetime.now(UTC)


def stamp_of(run_id: str) -> Stamp:
    """The stamp of a run that begins now."""
    return Stamp(run_id=run_id, at=now(), clock=now)


@contextmanager
def clear_failures() -> Generator[None]:
    """Turn our own errors into failures of the step with the same message; only a busy warehouse allows a retry.

    Dagster records an error with all its causes. If one of them holds a secret, only the redacted message is recorded.
    """
    try:
        yield
    except Exception as error:
        clean = _holds_no_secret(error)
        if isinstance(error, BatchPlatformError):
            retry = isinstance(error, WarehouseBusyError)
            apart = {SET_APART: list(error.set_apart)} if error.set_apart else {}
            raise dg.Failure(str(error), apart, allow_retries=retry) from (error if clean else None)
        if clean:
            raise
        raise dg.Failure(description=redact(f"{type(error).__name__}: {error}")) from None


def _holds_no_secret(error: BaseException) -> bool:
    text = "".join(traceback.format_exception(error))
    return redact(text) == text


def _time_windows(calendar: Calendar) -> dg.TimeWindowPartitionsDefinition:
    """A calendar as Dagster's partitions; the end is moved so that Dagster keeps a last partition that goes past it."""
    fmt = KEY_FORMATS[calendar.every]
    return dg.TimeWindowPartitionsDefinition(
        # As text, it would be the first of two hours that clocks repeat.
        start=calendar.first_start.astimezone(calendar.zone),
        end=None if calendar.last_end is None else calendar.last_end.astimezone(calendar.zone).strftime(fmt),
        fmt=fmt,
        timezone=calendar.zone.key,
        cron_schedule=_CRONS[calendar.every].format(weekday=calendar.cron_weekday),
        end_offset=calendar.end_offset,
    )
