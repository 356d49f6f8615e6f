"""Commits that Dagster never heard of, or whose events were wiped, are told by a tick exactly as their runs tell them."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg
import pytest

from batch_platform.components.events import log_unknown_commits
from batch_platform.components.runs import keys_of_range
from batch_platform_tests.harness.deployment import Deployment, deploy
from batch_platform_tests.harness.small_pipeline import small_events

ASSETS = ("features", "model", "predictions", "performance")
ONLY_OF_A_RUN = {  # measured or looked up while the run works
    *("speed", "rows_per_second", "peak_memory_mib", "dagster/column_lineage", "where_columns_come_from"),
    "dagster/row_count",
    "estimates",  # says how far estimates were off up to then
    *(f"share_of_time_in_{name}" for name in ("read", "score", "commit")),
}


def said(deployment: Deployment, asset: str) -> dict[str | None, tuple[dict[str, Any], dict[str, Any]]]:
    """The metadata and the data version of each partition's newest event, and the results of its checks."""
    checks: dict[str | None, dict[str, Any]] = {}
    calendar = deployment.pipeline.spec.partitions.calendar
    for key in deployment.definitions.resolve_asset_graph().asset_check_keys:
        if key.asset_key == deployment.key(asset) and key.name != "up_to_date":
            for record in reversed(
                deployment.instance.event_log_storage.get_asset_check_execution_history(key, limit=50)
            ):
                data = record.event.dagster_event.asset_check_evaluation_data
                for partition in (data.partition or "") and keys_of_range(calendar, data.partition):
                    result = (data.partition, data.passed, data.severity, dict(data.metadata))
                    checks.setdefault(partition, {})[key.name] = result
    return {
        entry.asset_materialization.partition: (
            {
                "data_version": entry.asset_materialization.tags["dagster/data_version"],
                **without(
                    entry.asset_materialization.metadata,
                    ONLY_OF_A_RUN if asset == "features" else ONLY_OF_A_RUN | {"dagster/column_schema"},
                ),
            },
            checks.get(entry.asset_materialization.partition, {}),
        )
        for entry in deployment.materializations(asset)
    }


def without(metadata: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in names}


@pytest.mark.full
@pytest.mark.parametrize("every", ["month", None])
def test_what_was_wiped_is_told_again_with_all_numbers_and_checks(tmp_path, monkeypatch, every):
    deployment = deploy(
        tmp_path,
        monkeypatch,
        events=small_events(first=date(2024, 1, 17)),  # earlier rows would be told of once
        features={"columns": {"amount": {"max": 200}}, "max_rejected": "20%"},
        challengers=[{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}],
        monitoring={"performance": {"warn_below": 0.1}},
        model={"train": {"every": every}},
        partitions={"start": "2024-01-17"},
    )
    config = {"model": {"until": "2024-02-01"}} if every is None else {}
    assert deployment.run("features", first="2024-01-17", last="2024-02-02").success
    assert deployment.run("model", first="2024-02-01" if every else None, config=config).success
    assert deployment.run("predictions", "performance", first="2024-02-01", last="2024-02-02").success
    before = {asset: said(deployment, asset) for asset in ASSETS}
    assert [len(partitions) for partitions in before.values()] == [17, 1, 2, 2]
    assert all(checks for asset in ASSETS[2:] for _, checks in before[asset].values())
    deployment.instance.wipe_assets([deployment.key(asset) for asset in ASSETS])
    assert all(deployment.materializations(asset) == [] for asset in ASSETS)

    log_unknown_commits(deployment.wiring, deployment.instance, deployment.pipeline.published_state(), frozenset())
    after = {asset: said(deployment, asset) for asset in ASSETS}
    runs = {event.pop("logged_for_run").value for partitions in after.values() for event, _ in partitions.values()}
    assert runs <= {run.run_id for run in deployment.instance.get_runs()}
    assert after == before
    again = [len(deployment.materializations(asset)) for asset in ASSETS]
    log_unknown_commits(deployment.wiring, deployment.instance, deployment.pipeline.published_state(), frozenset())
    assert [len(deployment.materializations(asset)) for asset in ASSETS] == again
    assert dg.AssetKey(["small", "model"]) in deployment.instance.get_asset_keys()
