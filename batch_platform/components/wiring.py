"""What the Dagster side of one pipeline shares: its declaration, its keys, its partitions and its windows."""

import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from math import ceil
from pathlib import Path

import dagster as dg

from batch_platform.declaration.calendar import KEY_FORMATS, Calendar, Every, Partition
from batch_platform.declaration.errors import BatchPlatformError, WarehouseBusyError
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import serving_calendar
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import Plan, State
from batch_platform.pipeline.staleness import Staleness, note_staleness, staleness_of
from batch_platform.warehouse.home import Home

SPEC_METADATA = "batch_platform/wiring"
PIPELINE_TAG = "batch_platform/pipeline"
_CRONS: dict[Every, str] = {"hour": "0 * * * *", "day": "0 0 * * *", "week": "0 0 * * 0", "month": "0 0 1 * *"}
_SHORTEST_HOURS: dict[Every, int] = {"hour": 1, "day": 24, "week": 7 * 24, "month": 28 * 24}
_ALL_HISTORY_HOURS = 20 * 366 * 24  # what "all history" means in the graph


@dataclass(frozen=True)
class Wiring:
    """One declared pipeline, seen from Dagster.

    Args:
        spec: As declared.
        folder: Absolute path of the folder with its SQL.
    """

    spec: PipelineSpec
    folder: Path
    _pipelines: dict[Path, Pipeline] = field(
        default_factory=dict[Path, Pipeline], init=False, repr=False, compare=False
    )

    def pipeline(self) -> Pipeline:
        """The pipeline in the home that the environment names now."""
        home = Home.from_environment()
        return self._pipelines.setdefault(home.root, Pipeline(self.spec, self.folder, home))

    def key(self, asset: str) -> dg.AssetKey:
        """The key of one of its assets."""
        return dg.AssetKey([self.spec.name, asset])

    @cached_property
    def partitions(self) -> dg.TimeWindowPartitionsDefinition:
        """The partitions of features, predictions and performance."""
        return _time_windows(self.spec.partitions.calendar)

    @cached_property
    def serving_periods(self) -> dg.TimeWindowPartitionsDefinition | None:
        """The partitions of the model: a serving period exists from its start on; None for one model for all."""
        calendar = serving_calendar(self.spec)
        return None if calendar is None else _time_windows(calendar)

    @cached_property
    def history(self) -> dg.TimeWindowPartitionMapping | None:
        """Which features the model of a serving period learns from: whole periods back, enough to hold the window."""
        train = self.spec.model.train
        if train.every is None:
            return None
        length = train.window_length
        hours = _ALL_HISTORY_HOURS if length is None else length.days * 24 + length.hours + ceil(length.minutes / 60)
        periods = ceil(hours / _SHORTEST_HOURS[train.every])
        return dg.TimeWindowPartitionMapping(
            start_offset=-periods, end_offset=-1, allow_nonexistent_upstream_partitions=True
        )

    @cached_property
    def serving(self) -> dg.TimeWindowPartitionMapping | None:
        """Which model scores a partition: that of the serving period which holds it."""
        if self.spec.model.train.every is None:
            return None
        return dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)

    def named(self, keys: Sequence[str]) -> list[Partition]:
        """The partitions of those keys, oldest first."""
        calendar = self.spec.partitions.calendar
        return sorted((calendar.named(key) for key in keys), key=lambda partition: partition.start)

    def serving_period(self, key: str) -> Partition:
        """The serving period of that key."""
        calendar = serving_calendar(self.spec) or self.spec.partitions.calendar
        return calendar.named(key)

    @contextmanager
    def step(self) -> Generator[Pipeline]:
        """The pipeline for the length of a step, whose errors are shown clearly; at its end, published is up to date."""
        pipeline = self.pipeline()
        with clear_failures():
            try:
                yield pipeline
            except BaseException:
                with suppress(BatchPlatformError):  # what went wrong first is what is told
                    pipeline.publish()
                raise
            pipeline.publish()


def note_found(wiring: Wiring, state: State, plan: Plan, stamp: Stamp) -> Staleness:
    """What is out of date of the predictions, as a plan of all partitions finds it; readers of the view see it then too."""
    pipeline = wiring.pipeline()
    found = staleness_of(state, plan)
    note_staleness(pipeline.warehouse, wiring.spec.name, state, found, stamp)
    pipeline.publish()
    return found


def now() -> datetime:
    """The time: a step of Dagster's is the edge, where a clock may be read."""
    return datetime.now(UTC)


def stamp_of(run_id: str) -> Stamp:
    """The stamp of a run that begins now."""
    return Stamp(run_id=run_id, at=now(), clock=now)


@contextmanager
def clear_failures() -> Generator[None]:
    """Show an error of ours as the failure of the step, in its own words; only a held warehouse is worth a retry.

    Dagster records an error with all its causes; where one of them holds a secret, the words are all that is left.
    """
    try:
        yield
    except Exception as error:
        clean = _holds_no_secret(error)
        if isinstance(error, BatchPlatformError):
            retry = isinstance(error, WarehouseBusyError)
            raise dg.Failure(description=str(error), allow_retries=retry) from (error if clean else None)
        if clean:
            raise
        raise dg.Failure(description=redact(f"{type(error).__name__}: {error}")) from None


def _holds_no_secret(error: BaseException) -> bool:
    told = "".join(traceback.format_exception(error))
    return redact(told) == told


def _time_windows(calendar: Calendar) -> dg.TimeWindowPartitionsDefinition:
    """The same partitions for Dagster, which leaves out a last one that would go past its end: the end is moved."""
    fmt = KEY_FORMATS[calendar.every]
    return dg.TimeWindowPartitionsDefinition(
        start=calendar.first_start.astimezone(calendar.zone).strftime(fmt),
        end=None if calendar.last_end is None else calendar.last_end.astimezone(calendar.zone).strftime(fmt),
        fmt=fmt,
        timezone=calendar.zone.key,
        cron_schedule=_CRONS[calendar.every],
        end_offset=calendar.end_offset,
    )
