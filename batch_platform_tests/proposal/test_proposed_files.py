"""`batch-platform new`: tables come as files of many kinds, and what is proposed for them runs."""

import gzip
import itertools
import json
import math
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pytest
import yaml
from deltalake import write_deltalake

from batch_platform.proposal.choices import Asked, propose
from batch_platform.proposal.files import files_of, layout
from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform_tests.harness.command_line import published
from batch_platform_tests.harness.object_store import BUCKET, SECRET, object_store
from batch_platform_tests.harness.postgres_server import postgres_server
from batch_platform_tests.proposal.proposals import AFTER_ALL, DAYS, START, built, orders, pipeline_of, proposed

pytestmark = pytest.mark.usefixtures("few_trees")


def as_text(table: pl.DataFrame) -> pl.DataFrame:
    """Times as texts, since JSON has none."""
    return table.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%S"))


def write_zst(table: pl.DataFrame, file: Path, kind: str) -> None:
    with duckdb.connect() as con:
        con.register("orders", table)
        con.execute(f"COPY (FROM orders) TO '{file}' (FORMAT {kind}, COMPRESSION zstd)")


def write_json_array(table: pl.DataFrame, file: Path) -> None:
    file.write_text(json.dumps(as_text(table).to_dicts(), indent=1), encoding="utf-8")


WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "orders.jsonl": lambda table, file: as_text(table).write_ndjson(file),
    "orders.ndjson": lambda table, file: table.to_pandas().to_json(file, orient="records", lines=True),  # milliseconds
    "orders.json": write_json_array,
    "orders.arrow": lambda table, file: table.write_ipc(file),
    "orders": lambda table, file: write_deltalake(file, table.to_arrow(), partition_by=["shop"]),
    "orders.csv.gz": lambda table, file: file.write_bytes(gzip.compress(table.write_csv().encode())),
    "orders.csv.zst": lambda table, file: write_zst(table, file, "csv"),
    "orders.csv": lambda table, file: table.write_csv(file),
    "orders.duckdb": lambda table, file: write_tables(file, "shop.orders", rows=table.height),
    "orders.tsv": lambda table, file: table.write_csv(file, separator="\t"),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_file_of_every_kind_gives_the_rows_that_it_holds(tmp_path, file):
    WRITERS[file](orders(), tmp_path / file)
    proposal, files = proposed(tmp_path / file)
    assert (proposal.key[0].name, proposal.windows.time.name, proposal.every, proposal.target) == (
        "id",
        "at",
        "day",
        "classes",
    )
    assert [column.name for column in proposal.features] == ["amount", "items", "shop"]
    table = orders().sort("id")
    rows = built(
        pipeline_of(files, tmp_path), [START.replace(tzinfo=UTC), START.replace(tzinfo=UTC) + timedelta(days=DAYS)]
    )
    assert rows["id"].to_list() == table["id"].to_list()
    assert rows["amount"].to_list() == pytest.approx(table["amount"].to_list(), nan_ok=True)
    assert rows["items"].to_list() == table["items"].to_list()


def test_a_table_of_postgresql_with_a_time_is_read_by_a_query_for_each_partition(tmp_path, monkeypatch):
    with postgres_server() as server:
        uri = server.address.replace("+psycopg2", "")
        monkeypatch.setenv("SHOP_URI", uri)
        with closing(postgresql.connect(uri)) as con, closing(con.cursor()) as cursor:
            cursor.adbc_ingest("Orders", orders().to_arrow().cast(_plain_schema(orders())), mode="create")
            con.commit()
        origin = locate(uri, "public.Orders")
        with survey(origin, "UTC") as seen:
            proposal = propose(seen, Asked(AFTER_ALL))
            files = files_of("orders", proposal, layout(seen, proposal))
        assert yaml.safe_load(files["defs.yaml"])["attributes"]["sources"] == {
            "orders": {"sql": {"uri": "{{ env.SHOP_URI }}", "query": "orders_rows.sql"}}
        }
        query = files["orders_rows.sql"]
        assert '\nFROM "public"."Orders"\nWHERE "at" >= $partition_start AND "at" < $partition_end\n' in query
        declared = files | {"defs.yaml": files["defs.yaml"].replace("{{ env.SHOP_URI }}", uri)}
        first = START.replace(tzinfo=UTC)
        rows = built(pipeline_of(declared, tmp_path), [first, first + timedelta(days=DAYS)])
    assert rows["id"].to_list() == orders().sort("id")["id"].to_list()


def _plain_schema(table: pl.DataFrame) -> pa.Schema:
    """The types as ADBC takes them."""
    plain = {pa.large_string(): pa.string()}
    return pa.schema([it.with_type(plain.get(it.type, it.type)) for it in table.to_arrow().schema])


