"""Sources that are assets of somebody else: lineage joins up, pipelines share them, and their data versions are their own."""

import shutil

import dagster as dg
import pytest
from pydantic import ValidationError

from batch_platform_tests.dagster_project import PACKAGE, pipeline_folder, write_defs_yaml
from batch_platform_tests.small_pipeline import small_declaration, small_events, small_spec
from batch_platform_tests.workspace import REPOSITORY, Workspace, workspace_of

RAW = dg.AssetKey(["raw", "orders"])
ORDERS = """\
import dagster as dg


@dg.asset(key=["raw", "orders"])
def orders() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion("of the user"))
"""
NODES = "{assetNodes {assetKey {path} dependencyKeys {path}}}"
LINEAGE = """
query ($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {metadataEntries {
  label ... on TableColumnLineageMetadataEntry {lineage {columnName columnDeps {assetKey {path} columnName}}}
}}}}"""


def build(location: Workspace, *path: str, day: str | None = None) -> dict[str, str]:
    """Materialize an asset, for a day if it has days; returns the tags of its newest materialization."""
    selector = {"jobName": "__ASSET_JOB", **REPOSITORY, "assetSelection": [{"path": path}]}
    tags = [{"key": "dagster/partition", "value": day}] if day else []
    config = {"execution": {"config": {"in_process": {}}}}
    params = {"selector": selector, "mode": "default", "runConfigData": config, "executionMetadata": {"tags": tags}}
    assert location.launch(params).status == dg.DagsterRunStatus.SUCCESS
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


def test_a_key_with_an_empty_part_is_refused():
    with pytest.raises(ValidationError, match="'raw//orders' is not the key of an asset"):
        small_spec(sources={"events": {"asset": "raw//orders"}})
