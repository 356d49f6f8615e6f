"""What was deleted for good is in no byte of the home, whoever was reading or killed meanwhile."""

import random
import shutil
import signal
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_letters
from typing import Any

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import WarehouseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.drop import drop_partitions
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.rename import drop_pipelines
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.restore import restore_from_published
from batch_platform.warehouse.verify import verify
from batch_platform_tests.faults.nursery import Nursery
from batch_platform_tests.faults.victim import Job
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, finished_pipeline, small_events

NOW = datetime(2024, 3, 3, 12, tzinfo=UTC)
STAMP = Stamp("deleted", NOW)
KEY = "2024-02-05"
COLUMNS = {"amount": {"max": 250, "nullable": True}, "customer": {"feature": False}}  # a few amounts are rejected
CUSTOMERS: dict[str, Any] = {
    "features_sql": FEATURES_SQL.replace("known", "known, customer"),
    "features": {"columns": COLUMNS, "max_rejected": "50%"},
    "challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}],
}


def customers() -> pl.DataFrame:
    """The orders, each of a customer whose name no compression hides; every hundredth order is of the same customer."""
    events, drawn = small_events(), random.Random(7)
    names = ["".join(drawn.choices(ascii_letters, k=32)) for _ in range(events.height)]
    return events.with_columns(
        customer=pl.Series([names[at % 100 if at % 100 == 60 else at] for at in range(len(names))])
    )


def with_customers(tmp_path: Path, store: str = "duckdb", **declared: Any) -> Pipeline:
    keep = {"keep": ["shop", "customer"], "store": store, **declared.pop("predictions", {})}
    return finished_pipeline(tmp_path, NOW, events=customers(), predictions=keep, **CUSTOMERS, **declared)


def holding(home: Home, *values: str) -> set[str]:
    """The files of a home with the bytes of one of some values; links are followed."""
    return {
        str(path.relative_to(home.root))
        for path in home.root.rglob("*")
        if path.is_file() and any(value.encode() in path.read_bytes() for value in values)
    }


def customers_of(pipeline: Pipeline, key: str) -> list[str]:
    """The customers of a partition whose names occur nowhere else."""
    with pipeline.warehouse.open() as con:
        rows = con.execute(
            "SELECT customer FROM small.predictions GROUP BY ALL HAVING list(DISTINCT partition_key) = [$key]",
            {"key": key},
        )
        return [customer for (customer,) in rows.fetchall()]


@pytest.mark.parametrize("store", ["duckdb", "parquet"])
def test_no_byte_of_a_dropped_partition_is_left_in_the_home(tmp_path, store):
    pipeline = with_customers(tmp_path, store)
    home = pipeline.home
    list(pipeline.score([pipeline.spec.partitions.calendar.named("2024-02-10")], STAMP, force=True))
    pipeline.publish()
    gone, kept = customers_of(pipeline, KEY), customers_of(pipeline, "2024-02-20")
    restore_from_published(home, NOW)
    assert len(gone) > 30
    kinds = {name.partition("/")[2] if "/" in name else name for name in holding(home, *gone)}
    assert {"published.duckdb", "warehouse.duckdb"} <= kinds or store == "parquet"
    before = {
        name for name in holding(home, *gone) if name.startswith(("published-", "warehouse.duckdb.before-restore"))
    }
    assert len(before) == 3 or store == "parquet", "two copies, and the file that the restoration set aside"
    with closing(duckdb.connect(str(home.published.resolve()), read_only=True)) as reader:
        reader.execute("FROM small.rejected_rows")
        drop_partitions(pipeline, [KEY], "somebody", STAMP)
        assert holding(home, *gone) == set()
        assert reader.execute("SELECT count(*) FROM small.rejected_rows").fetchall() != [(0,)]
    assert holding(home, *kept)
    assert verify(home).differing == ()
    assert not home.wiping.exists()
    drop_pipelines(home, ["small"])
    assert holding(home, *kept) == set()


