"""What every kind of source must do, for each kind, and for one from outside of the package."""

import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import duckdb
import fsspec
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog

from batch_platform.declaration.errors import NothingPublishedError, SourceError, WrongUseError
from batch_platform.declaration.inputs import KINDS_IN_STORES
from batch_platform.sources.files import Files, files_of
from batch_platform.sources.kind import SourceTable, create_view
from batch_platform.sources.known import SOURCE_KINDS
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.sql import literal
from batch_platform.warehouse.user_tables import TableName, store_table
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.object_store import BUCKET, ObjectStore, object_store
from batch_platform_tests.harness.postgres_server import postgres
from batch_platform_tests.harness.small_pipeline import feature_file
from batch_platform_tests.sources.declared import CALENDAR, FIRST, SECOND, sources_in

pytestmark = pytest.mark.usefixtures("shop_extensions")
TABLE = pl.DataFrame({"x": [1, 2], "text": ["a", "ü"], "number": [0.5, None]})
OTHER = pl.DataFrame({"x": [7], "text": ["b"], "number": [2.0]})


def lines_relation(table: SourceTable) -> str:
    files = ", ".join(literal(str(path)) for path in files_of(table))
    return f"read_csv([{files}], delim = '|', header = true)"


class Lines(Files):
    """A kind that the tests register as a user of the package would."""

    endings = (".lines",)

    def description(self, source):
        return f"the lines of `{source.location}`"

    def view(self, con, table):
        create_view(con, table.name, lines_relation(table))

    def frame(self, con, table):
        return con.sql(f"FROM {lines_relation(table)}").pl().lazy()


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    """The kind that is registered; another one from outside is that of the guide's distribution."""
    monkeypatch.setitem(SOURCE_KINDS, "lines", Lines())


def write_database(path: Path, table: pl.DataFrame) -> None:
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as con:
        con.register("rows", table)
        con.execute("CREATE TABLE t AS FROM rows")


def write_function(path: Path, table: pl.DataFrame) -> None:
    name = "by_day(partition)" if path.stem.startswith("by_day") else "table()"
    path.write_text(f"import polars as pl\ndef {name}:\n    return pl.DataFrame({table.to_dict(as_series=False)!r})\n")
    sys.modules.pop(path.stem, None)


def write_asset(path: Path, table: pl.DataFrame) -> None:
    """Store and publish the table of an asset, unless it is there, in the home at a path."""
    home, rows = Home(path).create(), path.parent / "rows.parquet"
    table.write_parquet(rows)
    with suppress(NothingPublishedError), open_published(home) as con:
        if con.sql("SELECT * EXCLUDE (partition_key) FROM raw.a").fetchall() == table.rows():
            return
    store_table(Warehouse(home), TableName("raw", "a"), rows, None)
    publish(home)


def write_delta(path: Path, table: pl.DataFrame) -> None:
    """Overwrite the rows of a table with others."""
    if path.is_dir() and pl.DataFrame(DeltaTable(path).scan().read_all()).equals(table):
        return
    write_deltalake(path, table.to_arrow(), mode="overwrite")


def write_iceberg(path: Path, table: pl.DataFrame) -> None:
    """Overwrite the rows of the table `sales.orders` of the catalog in a folder with others."""
    path.mkdir(exist_ok=True)
    catalog = load_catalog("default", uri=f"sqlite:///{path}/catalog.db", warehouse=f"file://{path}")
    catalog.create_namespace_if_not_exists("sales")
    iceberg = catalog.create_table_if_not_exists("sales.orders", schema=table.to_arrow().schema)
    if iceberg.current_snapshot() is None:
        iceberg.append(table.to_arrow())
    elif not pl.DataFrame(iceberg.scan().to_arrow()).equals(table):
        iceberg.overwrite(table.to_arrow())


def iceberg_table(name: str) -> dict[str, Any]:
    return {"catalog": {"uri": "sqlite:///PATH/iceberg/catalog.db", "warehouse": "file://PATH/iceberg"}, "table": name}


def write_sqlite(path: Path, table: pl.DataFrame, name: str = "t") -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as con:
        con.execute(f"CREATE TABLE {name} (x INTEGER, text TEXT, number REAL)")
        con.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", table.rows())
        con.commit()


_servers = ExitStack()


