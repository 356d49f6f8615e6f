"""One event for each partition, logged as it commits, with its own metadata, data version and provenance.

Dagster would log the partitions of a range only at the end of the step, all with one data version. So the assets log
their partitions themselves, and the step's closing output carries Dagster's own mark of an output whose events were
logged in the body: it lets downstream steps go on without a second event for every partition.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from batch_platform.components.progress import Step, report

LOGGED_IN_THE_BODY = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}


class PartitionLog:
    """Logs the partitions of one asset in one step."""

    def __init__(self, context: dg.AssetExecutionContext, asset: dg.AssetKey, total: int) -> None:
        """Note what the upstream assets are before the work begins; `total` partitions are to come."""
        self._context, self._asset, self._total = context, asset, total
        self._done = 0
        self._provenance = _provenance(context, asset)

    def materialized(
        self, partition_key: str | None, *, data_version: str, rows: int, metadata: Mapping[str, Any], done: str = ""
    ) -> None:
        """Log one partition that is committed; `partition_key` is None for an unpartitioned asset."""
        tags = {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true", **self._provenance}
        self._context.log_event(
            dg.AssetMaterialization(asset_key=self._asset, partition=partition_key, metadata=metadata, tags=tags)
        )
        self._done += 1
        name = self._asset.path[-1]
        report(Step(asset=name, partition_key=partition_key or done, done=self._done, total=self._total, rows=rows))

    def checked(
        self,
        partition_key: str | None,
        check: str,
        *,
        passed: bool,
        metadata: Mapping[str, Any],
        severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    ) -> None:
        """Log the result of a check on one partition; what blocks is the result for the whole step."""
        evaluation: Any = dg.AssetCheckEvaluation(  # Dagster takes it, though its annotation does not say so
            asset_key=self._asset,
            check_name=check,
            passed=passed,
            metadata=metadata,
            severity=severity,
            partition=partition_key,
            description=partition_key,  # the history of a check shows no partition otherwise
        )
        self._context.op_execution_context.log_event(evaluation)

    def finish(self, *check_results: dg.AssetCheckResult) -> dg.MaterializeResult:
        """The step's closing output, after every partition was logged."""
        return dg.MaterializeResult(asset_key=self._asset, metadata=LOGGED_IN_THE_BODY, check_results=check_results)


def observed(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    partition_key: str | None,
    *,
    data_version: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Log in which state a source was seen."""
    context.log_event(
        dg.AssetObservation(
            asset_key=asset, partition=partition_key, metadata=metadata, tags={DATA_VERSION_TAG: data_version}
        )
    )


def _provenance(context: dg.AssetExecutionContext, asset: dg.AssetKey) -> dict[str, str]:
    """Tags that say by which code and from what the asset is made, so that the UI can tell what is out of date."""
    spec = context.assets_def.get_asset_spec(asset)
    tags = {CODE_VERSION_TAG: spec.code_version or context.run.run_id}
    for dep in spec.deps:
        record = context.instance.get_latest_data_version_record(dep.asset_key)
        version = extract_data_version_from_entry(record.event_log_entry) if record else None
        tags[get_input_data_version_tag(dep.asset_key)] = (version or DEFAULT_DATA_VERSION).value
        tags[get_input_event_pointer_tag(dep.asset_key)] = str(record.storage_id) if record else NULL_EVENT_POINTER
    return tags