def test_an_address_with_a_password_is_written_as_the_variable_that_holds_it(monkeypatch):
    monkeypatch.setenv("SHOP_URI", "postgresql://me:geheim@127.0.0.1/shop")
    origin = locate("postgresql://me:geheim@127.0.0.1/shop", "sales.orders")
    assert origin.block == {"sql": {"uri": "{{ env.SHOP_URI }}", "table": "sales.orders"}}
    assert origin.as_table("seen").source.sql.uri == "postgresql://me:geheim@127.0.0.1/shop"


def daily(folder: Path, pattern: str, table: pl.DataFrame, writer: Callable[[pl.DataFrame, Path], Any]) -> None:
    """Write one file for each day, named after the pattern."""
    for (day,), rows in table.group_by(pl.col("at").dt.date()):
        file = folder / pattern.format(day)
        file.parent.mkdir(parents=True, exist_ok=True)
        writer(rows, file)


DATED: dict[str, tuple[str, Callable[[pl.DataFrame, Path], Any]]] = {
    "sales_{}.parquet": ("sales_{{partition_key}}.parquet", lambda table, file: table.write_parquet(file)),
    "at={}/part [0].parquet": ("at={{partition_key}}/*.parquet", lambda table, file: table.write_parquet(file)),
    "export-{:%Y%m%d}.csv": ("export-{{partition_date}}.csv", lambda table, file: table.write_csv(file)),
    "{}.jsonl": ("{{partition_key}}.jsonl", lambda table, file: as_text(table).write_ndjson(file)),
}


@pytest.mark.parametrize("pattern", DATED)
def test_files_named_by_date_become_a_source_with_a_file_for_each_partition(cli, tmp_path, pattern):
    expected, writer = DATED[pattern]
    daily(tmp_path / "2025-01-01" / "sales", pattern, orders(), writer)
    report = cli(tmp_path, "new", "orders", "--from", "2025-01-01/sales", "--json").json
    (declared,) = tmp_path.rglob("defs.yaml")
    ((name, source),) = yaml.safe_load(declared.read_text(encoding="utf-8"))["attributes"]["sources"].items()
    assert name == ("export" if "export" in pattern else "sales")
    (kind,) = {"parquet", "csv", "json", "arrow"} & {*source}
    assert source[kind].endswith(f"sales/{expected.format()}")
    assert report["source_read"] == "each day reads the file of its date, so that late and corrected files are seen"


def test_dated_files_are_read_together_where_their_names_do_not_tell_their_rows(cli, tmp_path):
    table = orders(1200)
    exported = table.with_columns(pl.col("at").dt.date().alias("day"))
    for (day,), rows in exported.group_by("day"):
        rows.drop("day").write_parquet(tmp_path / f"{day + timedelta(days=1)}.parquet")
    report = cli(tmp_path, "new", "orders", "--from", str(tmp_path / "*.parquet"), "--json").json
    assert report["source_read"].endswith("has rows of other partitions") or "not the keys" in report["source_read"]
    assert report["source"]["parquet"].endswith("*.parquet")


@pytest.mark.full
def test_objects_of_a_store_are_proposed_as_files_are_and_its_secret_is_nowhere(cli, tmp_path, monkeypatch):
    daily(tmp_path / "days", "{}.parquet", orders(), lambda table, file: table.write_parquet(file))
    with object_store() as store:
        for file in (tmp_path / "days").iterdir():
            store.files.pipe(f"{BUCKET}/orders/{file.name}", file.read_bytes())
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        answer = cli(tmp_path, "new", "orders", "--from", f"s3://{BUCKET}/orders/*.parquet", "--label", "returned")
        assert answer.code == cli(tmp_path, "check").code == 0, answer.err
    (declared,) = tmp_path.rglob("defs.yaml")
    sources = yaml.safe_load(declared.read_text(encoding="utf-8"))["attributes"]["sources"]
    assert sources == {"orders": {"parquet": f"s3://{BUCKET}/orders/{{partition_key}}.parquet"}}
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