@cache
def server() -> str:
    """The address of a PostgreSQL that runs until the tests of this file have ended."""
    return _servers.enter_context(postgres()).replace("+psycopg2", "")


@pytest.fixture(scope="module", autouse=True)
def _until_the_end():
    yield
    server.cache_clear()
    _servers.close()


def write_postgres(_: Path, table: pl.DataFrame) -> None:
    with closing(postgresql.connect(server())) as con, closing(con.cursor()) as cursor:
        cursor.adbc_ingest("t", table.to_arrow(compat_level=pl.CompatLevel.oldest()), mode="replace")
        con.commit()


@dataclass(frozen=True)
class Case:
    """A kind of source, how a table of it is written, and how it is declared."""

    file: str  # {partition_key} where each partition has one
    write: Callable[[Path, pl.DataFrame], Any]
    declared: dict[str, Any]
    missing: dict[str, Any]  # nearly the same
    nearest: str

    def put(self, folder: Path, table: pl.DataFrame, key: str = FIRST.key) -> Path:
        path = folder / self.file.replace("{partition_key}", key)
        path.parent.mkdir(exist_ok=True)
        self.write(path, table)
        return path

    def place(self, path: Path) -> str:
        """The location of a written table, for people."""
        return str(path)


@dataclass(frozen=True)
class InStore(Case):
    """The same, as objects in a store below the name of the test's folder, which the declarations call FOLDER."""

    def put(self, folder: Path, table: pl.DataFrame, key: str = FIRST.key) -> Path:
        path = super().put(folder, table, key)
        slash = "/" if path.is_dir() else ""
        address = f"{self.place(path)}{slash}"
        fsspec.filesystem("s3", use_listings_cache=False).put(f"{path}{slash}", address, recursive=path.is_dir())
        return path

    def place(self, path: Path) -> str:
        folder = path.parents[self.file.count("/")]
        return f"{LAKE}/{folder.name}/{path.relative_to(folder)}"


LAKE = f"s3://{BUCKET}"


def in_store(case: Case) -> InStore:
    """A case whose files are objects."""
    declared, missing = (
        {key: f"{LAKE}/FOLDER/{path}" for key, path in it.items()} for it in (case.declared, case.missing)
    )
    return InStore(case.file, case.write, declared, missing, case.nearest)


def in_file(kind: str, file: str, write: Callable[[Path, pl.DataFrame], Any], **further: str) -> Case:
    """A case whose table is a file; what is missing has a letter more."""
    return Case(file, write, {kind: file, **further}, {kind: f"a{file}", **further}, file)


CASES = {
    "parquet": in_file("parquet", "a.parquet", lambda path, table: table.write_parquet(path)),
    "csv": in_file("csv", "a.csv", lambda path, table: table.write_csv(path)),
    "json": in_file("json", "a.jsonl", lambda path, table: table.write_ndjson(path)),
    "arrow": in_file("arrow", "a.feather", lambda path, table: table.write_ipc(path, compression="zstd")),
    "lines": in_file("lines", "a.lines", lambda path, table: table.write_csv(path, separator="|")),
    "sqlite": in_file("sqlite", "a.sqlite", lambda path, table: write_sqlite(path, table, "rows")),
    "duckdb": in_file("duckdb", "a.duckdb", write_database, table="t"),
    "delta": Case("orders", write_delta, {"delta": "orders"}, {"delta": "order"}, "orders"),
    "iceberg": Case(
        "iceberg",
        write_iceberg,
        {"iceberg": iceberg_table("sales.orders")},
        {"iceberg": iceberg_table("sales.order")},
        "sales.orders",
    ),
    "sql of SQLite": Case(
        "a.sqlite",
        write_sqlite,
        {"sql": {"uri": "sqlite:///a.sqlite", "table": "t"}},
        {"sql": {"uri": "sqlite:///a.sqlite", "table": "tt"}},
        "t",
    ),
    "sql of PostgreSQL": Case(
        "nothing",
        write_postgres,
        {"sql": {"uri": "postgresql://", "table": "t", "version": "SELECT count(*), sum(x) FROM t"}},
        {"sql": {"uri": "postgresql://", "table": "tt"}},
        "t",
    ),
    "asset": Case("home", write_asset, {"asset": "raw/a"}, {"asset": "raw/aa"}, "raw.a"),
    "python": Case(
        "source_of_kinds.py",
        write_function,
        {"python": "source_of_kinds.table"},
        {"python": "source_of_kinds.tabel"},
        "table",
    ),
}
BY_PARTITION = {
    kind: replace(CASES[kind], file=f"days/{{partition_key}}.{kind}", declared={kind: f"days/{{partition_key}}.{kind}"})
    for kind in ("parquet", "csv", "json", "arrow", "lines")
}
OBJECTS = {f"{kind} in a store": in_store(CASES[kind]) for kind in (*KINDS_IN_STORES, "lines")}
BY_PARTITION |= {f"{kind} in a store": in_store(case) for kind, case in BY_PARTITION.items()}
CASES_AND_OBJECTS = {**CASES, **OBJECTS}
ALL = {**CASES_AND_OBJECTS, **{f"{kind} by partition": case for kind, case in BY_PARTITION.items()}}
every_kind = pytest.mark.parametrize("case", ALL.values(), ids=ALL)


