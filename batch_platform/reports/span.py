"""A span of scored partitions, and the column of predictions that sums up a row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import duckdb

from batch_platform.declaration.operating import ReportEvery
from batch_platform.reports.wording import between, dates
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.sql import table_columns
from batch_platform.warehouse.tables_in_files import require_undamaged

MONTH = timedelta(days=27)
PERIODS: dict[ReportEvery, str] = {"week": "%G-W%V", "month": "%Y-%m"}  # formats of their names


@dataclass(frozen=True)
class Span:
    """Consecutive scored partitions."""

    runs: tuple[ScoreRun, ...]  # newest commit of each partition, in order of time
    left_out: tuple[ScoreRun, ...] = ()  # partitions in between that do not count

    @property
    def keys(self) -> list[str]:
        """The keys of the partitions."""
        return [run.partition_key for run in self.runs]

    @property
    def all_keys(self) -> list[str]:
        """The keys of the partitions, those that are left out included."""
        runs = sorted((*self.runs, *self.left_out), key=lambda run: run.partition_start)
        return [run.partition_key for run in runs]

    @property
    def words(self) -> str:
        """The first and the last partition."""
        first, last = self.all_keys[0], self.all_keys[-1]
        return first if first == last else f"{first} to {last}"

    @property
    def monthly(self) -> bool:
        """True if a partition is a month or longer."""
        return self.runs[0].partition_end - self.runs[0].partition_start >= MONTH

    @property
    def dates(self) -> str:
        """The time of the partitions: "August 1974", "18 April 2013", "1 to 30 April 2013"."""
        return self.named(self.all_keys[0], self.all_keys[-1])

    @property
    def counted(self) -> str:
        """The time of the partitions, and which of them are left out: "1 to 30 April 2013 without 14 April 2013"."""
        left_out = self.in_a_row([run.partition_key for run in self.left_out])
        return f"{self.dates} without {dates(left_out, monthly=self.monthly)}" if left_out else self.dates

    def in_a_row(self, keys: Collection[str]) -> list[str]:
        """Some of its partitions in order; several in a row as "KEY to KEY"."""
        spans = list[str]()
        for is_named, members in groupby(self.all_keys, key=lambda key: key in keys):
            if is_named:
                row = [*members]
                spans.append(row[0] if len(row) == 1 else f"{row[0]} to {row[-1]}")
        return spans

    @property
    def in_words(self) -> str:
        """Write the time of the partitions for a sentence: "in August 1974", "on 18 April 2013", "from 1 to 30 April 2013"."""
        return f"from {self.dates}" if len(self.all_keys) > 1 else self.at(self.keys)

    def without(self, partitions: Collection[str]) -> "Span":
        """The span without some partitions, unless none would be left."""
        runs = tuple(run for run in self.runs if run.partition_key not in partitions)
        return Span(runs, tuple(run for run in self.runs if run.partition_key in partitions)) if runs else self

    def named(self, first: str, last: str | None = None) -> str:
        """Name a partition, or the time from one to another."""
        return between(first, last or first, monthly=self.monthly)

    def at(self, keys: Sequence[str]) -> str:
        """Say at which partitions something was so: "on 18 April 2013", "in March 1998 and April 1998"."""
        return f"{'in' if self.monthly else 'on'} {dates(keys, monthly=self.monthly)}"

    def periods(self, every: ReportEvery, zone: ZoneInfo) -> dict[str, str]:
        """The week or month in which each partition starts, by its key."""
        starts = {run.partition_key: run.partition_start.astimezone(zone) for run in self.runs}
        return {key: f"{start:{PERIODS[every]}}" for key, start in starts.items()}

    def require_undamaged(self, con: duckdb.DuckDBPyConnection, pipeline: str) -> None:
        """Raise DamagedRowsError if a file with rows of these partitions is not as it was published."""
        require_undamaged(con, pipeline, self.keys)

    def total(self, count: str) -> int:
        """The sum of a count of rows."""
        return sum(getattr(run, count) for run in self.runs)


def score_column(con: duckdb.DuckDBPyConnection, pipeline: str) -> str | None:
    """Return the column that sums up a row: the score, or the prediction of a regression; None for classes without a score."""
    types = dict(table_columns(con, pipeline, "predictions"))
    return next((name for name in ("score", "prediction") if types.get(name) in ("DOUBLE", "FLOAT")), None)
