"""What must hold after every fault: partitions wholly old or wholly new, and a re-run that converges."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import local
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import (
    LOCAL_DAY,
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
)

NOW = datetime(2024, 2, 11, 12, tzinfo=UTC)
SCORED = [f"2024-02-{day:02}" for day in range(1, 11)]
STAMP = Stamp("again", NOW)
_of_thread = local()  # its instance of DuckDB, which lives on: to make one takes as much CPU as a look at a copy

LOOK = """
WITH predictions AS (
    SELECT partition_key, list_distinct(list(coalesce(run_id, ''))) AS runs,
        list_distinct(list(coalesce(model_version, ''))) AS models, count(*) AS n,
        sum(hash(p)) AS exact, sum(hash({{'id': id, 'shop': shop, 'score': score, 'prediction': prediction}})) AS content
    FROM {schema}.predictions p GROUP BY ALL),
rejected AS (
    SELECT partition_key, list_distinct(list(coalesce(run_id, ''))) AS runs, count(*) AS n
    FROM {schema}.rejected_rows GROUP BY ALL),
ledger AS (
    FROM batch_platform.score_runs WHERE pipeline = '{schema}' AND seq IN (
        SELECT max(seq) FROM batch_platform.score_runs WHERE pipeline = '{schema}' GROUP BY partition_key))
SELECT partition_key, ledger.seq, ledger.run_id, ledger.model_version, ledger.input_hash,
    ledger.rows_in, ledger.rows_scored, ledger.rows_rejected,
    coalesce(predictions.n, 0), coalesce(rejected.n, 0),
    coalesce(predictions.runs, []) || coalesce(rejected.runs, []), coalesce(predictions.models, []),
    coalesce(predictions.exact, 0)::VARCHAR, coalesce(predictions.content, 0)::VARCHAR
