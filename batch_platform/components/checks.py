"""Asset checks: each partition's own result as it commits, one summary for the run, and what is out of date by now."""

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import dagster as dg

from batch_platform.components import describe
from batch_platform.components.dagster_internals import StandingCheck, quick_event_log
from batch_platform.components.events import PartitionLog
from batch_platform.components.runs import targets
from batch_platform.components.wiring import Wiring, clear_failures, now
from batch_platform.declaration.errors import MOST_LISTED, listed
from batch_platform.monitoring.catalogue import declared_checks
from batch_platform.monitoring.measure import Judgement
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.plan import Plan, State
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.run import Committed

ROWS_BALANCE, REJECTED_SHARE, SCORE_DISTRIBUTION = "rows_balance", "rejected_share", "score_distribution"
GATE, UP_TO_DATE = "gate", "up_to_date"
NEAR_BUDGET = 0.5  # share of max_rejected from which a partition gets a warning
_WARN = dg.AssetCheckSeverity.WARN


def predictions(wiring: Wiring, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of the predictions."""
    budget = wiring.spec.features.max_rejected
    rejected_share = (
        f"At most half of the budget for rejected rows (features.max_rejected, {budget:.2%}) is used. Beyond the whole "
        "budget nothing is published and the run fails; this check warns before that."
    )
    score_distribution = (
        "The predictions of a partition differ from row to row. The same score for all rows suggests that all features "
        "are missing. Mean and quantiles are plotted, so that a shift can be seen."
    )
    return [
        rows_balance(asset),
        dg.AssetCheckSpec(REJECTED_SHARE, asset=asset, description=rejected_share),
        dg.AssetCheckSpec(SCORE_DISTRIBUTION, asset=asset, description=score_distribution),
    ]


def rows_balance(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that every row is scored or rejected; it blocks what depends on the predictions."""
    return dg.AssetCheckSpec(
        ROWS_BALANCE,
        asset=asset,
        blocking=True,
        description="Every row of the features is either scored or rejected with a reason: rows_in = rows_scored + rows_rejected.",
    )


def log_predictions(log: PartitionLog, committed: Committed, budget: float) -> None:
    """Log the checks of one committed partition; `budget` is `features.max_rejected`."""
    run, key = committed.run, committed.partition.key
    rows = {"rows_in": run.rows_in, "rows_scored": run.rows_scored, "rows_rejected": run.rows_rejected}
    log.checked(key, ROWS_BALANCE, passed=_balanced(committed), metadata=rows)
    share = {"rejected_share": _rejected_share(committed), "rows_rejected": run.rows_rejected}
    log.checked(key, REJECTED_SHARE, passed=_within(budget, committed), severity=_WARN, metadata=share)
    numbers = describe.score_numbers(committed.scores)
    log.checked(key, SCORE_DISTRIBUTION, passed=_varied(committed), severity=_WARN, metadata=numbers)


def predictions_summary(committed: Sequence[Committed], budget: float) -> list[dg.AssetCheckResult]:
    """The checks of all partitions of a run, as text, so that no plot mixes them with the partitions' numbers."""
    worst = max(committed, key=_rejected_share, default=None)
    share = "nothing" if worst is None else f"{_rejected_share(worst):.2%} at most ({worst.partition.key})"
    near_budget = [partition.partition.key for partition in committed if not _within(budget, partition)]
    constant = [partition.partition.key for partition in committed if not _varied(partition)]
    return [
        rows_balance_summary(committed),
        _summary(
            REJECTED_SHARE,
            passed=not near_budget,
            metadata={"rejected": share, "near_the_budget": listed(near_budget) or "none"},
        ),
        _summary(
            SCORE_DISTRIBUTION,
            passed=not constant,
            metadata={"partitions": _count(committed), "one_score_for_all_rows": listed(constant) or "none"},
        ),
    ]


def rows_balance_summary(committed: Sequence[Committed]) -> dg.AssetCheckResult:
    """The balance of all partitions of a run."""
    runs = [partition.run for partition in committed]
    balance = (
        f"{sum(run.rows_in for run in runs):,} rows in = {sum(run.rows_scored for run in runs):,} scored"
        f" + {sum(run.rows_rejected for run in runs):,} rejected"
    )
    return _summary(
        ROWS_BALANCE,
        passed=all(map(_balanced, committed)),
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"partitions": _count(committed), "balance": balance},
    )


def _balanced(committed: Committed) -> bool:
    run = committed.run
    return run.rows_in == run.rows_scored + run.rows_rejected


def _rejected_share(committed: Committed) -> float:
    run = committed.run
    return run.rows_rejected / run.rows_in if run.rows_in else 0.0


def _within(budget: float, committed: Committed) -> bool:
    return _rejected_share(committed) <= NEAR_BUDGET * budget


def _varied(committed: Committed) -> bool:
    return committed.scores is None or not committed.scores.constant


