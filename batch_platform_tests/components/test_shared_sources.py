"""Sources that are assets of somebody else: lineage joins up, pipelines share them, and their data versions are their own."""

import shutil

import dagster as dg
import polars as pl
import pytest
from pydantic import ValidationError

from batch_platform.components.wiring import stamp_of
from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.artifacts import features_due
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.user_tables import TableName, store_table
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import (
    LABELS_SQL,
    small_declaration,
    small_events,
    small_pipeline,
    small_spec,
)
from batch_platform_tests.harness.workspace import REPOSITORY, Workspace, workspace_of

RAW = dg.AssetKey(["raw", "orders"])
ORDERS = """\
import dagster as dg


@dg.asset(key=["raw", "orders"])
def orders() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion("of the user"))
"""
STORED_ORDERS = """\
import dagster as dg
import polars as pl


@dg.asset(key=["raw", "orders"], io_manager_key="batch_platform_io_manager")
def orders() -> pl.DataFrame:
    return pl.read_parquet("{file}")
"""
DAILY_ORDERS = """\
import dagster as dg
import polars as pl


@dg.asset(
    key=["raw", "orders"],
    io_manager_key="batch_platform_io_manager",
    partitions_def=dg.DailyPartitionsDefinition("2024-01-09", timezone="Europe/Berlin"),
)
def orders(context: dg.AssetExecutionContext) -> pl.DataFrame:
    day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String)
    return pl.read_parquet("{file}").filter(day == context.partition_key)
"""
NODES = "{assetNodes {assetKey {path} dependencyKeys {path}}}"
LINEAGE = """
query ($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {metadataEntries {
  label ... on TableColumnLineageMetadataEntry {lineage {columnName columnDeps {assetKey {path} columnName}}}
}}}}"""


def launch(location: Workspace, *path: str, day: str | None = None) -> dg.DagsterRun:
    """Materialize an asset, for a day if it has days; returns the finished run."""
    selector = {"jobName": "__ASSET_JOB", **REPOSITORY, "assetSelection": [{"path": path}]}
    tags = [{"key": "dagster/partition", "value": day}] if day else []
    config = {"execution": {"config": {"in_process": {}}}}
    params = {"selector": selector, "mode": "default", "runConfigData": config, "executionMetadata": {"tags": tags}}
    return location.launch(params)


def build(location: Workspace, *path: str, day: str | None = None) -> dict[str, str]:
    """Materialize an asset, for a day if it has days; returns the tags of its newest materialization."""
    assert launch(location, *path, day=day).status == dg.DagsterRunStatus.SUCCESS
    (record,) = location.instance.fetch_materializations(dg.AssetKey(path), limit=1).records
    return dict(record.asset_materialization.tags)


def test_two_pipelines_share_the_asset_of_a_user_and_take_its_data_versions(fresh, monkeypatch):
    defs, file = fresh / PACKAGE / "defs", fresh / "orders.parquet"
    small_events().write_parquet(file)
    shutil.copytree(pipeline_folder(fresh), pipeline_folder(fresh, "churn"))
    for name in ("small", "churn"):
        sources = {"events": {"asset": "raw/orders", "parquet": str(file)}}
        write_defs_yaml(fresh, small_declaration(name=name, sources=sources), name)
    (defs / "orders.py").write_text(ORDERS)
    with workspace_of(fresh, monkeypatch) as location:
        upstream = {
            "/".join(node["assetKey"]["path"]): {"/".join(key["path"]) for key in node["dependencyKeys"]}
            for node in location.ask(NODES)
        }
        assert {key for key in upstream if key.endswith(("orders", "events"))} == {"raw/orders"}
        for name in ("small", "churn"):
            assert upstream[f"{name}/features"] == {"raw/orders"}
            assert upstream[f"{name}/model"] == {"raw/orders", f"{name}/features"}
            assert upstream[f"{name}/performance"] == {"raw/orders", f"{name}/predictions"}
        node = location.ask(LINEAGE, key={"path": ["churn", "features"]})
        (columns,) = [it["lineage"] for it in node["metadataEntries"] if it["label"] == "dagster/column_lineage"]
        amount = {"assetKey": {"path": ["raw", "orders"]}, "columnName": "amount"}
        assert {it["columnName"]: it["columnDeps"] for it in columns}["amount"] == [amount]

        before = build(location, "small", "features", day="2024-01-10")
        (observed,) = location.instance.fetch_observations(RAW, limit=9).records
        assert before["dagster/input_data_version/raw/orders"] == observed.asset_observation.data_version
        build(location, "raw", "orders")
        for name in ("small", "churn"):
            after = build(location, name, "features", day="2024-01-11")
            assert after["dagster/input_data_version/raw/orders"] == "of the user"
        assert len(location.instance.fetch_observations(RAW, limit=9).records) == 1