FROM ledger FULL JOIN predictions USING (partition_key) FULL JOIN rejected USING (partition_key)
ORDER BY partition_key
"""


@dataclass(frozen=True)
class Held:
    """A partition as a database holds it: its newest ledger row, and the number and hashes of its rows."""

    key: str
    seq: int | None  # None: rows without a ledger row
    run_id: str
    model_version: str
    input_hash: str
    rows_in: int
    rows_scored: int
    rows_rejected: int
    predictions: int
    rejected: int
    runs: list[str]  # that wrote its rows
    models: list[str]
    exact: str  # over every column
    content: str  # over the columns that do not name the run or the model

    def broken(self) -> str | None:
        """Why the partition is not whole; None if it is."""
        if self.seq is None:
            return "rows without a ledger row"
        if (self.predictions, self.rejected) != (self.rows_scored, self.rows_rejected):
            return "not as many rows as the ledger says"
        if self.rows_in != self.rows_scored + self.rows_rejected:
            return "the counts do not balance"
        if self.rows_in and (set(self.runs) != {self.run_id} or not set(self.models) <= {self.model_version}):
            return "rows of another run or model than the ledger says"
        return None


def look(con: duckdb.DuckDBPyConnection, schema: str = "small") -> dict[str, Held]:
    """The partitions that a database holds, by key."""
    return {row[0]: Held(*row) for row in con.execute(LOOK.format(schema=schema)).fetchall()}


def held(pipeline: Pipeline) -> dict[str, Held]:
    """The partitions of the warehouse by key; fails unless each is whole."""
    with pipeline.warehouse.open() as con:
        return _whole(look(con, pipeline.spec.name))


def contents(partitions: Mapping[str, Held]) -> dict[str, str]:
    """The hash of the rows of each partition, by key."""
    return {key: partition.content for key, partition in partitions.items()}


def published(home: Home, schema: str = "small") -> dict[str, Held]:
    """The partitions of the published copy by key; fails unless each is whole."""
    if not hasattr(_of_thread, "instance"):
        _of_thread.instance = duckdb.connect()
    con = _of_thread.instance
    con.execute(f"ATTACH '{home.published}' AS published (READ_ONLY)")
    try:
        con.execute("USE published")
        return _whole(look(con, schema))
    finally:
        con.execute("USE memory; DETACH published")


def prepared(folder: Path, **overrides: Any) -> Pipeline:
    """The small pipeline in `folder` with ten days scored, which are made once per session and copied."""
    finished_pipeline(folder, NOW)
    return small_pipeline(folder, **overrides)


def changed_events(*keys: str) -> pl.DataFrame:
    """The events with other amounts and fewer rows on the days of these keys."""
    on_the_days = LOCAL_DAY.is_in(keys)
    events = small_events().with_columns(
        amount=pl.when(on_the_days).then(pl.col("amount") + 1).otherwise(pl.col("amount"))
    )
    return events.filter(~on_the_days | (pl.col("items") > 2))


def days(pipeline: Pipeline, *keys: str) -> list[Any]:
    """The partitions with these keys."""
    return [pipeline.spec.partitions.calendar.named(key) for key in keys]


def rewrite(pipeline: Pipeline, *keys: str, run_id: str = "rewrite") -> None:
    """Build and score partitions again, whatever is committed, and publish."""
    stamp = Stamp(run_id, NOW)
    list(pipeline.build_features(days(pipeline, *keys), stamp, force=True))
    list(pipeline.score(days(pipeline, *keys), stamp, force=True))
    pipeline.publish()


def assert_survived(
    pipeline: Pipeline, before: Mapping[str, Held], touched: Collection[str], now: datetime = NOW
) -> None:
    """Assert that touched partitions are wholly old or new and others byte-equal, and that a retry converges.

    Args:
        pipeline: The pipeline as declared now, after the fault.
        before: What the warehouse held before the fault.
        touched: Keys of the partitions that the fault may have changed.
        now: The retry does what is due at this time.
    """
    after = held(pipeline)
    assert_others_unchanged(before, after, touched)
    for key in touched:
        assert after.get(key) == before.get(key) or after[key].seq > (before[key].seq if key in before else 0)
    carry_out(pipeline, now, "retry")
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(now)).items == []
    retried = held(pipeline)
    scored = [key for key in touched if key in retried]
    rewrite(pipeline, *scored, run_id="repeat")
    repeated = held(pipeline)
    assert contents(repeated) == contents(retried)
    assert_others_unchanged(retried, repeated, touched)
    assert published(pipeline.home) == repeated
    assert_nothing_left_over(pipeline)


def assert_others_unchanged(before: Mapping[str, Held], after: Mapping[str, Held], touched: Collection[str]) -> None:
    """Assert that the other partitions hold the same bytes under the same ledger row."""
    assert {key: partition for key, partition in after.items() if key not in touched} == {
        key: partition for key, partition in before.items() if key not in touched
    }


def assert_nothing_in_between(pipeline: Pipeline) -> None:
    """Assert that staging is empty and the lake holds no half-written file."""
    home, name = pipeline.home, pipeline.spec.name
    assert [path for path in home.staging.iterdir() if path.suffix != ".lock"] == []
    assert [path.name for path in (home.lake / name).rglob(".*")] == []


def assert_nothing_left_over(pipeline: Pipeline) -> None:
    """Assert that nothing is half-written; a whole bundle that was not registered may stay."""
    assert_nothing_in_between(pipeline)
    for folder in (pipeline.home.models / pipeline.spec.name).iterdir():
        assert {"manifest.json", "model.skops"} <= {file.name for file in folder.iterdir()}


def _whole(partitions: dict[str, Held]) -> dict[str, Held]:
    broken = {key: reason for key, partition in partitions.items() if (reason := partition.broken())}
    assert not broken, broken
    return partitions


def everything_written(folder: Path) -> bytes:
    """The bytes of all files of a home, and what its database holds as text: DuckDB compresses."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    published = folder / "published.duckdb"
    if published.exists():
        with duckdb.connect(str(published), read_only=True) as con:
            tables = con.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            for schema, table in tables:
                content += str(con.execute(f'FROM "{schema}"."{table}"').fetchall()).encode()
    return content