@pytest.mark.full
def test_a_day_without_a_file_fails_alone_until_there_is_one(cli, tmp_path):
    table = orders(1200)
    lost = table["at"].dt.date().unique().sort()[-2]  # no model learns from it
    days = pl.col("at").dt.date()
    daily(tmp_path / "sales", "{}.csv", table.filter(days != lost), pl.DataFrame.write_csv)
    answer = cli(tmp_path, "new", "sales", "--from", "sales")
    assert f"late and corrected files are seen, and fails for {lost} until there is a file" in answer.out
    ran = cli(tmp_path, "run", "sales")
    assert ran.code == 1
    assert f"there is no file {tmp_path}" in ran.err
    assert "Hint: other partitions have a file: add the one that is missing" in ran.err
    keys = {key for (key,) in published(tmp_path, "SELECT DISTINCT partition_key FROM sales.predictions")}
    assert str(lost) not in keys
    assert {str(lost - timedelta(days=1)), str(lost + timedelta(days=1))} <= keys
    daily(tmp_path / "sales", "{}.csv", table.filter(days == lost), pl.DataFrame.write_csv)
    assert cli(tmp_path, "run", "sales").code == 0
    assert str(lost) in {key for (key,) in published(tmp_path, "SELECT partition_key FROM sales.predictions")}


@pytest.mark.full
def test_a_column_of_one_day_has_the_type_of_all_days(cli, tmp_path):
    table = orders(1200).with_columns(
        pl.col("items").cast(pl.String).str.zfill(3).alias("shelf"),
        pl.when(pl.col("at").dt.day() == 3).then(None).otherwise(pl.col("amount")).alias("amount"),
        pl.when(pl.col("at").dt.day() == 4).then(None).otherwise(pl.col("shop")).alias("shop"),
    )
    daily(tmp_path / "sales", "{}.csv", table, pl.DataFrame.write_csv)
    answer = cli(tmp_path, "new", "sales", "--from", "sales")
    assert "each day reads the file of its date" in answer.out
    ran = cli(tmp_path, "run", "sales")
    assert ran.code == 0, ran.err
    schemas = {tuple(pl.read_parquet_schema(file).items()) for file in tmp_path.rglob("features/**/*.parquet")}
    assert len(schemas) == 1
    assert dict(schemas.pop())["shelf"] == pl.String


def write_tables(path: Path, *tables: str, rows: int = 100) -> None:
    frame = orders(rows)
    with duckdb.connect(str(path)) as con:
        con.register("frame", frame)
        con.execute("CREATE SCHEMA shop")
        for table in tables:
            con.execute(f"CREATE TABLE {table} AS FROM frame")


