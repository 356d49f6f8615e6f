"""Asset checks: each partition's own result as it commits, one summary for the run, and what is out of date by now."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import dagster as dg

from batch_platform.components import describe
from batch_platform.components.dagster_internals import StandingCheck, quick_event_log
from batch_platform.components.events import PartitionLog
from batch_platform.components.runs import targets
from batch_platform.components.wiring import Wiring, clear_failures, note_found, stamp_of
from batch_platform.declaration.errors import MOST_LISTED, listed
from batch_platform.monitoring.catalogue import declared_checks
from batch_platform.monitoring.measure import Judgement
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.plan import State, make_plan
from batch_platform.pipeline.staleness import Staleness
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.run import Committed

ROWS_BALANCE, REJECTED_SHARE, SCORE_DISTRIBUTION = "rows_balance", "rejected_share", "score_distribution"
GATE, UP_TO_DATE = "gate", "up_to_date"
NEAR_BUDGET = 0.5  # of max_rejected: from there on a partition is worth a look
_TOGETHER = "the run as a whole"
_WARN = dg.AssetCheckSeverity.WARN


def predictions(wiring: Wiring, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What is checked of the predictions."""
    budget = wiring.spec.features.max_rejected
    return [rows_balance(asset), _rejected_share(asset, budget), _score_distribution(asset)]


