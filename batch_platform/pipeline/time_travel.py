"""The check whether features know the future: they are computed again without the source rows of later times, and compared.

A source is cut at the start of the partition, by the time that it declares, or that the SQL compares with the bounds of the
partition. The source that the rows of the features come from has to show the partition: it is cut at its end. What a source
without a time says of the future cannot be found out this way, nor what is filled in later in a row of an earlier time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError, counted, listed
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.fingerprints import instant
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.sql import literal

_HERE = "__here"


@dataclass(frozen=True)
class TimeLeak:
    """A column of the features that differs without the later rows of a source; None for the rows themselves."""

    source: str
    column: str | None
    partition: str
    rows: int  # number of rows that differ
    of: int


@dataclass(frozen=True)
class TimeTravel:
    """The findings in some partitions of a pipeline."""

    pipeline: str
    partitions: list[str]
    cut_at_start: list[str]  # sources
    cut_at_end: list[str]  # the sources of the rows themselves
    without_time: list[str]  # sources that could not be checked
    leaks: list[TimeLeak]
    unable: str = ""  # why nothing was checked

    @property
    def errors(self) -> list[BatchPlatformError]:
        """One error for each source that features know too much of."""
        return [self._error(source) for source in dict.fromkeys(leak.source for leak in self.leaks)]

    def _error(self, source: str) -> BatchPlatformError:
        leaks = [leak for leak in self.leaks if leak.source == source]
        first, after = leaks[0], "end" if source in self.cut_at_end else "start"
        columns = {leak.column for leak in leaks if leak.column is not None}
        what = f"the columns {listed(map(repr, columns))} change" if columns else "rows come and go"
        where = f"{self.pipeline}, partition {listed({leak.partition for leak in leaks})}"
        msg = f"{where}: without the rows of source {source!r} after the partition's {after}, {what} ({first.rows:,} of {first.of:,} rows of {first.partition})."
        hint = f"compare the time of its rows with $partition_{after} in the features."
        return DataError(msg, hint=hint)

    @property
    def remarks(self) -> list[str]:
        """Say what was compared, and what could not be."""
        if self.unable:
            return [f"time travel: {self.unable}"]
        number = counted(len(self.partitions), "partition")
        compared = [
            f"{listed(names)} after the {bound}"
            for names, bound in ((self.cut_at_start, "start"), (self.cut_at_end, "end"))
            if names
        ]
        remarks = [f"time travel: {number} computed without the rows of {' and '.join(compared)}"] if compared else []
        if self.without_time:
            reason = "neither `time` of the source nor the SQL says from when on its rows were known"
            remarks.append(f"time travel: {listed(self.without_time)} could not be checked: {reason}")
        return remarks


def travel_in_time(pipeline: Pipeline, now: datetime, partitions: int) -> TimeTravel:
    """Compare the features of partitions, evenly spread over those that are due, the newest among them.

    Raises:
        SourceError: A source cannot be read, or the features fail.
    """
    spec, builder = pipeline.spec, pipeline.builder
    if spec.features.spark_sql is not None:
        reason = "features.spark_sql is not checked: only DuckDB's SQL and functions are computed without later rows"
        return TimeTravel(spec.name, [], [], [], builder.feature_sources, [], reason)
    snapshot = spec.partitions.snapshot
    times = {name: None if snapshot else builder.dated.rows_read(name).time for name in builder.feature_sources}
    dated = {name: instant(time) for name, time in times.items() if time is not None}
    due = spec.partitions.calendar.due(now)
    chosen = [due[-1 - at * len(due) // partitions] for at in range(min(partitions, len(due)))][::-1] if dated else []
    leaks, driving = list[TimeLeak](), set[str]()
    for partition in chosen:
        compared = _Compared(builder, partition, dated)
        for name in dated:
            if name not in driving and compared.gives_rows(name):
                driving.add(name)
        for name in dated:
            cut = compared.cut(name, partition.end) if name in driving else compared.at_start[name]
            leaks += compared.leaks(name, cut)
    return TimeTravel(
        spec.name,
        [partition.key for partition in chosen],
        [name for name in dated if name not in driving],
        [name for name in dated if name in driving],
        [name for name, time in times.items() if time is None],
        leaks,
    )


@dataclass(frozen=True)
class _Compared:
    """The features of one partition as they are, and without the later rows of sources."""

    builder: FeatureBuilder
    partition: Partition
    dated: dict[str, str]  # the SQL for the instant of a row, by source

    @cached_property
    def present(self) -> pl.DataFrame:
        return self.builder.rows(self.partition, dict.fromkeys(self.dated, "true"))

    @cached_property
    def at_start(self) -> dict[str, pl.DataFrame]:
        return {name: self.cut(name, self.partition.start) for name in self.dated}

    def cut(self, name: str, until: datetime) -> pl.DataFrame:
        """The features without the rows of a source from a time on; rows without a time stay."""
        earlier = f"coalesce({self.dated[name]} < TIMESTAMPTZ {literal(until.isoformat())}, true)"
        return self.builder.rows(self.partition, dict.fromkeys(self.dated, "true") | {name: earlier})

    def gives_rows(self, name: str) -> bool:
        """Return whether the rows of the features come from a source, so that none is left without its later rows."""
        driving = self.builder.spec.features.driving
        drives = driving is not None and driving.source == name
        return drives or (self.present.height > 0 and not self.at_start[name].height)

    def leaks(self, name: str, cut: pl.DataFrame) -> Iterator[TimeLeak]:
        """The columns that differ, and None if rows come or go."""
        key, rows = self.builder.spec.features.key, self.present.height
        lost = rows - self.present.join(cut, on=key, how="semi").height
        lost += cut.join(self.present, on=key, how="anti").height
        if lost:
            yield TimeLeak(name, None, self.partition.key, lost, rows)
        both = self.present.join(cut, on=key, how="inner", suffix=_HERE)
        for column in self.present.columns:
            if column not in key:
                differing = int(both[column].ne_missing(both[f"{column}{_HERE}"].cast(both[column].dtype)).sum())
                if differing:
                    yield TimeLeak(name, column, self.partition.key, differing, rows)
