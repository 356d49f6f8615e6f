"""Events of a run and their metadata."""

from typing import Any

import dagster as dg

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
