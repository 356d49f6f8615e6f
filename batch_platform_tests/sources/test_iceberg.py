"""Sources of kind `iceberg`: snapshots, pushdown, tables that have changed their columns, and what is refused."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from pyiceberg import catalog
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.expressions import EqualTo
from pyiceberg.types import StringType
from pyiceberg.utils.config import Config

from batch_platform.declaration.errors import SourceError
from batch_platform.sources.opening import Sources
from batch_platform_tests.harness.object_store import silent_store
from batch_platform_tests.sources.declared import FIRST, SECOND, rows, sources_in

TABLE = pl.DataFrame({"x": [1, 2], "text": ["a", "ü"]})


def properties(folder: Path) -> dict[str, str]:
    return {"name": "lake", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}


def catalog_in(folder: Path) -> Catalog:
    of = properties(folder)
    catalog = load_catalog(of.pop("name"), **of)
    catalog.create_namespace_if_not_exists("sales")
    return catalog


def written(folder: Path) -> Any:
    """The table `sales.orders` with the rows of TABLE."""
    iceberg = catalog_in(folder).create_table("sales.orders", schema=TABLE.to_arrow().schema)
    iceberg.append(TABLE.to_arrow())
    return iceberg


def sources(folder: Path, **declared: Any) -> Sources:
    return sources_in(folder, a={"iceberg": {"catalog": properties(folder), "table": "sales.orders", **declared}})


def test_the_snapshot_is_the_version_and_an_earlier_one_can_be_declared(tmp_path):
    iceberg = written(tmp_path)
    former = iceberg.current_snapshot().snapshot_id
    iceberg.append(pl.DataFrame({"x": [3], "text": ["b"]}).to_arrow())
    current = iceberg.current_snapshot().snapshot_id
    assert sources(tmp_path).version("a", FIRST) == str(current)
    assert sources(tmp_path, snapshot=former).version("a", FIRST) == str(former)
    assert rows(sources(tmp_path)) == [*TABLE.rows(), (3, "b")]
    assert rows(sources(tmp_path, snapshot=former)) == TABLE.rows()
    with pytest.raises(
        SourceError, match=rf"sales\.orders has no snapshot 7: the current one is {current}\. Hint: declare"
    ):
        sources(tmp_path, snapshot=7).version("a", FIRST)


def test_an_open_connection_goes_on_reading_its_snapshot_and_knows_that_there_is_a_newer_one(tmp_path):
    iceberg = written(tmp_path)
    with sources(tmp_path).connect(FIRST) as con:
        assert con.is_current(SECOND)
        iceberg.overwrite(pl.DataFrame({"x": [9], "text": ["z"]}).to_arrow())
        assert con.duckdb.execute("FROM a ORDER BY x").fetchall() == TABLE.rows()
        con.move(SECOND)
        assert con.frames(SECOND, ["a"])["a"].sort("x").collect().rows() == TABLE.rows()
        assert not con.is_current(SECOND)
    assert rows(sources(tmp_path)) == [(9, "z")]


def test_a_condition_on_a_partition_column_opens_only_its_files(tmp_path):
    values, condition = [date(2024, 1, 1), date(2024, 1, 2), None], "day = DATE '2024-01-01'"
    arrow = pl.DataFrame({"day": values, "x": [1, 2, 3]}).to_arrow()
    iceberg = catalog_in(tmp_path).create_table("sales.orders", schema=arrow.schema)
    with iceberg.update_spec() as update:
        update.add_identity("day")
    iceberg.append(arrow)
    assert rows(sources(tmp_path)) == [*zip(values, [1, 2, 3], strict=True)]
    files = sorted(tmp_path.glob("warehouse/**/*.parquet"))
    for file in files:
        if pl.read_parquet(file, columns=["x"])["x"].to_list() != [1]:
            file.write_bytes(bytes(file.stat().st_size))
    assert rows(sources(tmp_path), f"SELECT sum(x) FROM a WHERE {condition}") == [(1,)]
    with pytest.raises(duckdb.Error):
        rows(sources(tmp_path), "SELECT sum(x) FROM a")


def renamed(iceberg: Any) -> None:
    with iceberg.update_schema() as update:
        update.rename_column("text", "words")
    iceberg.append(pl.DataFrame({"x": [3], "words": ["b"]}).to_arrow())


def added(iceberg: Any) -> None:
    with iceberg.update_schema() as update:
        update.add_column("more", StringType())
    iceberg.append(pl.DataFrame({"x": [3], "text": ["b"], "more": ["m"]}).to_arrow())


def added_in_place_of_another(iceberg: Any) -> None:
    with iceberg.update_schema() as update:
        update.delete_column("text")
    with iceberg.update_schema() as update:
        update.add_column("text", StringType())
    iceberg.append(pl.DataFrame({"x": [3], "text": ["b"]}).to_arrow())


CHANGES: dict[str, tuple[Callable[[Any], None], list[Any]]] = {
    "a column was renamed": (renamed, [(1, "a"), (2, "ü"), (3, "b")]),
    "a column was added": (added, [(1, "a", None), (2, "ü", None), (3, "b", "m")]),
    "a column has the name of a former one": (added_in_place_of_another, [(1, None), (2, None), (3, "b")]),
    "rows were deleted": (lambda iceberg: iceberg.delete(EqualTo("x", 1)), [(2, "ü")]),
    "all rows were deleted": (lambda iceberg: iceberg.delete("x > 0"), []),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_table_that_changed_is_read_as_it_is_now(tmp_path, change, expected):
    change(written(tmp_path))
    of = sources(tmp_path)
    assert rows(of) == expected
    with of.connect(FIRST) as con:
        assert con.frames(FIRST, ["a"])["a"].sort("x").collect().rows() == expected
    assert of.state("a", None).rows == len(expected)


def test_a_catalog_is_also_found_by_its_name(tmp_path, monkeypatch):
    written(tmp_path)
    of = properties(tmp_path)
    (tmp_path / ".pyiceberg.yaml").write_text(
        f"catalog:\n  lake:\n    uri: {of['uri']}\n    warehouse: {of['warehouse']}\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "_ENV_CONFIG", Config())  # the library reads it once, when it is imported
    assert rows(sources(tmp_path, catalog="lake")) == TABLE.rows()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another table": (
        {"table": "sales.order"},
        r": the catalog has no table sales\.order\. Hint: did you mean 'sales\.orders'\?",
    ),
    "an unknown catalog": (
        {"catalog": "nowhere"},
        r" \(sources\.a\.iceberg\): sales\.orders cannot be read \(ValueError: URI missing",
    ),
    "a catalog that cannot be opened": (
        {"catalog": {"uri": "sqlite:////nowhere/catalog.db", "warehouse": "file:///nowhere"}},
        r" \(sources\.a\.iceberg\): sales\.orders cannot be read \(OperationalError: .*unable to open database file",
    ),
    "a service that does not answer": (
        {"catalog": {"uri": "http://127.0.0.1:1", "token": "{{ secret }}"}},
        r" \(sources\.a\.iceberg\): sales\.orders cannot be read \(ConnectionError: ",
    ),
}


@pytest.mark.parametrize(("declared", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line_with_what_to_do(tmp_path, declared, problem):
    written(tmp_path)
    of = sources(tmp_path, **declared)
    for work in (lambda: of.version("a", FIRST), lambda: rows(of)):
        with pytest.raises(SourceError, match=f"Source 'a' of 'small'{problem}") as refused:
            work()
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)


@pytest.mark.full
def test_a_store_that_accepts_and_never_answers_is_named_in_time(tmp_path, monkeypatch):
    written(tmp_path)
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as con, con:
        con.execute("UPDATE iceberg_tables SET metadata_location = 's3://lake/orders.metadata.json'")
    with silent_store(monkeypatch, 0.6) as store:
        reached = {"s3.endpoint": store.url, "s3.region": "us-east-1"}
        of = sources(tmp_path, catalog=properties(tmp_path) | reached)
        with pytest.raises(SourceError, match=r"sales\.orders cannot be read \(.*([Tt]imeout|in time)"):
            of.version("a", FIRST)


def test_a_catalog_that_accepts_and_never_answers_is_named_in_time(tmp_path, monkeypatch):
    with silent_store(monkeypatch, 0.2) as store:
        of = sources(tmp_path, catalog={"type": "rest", "uri": store.url})
        with pytest.raises(SourceError, match=r"sales\.orders cannot be read \(TimeoutError: no answer in time\)"):
            of.version("a", FIRST)