def declared(folder: Path, source: dict[str, Any]) -> Sources:
    if "sql" in source and source["sql"]["uri"] == "postgresql://":
        source = {"sql": source["sql"] | {"uri": server()}}
    source = json.loads(json.dumps(source).replace("FOLDER", folder.name).replace("PATH", str(folder)))
    return Sources(sources_in(folder, a=source).spec, folder, Home(folder / "home"))


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture
def folder(tmp_path, monkeypatch, request) -> Path:
    if "in a store" in request.node.name:
        for name, value in request.getfixturevalue("store").environment.items():
            monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("source_of_kinds", None)


def seen(sources: Sources, partition=FIRST) -> tuple[Collection[Any], Collection[Any]]:
    """The rows of the source as SQL and as Polars read them."""
    with sources.connect(partition) as con:
        frame = con.frames(partition, ["a"])["a"].collect()
        return con.duckdb.execute("FROM a").fetchall(), frame.rows()


def test_every_kind_has_a_case():
    assert {next(iter(case.declared)) for case in CASES.values()} == {
        name for name, kind in SOURCE_KINDS.items() if not kind.only_on_spark
    }


@every_kind
def test_a_source_gives_sql_and_polars_the_same_rows_and_nothing_else_can_be_read(folder, case):
    path = case.put(folder, TABLE)
    TABLE.write_parquet(folder / "secret.parquet")
    sources = declared(folder, case.declared)
    assert seen(sources) == (TABLE.rows(), TABLE.rows())
    with sources.connect(FIRST) as con:
        for sql in (
            f"FROM '{folder}/secret.parquet'",
            f"ATTACH '{folder}/new.duckdb'",
            "SET allowed_directories = ['/']",
        ):
            with pytest.raises(duckdb.Error):
                con.duckdb.execute(sql)
    state = sources.state("a", None)
    types = {"x": "BIGINT", "text": "VARCHAR", "number": "DOUBLE"}
    assert (state.rows, list(state.columns.items())) == (2, list(types.items()))
    in_database = (f"t in {path}", f"t in {server().replace('dagster@', '')}" if "sql" in case.declared else None)
    in_catalogs = ("sales.orders", f"raw.a in {path}/published.duckdb")
    assert state.location in (case.place(path), case.declared.get("python"), *in_catalogs, *in_database)


@every_kind
def test_the_version_stays_until_the_content_changes(folder, case):
    sources = declared(folder, case.declared)
    versions = []
    for at, table in enumerate((TABLE, TABLE, OTHER)):
        path = case.put(folder, table)
        os.utime(path, ns=(0, 0)) if at < 2 and path.exists() else None
        versions.append(sources.version("a", FIRST))
    assert versions[0] == versions[1] != versions[2]
    assert declared(folder, case.declared).version("a", FIRST) == versions[2]


