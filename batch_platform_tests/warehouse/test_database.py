"""The warehouse: a partition is replaced wholly with its ledger row, or not at all."""

import hashlib
from operator import methodcaller
from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, IntegrityError, WarehouseError, WrongUseError
from batch_platform.operations.cleanup import drop_pipelines
from batch_platform.warehouse import ledger
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FORMAT, ScoreRun, note_partitions
from batch_platform.warehouse.published import open_published, publish
from batch_platform_tests.warehouse.commits import KEYS, commit, held, staged


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def warehouse(home: Home) -> Warehouse:
    return Warehouse(home)


@pytest.mark.unit
def test_what_a_killed_process_left_of_a_new_file_goes_with_the_next_opening(home, warehouse):
    with warehouse.open():
        pass
    left = [home.root / ".warehouse.duckdb", home.root / ".warehouse.duckdb.wal"]
    for file in left:
        file.write_bytes(b"part of a file")
    (home.root / ".warehouse-notes").write_text("a user's")
    with warehouse.open():
        assert not [file for file in left if file.exists()]
    assert (home.root / ".warehouse-notes").exists()


def test_a_partition_is_replaced_together_with_its_ledger_row(warehouse, tmp_path):
    (first,) = commit(warehouse, staged(tmp_path))
    (second,) = commit(warehouse, staged(tmp_path, seen=first.seq, run_id="again", id=[7], score=[0.75], rejected=1))
    tables = held(warehouse)
    assert [row[:2] for row in tables["small.predictions"]] == [(7, 0.75)]
    assert len(tables["small.rejected_rows"]) == 1
    assert warehouse.latest(ScoreRun, "small") == {KEYS[0]: second}
    assert second.seq > first.seq
    assert len(tables["batch_platform.score_runs"]) == 2, "the ledger is only ever added to"


def test_no_number_is_given_again_after_its_rows_were_deleted_or_its_transaction_was_undone(warehouse, tmp_path):
    (first,) = commit(warehouse, staged(tmp_path))
    drop_pipelines(warehouse.home, ["small"])
    with pytest.raises(ZeroDivisionError):
        commit(warehouse, staged(tmp_path, run_id="undone"), in_transaction=lambda *_: 1 / 0)
    (second, third) = commit(warehouse, *(staged(tmp_path, key, run_id="again") for key in KEYS[:2]))
    assert first.seq < second.seq < third.seq
    numbers = "SELECT count(DISTINCT seq), count(DISTINCT change_id) > count(DISTINCT seq) FROM batch_platform.changes"
    with warehouse.open() as con:
        ((before, shared),) = con.execute(numbers).fetchall()
        assert shared, "the tables of one commit share its number"
        con.execute("DELETE FROM batch_platform.score_runs")
        note_partitions(con, "small", "predictions", KEYS)
        assert con.execute(numbers).fetchall()[0][0] == before + len(KEYS)


def test_a_failed_insert_changes_nothing(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path))
    before = held(warehouse)
    broken = staged(tmp_path, KEYS[1], run_id="broken")
    broken.rejected[0].write_bytes(b"no Parquet at all")
    with pytest.raises(duckdb.Error, match="magic"):
        commit(warehouse, staged(tmp_path, KEYS[2]), broken)
    assert held(warehouse) == before


EMPTY, SMALL = pl.Series([None], dtype=pl.Null), pl.Series([2, None], dtype=pl.Int8)


@pytest.mark.parametrize(
    ("first", "then", "rows"),
    [
        ({"id": [1], "score": [0.25]}, {"score": [0.75], "id": [2]}, [(1, 0.25), (2, 0.75)]),
        ({"id": [1]}, {"id": [2], "shop": ["x"]}, [(1, None), (2, "x")]),
        ({"id": [1], "a": [0.5]}, {"id": [2], "b": [0.75]}, [(1, 0.5, None), (2, None, 0.75)]),
        ({"value": [1]}, {"value": SMALL}, [(1,), (2,), (None,)]),
        ({"value": EMPTY}, {"value": ["text"]}, [("text",), (None,)]),
    ],
    ids=["another order", "a new column", "other columns", "a smaller type", "no value yet"],
)
def test_columns_are_matched_by_name_and_may_be_added(warehouse, tmp_path, first, then, rows):
    scores = [staged(tmp_path, KEYS[0], **first), staged(tmp_path, KEYS[1], **then)]
    for group in [scores] if "b" in then else [[partition] for partition in scores]:
        commit(warehouse, *group)
    with warehouse.open() as con:
        query = "SELECT * EXCLUDE (partition_key, run_id) FROM small.predictions ORDER BY 1"
        assert con.execute(query).fetchall() == rows