def test_an_asset_of_the_io_manager_is_read_as_it_was_last_materialized(fresh, monkeypatch):
    file, folder = fresh / "orders.parquet", pipeline_folder(fresh)
    small_events().write_parquet(file)
    declared = small_declaration(sources={"events": {"asset": "raw/orders", "parquet": None}})
    write_defs_yaml(fresh, declared)
    (fresh / PACKAGE / "defs" / "orders.py").write_text(STORED_ORDERS.format(file=file))
    with workspace_of(fresh, monkeypatch) as location:
        pipeline = Pipeline(PipelineSpec.model_validate(declared), folder, Home(fresh / ".batch_platform"))
        upstream = {"/".join(node["assetKey"]["path"]): node["dependencyKeys"] for node in location.ask(NODES)}
        assert upstream["small/features"] == [{"path": ["raw", "orders"]}]
        first, second = (pipeline.spec.partitions.calendar.named(day) for day in ("2024-01-10", "2024-01-11"))
        with pytest.raises(
            SourceError, match=r"has no table raw\.orders, in which it looks for the asset raw/orders\. Hint:"
        ):
            pipeline.builder.sources.state("events", first)

        stored = build(location, "raw", "orders")
        for day in (first, second):
            built = build(location, "small", "features", day=day.key)
            assert built["dagster/input_data_version/raw/orders"] == stored["dagster/data_version"]
        assert location.instance.fetch_observations(RAW, limit=1).records == []

        def due() -> dict[str, str]:
            state = pipeline.state()
            return {day.key: reason for day in (first, second) if (reason := features_due(state, day))}

        build(location, "raw", "orders")  # the same rows
        assert due() == {}
        late = pl.col("ts") == small_events().filter(pl.col("ts") >= second.start)["ts"][0]
        small_events().filter(~late).write_parquet(file)
        build(location, "raw", "orders")
        assert due() == {"2024-01-11": "source 'events' holds 39 rows of it, and held 40"}
        build(location, "small", "features", day=second.key)
        assert due() == {}
        assert pipeline.state().features[second.key].rows == 39


@pytest.mark.full
def test_a_partition_of_an_asset_that_was_never_materialized_is_missing_and_not_empty(fresh, monkeypatch):
    file, folder = fresh / "orders.parquet", pipeline_folder(fresh)
    small_events().write_parquet(file)
    declared = small_declaration(sources={"events": {"asset": "raw/orders", "parquet": None}})
    write_defs_yaml(fresh, declared)
    (fresh / PACKAGE / "defs" / "orders.py").write_text(DAILY_ORDERS.format(file=file))
    unknown, there, lacking = "2024-01-08", "2024-01-10", "2024-01-11"
    with workspace_of(fresh, monkeypatch) as location:
        pipeline = Pipeline(PipelineSpec.model_validate(declared), folder, Home(fresh / ".batch_platform"))
        build(location, "raw", "orders", day=there)
        for day in (unknown, there):
            build(location, "small", "features", day=day)
        assert launch(location, "small", "features", day=lacking).status == dg.DagsterRunStatus.FAILURE
        state = pipeline.state()
        assert {key: build.rows for key, build in state.features.items()} == {unknown: 0, there: 40}
        assert state.failures["features", lacking].reason.endswith(
            "Source 'events' of 'small': partition 2024-01-11 of the asset raw/orders was never materialized."
        )
        assert features_due(state, pipeline.spec.partitions.calendar.named(lacking)) == "missing"
        build(location, "raw", "orders", day=lacking)
        build(location, "small", "features", day=lacking)
        assert pipeline.state().features[lacking].rows == 40


