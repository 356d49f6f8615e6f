"""A pipeline that gets bad input, and what must hold whatever the input.

The model learns from January and three days of February are scored; then the input of the middle day changes. Everything runs
on real files and a real warehouse, by the steps that Dagster's assets and the command line call.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Committed, Pipeline
from batch_platform.pipeline.train import Trained
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform_tests.harness.small_pipeline import (
    feature_file,
    finished_pipeline,
    small_events,
    small_spec,
    write_small_project,
)

DAYS = ("2024-02-01", "2024-02-02", "2024-02-03")
DAY = DAYS[1]
PERIOD = DAYS[0]
MARKS = ["scored_at", "run_id"]  # what differs when the same rows are written again
TABLES = ("predictions", "rejected_rows")
FILES = ("events", "features_sql", "labels_sql")
EVENTS = small_events()
SCORED_AT = datetime(2024, 2, 3, 23, tzinfo=UTC)  # the end of the last of the days
AFTER = datetime(2024, 3, 2, tzinfo=UTC)
LONGEST = 2_000  # characters: a message is a paragraph, whatever the data hold

Rows = dict[str, pl.DataFrame]


def on_the_day(events: pl.DataFrame, day: str = DAY) -> pl.Series:
    """Whether each event is on a day in the time zone of the pipeline."""
    return events["ts"].dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String) == day


def changed(events: pl.DataFrame, *values: pl.Expr, rows: int | None = None, day: str = DAY) -> pl.DataFrame:
    """The events with other values in the first rows of a day, in order of id."""
    first = events.filter(on_the_day(events, day))["id"].sort()
    ids = first.head(len(first) if rows is None else rows).implode()
    return events.with_columns(
        pl.when(pl.col("id").is_in(ids))
        .then(value)
        .otherwise(pl.col(value.meta.output_name()))
        .alias(value.meta.output_name())
        for value in values
    )


@dataclass
class Fed:
    """A pipeline with three scored days, and its input."""

    tmp_path: Path
    overrides: dict[str, Any]
    pipeline: Pipeline
    runs: int = field(default=0)

    @classmethod
    def scored(cls, tmp_path: Path, **overrides: Any) -> "Fed":
        """Build, train and score; overrides as for `small_pipeline`. Made once per session and overrides, and copied."""
        finished_pipeline(tmp_path, SCORED_AT, **overrides)
        return cls(tmp_path, dict(overrides), cls._opened(tmp_path, overrides))

    @staticmethod
    def _opened(tmp_path: Path, overrides: Mapping[str, Any]) -> Pipeline:
        declared = {name: value for name, value in overrides.items() if name not in FILES}
        return Pipeline(small_spec(**declared), (tmp_path / "project").absolute(), Home((tmp_path / "home").absolute()))

    def partition(self, day: str = DAY) -> Partition:
        return self.pipeline.spec.partitions.calendar.named(day)

    def feed(self, **files: Any) -> None:
        """Replace the source or the SQL; files that are not given stay as they were."""
        usual = {name: self.overrides[name] for name in FILES if name in self.overrides}
        write_small_project(self.tmp_path / "project", **{**usual, **files})
        self.reopen()

    def declare(self, **overrides: Any) -> None:
        """Change the declaration of the pipeline, and open it again."""
        self.overrides |= overrides
        self.reopen()

    def reopen(self) -> None:
        """Open the pipeline as another process would."""
        self.pipeline = self._opened(self.tmp_path, self.overrides)

    def run(self, *days: str, force: bool = False) -> list[Committed]:
        """Build and score some days."""
        stamp = self.stamp()
        partitions = [self.partition(day) for day in days or (DAY,)]
        list(self.pipeline.build_features(partitions, stamp, force=force))
        return list(self.pipeline.score(partitions, stamp, force=force))

    def rows(self, day: str, *, marks: bool = True) -> Rows:
        """The rows of a day in every table, in a fixed order."""
        with self.pipeline.warehouse.open() as con:
            con.execute("SET TimeZone = 'UTC'")
            tables = {
                table: con.sql(f"FROM small.{table} WHERE partition_key = $key ORDER BY ALL", params={"key": day}).pl()
                for table in TABLES
            }
        return tables if marks else {table: rows.drop(MARKS, strict=False) for table, rows in tables.items()}

    def ledger(self, day: str = DAY) -> ScoreRun:
        return self.pipeline.warehouse.latest(ScoreRun, "small")[day]

    def features(self, day: str = DAY) -> pl.DataFrame:
        return pl.read_parquet(feature_file(self.pipeline, day))

    def refuses(self, *named: str, error: type[BatchPlatformError] = BatchPlatformError, force: bool = True) -> str:
        """Run the day, which fails, and check all invariants; returns the message, which must name all of `named`."""
        before = self.snapshot()
        with pytest.raises(error) as refused:
            self.run(DAY, force=force)
        after = self.snapshot()
        assert after.rows[DAY] == before.rows[DAY], "the partition is wholly old"
        self.holds(before)
        with pytest.raises(error) as again:
            self.run(DAY, force=force)
        assert str(again.value) == str(refused.value)
        message = str(refused.value)
        assert_names(message, "small", *named)
        assert refused.value.hint, message
        assert (message.count("Hint:"), len(message) < LONGEST) == (1, True), message
        self.recovers(before)
        return message

    def stays(self, *named: str, error: type[BatchPlatformError], force: bool = True) -> str:
        """Run the day, which fails and changes nothing, not even features; returns the message, which must name all of `named`."""
        before = self.snapshot()
        message = self.refused(lambda: self.run(DAY, force=force), error)
        assert_names(message, *named)
        assert self.snapshot() == before
        self.holds(before)
        return message

    def takes(self, *, force: bool = True) -> Committed:
        """Run the day, which succeeds, and check all invariants."""
        before = self.snapshot()
        (done,) = self.run(DAY, force=force)
        self.holds(before)
        rows = self.rows(DAY)
        written = {run for table in TABLES for run in rows[table]["run_id"]}
        assert written <= {done.run.run_id}, "the partition is wholly new"
        (again,) = self.run(DAY, force=True)
        assert self.without_marks(again) == self.without_marks(done)
        assert_same(
            self.rows(DAY, marks=False), {table: frame.drop(MARKS, strict=False) for table, frame in rows.items()}
        )
        self.holds(before)
        return done

    @staticmethod
    def without_marks(done: Committed) -> tuple[object, ...]:
        run = done.run
        counts = (run.rows_in, run.rows_scored, run.rows_rejected)
        return (*counts, done.reasons, done.unseen, run.input_hash, run.model_sha256)

    def stamp(self) -> Stamp:
        self.runs += 1
        return Stamp(f"run {self.runs}", AFTER + timedelta(minutes=self.runs))

    def evaluated(self, day: str = DAY) -> dict[str, float]:
        """Evaluate a day with the present labels; returns the metrics."""
        (done,) = self.pipeline.evaluate([self.partition(day)], self.stamp())
        return done.served.numbers

    def trained(self, **params: Any) -> Trained:
        """Train another version for the serving period of the days."""
        return self.pipeline.train(self.partition(PERIOD), self.stamp(), params=params)

    @staticmethod
    def refused(work: Callable[[], object], error: type[BatchPlatformError] = BatchPlatformError) -> str:
        """Do work that is refused; returns the message, which must have a hint."""
        with pytest.raises(error) as refused:
            work()
        assert refused.value.hint
        return str(refused.value)

    def snapshot(self) -> "Snapshot":
        files = {day: feature_file(self.pipeline, day).read_bytes() for day in DAYS}
        return Snapshot({day: _plain(self.rows(day)) for day in DAYS}, files)

    def holds(self, before: "Snapshot") -> None:
        """Assert what must hold after every case."""
        after = self.snapshot()
        for day in DAYS:
            if day != DAY:
                assert after.rows[day] == before.rows[day], f"{day} is another partition"
                assert after.files[day] == before.files[day], f"{day} is another partition"
            self._balances(day)
        assert not [*self.pipeline.home.staging.iterdir()]
        assert not [path for path in self.pipeline.home.lake.rglob("*") if path.is_file() and path.suffix != ".parquet"]

    def _balances(self, day: str) -> None:
        """Assert that ledger row and rows are of the same run, and that every row is scored or rejected."""
        run, rows = self.ledger(day), self.rows(day)
        assert run.rows_in == run.rows_scored + run.rows_rejected
        assert (rows["predictions"].height, rows["rejected_rows"].height) == (run.rows_scored, run.rows_rejected)
        for table in TABLES:
            assert set(rows[table]["run_id"]) <= {run.run_id}
        scores = [name for name in rows["predictions"].columns if name == "prediction" or name.startswith("score")]
        for name in scores:
            values = rows["predictions"][name]
            assert not values.null_count()
            assert not values.dtype.is_float() or values.is_finite().all()

    def recovers(self, before: "Snapshot") -> None:
        """Assert that the same command with good input gives the rows of before."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.tmp_path / "project")
        self.feed()
        self.run(DAY, force=True)
        assert before.without_marks(DAY) == Snapshot({DAY: _plain(self.rows(DAY))}, {}).without_marks(DAY)
        self.holds(before)


@dataclass(frozen=True)
class Snapshot:
    """All rows of the days, and the bytes of their feature files."""

    rows: dict[str, dict[str, list[dict[str, Any]]]]
    files: dict[str, bytes]

    def without_marks(self, day: str) -> dict[str, list[dict[str, Any]]]:
        return {
            table: [{name: value for name, value in row.items() if name not in MARKS} for row in rows]
            for table, rows in self.rows[day].items()
        }


def is_refused(
    tmp_path: Path,
    *,
    feed: Mapping[str, Any],
    named: Sequence[str],
    scored: Mapping[str, Any] | None = None,
    error: type[BatchPlatformError] = DataError,
) -> None:
    """A pipeline that is declared as `scored` refuses the files that it is fed, with a message that names everything."""
    fed = Fed.scored(tmp_path, **(scored or {}))
    fed.feed(**feed)
    fed.refuses(*named, error=error)


def assert_names(message: str, *named: str) -> None:
    missing = [name for name in named if name not in message]
    assert not missing, f"{missing} not in: {message}"


def assert_same(actual: Rows, expected: Rows) -> None:
    assert _plain(actual) == _plain(expected)


def _plain(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    return {table: frame.to_dicts() for table, frame in rows.items()}
