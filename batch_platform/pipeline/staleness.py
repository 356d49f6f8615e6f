"""Which committed predictions are out of date, and why: the plan's answer as rows of `batch_platform.partition_status`.

`status`, the check `up_to_date` and the schedules compute the answer when they are asked; the table holds it as of the
last commit, decision or end of a run. A model whose labels were corrected does not make its predictions stale, since
scoring them again would change nothing; a remark says so.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import cache

from batch_platform.declaration.errors import SourceError, WrongUseError
from batch_platform.features.history import History, labels_fingerprint
from batch_platform.models.registry import Version
from batch_platform.pipeline.plan import Plan, State
from batch_platform.warehouse.ledger import StatusRow


def status_rows(state: State, plan: Plan, computed_at: datetime) -> list[StatusRow]:
    """How every committed partition of a state stands by a plan that covers it."""
    rows: list[StatusRow] = []
    for key, run in state.scores.items():
        champion = state.registry.champion(run.partition_start)
        rows.append(
            StatusRow(
                pipeline=run.pipeline,
                partition_key=key,
                partition_start=run.partition_start,
                partition_end=run.partition_end,
                condition="stale" if key in plan.stale else "scored",
                reason=plan.stale.get(key, plan.remarks.get(key)),
                model_version=run.model_version,
                champion=None if champion is None else champion.version,
                rows_in=run.rows_in,
                rows_scored=run.rows_scored,
                rows_rejected=run.rows_rejected,
                committed_at=run.committed_at,
                run_id=run.run_id,
                computed_at=computed_at,
            )
        )
    return rows


def relabelled(history: History, versions: Iterable[Version]) -> frozenset[str]:
    """The versions that learned from labels whose files changed since; a file that is gone counts as unchanged."""
    if not history.builder.own_label_sources:
        return frozenset()
    calendar, changed = history.spec.partitions.calendar, set[str]()
    versions_now = cache(history.builder.label_versions)  # windows overlap
    for version in versions:
        with suppress(SourceError, WrongUseError):
            window = calendar.within(version.trained_from, version.trained_until)
            if version.label_sources and labels_fingerprint(window, versions_now) != version.label_sources:
                changed.add(version.version)
    return frozenset(changed)
