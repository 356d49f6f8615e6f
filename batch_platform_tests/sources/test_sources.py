import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import SourceError
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.sql import quoted
from batch_platform_tests.sources.declared import FIRST, SECOND, rows
from batch_platform_tests.sources.declared import sources_in as sources

ODD_FOLDERS = ["plain", "a b [x]", "it's", 'say "größe"', "a*b?", "a=b"]
FUNCTIONS = """
import polars as pl
import pyarrow as pa

def table():
    return pl.LazyFrame({"x": [1, 2]})

def by_partition(partition):
    return pl.DataFrame({"key": [partition.key]})

def with_default(rows=3):
    return pl.DataFrame({"x": range(rows)})

def arrow():
    return pa.table({"x": [1, None], "text": ["a", "b"]})

def breaks():
    raise RuntimeError("no connection")

def breaks_late():
    return pl.LazyFrame({"x": [1]}).select("nope")

def numbers():
    return [1, 2]

"""


def polars_rows(of: Sources) -> list[tuple[object, ...]]:
    with of.connect(FIRST) as con:
        return con.frames(FIRST, ["a"])["a"].collect().rows()


def write_duckdb(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as con:
        for statement in statements:
            con.execute(statement)


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The name of a module with the functions above, importable for one test."""
    name = f"functions_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("folder", ODD_FOLDERS)
def test_a_file_is_read_from_a_folder_of_any_name(tmp_path, kind, folder):
    (tmp_path / folder).mkdir()
    table = pl.DataFrame({"x": [1, 2], "größe": ["a", "b"]})
    getattr(table, f"write_{kind}")(tmp_path / folder / f"table.{kind}")
    below = sources(tmp_path / folder, a={kind: f"table.{kind}"})
    assert rows(below, "FROM a ORDER BY x") == table.rows()
    assert polars_rows(below) == table.rows()


@pytest.mark.unit
@pytest.mark.parametrize("table", ["t", "main.t", 'other.say "hi"; DROP TABLE t'])
def test_a_table_of_a_duckdb_file_is_read(tmp_path, table):
    schema, _, name = table.rpartition(".")
    write_duckdb(
        tmp_path / "it's.duckdb",
        "CREATE SCHEMA other",
        f"CREATE TABLE {quoted(schema or 'main')}.{quoted(name)} AS SELECT 7 AS x",
    )
    below = sources(tmp_path, a={"duckdb": "it's.duckdb", "table": table})
    assert rows(below, "FROM a") == [(7,)]
    assert polars_rows(below) == [(7,)]


@pytest.mark.unit
def test_a_sqlite_file_that_is_declared_as_duckdb_is_refused_with_the_right_declaration(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as con:
        con.execute("CREATE TABLE a (x)")
        con.commit()
    with pytest.raises(SourceError, match=r"x\.db is a SQLite file") as refused:
        rows(sources(tmp_path, a={"duckdb": "x.db", "table": "a"}), "FROM a")
    assert refused.value.hint == "declare it as sources.a: {sql: {uri: sqlite:///x.db, table: a}}."


@pytest.mark.unit
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("table", [(1,), (2,)]),
        ("by_partition", [("2024-01-01",)]),
        ("with_default", [(0,), (1,), (2,)]),
        ("arrow", [(1, "a"), (None, "b")]),
    ],
)
def test_a_function_returns_a_table_with_or_without_the_partition(tmp_path, functions, function, expected):
    below = sources(tmp_path, a={"python": f"{functions}.{function}"})
    assert below.kind("a").takes_partition(below.table("a", FIRST)) == (function == "by_partition")
    assert rows(below, "FROM a") == expected
    assert polars_rows(below) == expected


@pytest.mark.unit
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("breaks", "Source 'a' of 'small': .*breaks failed with RuntimeError: no connection"),
        ("breaks_late", "Source 'a' of 'small' cannot be read: .*nope"),
        ("numbers", "returned list, which is not a table"),
    ],
)
def test_a_function_that_returns_no_table_is_an_error_of_the_source(tmp_path, functions, function, message):
    with pytest.raises(SourceError, match=message):
        rows(sources(tmp_path, a={"python": f"{functions}.{function}"}), "FROM a")


@pytest.fixture
def writer(tmp_path):
    """A process that has a DuckDB file open, and on a line of input adds a row and closes it."""
    write_duckdb(tmp_path / "x.duckdb", "CREATE TABLE a AS SELECT 1 AS x")
    script = f"import duckdb; c = duckdb.connect({str(tmp_path / 'x.duckdb')!r}); print('open', flush=True); input(); c.execute('INSERT INTO a VALUES (2)')"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        yield process
        process.communicate("\n" if process.poll() is None else None)


def test_a_duckdb_file_that_another_process_writes_is_waited_for_as_long_as_declared(tmp_path, writer):
    declared = {"duckdb": "x.duckdb", "table": "a"}
    problem = rf"process {writer.pid} has .*x\.duckdb open for writing; .*sources\.a\.wait"
    with pytest.raises(SourceError, match=problem):
        rows(sources(tmp_path, a=declared | {"wait": "0 seconds"}), "FROM a")
    with subprocess.Popen(["sh", "-c", f"sleep 0.5; echo >/proc/{writer.pid}/fd/0"]):
        assert rows(sources(tmp_path, a=declared), "FROM a ORDER BY x") == [(1,), (2,)]


@pytest.mark.unit
def test_a_file_added_to_a_glob_or_moved_within_it_changes_the_version(tmp_path):
    below = sources(tmp_path, a={"csv": "**/*.csv"})
    seen = set()
    for present in (["a.csv"], ["a.csv", "b.csv"], ["a.csv", "deep/b.csv"]):
        for path in tmp_path.rglob("*.csv"):
            path.unlink()
        for name in present:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x\n1\n")
            os.utime(tmp_path / name, ns=(0, 0))
        seen.add(below.versions(FIRST, ["a"])["a"])
    assert len(seen) == 3


@pytest.mark.unit
def test_a_version_does_not_depend_on_where_the_project_lies(tmp_path):
    versions = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "a.csv").write_text("x\n1\n")
        os.utime(folder / "data" / "a.csv", ns=(0, 0))
        versions.append(sources(folder, a={"csv": "data/*.csv"}).versions(FIRST, ["a"]))
    assert versions[0] == versions[1]


@pytest.mark.unit
def test_the_version_of_a_function_is_that_of_its_code(tmp_path, functions):
    below = sources(tmp_path, a={"python": f"{functions}.table"})
    before = below.versions(FIRST, ["a"])
    assert below.versions(SECOND, ["a"]) == before
    (tmp_path / f"{functions}.py").write_text(FUNCTIONS + "\n# changed\n")
    assert below.versions(FIRST, ["a"]) != before


FORBIDDEN = [
    "FROM '{folder}/secret.parquet'",
    "FROM read_parquet('{folder}/*.parquet')",
    "FROM read_text('{folder}/secret.parquet')",
    "FROM local_frame",
    "COPY a TO '{folder}/stolen.csv'",
    "ATTACH '{folder}/stolen.duckdb'",
    "INSTALL httpfs",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "SET lock_configuration = false",
    "DROP TABLE {database}.main.t",
]


@pytest.mark.unit
@pytest.mark.parametrize("sql", FORBIDDEN)
def test_sql_can_read_and_write_nothing_but_its_sources(tmp_path, sql):
    local_frame = pl.DataFrame({"x": [1]})  # found by name in the caller's variables, if DuckDB is allowed to
    for name in ("a", "secret"):
        local_frame.write_parquet(tmp_path / f"{name}.parquet")
    write_duckdb(tmp_path / "b.duckdb", "CREATE TABLE t AS SELECT 1 AS x")
    below = sources(tmp_path, a={"parquet": "a.parquet"}, b={"duckdb": "b.duckdb", "table": "t"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with below.connect(FIRST) as con:
        assert con.duckdb.execute("FROM a UNION ALL FROM b").fetchall() == [(1,), (1,)]
        with pytest.raises(duckdb.Error):
            con.duckdb.execute(sql.format(folder=tmp_path, database=quoted(str(tmp_path / "b.duckdb")))).fetchall()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