def test_a_column_whose_name_changes_only_its_case_stays_one_column_with_the_new_spelling(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], id=[1], Shop=["x"], É=[1]))
    commit(warehouse, staged(tmp_path, KEYS[1], id=[2], shop=["y"], é=[2]))
    publish(warehouse.home)
    commit(warehouse, staged(tmp_path, KEYS[2], id=[3], SHOP=["z"]))
    publish(warehouse.home)
    with open_published(warehouse.home) as con:
        rows = con.sql('SELECT id, shop, é, "É" FROM small.predictions ORDER BY id')
        assert rows.columns == ["id", "SHOP", "é", "É"]
        assert rows.fetchall() == [(1, "x", None, 1), (2, "y", 2, None), (3, "z", None, None)]


@pytest.mark.parametrize(
    ("first", "then"),
    [([1, 2], [1.5, 2.0]), ([1, 2], ["1", "x"]), ([True], ["yes"]), ([1], [2**70 * 1.0])],
    ids=["a fraction in integers", "text in integers", "text in booleans", "beyond 64 bits"],
)
def test_a_value_that_does_not_fit_the_tables_type_is_refused_and_not_rounded(warehouse, tmp_path, first, then):
    commit(warehouse, staged(tmp_path, KEYS[0], Value=first))
    before = held(warehouse)
    with pytest.raises(DataError, match=r"value is (BIGINT|BOOLEAN)"):
        commit(warehouse, staged(tmp_path, KEYS[1], value=then))
    assert held(warehouse) == before
    with warehouse.open() as con:
        assert con.sql("FROM small.predictions").columns[0] == "Value", "its spelling stays"


@pytest.mark.unit
def test_an_older_slower_run_is_refused(warehouse, tmp_path):
    slow = staged(tmp_path, run_id="slow", id=[0], score=[0.0])
    commit(warehouse, staged(tmp_path, run_id="fast"))
    before = held(warehouse)
    with pytest.raises(
        WarehouseError, match=r"small, partition 2024-01-01: run fast committed it at 2024-01-01 03:00:00"
    ):
        commit(warehouse, staged(tmp_path, KEYS[1]), slow)
    assert held(warehouse) == before


def test_a_partition_that_had_rows_becomes_empty_only_if_forced(warehouse, tmp_path):
    (run,) = commit(warehouse, staged(tmp_path))
    empty = staged(tmp_path, seen=run.seq, run_id="empty", id=pl.Series([], dtype=pl.Int64))
    with pytest.raises(DataError, match="it had 2 rows and would become empty"):
        commit(warehouse, empty)
    commit(warehouse, empty, may_empty=True)
    assert held(warehouse)["small.predictions"] == []


@pytest.mark.unit
def test_staged_rows_that_differ_from_their_count_are_refused(warehouse, tmp_path):
    scores = staged(tmp_path)
    pl.read_parquet(scores.predictions[0]).head(1).write_parquet(scores.predictions[0])
    with pytest.raises(IntegrityError, match="not those that were counted"):
        commit(warehouse, scores)
    assert "small.predictions" not in held(warehouse)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["'; DROP TABLE x; --", 'sa"y', "a.b"])
def test_names_and_values_are_data_and_never_sql(warehouse, tmp_path, name):
    scores = staged(tmp_path, **{name: [name, "other"], 'c"; DROP SCHEMA batch_platform; --': [1, 2]})
    commit(warehouse, scores, schema=name)
    tables = held(warehouse)
    assert [row[0] for row in tables["batch_platform.meta"]] == [FORMAT]
    assert [row[0] for row in tables[f"{name}.predictions"]] == sorted([name, "other"])