def build_up_to_date(wiring: Wiring) -> dg.AssetChecksDefinition:
    """A check that no committed prediction is out of date; runs after every scoring, and alone on demand."""
    rescored = wiring.spec.predictions.rescore != "never"
    what = "The schedule scores them again" if rescored else "They stay as they are (predictions.rescore: never)"
    description = (
        "No committed partition is out of date. A partition is out of date if it was scored by a version that is no longer "
        "its champion, if its features, SQL, sources or declaration changed since, or if a newer model is due. "
        f"{what}; the table `batch_platform.partition_status` lists each partition with its reason. *Execute check* looks "
        "again without scoring anything."
    )

    asset = wiring.key("predictions")

    @dg.asset_check(asset=asset, name=UP_TO_DATE, description=description)
    def up_to_date(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with clear_failures():
            state, plan = wiring.pipeline().conclude(now())
            scored = sorted({key for name, key in targets(wiring, context.run) if name == asset.path[-1] and key})
            with quick_event_log(context.instance):
                for key in scored:  # Dagster expects a result for each partition of a run
                    context.op_execution_context.log_event(_partition_up_to_date(asset, key, plan))
        return _up_to_date(plan, state)

    return StandingCheck.of(up_to_date)


def _partition_up_to_date(asset: dg.AssetKey, key: str, plan: Plan) -> Any:  # noqa: ANN401 - as in PartitionLog
    reason = plan.stale.get(key)
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=UP_TO_DATE,
        passed=reason is None,
        severity=_WARN,
        metadata={"reason": reason or plan.remarks.get(key, "none")},
        partition=key,
        description=key,
    )


def _up_to_date(plan: Plan, state: State) -> dg.AssetCheckResult:
    """How many partitions are stale and why, and which models learned from labels that were corrected since."""
    reasons = dict(Counter(plan.stale.values()).most_common())
    metadata: dict[str, Any] = {
        "partitions": _count(state.scores),
        "stale": len(plan.stale),
        "first_stale": min(plan.stale, default="none"),
        "last_stale": max(plan.stale, default="none"),
        "models_with_corrected_labels": listed(state.relabelled) or "none",
    }
    if reasons:
        metadata["reasons"] = dg.MetadataValue.md(describe.table(("reason", "partitions"), reasons))
    return dg.AssetCheckResult(
        passed=not reasons,
        severity=_WARN,
        description="; ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none is stale",
        metadata=metadata,
    )


def gate(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that a trained version passes the gate."""
    return dg.AssetCheckSpec(
        GATE,
        asset=asset,
        description="The trained version meets model.promote. A refused version is kept but never serves; the champion goes on serving.",
    )


def log_gate(log: PartitionLog, partition_key: str | None, trained: Trained) -> None:
    """Log the decision on one version."""
    log.checked(
        partition_key,
        GATE,
        passed=trained.decision.action == "approved",
        severity=_WARN,
        metadata={
            "version": trained.version.version,
            "decision": trained.decision.action,
            "reason": trained.decision.reason,
            **describe.rounded(trained.version.metric_values),
        },
    )


def gate_summary(decisions: Sequence[Trained]) -> dg.AssetCheckResult:
    """The decisions on all versions of a run."""
    refused = [trained.version.version for trained in decisions if trained.decision.action != "approved"]
    return _summary(
        GATE, passed=not refused, metadata={"trained": f"{len(decisions)}", "refused": ", ".join(refused) or "none"}
    )


def measures(wiring: Wiring, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """One check for each measure that the pipeline declares a bound for."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=check.description)
        for name, check in declared_checks(wiring.spec).items()
    ]


@dataclass(frozen=True)
class Judged:
    """One evaluated partition, judged by one measure."""

    measure: str
    partition_key: str
    judgement: Judgement


def log_measures(wiring: Wiring, log: PartitionLog, evaluated: Evaluated) -> list[Judged]:
    """Judge a partition by every measure, and log the results; a measure that has nothing to judge is left out."""
    judged: list[Judged] = []
    for name, check in declared_checks(wiring.spec).items():
        judgement = check.judge(evaluated.served.numbers_of(name), evaluated.served.version.task)
        if judgement is not None:
            judged.append(Judged(name, evaluated.partition.key, judgement))
            metadata = {"metric": judgement.name, **describe.rounded({judgement.name: judgement.value})}
            log.checked(evaluated.partition.key, name, passed=judgement.passed, severity=_WARN, metadata=metadata)
    return judged


def measures_summary(wiring: Wiring, judged: Sequence[Judged]) -> list[dg.AssetCheckResult]:
    """How many partitions of a run miss their bound, and the worst of them, by measure."""
    return [
        _measure_summary(name, [partition for partition in judged if partition.measure == name])
        for name in declared_checks(wiring.spec)
    ]


def _measure_summary(measure: str, judged: Sequence[Judged]) -> dg.AssetCheckResult:
    worse = [partition for partition in judged if not partition.judgement.passed]
    metadata: dict[str, Any] = {"partitions": _count(judged), "worse": _count(worse)}
    if worse:
        first = worse[0].judgement
        worst_first = sorted(worse, key=lambda partition: partition.judgement.value, reverse=first.lower_is_better)
        values = {judged.partition_key: f"{judged.judgement.value:.4f}" for judged in worst_first[:MOST_LISTED]}
        metadata["the_worst"] = dg.MetadataValue.md(describe.table(("partition", first.name), values))
    return _summary(measure, passed=not worse, metadata=metadata)


def _summary(
    check: str, *, passed: bool, severity: dg.AssetCheckSeverity = _WARN, metadata: Mapping[str, Any]
) -> dg.AssetCheckResult:
    """The result of a check for a run as a whole."""
    description = "the run as a whole"
    return dg.AssetCheckResult(
        check_name=check, description=description, passed=passed, severity=severity, metadata=metadata
    )


def _count(items: Sized) -> str:
    return f"{len(items):,}"