def test_tables_of_users_survive_a_deletion_as_they_are(tmp_path):
    pipeline = with_customers(tmp_path)
    with pipeline.warehouse.transaction() as con:
        con.execute(
            "CREATE SCHEMA own; CREATE SEQUENCE own.numbers START 5; CREATE TYPE own.mood AS ENUM ('good', 'bad')"
        )
        con.execute(
            "CREATE TABLE own.parents (id INTEGER PRIMARY KEY, mood own.mood, n BIGINT DEFAULT nextval('own.numbers'))"
        )
        con.execute("CREATE TABLE own.children (parent INTEGER REFERENCES own.parents (id), twice AS (parent * 2))")
        con.execute(
            "CREATE INDEX of_moods ON own.parents (mood); CREATE VIEW own.good AS FROM own.parents WHERE mood = 'good'"
        )
        con.execute("CREATE MACRO own.doubled(x) AS x * 2; COMMENT ON TABLE own.parents IS 'of ours'")
        con.execute(
            "INSERT INTO own.parents (id, mood) VALUES (1, 'good'), (2, 'bad'); INSERT INTO own.children VALUES (2)"
        )
    look = "SELECT * FROM own.parents, own.children, (SELECT count(*), own.doubled(4) FROM own.good) ORDER BY ALL"
    comments = (
        "SELECT schema_name, table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    )
    with pipeline.warehouse.open() as con:
        before = con.execute(look).fetchall(), con.execute(comments).fetchall()
    drop_partitions(pipeline, [KEY], "somebody", STAMP)
    with pipeline.warehouse.transaction() as con:
        after = con.execute(comments).fetchall()
        assert con.execute(look).fetchall() == before[0]
        assert [row for row in after if row[1] != "dropped_partitions"] == before[1]
        assert con.execute("INSERT INTO own.parents (id, mood) VALUES (3, 'bad') RETURNING n").fetchall() == [(7,)]
        with pytest.raises(duckdb.ConstraintException):
            con.execute("INSERT INTO own.children VALUES (9)")


def test_without_room_for_a_second_file_the_rows_are_deleted_and_the_next_run_removes_their_bytes(tmp_path):
    pipeline = with_customers(tmp_path)
    home, gone = pipeline.home, customers_of(pipeline, KEY)
    home.warehouse.with_name(".warehouse.duckdb").mkdir()  # no file can be written there
    with pytest.raises(WarehouseError, match=r"their bytes are still in it.*Hint: make room"):
        drop_partitions(pipeline, [KEY], "somebody", STAMP)
    assert not customers_of(pipeline, KEY)
    assert holding(home, *gone)
    home.warehouse.with_name(".warehouse.duckdb").rmdir()
    publish(home)
    assert holding(home, *gone) == set()


@pytest.mark.full
def test_a_drop_that_is_killed_at_any_step_is_completed_by_the_next_publication(tmp_path):
    pipeline = with_customers(tmp_path, "parquet")
    home, gone, intact = pipeline.home, customers_of(pipeline, KEY), tmp_path / "intact"
    shutil.copytree(home.root, intact, symlinks=True)
    declared = {
        "features": CUSTOMERS["features"],
        "challengers": CUSTOMERS["challengers"],
        "predictions": {"keep": ["shop", "customer"], "store": "parquet"},
    }
    job = asdict(Job(str(home.root), str(pipeline.folder), "killed", NOW.isoformat(), declared))
    outcomes = Counter[bool]()
    with Nursery() as nursery:
        marks, _ = nursery.fork("drop", job=job, keys=[KEY], name_steps=True).end()
        steps = [mark.split()[1] for mark in marks if mark.startswith("step ")]
        assert {"COMMIT", "replace", "rename", "unlink"} <= set(steps)
        # The steps of one kind are alike, so the first and the last stand for all.
        for number in [n for n, kind in enumerate(steps) if kind not in steps[:n] or kind not in steps[n + 1 :]]:
            shutil.rmtree(home.root)
            shutil.copytree(intact, home.root, symlinks=True)
            assert nursery.fork("drop", job=job, keys=[KEY], stop_at=number).bury() == -signal.SIGKILL
            with duckdb.connect(str(home.published.resolve()), read_only=True) as con:
                con.execute("FROM batch_platform.score_runs")
            publish(home)
            is_held = KEY in pipeline.state().scores
            outcomes[is_held] += 1
            assert is_held or holding(home, *gone) == set(), steps[number]
            assert verify(home).differing == ()
    assert outcomes.keys() == {True, False}
