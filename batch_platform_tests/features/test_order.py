"""The order of the rows of a feature file, and the statements that a partition costs."""

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from batch_platform.features import build
from batch_platform.features.lake import BATCH_ROWS
from batch_platform.sources import opening
from batch_platform.sources.opening import bounded
from batch_platform_tests.harness.small_pipeline import BERLIN, small_pipeline

KEY = "2024-01-01"
ROWS = 2 * BATCH_ROWS + 10
OWN_FILE = {"sources": {"events": {"parquet": "{partition_key}.parquet"}}}


@pytest.fixture
def statements(monkeypatch) -> list[str]:
    """The statements that sessions have executed by their end."""
    executed: list[str] = []

    @contextmanager
    def logged(spill: Path | None, timezone: str):
        with bounded(spill, timezone) as con:
            con.execute("CALL enable_logging('QueryLog')")
            yield con
            log = con.execute("SELECT message FROM duckdb_logs WHERE type = 'QueryLog' ORDER BY timestamp").fetchall()
            executed.extend(text for (text,) in log)

    monkeypatch.setattr(opening, "bounded", logged)
    return executed


def large_file(ids: pl.Series) -> pl.DataFrame:
    """Rows of the first day with these keys."""
    noon = datetime(2024, 1, 1, 12, tzinfo=BERLIN)
    return pl.DataFrame({"id": ids}).with_columns(
        ts=pl.lit(noon) + pl.int_range(pl.len()) * timedelta(microseconds=1), x=pl.col("id").hash() % 1000
    )


def written(folder: Path, rows: pl.DataFrame, sql: str) -> bytes:
    """The feature file of the first day, whose source is a file of its own with these rows."""
    builder = small_pipeline(folder, features_sql=sql, **OWN_FILE).builder
    rows.write_parquet(builder.sources.folder / f"{KEY}.parquet")
    with builder.session() as session:
        return session.write(builder.spec.partitions.calendar.named(KEY), folder / "lake").path.read_bytes()


@pytest.fixture
def written_as_large_and_small(tmp_path, monkeypatch, statements) -> Callable[[pl.DataFrame, str], tuple[bytes, bytes]]:
    """Write rows twice: as if their file were large, and as the small one that it is; the statements are of the first."""

    def write(rows: pl.DataFrame, sql: str) -> tuple[bytes, bytes]:
        small = written(tmp_path / "small", rows, sql)
        statements.clear()
        monkeypatch.setattr(build, "LARGE_BYTES", 0)
        return written(tmp_path / "large", rows, sql), small

    return write


ASCENDING = pl.int_range(ROWS, eager=True)
SQL = "SELECT id, ts, x + 1 AS y FROM events WHERE ts >= $partition_start AND x % 5 != 0"


@pytest.mark.parametrize(
    ("ids", "sql", "is_sorted"),
    [
        (ASCENDING, SQL, False),
        (ASCENDING.cast(pl.String).str.zfill(9), SQL, False),
        (ASCENDING.reverse(), SQL, True),
        (ASCENDING.cast(pl.Float64), SQL, True),  # NaN has an order of its own in each library
        (ASCENDING, f"{SQL} ORDER BY x", True),
        (ASCENDING, SQL.replace("x + 1", "count(*) OVER ()"), True),
        (ASCENDING, f"WITH kept AS ({SQL}) FROM kept", True),
    ],
)
def test_rows_that_come_in_the_order_of_the_key_are_not_sorted_and_the_bytes_are_those_of_sorted_ones(
    written_as_large_and_small, statements, ids, sql, is_sorted
):
    as_large, as_small = written_as_large_and_small(large_file(ids), sql)
    assert as_large == as_small
    assert ('ORDER BY "id"' in "".join(statements)) == is_sorted


@pytest.mark.parametrize(("declared", "statements_each"), [({}, 1), (OWN_FILE, 2)])
def test_a_further_partition_costs_one_statement_and_one_for_each_source_with_a_file_of_its_own(
    tmp_path, statements, declared, statements_each
):
    counts = list[int]()
    for days in (1, 5):
        folder = tmp_path / str(days)
        builder = small_pipeline(folder, **declared).builder
        partitions = [builder.spec.partitions.calendar.named(f"2024-01-0{day}") for day in range(1, days + 1)]
        for partition in partitions:
            shutil.copyfile(folder / "project/events.parquet", folder / f"project/{partition.key}.parquet")
        statements.clear()
        with builder.session() as session:
            for partition in partitions:
                session.write(partition, folder / "lake")
        counts.append(len(statements))
    assert counts[1] - counts[0] == 4 * statements_each
