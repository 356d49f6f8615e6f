"""The measures `volume`, `rejected_share` and `champion_age`: the ledger row of a partition beside those of earlier partitions.

A partition is compared with earlier partitions only, so its judgement is the same whenever it is scored. Kept in no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any

import duckdb

from batch_platform.declaration.errors import counted, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import ALARMS, Aspect, Check, Commits, Finding, Judged, ScoredMeasure, rounded
from batch_platform.monitoring.usual import (
    COMPARED,
    LEAST_ALIKE,
    LEAST_SHARE,
    MOST_REJECTING,
    Past,
    unusually_many,
    usual_rows,
)
from batch_platform.warehouse.ledger import ScoreRun, Version

EMPTY = "no rows"  # cause of the alarm of a partition without rows
NEAR_BUDGET = 0.5  # part of max_rejected from which a partition gets a warning


@dataclass(frozen=True)
class JudgedRun:
    """A committed partition, and one judgement of it."""

    run: ScoreRun
    aspect: Aspect

    @property
    def share(self) -> float:
        """The share of its rows that are rejected."""
        return self.run.rows_rejected / self.run.rows_in if self.run.rows_in else 0.0


def volume(past: Past, run: ScoreRun, *, may_be_empty: bool = False) -> Aspect:
    """Judge whether a partition has as many rows as is usual for its weekday (of an hour, for its hour of the week).

    No rows at all are a warning however usual they are, unless the partition `may_be_empty`.
    """
    alike, all_days = (
        [before.rows_in for before in past.before(run, COMPARED, alike=True, weekday=weekday)]
        for weekday in (True, False)
    )
    usual = usual_rows(alike, all_days)
    numbers: dict[str, float] = {"rows": run.rows_in} | ({} if usual is None else {"usual": usual.middle})
    if not run.rows_in and may_be_empty:
        return Aspect("volume", "none", "no rows, which monitoring.allow_empty accepts", run.partition_key, numbers)
    if not run.rows_in and (usual is None or usual.holds(0)):
        return Aspect("volume", "warn", f"{run.partition_key} has no rows", run.partition_key, numbers)
    if usual is None:
        return Aspect("volume", None, f"{run.rows_in:,} rows", run.partition_key, numbers)
    if usual.holds(run.rows_in):
        return Aspect("volume", "none", f"{run.rows_in:,} rows", run.partition_key, numbers)
    text = f"{run.partition_key} has {run.rows_in:,} rows, where {usual.low:,.0f} to {usual.high:,.0f} are usual"
    numbers |= {"usual_low": usual.low, "usual_high": usual.high}
    return Aspect("volume", "warn", text, run.partition_key, numbers)


def rejected_share(past: Past, run: ScoreRun) -> Aspect:
    """Judge whether no more rows of a partition are rejected than earlier partitions explain."""
    earlier = [
        (before.rows_rejected, before.rows_in)
        for before in past.before(run, MOST_REJECTING, alike=False)
        if before.rows_in
    ]
    share = run.rows_rejected / run.rows_in if run.rows_in else 0.0
    numbers: dict[str, float] = {"rejected_share": share}
    if earlier:
        numbers["highest_before"] = max(rejected / rows for rejected, rows in earlier)
    text = f"{run.rows_rejected:,} of {run.rows_in:,} rows rejected"
    if not unusually_many(run.rows_rejected, run.rows_in, earlier):
        return Aspect("rejected_share", "none", text, run.partition_key, numbers)
    highest = f"at most {numbers['highest_before']:.2%} in the {len(earlier)} partitions before"
    return Aspect("rejected_share", "warn", f"{text} in {run.partition_key}, {highest}", run.partition_key, numbers)


def champion_age(spec: PipelineSpec, version: Version, at: datetime) -> Aspect:
    """Judge whether a version does not score for longer than is allowed after the start of its serving period."""
    age, oldest = max(timedelta(), at - version.serving_start), spec.periods.oldest_champion
    days = age / timedelta(days=1)
    text = f"the model is {counted(round(days), 'day')} old"
    if oldest is None:
        return Aspect("champion_age", None, text, numbers={"days": days})
    if oldest.after(version.serving_start, spec.partitions.calendar.zone) >= at:
        return Aspect("champion_age", "none", text, numbers={"days": days})
    return Aspect(
        "champion_age",
        "warn",
        f"{text}, more than the {oldest} that are allowed: train a new one",
        numbers={"days": days},
    )


def _shown(judged: JudgedRun) -> dict[str, Any]:
    return {**rounded(judged.aspect.numbers), "what": judged.aspect.text}


def _judged_alone(description: str, failed_as: str) -> Check[JudgedRun]:
    """The check of an aspect that passed or gives a warning; the summary lists the partitions with a warning as `failed_as`.

    A partition whose aspect is not judged has no result.
    """

    def judge(judged: JudgedRun, _: str) -> Finding | None:
        passed = judged.aspect.passed
        return None if judged.aspect.level is None else Finding("none" if passed else "warn", _shown(judged))

    return Check(
        description=description,
        judge=judge,
        summary=lambda judged, failed: {"partitions": f"{len(judged):,}", failed_as: listed(failed) or "none"},
    )


class _Judged(ScoredMeasure[JudgedRun]):
    """A judgement of the ledger row of a partition."""

    def aspect(self, commits: Commits, run: ScoreRun) -> Aspect | None:
        """Judge a partition; None if nothing is known."""
        raise NotImplementedError

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, JudgedRun]:  # noqa: ARG002 - no table
        """The judgements of committed partitions."""
        judged = ((run, self.aspect(commits, run)) for run in commits.runs)
        return {run.partition_key: JudgedRun(run, aspect) for run, aspect in judged if aspect is not None}


class Volume(_Judged):
    """The number of rows of a partition beside those of earlier ones."""

    name = "volume"
    description = "How many rows a partition has, beside what is usual."

    def aspect(self, commits: Commits, run: ScoreRun) -> Aspect:
        """Judge the number of rows."""
        return volume(commits.past, run, may_be_empty=commits.spec.monitoring.allows_empty(run.partition_key))

    def check(self, spec: PipelineSpec) -> Check[JudgedRun]:
        """Warn of an unusual number of rows."""
        alone = _judged_alone(
            f"A partition has at least {LEAST_SHARE:.0%} of the median rows of the last {COMPARED} partitions of the same weekday (of an "
            f"hour: of the same hour of the week), and at most {1 / LEAST_SHARE:.0%}, chance aside. With fewer than {LEAST_ALIKE} of them, "
            f"a number that is usual among the last {COMPARED} of all days is no warning either; with fewer than {COMPARED} of these, "
            "nothing is judged. A partition without rows gives a warning, unless monitoring.allow_empty accepts it. Its limits are plotted.",
            failed_as="unusual",
        )

        def judge(judged: JudgedRun, task: str) -> Judged | None:
            finding = alone.judge(judged, task)
            if finding is None or finding.level == "none" or judged.run.rows_in:
                return finding
            return Finding(finding.level, {**finding.shown, ALARMS: [[EMPTY, finding.level]]})

        return replace(
            alone,
            judge=judge,
            faults=(EMPTY,),
            accepted=lambda key, faults: EMPTY in faults and spec.monitoring.allows_empty(key),
        )


class RejectedShare(_Judged):
    """The share of rejected rows of a partition beside those of earlier ones."""

    name = "rejected_share"
    description = "Which share of the rows is rejected, beside what is usual."

    def aspect(self, commits: Commits, run: ScoreRun) -> Aspect:
        """Judge the share of rejected rows."""
        return rejected_share(commits.past, run)

    def check(self, spec: PipelineSpec) -> Check[JudgedRun]:
        """Warn of a share that is unusual, or near the budget."""
        budget = spec.features.rejected_budget

        def judge(judged: JudgedRun, _: str) -> Finding:
            near = budget.is_exceeded(ceil(judged.run.rows_rejected / NEAR_BUDGET), judged.run.rows_in)
            shown: dict[str, Any] = {
                "rejected_share": judged.share,
                "rows_rejected": judged.run.rows_rejected,
                **_shown(judged),
            }
            if near and judged.aspect.passed:
                shown["what"] += f" in {judged.run.partition_key}, more than half of features.max_rejected ({budget})"
            return Finding("warn" if near or not judged.aspect.passed else "none", shown)

        def summary(by_partition: Mapping[str, JudgedRun], failed: Sequence[str]) -> dict[str, str]:
            worst = max(by_partition, key=lambda key: by_partition[key].share, default=None)
            share = "nothing" if worst is None else f"{by_partition[worst].share:.2%} at most ({worst})"
            return {"rejected": share, "too_many": listed(failed) or "none"}

        return Check(
            description=(
                f"At most half of the budget for rejected rows (features.max_rejected, {budget}) is used, and no larger share of "
                f"the rows is rejected than the last {MOST_REJECTING} partitions before explain. Beyond the whole budget the "
                "partition is not published and the run fails; this check warns before that."
            ),
            judge=judge,
            summary=summary,
        )


class ChampionAge(_Judged):
    """The age of the model that scored a partition."""

    name = "champion_age"
    description = "How old the model is that scored a partition."

    def aspect(self, commits: Commits, run: ScoreRun) -> Aspect | None:
        """Judge the age of the version."""
        version = commits.versions.get(run.model_version)
        return None if version is None else champion_age(commits.spec, version, run.partition_start)

    def check(self, spec: PipelineSpec) -> Check[JudgedRun] | None:
        """Warn of a model that is too old."""
        oldest = spec.periods.oldest_champion
        if oldest is None:
            return None
        return _judged_alone(
            f"The serving period of the model began at most {oldest} before the partition (monitoring.max_champion_age; by "
            "default twice model.train.every, at least 7 days). An older one suggests that newer models are refused, wait for "
            "promotion, or are not trained.",
            failed_as="scored_by_an_old_model",
        )


VOLUME, REJECTED_SHARE, CHAMPION_AGE = Volume(), RejectedShare(), ChampionAge()