@pytest.mark.parametrize("case", CASES_AND_OBJECTS.values(), ids=CASES_AND_OBJECTS)
def test_a_missing_source_is_named_with_the_nearest_match(folder, case):
    case.put(folder, TABLE)
    sources = declared(folder, case.missing)
    for work in (lambda: sources.version("a", FIRST), lambda: seen(sources), lambda: sources.state("a", FIRST)):
        with pytest.raises((SourceError, WrongUseError), match=f"did you mean '{re.escape(case.nearest)}'") as refused:
            work()
        missing = case.missing[next(iter(case.missing))]
        name = missing["table"] if isinstance(missing, dict) else missing.removeprefix(f"{LAKE}/FOLDER/")
        assert name.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("case", BY_PARTITION.values(), ids=BY_PARTITION)
def test_each_partition_reads_its_own_file_through_one_connection(folder, case):
    case.put(folder, TABLE, FIRST.key)
    case.put(folder, OTHER, SECOND.key)
    sources = declared(folder, case.declared)
    assert sources.version("a", FIRST) != sources.version("a", SECOND)
    with sources.connect(FIRST) as con:
        assert con.duckdb.execute("FROM a").fetchall() == TABLE.rows()
        assert con.frames(SECOND, ["a"])["a"].collect().rows() == OTHER.rows()
        con.move(SECOND)
        assert con.duckdb.execute("FROM a").fetchall() == OTHER.rows()
        with pytest.raises(SourceError, match=r"there is no file .*2024-01-03.* Hint: other partitions have a file"):
            con.move(CALENDAR.named("2024-01-03"))


def test_the_notation_of_csv_files_can_be_declared(folder):
    (folder / "a.csv").write_text("x;price;code\n1;2,5;007\n2;1,5;8\n")
    notation = {"delimiter": ";", "decimal": ",", "types": {"code": "VARCHAR"}}
    with declared(folder, {"csv": "a.csv", **notation}).connect(FIRST) as con:
        assert con.duckdb.execute("FROM a").fetchall() == [(1, 2.5, "007"), (2, 1.5, "8")]
        assert con.frames(FIRST, ["a"])["a"].collect().rows() == [(1, 2.5, "007"), (2, 1.5, "8")]
    with pytest.raises(SourceError, match=r"cannot be read: .*cod"):
        seen(declared(folder, {"csv": "a.csv", "types": {"cod": "VARCHAR"}}))


@pytest.mark.parametrize(("wrong", "told"), [("12,5x", "'12,5x'"), ("1.250", r"'1\.250'")])
def test_a_value_that_is_no_number_with_a_decimal_comma_is_named_and_blames_no_other(folder, wrong, told):
    rows = [f"{at};{at},5;{at},5" for at in range(5)] + [f"5;{wrong};x", "6;7;y", "7;;"]
    (folder / "a.csv").write_text("\n".join(["x;price;code", *rows]) + "\n")
    notation = {"csv": "a.csv", "delimiter": ";", "decimal": ",", "types": {"code": "VARCHAR"}}
    message = rf"column 'price' holds numbers with decimal ',', but 1 of 7 values is none: {told} in row 6\. Hint: .*price: VARCHAR"
    with pytest.raises(SourceError, match=message):
        seen(declared(folder, notation))
    as_text = declared(folder, notation | {"types": {"code": "VARCHAR", "price": "VARCHAR"}})
    with as_text.connect(FIRST) as con:
        assert con.duckdb.execute("SELECT price FROM a WHERE x = 5").fetchall() == [(wrong,)]


def test_a_file_in_latin_1_is_named_with_what_to_declare_and_then_read(folder):
    (folder / "a.csv").write_text("x,town\n" + "1,Ulm\n" * 30_000 + "2,Zürich\n", encoding="latin-1")
    (folder / "b.csv").write_text("x,town\n1,Ulm\n")
    with pytest.raises(
        SourceError, match=r"a\.csv is not encoded as UTF-8\. Hint: declare sources\.a\.encoding: latin-1"
    ):
        seen(declared(folder, {"csv": "*.csv"}))
    with declared(folder, {"csv": "a.csv", "encoding": "latin-1"}).connect(FIRST) as con:
        assert con.duckdb.execute("SELECT town FROM a WHERE x = 2").fetchall() == [("Zürich",)]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "json"])
