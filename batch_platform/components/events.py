"""Log one event for each partition as it commits, with its own metadata, data version and provenance.

Dagster would log the partitions of a range only at the end of the step, all with the same data version. So the assets log
their partitions themselves, and the output of the step carries Dagster's mark of an output whose events were logged in the
body. Commits of a run that was killed before it could log them are logged for it afterwards.
"""

from collections.abc import Container, Mapping
from contextlib import ExitStack
from time import monotonic
from typing import Any, Self

import dagster as dg

from batch_platform.components.dagster_internals import (
    LOGGED_IN_THE_BODY,
    data_version_tags,
    observed_version_tags,
    provenance_tags,
    quick_event_log,
)
from batch_platform.components.progress import Pace, RunProgress, report
from batch_platform.components.runs import PROCESS_TAG, range_tag, this_process
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.pipeline.plan import State

MOST_TOLD = 500  # partitions of an asset that one call of `tell_committed` logs; the next call continues
SECONDS_BETWEEN_LINES = 10  # in the log of a run: each line is a stored event


class PartitionLog:
    """Logs the partitions of one asset in one step, within a `with` statement."""

    def __init__(self, context: dg.AssetExecutionContext, asset: dg.AssetKey, total: int) -> None:
        """Record the process and the state of the upstream assets before the work begins; `total` partitions are to come."""
        context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: this_process(), **range_tag(context)})
        self._context, self._asset = context, asset
        self._pace = Pace(asset.path[-1], total)
        self._next_line = monotonic() + SECONDS_BETWEEN_LINES
        self._provenance = provenance_tags(context, asset)

    def __enter__(self) -> Self:
        """Keep the event log open."""
        self._open = ExitStack()
        self._open.enter_context(quick_event_log(self._context.instance))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the event log."""
        self._open.close()

    def materialized(
        self, partition_key: str | None, *, data_version: str, rows: int, metadata: Mapping[str, Any], done: str = ""
    ) -> None:
        """Log a committed partition; `partition_key` is None for an unpartitioned asset."""
        tags = data_version_tags(data_version) | self._provenance
        self._context.log_event(
            dg.AssetMaterialization(asset_key=self._asset, partition=partition_key, metadata=metadata, tags=tags)
        )
        self._tell(self._pace.finished(partition_key or done, rows))

    def observed(self, done: str, partition_key: str | None, *, metadata: Mapping[str, Any]) -> None:
        """Log an observation of a partition that itself stays as it is."""
        self._context.log_event(dg.AssetObservation(asset_key=self._asset, partition=partition_key, metadata=metadata))
        self._tell(self._pace.finished(done, 0))

    def on_the_way(self, partition: Partition, rows: int, of: int) -> None:
        """Report how many rows of an unfinished partition are done."""
        self._tell(self._pace.on_the_way(partition.key, rows, of))

    def _tell(self, progress: RunProgress) -> None:
        """Report progress to the listener and, now and then, to the log of the run."""
        report(progress)
        if (now := monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._context.log.info(str(progress))

    def checked(
        self,
        partition_key: str | None,
        check: str,
        *,
        passed: bool,
        metadata: Mapping[str, Any],
        severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    ) -> None:
        """Log the result of a check on one partition. Only the result for the whole step can block."""
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
        """Return the output of the step, once every partition is logged."""
        return dg.MaterializeResult(asset_key=self._asset, metadata=LOGGED_IN_THE_BODY, check_results=check_results)


def observed(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    partition_key: str | None,
    *,
    data_version: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Log the version of a source as it was seen."""
    context.log_event(
        dg.AssetObservation(
            asset_key=asset, partition=partition_key, metadata=metadata, tags=observed_version_tags(data_version)
        )
    )


def tell_committed(
    wiring: Wiring, instance: dg.DagsterInstance, state: State, busy: Container[tuple[str, str]]
) -> None:
    """Log commits that Dagster does not know of because their run was killed; at most MOST_TOLD of each asset.

    Args:
        wiring: The pipeline.
        instance: Where to log.
        state: The state of the ledgers.
        busy: Assets and partitions of runs in progress, which log their own commits.
    """
    ledgers = {"features": state.features, "predictions": state.scores, "performance": state.evaluations}
    with quick_event_log(instance):
        for asset, records in ledgers.items():
            unknown = records.keys() - instance.get_materialized_partitions(wiring.key(asset))
            missing = [key for key in unknown if (asset, key) not in busy and wiring.partitions.has_partition_key(key)]
            for key in sorted(missing)[:MOST_TOLD]:
                metadata = {"told_for_run": records[key].run_id}
                event = dg.AssetMaterialization(asset_key=wiring.key(asset), partition=key, metadata=metadata)
                instance.report_runless_asset_event(event)
