"""Every table says in the database what it holds, in the warehouse and in each form of its copy."""

import re
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.erase import erase_subject
from batch_platform.warehouse.descriptions import LEDGERS_SCHEMA, OF_ALL, Description, tables_of_pipelines
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import table_columns
from batch_platform_tests.harness.checkout import GUIDE
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.small_pipeline import LINEAR

NOW = datetime(2024, 3, 2, tzinfo=UTC)
UNDECLARED = {"prediction_low", "prediction_high", "outcome_weight"}  # columns of what the pipeline does not declare


def declared(table: Description) -> dict[str, str]:
    """The descriptions of the columns that the pipeline's table has."""
    return {column: text for column, text in table.columns.items() if column not in UNDECLARED}


def comments(path: Path) -> dict[str, str | None]:
    """The comments of all tables and columns."""
    with duckdb.connect(str(path), read_only=True) as con:
        columns = "SELECT schema_name || '.' || table_name || '.' || column_name, comment FROM duckdb_columns()"
        tables = "SELECT schema_name || '.' || table_name, comment FROM duckdb_tables()"
        inside = "WHERE database_name = current_database() AND NOT internal"
        return dict(con.execute(f"{tables} {inside} UNION ALL {columns} {inside}").fetchall())


def test_every_table_of_the_guide_is_described():
    section = GUIDE["tables"].partition("```sql")[0]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\S+)`", row)
    }
    assert named == {f"<pipeline>.{name}" for name in tables_of_pipelines()} | {
        f"{LEDGERS_SCHEMA}.{name}" for name in OF_ALL
    }


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    added = {"decide": {"threshold": 0.5}, "reasons": 1}
    deployed = deploy(tmp_path, monkeypatch, challengers=[LINEAR], predictions=added)
    assert deployed.run("features", first="2024-01-01", last="2024-02-01").success
    assert deployed.run("model", first="2024-02-01").success
    assert deployed.run("predictions", "performance", first="2024-02-01").success
    assert erase_subject(deployed.pipeline, {"id": "1"}, "somebody", Stamp("e", NOW)).rows
    return deployed


@pytest.mark.full
def test_tables_are_described_in_the_database_and_in_dagster_alike(deployment):
    home: Home = deployment.pipeline.home
    in_copy = comments(home.published)
    assert in_copy["small.predictions"] == tables_of_pipelines()["predictions"].row
    assert in_copy["small.predictions.score"] == tables_of_pipelines()["predictions"].columns["score"]
    assert in_copy["small.predictions.shop"] is None, "a column that the pipeline names"
    assert in_copy["batch_platform.score_runs.rows_in"] == OF_ALL["score_runs"].columns["rows_in"]
    held = {name for name in tables_of_pipelines() if f"small.{name}" in in_copy}
    assert held >= {"predictions", "performance", "challenger_scores", "challengers"}
    for schema, tables in {
        "small": {name: tables_of_pipelines()[name] for name in held},
        LEDGERS_SCHEMA: OF_ALL,
    }.items():
        for name, table in tables.items():
            assert in_copy[f"{schema}.{name}"] == table.row
            described = {column: in_copy.get(f"{schema}.{name}.{column}") for column in declared(table)}
            assert described == declared(table), name
    assert [name for name, text in in_copy.items() if text is None and name.startswith(LEDGERS_SCHEMA)] == []
    assert comments(home.warehouse) == in_copy

    for asset in ("predictions", "performance"):
        (event,) = deployment.materializations(asset)
        metadata = event.asset_materialization.metadata
        shown = {
            column.name: (column.type, column.description)
            for column in metadata["dagster/column_schema"].schema.columns
        }
        with deployment.pipeline.warehouse.open() as con:
            stored = dict(table_columns(con, "small", asset))
            ((rows,),) = con.execute(f"SELECT count(*) FROM small.{asset}").fetchall()
        assert {name: dtype for name, (dtype, _) in shown.items()} == stored
        texts = {name: text for name, (_, text) in shown.items() if text}
        assert texts == declared(tables_of_pipelines()[asset])
        assert metadata["dagster/row_count"].value == metadata["dagster/partition_row_count"].value == rows > 0
