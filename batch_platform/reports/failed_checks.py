"""The checks that partitions of the report failed, and those that are in doubt by them.

A partition is in doubt where a check says that its rows or labels are not what they should be. The report leaves it out of its
figures, and gives its own apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.catalogue import FailedCheck, read_failed_checks
from batch_platform.monitoring.measures.health import REJECTED_SHARE, VOLUME
from batch_platform.monitoring.metrics import Metric
from batch_platform.reports.performance import measured, row_of
from batch_platform.reports.span import Span
from batch_platform.warehouse.ledger import ScoreRun

__all__ = ["FailedCheck", "read_failed_checks"]


@dataclass(frozen=True)
class DoubtfulPartition:
    """A partition in doubt, and its own figures."""

    run: ScoreRun
    why: str
    measured: Mapping[str, Any] | None  # row of the metric; None where it is not measured


@dataclass(frozen=True)
class Doubtful:
    """The partitions of a window that are in doubt."""

    checks: Sequence[FailedCheck]  # that put them in doubt
    partitions: Sequence[DoubtfulPartition]
    together: Mapping[str, Any] | None  # row of the metric of them all; None where it is not measured
    left_out: bool  # whether the figures leave them out; not where the window has no other partitions

    @property
    def keys(self) -> list[str]:
        """The keys of the partitions."""
        return [partition.run.partition_key for partition in self.partitions]


def unusual_counts(failed: Sequence[FailedCheck]) -> list[FailedCheck]:
    """The volumes and rejected shares that earlier partitions do not explain, newest first."""
    counts = (check for check in failed if check.check in (VOLUME.name, REJECTED_SHARE.name))
    return sorted(counts, key=lambda check: check.partition_key, reverse=True)


def read_doubtful(  # noqa: PLR0913 - the window, what was found, and the metric
    con: duckdb.DuckDBPyConnection,
    spec: PipelineSpec,
    window: Span,
    failed: Sequence[FailedCheck],
    metric: str,
    own: Sequence[Metric],
) -> Doubtful | None:
    """Read the figures of the partitions of a whole window that are in doubt by the checks that failed; None if there are none."""
    checks = [check for check in failed if check.doubtful]
    if not checks:
        return None
    why = dict[str, list[str]]()
    for check in checks:
        why.setdefault(check.partition_key, []).append(check.text)
    runs = tuple(run for run in window.runs if run.partition_key in why)

    def of_metric(*some: ScoreRun) -> Mapping[str, Any] | None:
        return row_of(measured(con, spec, Span(some), metric, own, whole=False), metric)

    partitions = [DoubtfulPartition(run, "; ".join(why[run.partition_key]), of_metric(run)) for run in runs]
    together = of_metric(*runs) if len(runs) > 1 else partitions[0].measured
    return Doubtful(checks, partitions, together, left_out=len(runs) < len(window.runs))
