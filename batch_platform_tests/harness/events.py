"""Events of a run and their metadata."""

from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from batch_platform_tests.harness.deployment import Deployment


def evaluations(deployment: Deployment, asset: str, check: str) -> dict[str | None, Any]:
    """The newest evaluation of a check, by partition key; None for that of the whole run."""
    key = dg.AssetCheckKey(deployment.key(asset), check)
    results = {}
    for record in deployment.instance.event_log_storage.get_asset_check_execution_history(key, limit=1000):
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            results.setdefault(event.asset_check_evaluation_data.partition, event.asset_check_evaluation_data)
    return results


def value(entry: dg.EventLogEntry, name: str) -> Any:
    return entry.asset_materialization.metadata[name].value


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the only failed step says."""
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data
    return (data.user_failure_data.description if data.user_failure_data else data.error.message) or ""


def partitions_of(entries: list[dg.EventLogEntry]) -> list[str | None]:
    return [entry.asset_materialization.partition for entry in entries]


def upstream(deployment: Deployment, asset: str, of: str, key: str) -> list[str]:
    graph = deployment.definitions.resolve_asset_graph()
    node, parent = graph.get(deployment.key(asset)), graph.get(deployment.key(of))
    mapped = graph.get_partition_mapping(node.key, parent.key).get_upstream_mapped_partitions_result_for_partitions(
        node.partitions_def.subset_with_partition_keys([key]), node.partitions_def, parent.partitions_def
    )
    assert not list(mapped.required_but_nonexistent_subset.get_partition_keys())
    return list(mapped.partitions_subset.get_partition_keys())


def status(deployment: Deployment, asset: str, day: str) -> StaleStatus:
    """Dagster's judgement of whether a partition is out of date, which has no public name."""
    graph = deployment.definitions.resolve_asset_graph()
    loading = LoadingContextForTest(deployment.instance)
    return CachingStaleStatusResolver(deployment.instance, graph, loading).get_status(deployment.key(asset), day)