def test_a_zip_archive_is_refused_with_what_to_do(folder, kind):
    (folder / "a.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"a\.zip is a zip archive\. Hint: unpack it, .* as \.gz or \.zst"):
        seen(declared(folder, {kind: "a.zip"}))


@pytest.mark.parametrize(
    "text", ["x,s\r\n1,a\r\n2,b\n", "x,s\n1,a\r\n2,b\n", 'x,s\n1,"a"\r2,b\n', 'x,s\r\n1,a\r\n2,"b"']
)
def test_a_csv_file_whose_lines_do_not_all_end_alike_is_read(folder, text):
    (folder / "a.csv").write_bytes(text.encode())
    assert seen(declared(folder, {"csv": "a.csv"}))[0] == [(1, "a"), (2, "b")]
    (folder / "a.csv").write_bytes(text.encode() + b"\r\n3,c" * 50 + b"\r\n4,d,e\n5,f\n")
    with pytest.raises(SourceError, match=r"does not have 2 values as its header has\. Hint: correct the line"):
        seen(declared(folder, {"csv": "a.csv"}))


@pytest.mark.parametrize("rows", [3, 60])
def test_a_csv_file_whose_last_line_has_a_value_too_many_is_refused(folder, rows):
    (folder / "a.csv").write_text("x,s\n" + "1,a\n" * rows + "2,3,b\n")
    hint = "Hint: give each line as many values as the header; a value that holds a delimiter needs quotes"
    with pytest.raises(SourceError, match=f"line {rows + 2} has 3 values, and no line before it has as many. {hint}"):
        seen(declared(folder, {"csv": "a.csv"}))


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_number_far_down_is_not_rounded(folder, kind):
    table = pl.DataFrame({"x": [1.0] * 30_000 + [1.5], "text": ["1"] * 30_000 + ["one"]})
    lines = [f"{x:g},{text}" for x, text in table.rows()]
    (folder / "a.csv").write_text("\n".join(["x,text", *lines]) + "\n")
    (folder / "a.json").write_text("".join(f'{{"x": {x:g}, "text": "{text}"}}\n' for x, text in table.rows()))
    with declared(folder, {kind: f"a.{kind}"}).connect(FIRST) as con:
        assert con.duckdb.execute("SELECT sum(x), max(text) FROM a").fetchall() == [(30_001.5, "one")]
        assert con.frames(FIRST, ["a"])["a"].select("x").collect()["x"].sum() == 30_001.5


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_dates_are_recognised_only_where_day_and_month_are_certain(folder, kind):
    days = {"iso": "2026-01-02", "iso_time": "2026-01-02T03:04:05", "day": "13-02-2026", "slashes": "01/02/2026"}
    pl.DataFrame(days).write_csv(folder / "a.csv")
    pl.DataFrame(days).write_ndjson(folder / "a.json")
    with declared(folder, {kind: f"a.{kind}"}).connect(FIRST) as con:
        types = dict(zip(con.duckdb.sql("FROM a").columns, map(str, con.duckdb.sql("FROM a").types), strict=True))
    iso = {"iso": "DATE", "iso_time": "TIMESTAMP WITH TIME ZONE"} if kind == "csv" else {}
    assert types == dict.fromkeys(days, "VARCHAR") | iso


def test_a_pipeline_runs_with_a_kind_from_outside(tmp_path, monkeypatch):
    deployment = deploy(
        tmp_path,
        monkeypatch,
        sources={"shops": {"lines": "shops.lines"}},
        features_sql="SELECT e.id, e.ts, e.amount, s.size FROM events AS e LEFT JOIN shops AS s USING (shop)"
        " WHERE ts >= $partition_start AND ts < $partition_end",
        predictions={"keep": []},
    )
    (deployment.pipeline.folder / "shops.lines").write_text("shop|size\nZürich|3\nO'Brien|5\n")
    spec = next(one for one in deployment.definitions.resolve_all_asset_specs() if one.key.path[-1] == "shops")
    assert "Read from the lines of `shops.lines`" in (spec.description or "")
    assert deployment.run("shops").success
    (observed,) = deployment.observations("shops")
    assert observed.asset_observation.metadata["dagster/row_count"].value == 2
    assert deployment.run("features", first="2024-01-02").success
    built = pl.read_parquet(feature_file(deployment.pipeline, "2024-01-02"))
    assert set(built["size"].drop_nulls()) == {3, 5}
    build = deployment.pipeline.state().features["2024-01-02"]
    version = deployment.pipeline.builder.sources.version("shops", SECOND)
    assert f'"shops": "{version}"' in build.sources
