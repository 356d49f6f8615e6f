"""The warehouse: a partition is replaced wholly with its ledger row, or not at all."""

import fcntl
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from operator import methodcaller
from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    WarehouseBusyError,
    WarehouseError,
    WrongUseError,
)
from batch_platform.monitoring.measures.challengers import ChallengerRun
from batch_platform.pipeline.drop import drop_pipelines
from batch_platform.warehouse import ledger
from batch_platform.warehouse.database import LARGE_BYTES, WIDE_ROW_BYTES, Warehouse, bounded_buffer
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import (
    FORMAT,
    EvaluationRun,
    FeatureBuild,
    Promotion,
    ScoreRun,
    column_definitions,
    note_partitions,
)
from batch_platform.warehouse.published import open_published, publish
from batch_platform_tests.faults.nursery import Nursery
from batch_platform_tests.warehouse.commits import DAY, KEYS, commit, held, staged


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def warehouse(home: Home) -> Warehouse:
    return Warehouse(home)


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


def test_the_time_of_the_commit_is_recorded(warehouse, tmp_path):
    (run,) = commit(warehouse, staged(tmp_path))
    assert (run.started_at, run.committed_at) == (DAY, DAY + timedelta(hours=3))
    assert warehouse.latest(ScoreRun, "small")[KEYS[0]].committed_at == DAY + timedelta(hours=3)


def test_the_buffer_is_bounded_while_large_files_are_written_unless_their_rows_are_wide(warehouse, tmp_path):
    limit, large, rows = "SELECT current_setting('memory_limit')", tmp_path / "large", LARGE_BYTES // WIDE_ROW_BYTES + 1
    with large.open("wb") as file:
        file.truncate(LARGE_BYTES)
    with warehouse.open() as con:
        before = con.execute(limit).fetchall()
        for staged_files, of_rows in (([], rows), ([large], rows - 2)):
            with bounded_buffer(con, staged_files, of_rows):
                assert con.execute(limit).fetchall() == before
        with bounded_buffer(con, [large], rows):
            assert con.execute(limit).fetchall() != before
        con.execute("BEGIN")
        with pytest.raises(duckdb.Error), bounded_buffer(con, [large], rows):
            con.execute("SELECT error('the transaction ends')")
        con.execute("ROLLBACK")
        assert con.execute(limit).fetchall() == before


def test_only_partitions_that_stand_are_looked_for_among_the_rows(warehouse, tmp_path):
    (first,) = commit(warehouse, staged(tmp_path))
    fresh, again = staged(tmp_path, KEYS[1]), staged(tmp_path, seen=first.seq, run_id="again", id=[7], score=[0.75])
    commit(warehouse, again, fresh)
    assert sorted(row[:3] for row in held(warehouse)["small.predictions"]) == [
        (1, 0.25, KEYS[1]),
        (2, 0.5, KEYS[1]),
        (7, 0.75, KEYS[0]),
    ]


def test_a_failed_insert_changes_nothing(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path))
    before = held(warehouse)
    broken = staged(tmp_path, KEYS[1], run_id="broken")
    broken.rejected[0].write_bytes(b"no Parquet at all")
    with pytest.raises(duckdb.Error, match="magic"):
        commit(warehouse, staged(tmp_path, KEYS[2]), broken)
    assert held(warehouse) == before


def test_a_group_of_partitions_is_committed_as_one(warehouse, tmp_path):
    runs = commit(warehouse, *(staged(tmp_path, key) for key in KEYS))
    assert [run.partition_key for run in runs] == KEYS
    assert len({run.seq for run in runs}) == 3
    assert len(held(warehouse)["small.predictions"]) == 6


def test_columns_are_matched_by_name_whatever_their_order(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], id=[1], score=[0.25]))
    commit(warehouse, staged(tmp_path, KEYS[1], score=[0.75], id=[2]))
    assert [row[:2] for row in held(warehouse)["small.predictions"]] == [(1, 0.25), (2, 0.75)]