@pytest.mark.unit
def test_the_time_to_wait_is_a_number_of_seconds_in_the_environment(home, monkeypatch):
    assert Warehouse(home).timeout == 120
    monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", "0.5")
    assert Warehouse(home).timeout == 0.5
    for text in ("soon", "-1", "inf"):
        monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", text)
        with pytest.raises(WrongUseError, match=f"LOCK_TIMEOUT is '{text}', which is not a number of seconds"):
            Warehouse(home)


@pytest.mark.unit
@pytest.mark.parametrize("version", [min(ledger.UPGRADES) - 1, FORMAT + 1])
def test_a_warehouse_of_another_format_is_refused_and_left_as_it_is(warehouse, version):
    with warehouse.open() as con:
        con.execute(f"UPDATE batch_platform.meta SET format = {version}")
    before = warehouse.home.warehouse.read_bytes()
    message = (
        f"has format {version}; this version of batch-platform reads {FORMAT}. Hint: use the version that wrote it"
    )
    with pytest.raises(WarehouseError, match=message), warehouse.open():
        pass
    assert warehouse.home.warehouse.read_bytes() == before


@pytest.mark.unit
def test_the_tables_of_the_ledgers_are_those_of_the_format(warehouse):
    """Whoever changes them raises FORMAT, adds to UPGRADES the way from the former format, and writes the new hash here."""
    query = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = $schema ORDER BY ALL"
    with warehouse.open() as con:
        columns = con.execute(query, {"schema": "batch_platform"}).fetchall()
    assert (FORMAT, hashlib.sha256(repr(columns).encode()).hexdigest()[:12]) == (7, "9b5157c97483")


def test_a_warehouse_of_an_earlier_format_is_upgraded_step_by_step_and_keeps_its_rows(warehouse, tmp_path, monkeypatch):
    commit(warehouse, staged(tmp_path))
    publish(warehouse.home)
    before = warehouse.latest(ScoreRun, "small")
    steps = {
        FORMAT: "ALTER TABLE batch_platform.score_runs ADD COLUMN region VARCHAR DEFAULT 'north'",
        FORMAT + 1: "ALTER TABLE batch_platform.score_runs RENAME COLUMN region TO area",
    }
    for number, statement in steps.items():
        monkeypatch.setitem(ledger.UPGRADES, number, methodcaller("execute", statement))
    monkeypatch.setattr(ledger, "FORMAT", FORMAT + 2)
    message = f"has format {FORMAT}; this version of batch-platform reads {FORMAT + 2}. Hint: batch-platform run NAME"
    with pytest.raises(WarehouseError, match=message):
        open_published(warehouse.home)
    with warehouse.open() as con:
        assert con.execute("SELECT area FROM batch_platform.score_runs").fetchall() == [("north",)]
    publish(warehouse.home)
    with open_published(warehouse.home) as con:
        assert con.execute("SELECT area FROM batch_platform.score_runs").fetchall() == [("north",)]
    assert warehouse.latest(ScoreRun, "small") == before


@pytest.mark.unit
def test_an_upgrade_that_fails_leaves_the_warehouse_in_its_former_format(warehouse, monkeypatch):
    with warehouse.open():
        pass
    before = warehouse.home.warehouse.read_bytes()

    def fail_halfway(con):
        con.execute("ALTER TABLE batch_platform.score_runs ADD COLUMN region VARCHAR")
        raise ZeroDivisionError

    monkeypatch.setitem(ledger.UPGRADES, FORMAT, fail_halfway)
    monkeypatch.setattr(ledger, "FORMAT", FORMAT + 1)
    with pytest.raises(ZeroDivisionError), warehouse.open():
        pass
    monkeypatch.undo()
    assert warehouse.home.warehouse.read_bytes() == before
    with warehouse.open() as con:
        assert "region" not in con.table("batch_platform.score_runs").columns


@pytest.mark.unit
def test_a_file_that_is_not_a_database_is_refused_and_kept(warehouse):
    warehouse.home.warehouse.write_bytes(b"precious" * 1000)
    with pytest.raises(WarehouseError, match=r"cannot be opened.*Hint: nothing was changed"), warehouse.open():
        pass
    assert warehouse.home.warehouse.read_bytes() == b"precious" * 1000
