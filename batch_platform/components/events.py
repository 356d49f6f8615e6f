"""Log one event for each partition as it commits, with its own metadata, data version and provenance.

Dagster would log the partitions of a range only at the end of the step, all with the same data version. So the assets log
their partitions themselves, and the output of the step carries Dagster's mark of an output whose events were logged in the
body. Commits of a run that was killed before it could log them are logged for it afterwards.
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import dagster as dg

from batch_platform.components.checks import Checked, RunCheck, evaluation
from batch_platform.components.dagster_internals import (
    LOGGED_IN_THE_BODY,
    data_version_tags,
    provenance_tags,
    quick_event_log,
)
from batch_platform.components.progress import Pace, RunProgress, report
from batch_platform.components.runs import range_tag
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.pipeline.plan import State

MOST_LOGGED = 500  # partitions of an asset that one call of `log_unknown_commits` logs; the next call continues
SECONDS_BETWEEN_LINES = 10  # in the log of a run: each line is a stored event


class PartitionLog:
    """Logs the partitions of one asset in one step."""

    def __init__(self, context: dg.AssetExecutionContext, asset: dg.AssetKey, total: int) -> None:
        """Record the state of the upstream assets before the work begins; `total` partitions are to come."""
        if tag := range_tag(context):
            context.instance.add_run_tags(context.run.run_id, tag)
        self._context, self._asset = context, asset
        self._pace = Pace(asset.path[-1], total)
        self._next_line = monotonic() + SECONDS_BETWEEN_LINES
        self._provenance = provenance_tags(context, asset)
        self._checked = defaultdict[str, list[Any]](list)

    def materialized(  # noqa: PLR0913 - what is logged of a partition
        self,
        partition_key: str | None,
        *,
        data_version: str,
        rows: int,
        metadata: Mapping[str, Any],
        version: str = "",
        suspicious: Sequence[str] = (),
    ) -> None:
        """Log a committed partition; `partition_key` is None for an unpartitioned asset.

        A trained model is reported by its version, with the features that alone nearly decide the label.
        """
        tags = data_version_tags(data_version) | self._provenance
        self._context.log_event(
            dg.AssetMaterialization(asset_key=self._asset, partition=partition_key, metadata=metadata, tags=tags)
        )
        self._report(replace(self._pace.reached(version or partition_key or "", rows), suspicious=tuple(suspicious)))

    def observed(self, done: str, partition_key: str | None, *, metadata: Mapping[str, Any]) -> None:
        """Log an observation of a partition that itself stays as it is."""
        self._context.log_event(dg.AssetObservation(asset_key=self._asset, partition=partition_key, metadata=metadata))
        self._report(self._pace.reached(done, 0))

    def on_the_way(self, partition: Partition, rows: int, of: int) -> None:
        """Report how many rows of an unfinished partition are done."""
        self._report(self._pace.reached(partition.key, rows, of))

    def _report(self, progress: RunProgress) -> None:
        """Report progress to the listener and, now and then, to the log of the run."""
        report(progress)
        if (now := monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._context.log.info(str(progress))

    def check(self, check: RunCheck[Checked], partition_key: str | None, checked: Checked) -> None:
        """Log the result of a check on one partition. Only the result for the whole step can block."""
        self.count(check, checked)
        result = evaluation(
            dg.AssetCheckKey(self._asset, check.name),
            partition_key,
            passed=check.passed(checked),
            metadata=check.metadata(checked),
            severity=check.severity,
        )
        self._context.op_execution_context.log_event(result)

    def count(self, check: RunCheck[Checked], checked: Checked) -> None:
        """Count a partition in the result of a check for the whole step, without a result of its own."""
        self._checked[check.name].append(checked)

    def finish(self, *checks: RunCheck[Any]) -> dg.MaterializeResult:
        """Return the output of the step with the results of its checks, once every partition is logged."""
        results = [check.result(self._checked[check.name]) for check in checks]
        return dg.MaterializeResult(asset_key=self._asset, metadata=LOGGED_IN_THE_BODY, check_results=results)


def log_unknown_commits(
    wiring: Wiring, instance: dg.DagsterInstance, state: State, busy: Container[tuple[str, str]]
) -> None:
    """Log commits that Dagster does not know of because their run was killed; at most MOST_LOGGED of each asset.

    `busy` holds the assets and partitions of runs in progress, which log their own commits.
    """
    ledgers = {"features": state.features, "predictions": state.scores, "performance": state.evaluations}
    with quick_event_log(instance):
        for asset, records in ledgers.items():
            unknown = records.keys() - instance.get_materialized_partitions(wiring.key(asset))
            missing = [key for key in unknown if (asset, key) not in busy and wiring.partitions.has_partition_key(key)]
            for key in sorted(missing)[:MOST_LOGGED]:
                metadata = {"logged_for_run": records[key].run_id}
                event = dg.AssetMaterialization(asset_key=wiring.key(asset), partition=key, metadata=metadata)
                instance.report_runless_asset_event(event)
