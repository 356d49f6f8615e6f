"""Problems in the report: unusual counts of rows, and partitions that are out of date, failed or missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import duckdb

from batch_platform.declaration.errors import alike, in_short, listed, without_place
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.health import Aspect
from batch_platform.monitoring.measures.health import partition_aspects
from batch_platform.monitoring.usual import Past
from batch_platform.reports.span import Span
from batch_platform.warehouse.dropping import read_dropped
from batch_platform.warehouse.failures import read_failures
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, ScoreRun


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


def open_issues(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, runs: Sequence[ScoreRun]) -> list[OpenIssue]:
    """List stale partitions, failures, and other partitions that are missing between the first and the last scored one.

    Partitions with the same problem are one issue. A dropped partition is not missing.
    """
    issues: list[OpenIssue] = []
    query = f"""
        SELECT condition, reason, list(partition_key ORDER BY partition_start) FROM {LEDGERS_SCHEMA}.partition_status
        WHERE pipeline = $pipeline AND condition IN ('scored', 'stale') GROUP BY ALL ORDER BY count(*) DESC, reason
    """
    up_to_date = set[str]()  # whatever failed there before
    for condition, reason, keys in con.execute(query, {"pipeline": spec.name}).fetchall():
        if condition == "stale":
            issues.append(OpenIssue("predictions are out of date", listed(keys), reason or ""))
        else:
            up_to_date.update(keys)
    failed: dict[tuple[str, str], dict[str, str]] = {}  # reasons by partition key, grouped by step and kind of reason
    for failure in read_failures(con, spec.name).values():
        key, reason = failure.partition_key, failure.reason
        if failure.step in ("features", "predictions") and key in up_to_date:
            continue
        failed.setdefault((failure.step, alike(key, in_short(spec.name, reason))), {})[key] = reason
    for (step, _), reasons in failed.items():
        key, reason = next(iter(reasons.items()))
        example = f"{key}: " if len(reasons) > 1 else ""
        issues.append(OpenIssue(f"{step} failed", listed(reasons), example + without_place(spec.name, reason)))
    of_partitions = chain(*(reasons for (step, _), reasons in failed.items() if step != "model"))
    explained = {*(run.partition_key for run in runs), *read_dropped(con, spec.name), *of_partitions}
    between = spec.partitions.calendar.within(runs[0].partition_start, runs[-1].partition_end)
    missing = [] if spec.partitions.snapshot else [item.key for item in between if item.key not in explained]
    if missing:
        issues.append(OpenIssue("partitions are not scored", listed(missing), "partitions before and after are scored"))
    return issues