def test_a_new_column_is_added_and_null_in_older_rows(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], id=[1]))
    commit(warehouse, staged(tmp_path, KEYS[1], id=[2], shop=["x"]))
    with warehouse.open() as con:
        assert con.execute("SELECT id, shop FROM small.predictions ORDER BY id").fetchall() == [(1, None), (2, "x")]


def test_partitions_of_one_group_may_differ_in_their_columns(warehouse, tmp_path):
    commit(
        warehouse, staged(tmp_path, KEYS[0], id=[1], score_a=[0.5]), staged(tmp_path, KEYS[1], id=[2], score_b=[0.75])
    )
    with warehouse.open() as con:
        rows = con.execute("SELECT id, score_a, score_b FROM small.predictions ORDER BY id").fetchall()
    assert rows == [(1, 0.5, None), (2, None, 0.75)]


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


def test_a_value_that_does_not_fit_a_column_of_another_case_is_refused_and_the_spelling_stays(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], Value=[1]))
    with pytest.raises(DataError, match="value is BIGINT, now VARCHAR"):
        commit(warehouse, staged(tmp_path, KEYS[1], value=["x"]))
    with warehouse.open() as con:
        assert con.sql("FROM small.predictions").columns[0] == "Value"


@pytest.mark.parametrize(
    ("first", "then"),
    [([1, 2], [1.5, 2.0]), ([1, 2], ["1", "x"]), ([True], ["yes"]), ([1], [2**70 * 1.0])],
    ids=["a fraction in integers", "text in integers", "text in booleans", "beyond 64 bits"],
)
def test_a_value_that_does_not_fit_the_tables_type_is_refused_and_not_rounded(warehouse, tmp_path, first, then):
    commit(warehouse, staged(tmp_path, KEYS[0], value=first))
    before = held(warehouse)
    with pytest.raises(DataError, match=r"value is (BIGINT|BOOLEAN)"):
        commit(warehouse, staged(tmp_path, KEYS[1], value=then))
    assert held(warehouse) == before


def test_values_of_another_type_that_fit_are_accepted(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], value=[1]))
    commit(warehouse, staged(tmp_path, KEYS[1], value=pl.Series([2, None], dtype=pl.Int8)))
    with warehouse.open() as con:
        assert con.execute("SELECT value FROM small.predictions ORDER BY value").fetchall() == [(1,), (2,), (None,)]


def test_a_column_without_values_takes_the_type_of_its_first_values(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, KEYS[0], value=pl.Series([None], dtype=pl.Null)))
    commit(warehouse, staged(tmp_path, KEYS[1], value=["text"]))
    with warehouse.open() as con:
        assert con.execute("SELECT value FROM small.predictions ORDER BY value").fetchall() == [("text",), (None,)]


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


@pytest.mark.parametrize("name", ["'; DROP TABLE x; --", 'sa"y', "--", "schéma", "a.b"])
def test_names_and_values_are_data_and_never_sql(warehouse, tmp_path, name):
    scores = staged(tmp_path, **{name: [name, "other"], 'c"; DROP SCHEMA batch_platform; --': [1, 2]})
    commit(warehouse, scores, schema=name)
    tables = held(warehouse)
    assert [row[0] for row in tables["batch_platform.meta"]] == [FORMAT]
    assert [row[0] for row in tables[f"{name}.predictions"]] == sorted([name, "other"])


def test_features_and_evaluations_have_their_ledgers_too(warehouse):
    build = FeatureBuild("small", KEYS[0], 3, "s", 10, "c", "{}", DAY, "run")
    warehouse.record_features([build])
    run = EvaluationRun("small", KEYS[0], 1, 3, 2, DAY, "run")
    metrics = pl.DataFrame({"partition_key": [KEYS[0]], "metric": ["mae"], "value": [0.5]})
    for _ in range(2):
        warehouse.commit_evaluations("small", [run], {"performance": metrics})
    assert warehouse.latest(FeatureBuild, "small") == {KEYS[0]: build}
    assert warehouse.latest(EvaluationRun, "small") == {KEYS[0]: run}
    assert len(held(warehouse)["small.performance"]) == 1