@pytest.mark.full
def test_labels_of_a_partition_that_was_never_materialized_are_missing_and_not_none(fresh, monkeypatch):
    file, labels = fresh / "orders.parquet", {"asset": "raw/orders", "parquet": None}
    small_events().write_parquet(file)
    declared = small_declaration(sources={"returns": labels}, monitoring={"fresh_by": None})
    write_defs_yaml(fresh, declared)
    folder = pipeline_folder(fresh)
    (folder / "labels.sql").write_text(LABELS_SQL.replace("events", "returns"))
    (fresh / PACKAGE / "defs" / "orders.py").write_text(DAILY_ORDERS.format(file=file))
    there, lacking, never_made = "2024-02-10", "2024-02-11", "2024-01-20"
    with workspace_of(fresh, monkeypatch) as location:
        pipeline = Pipeline(PipelineSpec.model_validate(declared), folder, Home(fresh / ".batch_platform"))
        named, stamp = pipeline.spec.partitions.calendar.named, stamp_of("made")
        month = pipeline.spec.periods.serving.named("2024-02-01")
        window = pipeline.spec.periods.window(month.start, {})
        days, stored = [*window, named(there), named(lacking)], fresh / "stored.parquet"
        day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String)
        made = {it.key for it in window} - {never_made}
        small_events().with_columns(partition_key=day).filter(day.is_in(made)).write_parquet(stored)
        store_table(pipeline.warehouse, TableName("raw", "orders"), stored, made)
        pipeline.publish()
        assert len([*pipeline.build_features(days, stamp)]) == len(days)
        pipeline.train(month, stamp)
        assert len([*pipeline.score(days[-2:], stamp)]) == 2
        build(location, "raw", "orders", day=there)
        assert launch(location, "small", "performance", day=there).status == dg.DagsterRunStatus.SUCCESS
        assert launch(location, "small", "performance", day=lacking).status == dg.DagsterRunStatus.FAILURE
        assert launch(location, "small", "model", day=month.key).status == dg.DagsterRunStatus.FAILURE
        state = pipeline.state()
        assert [*state.evaluations] == [there]
        never = "of the asset raw/orders was never materialized."
        assert state.failures["performance", lacking].reason.endswith(f"'small': partition {lacking} {never}")
        assert state.failures["model", month.key].reason.endswith(f"'small': partition {never_made} {never}")
        declared["challengers"] = [{"name": "plain", "estimator": "sklearn.linear_model.LogisticRegression"}]
        challenged = Pipeline(PipelineSpec.model_validate(declared), folder, pipeline.home)
        with pytest.raises(SourceError, match=f"partition {never_made} {never}"):
            challenged.challenge(month, stamp, lambda partition: {"returns": [partition.key]})


def test_a_session_reads_a_table_as_it_is_when_a_partition_begins(tmp_path):
    pipeline = small_pipeline(tmp_path, sources={"events": {"asset": "orders", "table": "raw.orders", "parquet": None}})
    first, second = (pipeline.spec.partitions.calendar.named(day) for day in ("2024-01-10", "2024-01-11"))
    file = pipeline.folder / "events.parquet"

    def store(rows: pl.DataFrame) -> None:
        rows.write_parquet(file)
        store_table(pipeline.warehouse, TableName("raw", "orders"), file, None)
        pipeline.publish()

    store(small_events())
    with pipeline.builder.session() as session:
        written = session.write(first, tmp_path)
        store(small_events().with_columns(items=pl.lit(77, pl.Int32)))
        corrected = session.write(second, tmp_path)
    items = [pl.read_parquet(it.path)["items"].to_list() for it in (written, corrected)]
    assert 77 not in items[0]
    assert {*items[1]} == {77}


def test_keys_of_assets_that_cannot_be_read_are_refused():
    with pytest.raises(ValidationError, match="'raw//orders' is not the key of an asset"):
        small_spec(sources={"events": {"asset": "raw//orders"}})
    with pytest.raises(ValidationError, match="'small/predictions' is an asset of this pipeline"):
        small_spec(sources={"events": {"asset": "small/predictions"}})
    with pytest.raises(ValidationError, match="`duckdb` and `table` go together"):
        small_spec(sources={"events": {"table": "raw.orders"}})
