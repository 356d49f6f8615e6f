"""One event for each partition, logged as it commits, with its own metadata, data version and provenance.

What a run committed and could not tell, since it was killed in between, is told for it afterwards.

Dagster would log the partitions of a range only at the end of the step, all with one data version. So the assets log
their partitions themselves, and the step's closing output carries Dagster's own mark of an output whose events were
logged in the body: it lets downstream steps go on without a second event for every partition.
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

MOST_TOLD = 500  # partitions of an asset for which one look tells what others left untold; the next one goes on
SECONDS_BETWEEN_LINES = 10  # of a run's log: each is an event that is stored


class PartitionLog:
    """Logs the partitions of one asset in one step; to be used in a `with` statement."""

    def __init__(self, context: dg.AssetExecutionContext, asset: dg.AssetKey, total: int) -> None:
        """Note whose work it is and what the upstream assets are before it begins; `total` partitions are to come."""
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
        """Let go of it."""
        self._open.close()

    def materialized(
        self, partition_key: str | None, *, data_version: str, rows: int, metadata: Mapping[str, Any], done: str = ""
    ) -> None:
        """Log one partition that is committed; `partition_key` is None for an unpartitioned asset."""
        tags = data_version_tags(data_version) | self._provenance
        self._context.log_event(
            dg.AssetMaterialization(asset_key=self._asset, partition=partition_key, metadata=metadata, tags=tags)
        )
        self._tell(self._pace.finished(partition_key or done, rows))

    def observed(self, done: str, partition_key: str | None, *, metadata: Mapping[str, Any]) -> None:
        """Log what was found or made beside one partition, which stays as it is."""
        self._context.log_event(dg.AssetObservation(asset_key=self._asset, partition=partition_key, metadata=metadata))
        self._tell(self._pace.finished(done, 0))

    def on_the_way(self, partition: Partition, rows: int, of: int) -> None:
        """Tell how many rows of a partition are done that is not finished yet."""
        self._tell(self._pace.on_the_way(partition.key, rows, of))

    def _tell(self, progress: RunProgress) -> None:
        """To who listens, and now and then to the run's log."""
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
            asset_key=asset, partition=partition_key, metadata=metadata, tags=observed_version_tags(data_version)
        )
    )


def tell_committed(
    wiring: Wiring, instance: dg.DagsterInstance, state: State, busy: Container[tuple[str, str]]
) -> None:
    """Log what the ledgers hold and Dagster never heard of, since a run was killed after its commit; not all at once.

    Args:
        wiring: Of the pipeline.
        instance: Where to log.
        state: What the ledgers hold.
        busy: Assets and partitions of runs in progress, which log their own.
    """
    ledgers = {"features": state.features, "predictions": state.scores, "performance": state.evaluations}
    with quick_event_log(instance):
        for asset, records in ledgers.items():
            untold = records.keys() - instance.get_materialized_partitions(wiring.key(asset))
            mine = [key for key in untold if (asset, key) not in busy and wiring.partitions.has_partition_key(key)]
            for key in sorted(mine)[:MOST_TOLD]:
                metadata = {"told_for_run": records[key].run_id}
                event = dg.AssetMaterialization(asset_key=wiring.key(asset), partition=key, metadata=metadata)
                instance.report_runless_asset_event(event)