def rows_balance(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """Every row that came in is scored or rejected; what depends on the predictions waits for it."""
    return dg.AssetCheckSpec(
        ROWS_BALANCE,
        asset=asset,
        blocking=True,
        description="Every row of the features is either scored or rejected with a reason: rows_in = rows_scored + rows_rejected.",
    )


def _rejected_share(asset: dg.AssetKey, budget: float) -> dg.AssetCheckSpec:
    description = (
        f"At most half of the budget for rejected rows (features.max_rejected, {budget:.2%}) is used. Past the whole of it "
        "nothing is published and the run fails; this warns before."
    )
    return dg.AssetCheckSpec(REJECTED_SHARE, asset=asset, description=description)


def _score_distribution(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    description = (
        "The predictions of a partition differ from row to row. One score for all rows is a sign of features that are all "
        "missing. Mean and quantiles are plotted, so that a shift is seen."
    )
    return dg.AssetCheckSpec(SCORE_DISTRIBUTION, asset=asset, description=description)


@dataclass(frozen=True)
class Checked:
    """One committed partition."""

    committed: Committed
    budget: float

    @property
    def balanced(self) -> bool:
        """Whether each row that came in is accounted for."""
        return _balanced(self.committed)

    @property
    def rejected_share(self) -> float:
        """The rejected rows among all that came in; 0 of none."""
        run = self.committed.run
        return run.rows_rejected / run.rows_in if run.rows_in else 0.0

    @property
    def within_budget(self) -> bool:
        """Whether the budget for rejected rows is not nearly used up."""
        return self.rejected_share <= NEAR_BUDGET * self.budget

    @property
    def varied(self) -> bool:
        """Whether the scores differ."""
        scores = self.committed.scores
        return scores is None or not scores.constant


def log_predictions(log: PartitionLog, one: Checked) -> None:
    """Log what was found of one partition."""
    run, key = one.committed.run, one.committed.partition.key
    rows = {"rows_in": run.rows_in, "rows_scored": run.rows_scored, "rows_rejected": run.rows_rejected}
    log.checked(key, ROWS_BALANCE, passed=one.balanced, metadata=rows)
    share = {"rejected_share": one.rejected_share, "rows_rejected": run.rows_rejected}
    log.checked(key, REJECTED_SHARE, passed=one.within_budget, severity=_WARN, metadata=share)
    numbers = describe.score_numbers(one.committed.scores)
    log.checked(key, SCORE_DISTRIBUTION, passed=one.varied, severity=_WARN, metadata=numbers)


def predictions_summary(found: Sequence[Checked]) -> list[dg.AssetCheckResult]:
    """What was found of all partitions of a run; in words, so that no plot mixes it with the partitions' numbers."""
    worst = max(found, key=lambda one: one.rejected_share, default=None)
    share = "nothing" if worst is None else f"{worst.rejected_share:.2%} at most ({worst.committed.partition.key})"
    return [
        rows_balance_summary([one.committed for one in found]),
        dg.AssetCheckResult(
            check_name=REJECTED_SHARE,
            description=_TOGETHER,
            passed=all(one.within_budget for one in found),
            severity=_WARN,
            metadata={"rejected": share, "near_the_budget": _keys(found, [one.within_budget for one in found])},
        ),
        dg.AssetCheckResult(
            check_name=SCORE_DISTRIBUTION,
            description=_TOGETHER,
            passed=all(one.varied for one in found),
            severity=_WARN,
            metadata={
                "partitions": _counted(found),
                "one_score_for_all_rows": _keys(found, [one.varied for one in found]),
            },
        ),
    ]


def rows_balance_summary(committed: Sequence[Committed]) -> dg.AssetCheckResult:
    """The balance of all partitions of a run."""
    scored, rejected = (
        sum(one.run.rows_scored for one in committed),
        sum(one.run.rows_rejected for one in committed),
    )
    balance = f"{sum(one.run.rows_in for one in committed):,} rows in = {scored:,} scored + {rejected:,} rejected"
    return dg.AssetCheckResult(
        check_name=ROWS_BALANCE,
        description=_TOGETHER,
        passed=all(_balanced(one) for one in committed),
        metadata={"partitions": _counted(committed), "balance": balance},
    )


def build_up_to_date(wiring: Wiring) -> dg.AssetChecksDefinition:
    """Whether all committed predictions are as scoring them now would make them; runs with them, and alone on demand."""
    rescored = wiring.spec.predictions.rescore != "never"
    what = "The schedule scores them again" if rescored else "They stay as they are (predictions.rescore: never)"
    description = (
        "No committed partition is out of date: scored by a version that is no longer its champion, from features, SQL, "
        f"sources or a declaration that changed since, or waiting for a newer model. {what}; the view "
        "`batch_platform.partition_status` names each with its reason. *Execute check* looks again without scoring anything."
    )

    asset = wiring.key("predictions")

    @dg.asset_check(asset=asset, name=UP_TO_DATE, description=description)
    def up_to_date(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with clear_failures():
            stamp = stamp_of(context.run.run_id)
            state = wiring.pipeline().state()
            found = note_found(wiring, state, make_plan(wiring.spec, state, stamp.at), stamp)
            scored = sorted({key for one, key in targets(wiring, context.run) if one == asset.path[-1] and key})
            with quick_event_log(context.instance):
                for key in scored:  # Dagster expects a result for each partition of a run
                    context.op_execution_context.log_event(_partition_up_to_date(asset, key, found))
        return _up_to_date(found, state)

    return StandingCheck.of(up_to_date)


def _partition_up_to_date(asset: dg.AssetKey, key: str, found: Staleness) -> Any:  # noqa: ANN401 - as in PartitionLog
    reason = found.stale.get(key)
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=UP_TO_DATE,
        passed=reason is None,
        severity=_WARN,
        metadata={"reason": reason or found.remarks.get(key, "none")},
        partition=key,
        description=key,
    )


def _up_to_date(found: Staleness, state: State) -> dg.AssetCheckResult:
    """How many partitions are stale and why; and which models learnt from labels that were corrected since."""
    metadata: dict[str, Any] = {
        "partitions": _counted(state.scores),
        "stale": len(found.stale),
        "first_stale": min(found.stale, default="none"),
        "last_stale": max(found.stale, default="none"),
        "models_with_corrected_labels": listed(state.relabelled) or "none",
    }
    if found.stale:
        metadata["reasons"] = dg.MetadataValue.md(describe.table(("reason", "partitions"), found.reasons))
    said = [f"{count} {reason}" for reason, count in found.reasons.items()]
    return dg.AssetCheckResult(
        passed=not found.stale,
        severity=_WARN,
        description="; ".join(said) or "none is stale",
        metadata=metadata,
    )


def gate(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The trained version meets what the pipeline asks of a model."""
    return dg.AssetCheckSpec(
        GATE,
        asset=asset,
        description="The trained version meets model.promote. A refused one is kept and never serves; the champion goes on serving.",
    )


def log_gate(log: PartitionLog, partition_key: str | None, trained: Trained) -> None:
    """Log what was decided of one version."""
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
    """What was decided of all versions of a run."""
    refused = [trained.version.version for trained in decisions if trained.decision.action != "approved"]
    return dg.AssetCheckResult(
        check_name=GATE,
        description=_TOGETHER,
        passed=not refused,
        severity=_WARN,
        metadata={"trained": f"{len(decisions)}", "refused": ", ".join(refused) or "none"},
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
    metadata: dict[str, Any] = {"partitions": _counted(judged), "worse": _counted(worse)}
    if worse:
        first = worse[0].judgement
        worst_first = sorted(worse, key=lambda partition: partition.judgement.value, reverse=first.lower_is_better)
        values = {each.partition_key: f"{each.judgement.value:.4f}" for each in worst_first[:MOST_LISTED]}
        metadata["the_worst"] = dg.MetadataValue.md(describe.table(("partition", first.name), values))
    return dg.AssetCheckResult(
        check_name=measure, description=_TOGETHER, passed=not worse, severity=_WARN, metadata=metadata
    )


def _counted(found: Sized) -> str:
    return f"{len(found):,}"


def _keys(found: Sequence[Checked], passed: Sequence[bool]) -> str:
    keys = [one.committed.partition.key for one, good in zip(found, passed, strict=True) if not good]
    return listed(keys) or "none"


def _balanced(committed: Committed) -> bool:
    run = committed.run
    return run.rows_in == run.rows_scored + run.rows_rejected
