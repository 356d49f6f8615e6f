"""The asset pages of predictions and performance draw the newest partitions, as the last event of a run has it."""

import re
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest

from batch_platform_tests.components.test_bring_up_to_date import bring
from batch_platform_tests.deployment import Deployment, deploy_trained
from batch_platform_tests.workspace import workspace

NEWEST = """
query ($path: [String!]!) {assetNodeOrError(assetKey: {path: $path}) {... on AssetNode {assetMaterializations(limit: 1) {
  partition metadataEntries {label ... on MarkdownMetadataEntry {mdStr}}
}}}}"""


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    return deploy_trained(tmp_path, monkeypatch, monitoring={"performance": {"warn_below": 0.6}})


def charts_of(deployment: Deployment, asset: str, run_id: str) -> dict[str, str]:
    """The charts of a run by the partition in whose metadata they stand."""
    events = [entry.asset_materialization for entry in deployment.materializations(asset, run_id)]
    return {
        event.partition: event.metadata["by_partition"].value for event in events if "by_partition" in event.metadata
    }


def drawn(chart: str) -> tuple[int, list[str]]:
    """How many partitions a chart has, and its texts."""
    (link,) = re.findall(r"<data:image/svg\+xml,([^<>]+)>", chart)
    elements = list(ET.fromstring(unquote(link)).iter())
    dots = sum(element.get("d", "").count("M") for element in elements if element.get("stroke-linecap"))
    return dots, [element.text for element in elements if element.text]


def test_the_last_event_of_each_run_draws_the_newest_partitions_of_all_runs(deployment):
    first = bring(deployment, "2024-02-02", "2024-02-04")
    assert first.success
    scores, metric = (charts_of(deployment, asset, first.run_id) for asset in ("predictions", "performance"))
    assert list(scores) == list(metric) == ["2024-02-04"]
    assert drawn(metric["2024-02-04"])[0] == 3
    assert "warning 0.6" in drawn(metric["2024-02-04"])[1]

    earlier = deployment.run("features", "predictions", first="2024-02-01")
    (chart,) = charts_of(deployment, "predictions", earlier.run_id).values()
    partitions, texts = drawn(chart)
    assert partitions == 4
    assert texts.index("2024-02-01") < texts.index("2024-02-04")
    means = {
        entry.asset_materialization.partition: entry.asset_materialization.metadata["score_mean"].value
        for entry in deployment.materializations("predictions")
    }
    assert {f"{max(means.values()):.3f}", f"{min(means.values()):.3f}"} <= set(texts)

    again = bring(deployment, "2024-02-02", "2024-02-04")
    assert charts_of(deployment, "performance", again.run_id).keys() == {"2024-02-04"}
    with workspace(deployment) as location:
        for asset, title in (
            ("predictions", "score_mean of each partition"),
            ("performance", "roc_auc of each partition"),
        ):
            (event,) = location.ask(NEWEST, path=["small", asset])["assetMaterializations"]
            shown = {entry["label"]: entry.get("mdStr") for entry in event["metadataEntries"]}
            assert shown["by_partition"].startswith(title)
