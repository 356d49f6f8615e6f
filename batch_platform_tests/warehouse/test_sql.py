"""DuckDB instances that are used again: nothing of one use reaches the next."""

import os
from contextlib import closing

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.warehouse import sql
from batch_platform.warehouse.sql import attach, connect


@pytest.fixture(autouse=True)
def no_idle_instance():
    sql._close_idle()
    yield
    sql._close_idle()


@pytest.mark.unit
def test_an_instance_is_used_again_for_another_file_and_keeps_nothing_of_the_first(tmp_path):
    with closing(attach(tmp_path / "first.duckdb")) as first:
        first.con.execute("CREATE TABLE kept AS SELECT 1 AS a")
        first.con.execute("CREATE TEMP TABLE gone AS SELECT 2 AS a")
        first.con.register("frame", pl.DataFrame({"a": [3]}))
        first.con.execute("BEGIN")
        first.con.execute("INSERT INTO kept VALUES (4)")
    with closing(attach(tmp_path / "second.duckdb")) as second:
        assert second.instance is first.instance
        for name in ("kept", "gone", "frame"):
            with pytest.raises(duckdb.CatalogException):
                second.con.execute(f"FROM {name}")
    with closing(attach(tmp_path / "first.duckdb")) as again:
        assert again.con.execute("FROM kept").fetchall() == [(1,)]  # what was not committed is undone
        assert again.con.execute("SELECT current_setting('TimeZone'), current_database()").fetchall() == [
            ("UTC", "warehouse")
        ]


@pytest.mark.unit
def test_a_process_without_memory_for_duckdb_says_so(monkeypatch):
    def refuse(*_, **__):
        raise duckdb.OutOfMemoryException("malloc failed")

    monkeypatch.setattr(duckdb, "connect", refuse)
    with pytest.raises(
        BatchPlatformError, match=r"could not start for want of memory: .*Hint: give the process more memory"
    ):
        connect()


def test_a_forked_process_opens_files_that_its_parent_had_open(tmp_path):
    with closing(attach(tmp_path / "a.duckdb")) as database:
        database.con.execute("CREATE TABLE t AS SELECT 1 AS a")
    assert sql._idle
    child = os.fork()
    if not child:
        with closing(attach(tmp_path / "a.duckdb")) as database:
            os._exit(int(database.con.execute("SELECT sum(a) FROM t, range(100000)").fetchall() != [(100_000,)]))
    assert os.waitpid(child, 0)[1] == 0
    with closing(attach(tmp_path / "a.duckdb")) as database:
        assert database.con.execute("FROM t").fetchall() == [(1,)]