HOLD = """
import sys, time
from operator import methodcaller
from pathlib import Path
from typing import Any
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.database import Warehouse
with Warehouse(Home(Path(sys.argv[1]))).open():
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(home: Home) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_process_waits_for_a_warehouse_that_is_held_for_a_while(home, tmp_path):
    with holder(home) as process:
        releaser = subprocess.Popen(["sh", "-c", f"sleep 0.5; echo >/proc/{process.pid}/fd/0"])
        commit(Warehouse(home), staged(tmp_path))
        releaser.wait()
    assert set(Warehouse(home).latest(ScoreRun, "small")) == {KEYS[0]}


def test_waiting_for_a_warehouse_that_is_never_released_times_out_and_names_the_holder(home):
    with holder(home) as process:
        with pytest.raises(WarehouseBusyError) as caught, Warehouse(home, timeout=0.2).open():
            pass
        process.communicate("\n")
    assert f"held by process {process.pid}; waited 0.2 s" in str(caught.value)
    assert "published.duckdb" in str(caught.value)


def test_a_process_that_opened_the_file_without_the_lock_is_named(home):
    with Warehouse(home).open():
        pass
    script = f"import duckdb; c = duckdb.connect({str(home.warehouse)!r}); print('held', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(WarehouseBusyError, match=f"held by process {process.pid}"),
            Warehouse(home, timeout=0.2).open(),
        ):
            pass
        process.communicate("\n")


def test_a_process_that_opened_the_file_without_the_lock_is_given_time_to_close_it(home, tmp_path):
    with Warehouse(home).open():
        pass
    script = (
        f"import duckdb, time; c = duckdb.connect({str(home.warehouse)!r}); print('held', flush=True); time.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        commit(Warehouse(home), staged(tmp_path))
    assert set(Warehouse(home).latest(ScoreRun, "small")) == {KEYS[0]}


def test_the_time_to_wait_is_set_by_the_environment(home, monkeypatch):
    assert Warehouse(home).timeout == 120
    monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", "0.5")
    assert Warehouse(home).timeout == 0.5


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_time_to_wait_that_is_not_a_number_of_seconds_is_refused(home, monkeypatch, text):
    monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", text)
    with pytest.raises(
        WrongUseError, match=f"BATCH_PLATFORM_LOCK_TIMEOUT is {text!r}, which is not a number of seconds"
    ):
        Warehouse(home)


def test_the_lock_is_free_after_an_error(warehouse):
    with pytest.raises(ZeroDivisionError), warehouse.transaction():
        raise ZeroDivisionError
    descriptor = os.open(warehouse.home.warehouse_lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


@pytest.mark.parametrize("version", [0, min(ledger.UPGRADES) - 1, FORMAT + 1, 99])
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


def test_a_warehouse_of_format_6_learns_which_rule_decided_and_keeps_its_rows(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path))
    before = warehouse.latest(ScoreRun, "small")
    with warehouse.open() as con:
        con.execute("ALTER TABLE batch_platform.score_runs DROP COLUMN decision_rule")
        con.execute("UPDATE batch_platform.meta SET format = 6")
    assert warehouse.latest(ScoreRun, "small") == before
    publish(warehouse.home)
    with open_published(warehouse.home) as con:
        assert con.execute("SELECT decision_rule FROM batch_platform.score_runs").fetchall() == [(None,)]
        query = "SELECT comment FROM duckdb_columns() WHERE column_name = 'decision_rule'"
        assert con.execute(query).fetchall() == [
            ("rule of predictions.decide by which its rows are decided, as JSON; null without one",)
        ]


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


def test_each_field_of_a_record_is_a_column_of_the_sql_type_that_fits_it():
    assert column_definitions(Promotion, "seq BIGINT") == [
        *("seq BIGINT", "pipeline VARCHAR", "version VARCHAR", "action VARCHAR", "reason VARCHAR", "evidence VARCHAR"),
        *("actor VARCHAR", "decided_at TIMESTAMPTZ", "run_id VARCHAR", "holds_from TIMESTAMPTZ"),
    ]
    assert {"in_sample BOOLEAN", "rank_correlation DOUBLE", "failure VARCHAR"} < set(column_definitions(ChallengerRun))


def test_a_damaged_block_is_reported_as_damage_and_not_as_a_lock(warehouse, tmp_path):
    commit(warehouse, staged(tmp_path, id=list(range(50_000))))
    data = warehouse.home.warehouse.read_bytes()
    warehouse.home.warehouse.write_bytes(data[:8192] + bytes([data[8192] ^ 1]) + data[8193:])
    with pytest.raises(WarehouseError, match=r"is damaged: .*Hint: nothing was changed or deleted"), warehouse.open():
        pass


def test_a_file_that_is_not_a_database_is_refused_and_kept(warehouse):
    warehouse.home.warehouse.write_bytes(b"precious" * 1000)
    with pytest.raises(WarehouseError, match=r"cannot be opened.*Hint: nothing was changed"), warehouse.open():
        pass
    assert warehouse.home.warehouse.read_bytes() == b"precious" * 1000


@pytest.mark.full
def test_a_process_killed_at_any_moment_leaves_each_partition_wholly_old_or_wholly_new(home, tmp_path):
    """Moments are drawn from twice the time that the commits before took, so that some fall on either side."""
    warehouse = Warehouse(home)
    moments = random.Random(1)
    outcomes, longest = set(), 0.1
    with Nursery() as nursery:
        for number in range(40):
            before = warehouse.latest(ScoreRun, "small")
            child = nursery.fork("commit", root=str(home.root), folder=str(tmp_path / "staged"), number=number)
            child.wait_for("committing")
            pause = moments.uniform(0, longest)
            time.sleep(pause)
            os.kill(child.pid, signal.SIGKILL)
            child.bury()
            after = warehouse.latest(ScoreRun, "small")
            longest = max(longest, 2 * pause) if after == before else max(0.05, pause)
            assert after == before or {run.run_id for run in after.values()} == {f"r{number}"}
            outcomes.add(after == before)
            with warehouse.open() as con:
                if after:
                    query = "SELECT partition_key, min(n), max(n), count(*) FROM small.predictions GROUP BY ALL ORDER BY ALL"
                    last = int(after[KEYS[0]].run_id[1:])
                    assert con.execute(query).fetchall() == [(key, last, last, 20_000) for key in KEYS]
    assert outcomes == {True, False}, "some were killed before the commit and some after"


@pytest.mark.full
def test_a_transaction_that_does_not_fit_on_the_disk_changes_nothing(home, tmp_path):
    warehouse = Warehouse(home)
    commit(warehouse, staged(tmp_path))
    before = held(warehouse)
    script = """
import resource, signal, sys
from operator import methodcaller
from pathlib import Path
from typing import Any
from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.database import Warehouse
from batch_platform_tests.warehouse.commits import KEYS, commit, staged
scores = staged(Path(sys.argv[2]), KEYS[1], id=list(range(400_000)), text=[str(hash(str(i))) for i in range(400_000)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    commit(Warehouse(Home(Path(sys.argv[1]))), scores)
except WarehouseError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(home.root), str(tmp_path / "staged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"The warehouse .* Hint: .*room on the disk", done.stdout)
    assert held(warehouse) == before


WITHOUT_MEMORY = """
import ctypes, resource
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.warehouse.sql import connect
connect().execute("SELECT 1")
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
resource.setrlimit(resource.RLIMIT_DATA, (1, 1))
size = 1 << 20
while size >= 4096:
    while library.malloc(size):
        pass
    size //= 2
try:
    connect()
except BatchPlatformError as error:
    print(error)
"""


def test_a_process_without_memory_for_duckdb_says_so():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=True)
    assert re.match(r"DuckDB could not start for want of memory: .*Hint: give the process more memory", ended.stdout)
