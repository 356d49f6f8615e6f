"""Problems in the report: rejected rows, checks that partitions failed, and whatever `status` says that somebody should look at.

A partition is in doubt where a check says that its rows or labels are not what they should be. The report leaves it out of its
figures, and gives its own apart.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from batch_platform.declaration.errors import alike, counted, in_short, without_place
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.catalogue import FailedCheck
from batch_platform.monitoring.measures.health import REJECTED_SHARE, VOLUME
from batch_platform.monitoring.measures.scored import reasons_by_partition
from batch_platform.monitoring.metrics import Metric
from batch_platform.pipeline.status import PipelineStatus
from batch_platform.planning.steps import ranges
from batch_platform.reports.performance import measured, row_of
from batch_platform.reports.span import Span
from batch_platform.reports.wording import dates, words
from batch_platform.warehouse.ledger import ScoreRun

EXAMPLES = " For example "  # begins what a reason quotes of rows
_CONDITIONS = {
    "stale": "predictions of {} out of date",
    "blocked": "no model for {}",
    "missing": "{} not yet scored",
}
_ALARMS = {  # aspects named after what should be, in words for what is
    "fresh": "not scored in time",
    "delivered": "predictions are not delivered",
    "performance": "worse than the declared limit",
    "feature_rows": "rows are not what they should be",
    "concept_drift": "outcomes are not what was expected",
    "better_than_guessing": "the model in use is not clearly better than a simple guess",
}


@dataclass(frozen=True)
class OpenIssue:
    """A problem that somebody should look at."""

    what: str
    where: str
    why: str


def rejections(con: duckdb.DuckDBPyConnection, pipeline: str, span: Span) -> dict[str, int]:
    """Count the rejected rows of a span by column and reason, the most frequent first."""
    rows: dict[str, int] = {}
    for reasons in reasons_by_partition(con, pipeline, span.keys).values():
        for reason, count in reasons.items():
            rows[reason] = rows.get(reason, 0) + count
    return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))


def open_issues(spec: PipelineSpec, status: PipelineStatus) -> list[OpenIssue]:
    """List what `status` complains of: failed, out of date or missing partitions, a refused model, then what its health warns of; one issue for each cause."""
    failed = _failed(status)
    every, calendar = spec.partitions.every, spec.partitions.calendar
    declared = {partition.partition for partition in status.partitions}

    def dated(keys: Collection[str]) -> str:
        spans = list(keys)
        if declared.issuperset(keys):  # else serving periods
            spans = [f"{members[0].key} to {members[-1].key}" for members in ranges(map(calendar.named, keys))]
        return dates(spans, monthly=every == "month")

    issues: list[OpenIssue] = []
    for (step, _), reasons in failed.items():
        key, reason = next(iter(reasons.items()))
        example = f"{key}: " if len(reasons) > 1 else ""
        issues.append(
            OpenIssue(f"{step} failed", dated(sorted(reasons)), example + without_place(status.pipeline, reason))
        )
    standing: dict[tuple[str, str], list[str]] = {}
    for partition in status.partitions:
        if partition.condition in _CONDITIONS:
            standing.setdefault((partition.condition, partition.reason), []).append(partition.partition)
    alarms = {alarm.name: alarm for alarm in status.health.alarms}
    for (condition, reason), keys in standing.items():
        fresh = alarms.get("fresh")  # the alarm about the newest partition, which may be one of the missing
        cause = alarms.pop("fresh").text if condition == "missing" and fresh and fresh.partition in keys else ""
        what = _CONDITIONS[condition].format(counted(len(keys), every))
        issues.append(OpenIssue(what, dated(keys), "; ".join(filter(None, (reason, cause)))))
    if status.refused:
        period, reason = next(iter(status.refused.items()))
        issues.append(OpenIssue("the newest model is not in use", dated([period]), reason))
    if failed:
        alarms.pop("failures", None)
    for alarm in alarms.values():
        where = dated([alarm.partition]) if alarm.partition else ""
        issues.append(OpenIssue(_ALARMS.get(alarm.name, words(alarm.name)), where, alarm.text))
    return issues


def _failed(status: PipelineStatus) -> dict[tuple[str, str], dict[str, str]]:
    """The reasons of failures by partition key, grouped by step and kind of reason."""
    failed = dict[tuple[str, str], dict[str, str]]()
    for failure in status.failures:
        key, reason = failure.partition_key, failure.reason.partition(EXAMPLES)[0]  # no values of rows in a report
        failed.setdefault((failure.step, alike(key, in_short(status.pipeline, reason))), {})[key] = reason
    return failed


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