def orders_with_words_for_missing_values() -> pl.DataFrame:
    table = orders()
    amounts = [
        ["NA", "?", None][at // 9 % 3] if at % 9 == 0 else f"{value or 1:.2f}"
        for at, value in enumerate(table["amount"])
    ]
    items = ["-" if at % 10 == 0 else str(value) for at, value in enumerate(table["items"])]
    days = ["N/A" if at % 10 == 0 else f"{value:%d.%m.%Y}" for at, value in enumerate(table["at"])]
    return orders(amount=amounts, items=items, at=days, level=["none", "1", "high"] * 300)


def test_words_for_a_missing_value_among_numbers_and_times_are_no_values(cli, tmp_path):
    orders_with_words_for_missing_values().write_csv(tmp_path / "orders.csv")
    answer = cli(tmp_path, "new", "orders", "--from", "orders.csv", "--label", "returned")
    assert "amount: no value where it is '?' or 'NA'" in answer.out
    proposal, files = proposed(tmp_path / "orders.csv", label="returned")
    assert {column.name: column.holds for column in proposal.features} == {
        "amount": "number",
        "items": "integer",
        "level": "text",
        "shop": "text",
    }
    assert proposal.windows.timeless == 90
    assert "CAST(nullif(nullif(amount, '?'), 'NA') AS DOUBLE) AS amount" in files["features.sql"]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_what_is_not_a_finite_number_is_no_value(cli, tmp_path, ending):
    """Arrow and polars tell NaN from null; rows with such features would be rejected."""
    values = zip(itertools.cycle(map(float, ["nan", "inf", "-inf", "0", "1", "2"])), orders()["amount"], strict=False)
    amounts = [(value or 1.0) if math.isfinite(odd) else odd for odd, value in values]
    table = orders(amount=amounts, weight=pl.Series(amounts, dtype=pl.Float32).fill_nan(1).reverse())
    file = tmp_path / f"orders.{ending}"
    getattr(table, f"write_{ending}")(file)
    answer = cli(tmp_path, "new", "orders", "--from", file.name, "--label", "returned")
    assert "amount: no value where it is '-inf' or 'inf' or 'nan'" in answer.out
    assert "weight: no value where it is '-inf' or 'inf'\n" in answer.out
    proposal, files = proposed(file, label="returned")
    assert {"amount": 450, "weight": 300}.items() <= {column.name: column.nulls for column in proposal.features}.items()
    assert "CASE WHEN isfinite(amount) THEN amount END AS amount" in files["features.sql"]


def test_commas_between_thousands_are_not_taken_for_decimals(tmp_path):
    lines = [f"{at};2026-01-{at + 1:02d};{1 + at},{100 + at};{at}.5" for at in range(30)]
    (tmp_path / "english.csv").write_text("\n".join(["id;day;people;share", *lines]) + "\n", encoding="utf-8")
    origin = locate(str(tmp_path / "english.csv"), None)
    assert origin.options == {"delimiter": ";"}


def test_a_folder_is_read_beside_files_that_are_no_tables(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("README.md", "_SUCCESS", "a.jpg"):
        (tmp_path / "data" / name).write_text("x")
    orders(100).write_csv(tmp_path / "data" / "b.csv")
    (tmp_path / "data" / "._b.csv").write_bytes(b"\0\0")
    proposal, files = proposed(tmp_path / "data")
    assert proposal.windows.span.rows == 100
    assert "/data/[!._]*.csv" in files["defs.yaml"]


def two_kinds(folder: Path) -> None:
    (folder / "mixed").mkdir()
    orders(100).write_csv(folder / "mixed" / "a.csv")
    orders(100).write_parquet(folder / "mixed" / "b.parquet")


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "message"),
    [
        (
            lambda folder: write_tables(folder / "two.duckdb", "orders", "shop.returns"),
            ("two.duckdb",),
            2,
            "two.duckdb has 2 tables: orders, shop.returns. Hint: name the table, such as --table orders",
        ),
        (
            lambda _: None,
            ("https://example.org/orders.csv",),
            2,
            "https://example.org/orders.csv is an address; a pipeline is proposed from files on this machine or in a store such as s3://, or from a database. Hint: download it first",
        ),
        (
            lambda _: None,
            ("postgresql://me:geheim@127.0.0.1:1/shop", "--table", "orders"),
            2,
            "postgresql://127.0.0.1:1/shop holds a password, which no file should. Hint: put it into an environment variable",
        ),
        (two_kinds, ("mixed",), 2, "holds files of several kinds: .csv, .parquet. Hint: name those"),
        (
            lambda folder: (folder / "a.zip").write_bytes(b"PK"),
            ("a.zip",),
            2,
            "a.zip is a zip archive. Hint: unpack it",
        ),
        (
            lambda folder: (folder / "old.csv").write_bytes("stadt;x\nKöln;1\n".encode("latin-1")),
            ("old.csv",),
            1,
            "This file is not utf-8 encoded. Hint: name its encoding, such as --encoding latin-1, or convert it: iconv",
        ),
        (
            lambda folder: (folder / "cut.csv").write_text("id,height\nin cm,y\n" + "1,2,a\n2,3,b\n" * 50),
            ("cut.csv",),
            1,
            "cut.csv has no header that fits its rows: its first 2 lines are not made of 3 names. Hint: write the header as one line",
        ),
        (
            lambda folder: orders(100).to_pandas().to_json(folder / "columns.json"),
            ("columns.json",),
            2,
            "holds an object for each column instead of one for each row. Hint: write one object for each row",
        ),
    ],
)
def test_what_cannot_be_located_is_explained_in_one_paragraph(  # noqa: PLR0913 - a case, and where it runs
    cli, tmp_path, prepare, arguments, code, message
):
    prepare(tmp_path)
    answer = cli(tmp_path, "new", "orders", "--from", *arguments)
    assert answer.code == code
    assert message in answer.error
    assert "geheim" not in answer.error
    assert not (tmp_path / "pipelines").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_read_with_its_name(cli, tmp_path, encoding):
    lines = ["kunde;größe;gewicht;übrig"] + [f"k{at};{at % 40},5;{at % 7},25;{at % 40 > 20}" for at in range(200)]
    (tmp_path / "Künden.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
    answer = cli(tmp_path, "new", "kunden", "--from", "Künden.csv", "--label", "übrig", "--encoding", encoding)
    assert answer.code == 0, answer.err
    written = yaml.safe_load((tmp_path / "pipelines/defs/kunden/defs.yaml").read_text())
    source = written["attributes"]["sources"]["kunden"]
    assert (source["encoding"], source["delimiter"], source["decimal"]) == (encoding, ";", ",")


def test_a_column_that_is_gone_is_told_beside_the_one_that_is_new(cli, tmp_path):
    orders(at=None).write_parquet(tmp_path / "orders.parquet")
    assert cli(tmp_path, "new", "orders", "--from", "orders.parquet").code == 0
    orders(at=None).rename({"amount": "total"}).write_parquet(tmp_path / "orders.parquet")
    failed = cli(tmp_path, "run", "orders")
    assert failed.code == 1
    assert 'Referenced column "amount" not found' in failed.error
    assert "; no SQL file of the pipeline reads 'total'." in failed.error
