"""Tasks on a warehouse, each run and timed in a process of its own: commits and publishing.

    python -m batch_platform_tests.benchmarks.warehouse_work TASK HOME …

Prints JSON. All tasks use the warehouse's public functions. Staged files are written before the timing starts.
"""

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb

from batch_platform.warehouse.database import StagedScores, Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.sql import literal
from batch_platform_tests.benchmarks.measuring import Spent, clocks, spent

PIPELINE = "measured"
FIRST_DAY = date(2020, 1, 1)
SMALL_ROWS, SMALL_DAY = 10_000, 0
MOST_PARTITIONS = 1000


@dataclass(frozen=True)
class TimedWarehouse(Warehouse):
    """A warehouse that records how long it waited to be opened and how long it was held."""

    waited: list[Spent] = field(default_factory=list[Spent])
    held: list[Spent] = field(default_factory=list[Spent])

    @contextmanager
    def open(self) -> Generator[duckdb.DuckDBPyConnection]:
        """Open the warehouse and record both times."""
        asked = clocks()
        with super().open() as con:
            got = clocks()
            self.waited.append(got - asked)
            yield con
        self.held.append(clocks() - got)


def commit(home: Home, writer: int, commits: int, rows: int) -> dict[str, list[Spent]]:
    """Commit partitions of `rows` rows one after the other. No other writer commits the same partitions."""
    warehouse = TimedWarehouse(home, timeout=3600)
    days = range(writer * commits, (writer + 1) * commits)
    for staged in [staged_partition(home, day, rows) for day in days]:
        committed(warehouse, [staged])
    return {"held": warehouse.held, "waited": warehouse.waited}


def fill(home: Home, rows: int) -> dict[str, list[Spent]]:
    """Fill a warehouse with daily partitions, one of them small, and publish twice, as happens in use."""
    partitions = max(1, min(MOST_PARTITIONS, rows // SMALL_ROWS))
    warehouse = Warehouse(home)
    sizes = [min(rows, SMALL_ROWS), *(rows // partitions for _ in range(partitions - 1))]
    for begin in range(0, len(sizes), 100):
        group = [staged_partition(home, begin + at, size) for at, size in enumerate(sizes[begin : begin + 100])]
        committed(warehouse, group)
    return replace_and_publish(home, 2)


def replace_and_publish(home: Home, times: int) -> dict[str, list[Spent]]:
    """Replace the small partition and publish, several times; returns what publishing took."""
    published: list[Spent] = []
    for _ in range(times):
        staged = staged_partition(home, SMALL_DAY, SMALL_ROWS)
        committed(Warehouse(home), [staged])
        published.append(spent(lambda: publish(home)))
    return {"published": published}


def plain_insert(home: Home, target: Path, rows: int) -> dict[str, list[Spent]]:
    """Insert the same staged rows into a table of a plain DuckDB file: no ledger, no journal, no replacing."""
    staged = staged_partition(home, SMALL_DAY, rows)
    began = clocks()
    with duckdb.connect(str(target)) as con:
        con.execute(f"CREATE TABLE predictions AS FROM read_parquet({literal(str(staged.predictions[0]))})")
        con.execute("CHECKPOINT")
    return {"held": [clocks() - began]}


def staged_partition(home: Home, number: int, rows: int) -> StagedScores:
    """Write a day's staged predictions as scoring does, with the ledger row to commit with them."""
    home.create()
    day = FIRST_DAY + timedelta(days=number)
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    good, bad = (home.staging / f"{day}.{name}.parquet" for name in ("predictions", "rejected"))
    columns = (
        f"{number * rows} + range AS id, TIMESTAMPTZ '{day} 00:00:00+00' + INTERVAL (range % 86400) SECOND AS ts, "
        f"hash(range) % 2 = 0 AS prediction, (hash(range) % 1000003) / 1000003 AS score, '{day}' AS partition_key, "
        "'2020-01-01-0123abcd' AS model_version, TIMESTAMPTZ '2020-01-01 00:00:00+00' AS scored_at, 'run' AS run_id"
    )
    rejected = ["partition_key", "key", "reason", "column_name", "row", "run_id"]
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(f"COPY (SELECT {columns} FROM range({rows})) TO {literal(str(good))} (COMPRESSION lz4)")
        empty = ", ".join(f'NULL::VARCHAR AS "{name}"' for name in rejected)
        con.execute(f"COPY (SELECT {empty} LIMIT 0) TO {literal(str(bad))} (FORMAT parquet)")
    run = ScoreRun(
        pipeline=PIPELINE,
        partition_key=str(day),
        partition_start=start,
        partition_end=start + timedelta(days=1),
        model_version="2020-01-01-0123abcd",
        model_sha256="0123abcd",
        input_hash="0123abcd",
        code_version="1",
        engine="local",
        rows_in=rows,
        rows_scored=rows,
        rows_rejected=0,
        in_sample=False,
        started_at=start,
        committed_at=start,
        run_id="run",
    )
    return StagedScores([good], [bad], run, seen_seq=sys.maxsize)


def committed(warehouse: Warehouse, group: Sequence[StagedScores]) -> None:
    """Commit staged partitions and remove their files."""
    warehouse.commit_scores(PIPELINE, group, may_empty=False, clock=lambda: datetime.now(UTC))
    for staged in group:
        for file in (*staged.predictions, *staged.rejected):
            file.unlink()


def main(task: str, home: str, *rest: str) -> None:
    """Do one task and print what it took."""
    place = Home(Path(home))
    match task:
        case "commit":
            took = commit(place, *(int(number) for number in rest))
        case "fill":
            took = fill(place, int(rest[0]))
        case "publish":
            took = replace_and_publish(place, 1)
        case "plain_insert":
            took = plain_insert(place, Path(rest[0]), int(rest[1]))
        case _:
            sys.exit(f"there is no task {task}")
    print(json.dumps(took, default=asdict))


if __name__ == "__main__":
    main(*sys.argv[1:])
