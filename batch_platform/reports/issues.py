"""Problems in the report: unusual counts of rows, and whatever `status` says that somebody should look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from batch_platform.declaration.errors import alike, in_short, listed, without_place
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.health import Aspect
from batch_platform.monitoring.measures.health import partition_aspects
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.status import PipelineStatus
from batch_platform.reports.span import Span
from batch_platform.warehouse.ledger import ScoreRun

EXAMPLES = " For example "  # begins what a reason quotes of rows
_CONDITIONS = {
    "stale": "predictions are out of date",
    "blocked": "no model serves these partitions",
    "missing": "partitions are due and not scored",
}


@dataclass(frozen=True)
class OpenIssue:
    """A problem that somebody should look at."""

    what: str
    where: str
    why: str


def unusual_counts(spec: PipelineSpec, runs: Sequence[ScoreRun], span: Span) -> list[Aspect]:
    """The volumes and rejected shares of a span that earlier partitions do not explain, newest first."""
    past = Past(spec.partitions.calendar, runs)
    judged = (aspect for run in reversed(span.runs) for aspect in partition_aspects(spec, past, run))
    return [aspect for aspect in judged if not aspect.passed]


def open_issues(status: PipelineStatus) -> list[OpenIssue]:
    """List the partitions that are out of date, failed or missing; those with the same problem are one issue."""
    failed: dict[tuple[str, str], dict[str, str]] = {}  # reasons by partition key, grouped by step and kind of reason
    for failure in status.failures:
        key, reason = failure.partition_key, failure.reason.partition(EXAMPLES)[0]  # no values of rows in a report
        failed.setdefault((failure.step, alike(key, in_short(status.pipeline, reason))), {})[key] = reason
    issues: list[OpenIssue] = []
    for (step, _), reasons in failed.items():
        key, reason = next(iter(reasons.items()))
        example = f"{key}: " if len(reasons) > 1 else ""
        issues.append(OpenIssue(f"{step} failed", listed(reasons), example + without_place(status.pipeline, reason)))
    standing: dict[tuple[str, str], list[str]] = {}
    for partition in status.partitions:
        if partition.condition in _CONDITIONS:
            standing.setdefault((partition.condition, partition.reason), []).append(partition.partition)
    issues += [OpenIssue(_CONDITIONS[condition], listed(keys), why) for (condition, why), keys in standing.items()]
    return issues
