"""Asset checks: each partition's own result as it commits, one summary for the run, and what is out of date by now."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import dagster as dg

from batch_platform.components import describe
from batch_platform.components.dagster_internals import StandingCheck, quick_event_log
from batch_platform.components.processes import at_work
from batch_platform.components.runs import targets
from batch_platform.components.wiring import Wiring, clear_failures, now
from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.errors import MOST_LISTED, counted, listed
from batch_platform.declaration.monitored import Drift
from batch_platform.declaration.windows import oldest_champion
from batch_platform.models.registry import ChallengerTraining
from batch_platform.monitoring.catalogue import declared_checks
from batch_platform.monitoring.health import AspectName
from batch_platform.monitoring.measure import Judgement
from batch_platform.monitoring.usual import LEAST_HISTORY, MOST_COMPARED, MOST_REJECTING
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.health import freshness
from batch_platform.pipeline.plan import Plan
from batch_platform.pipeline.state import State
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.challenger_tables import ChallengerRun
from batch_platform.scoring.drift_tables import DRIFT, score_not_judged
from batch_platform.scoring.run import Committed

UP_TO_DATE, NEWEST_SCORED = "up_to_date", "newest_partition_scored"
ALARMS = "alarms"  # in the metadata of the check on drift: the level of each column that gives an alarm
OF_THE_RUN = "the run as a whole"  # says a result that sums up those of the partitions
MOST_PLOTTED = 50  # columns
NEAR_BUDGET = 0.5  # part of max_rejected from which a partition gets a warning
Checked = TypeVar("Checked")
Attempt = TypeVar("Attempt", ChallengerTraining, ChallengerRun)


@dataclass(frozen=True)
class RunCheck(Generic[Checked]):
    """A check of each partition that a run commits, and of the run as a whole.

    The summary is text, so that no plot mixes it with the numbers of the partitions.
    """

    name: str
    description: str
    passed: Callable[[Checked], bool]
    metadata: Callable[[Checked], Mapping[str, Any]]
    summary: Callable[[Sequence[Checked], Sequence[Checked]], Mapping[str, Any]]  # of all partitions and of the failed
    blocking: bool = False  # an error that stops what depends on the asset, rather than a warning
    # Whether a failure is an error all the same, which stops nothing.
    is_error: Callable[[Checked], bool] = lambda _: False

    def spec(self, asset: dg.AssetKey) -> dg.AssetCheckSpec:
        """The declaration of the check on an asset."""
        return dg.AssetCheckSpec(self.name, asset=asset, description=self.description, blocking=self.blocking)

    def key(self, asset: dg.AssetKey) -> dg.AssetCheckKey:
        """The key of the check on an asset."""
        return dg.AssetCheckKey(asset, self.name)

    def result(self, checked: Sequence[Checked], asset: dg.AssetKey) -> dg.AssetCheckResult:
        """The result on an asset for the run as a whole."""
        failed = [partition for partition in checked if not self.passed(partition)]
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.name,
            description=OF_THE_RUN,
            passed=not failed,
            severity=self.severity(*failed),
            metadata=self.summary(checked, failed),
        )

    def severity(self, *failed: Checked) -> dg.AssetCheckSeverity:
        """Whether a failure is an error or a warning."""
        is_error = self.blocking or any(map(self.is_error, failed))
        return dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN


def evaluation(
    check: dg.AssetCheckKey,
    partition_key: str | None,
    *,
    passed: bool,
    metadata: Mapping[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> Any:  # noqa: ANN401 - Dagster logs it as an event, though its annotation does not say so
    """The result of a check on one partition."""
    return dg.AssetCheckEvaluation(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=passed,
        metadata=metadata,
        severity=severity,
        partition=partition_key,
        description=partition_key,  # the history of a check shows no partition otherwise
    )


def keys_of(wiring: Wiring, asset: str) -> list[dg.AssetCheckKey]:
    """The keys of all checks of an asset."""
    names = {
        "model": [GATE.name, NO_SUSPECTED_LEAKS.name, *([CHALLENGERS_TRAINED.name] if wiring.spec.challengers else [])],
        "predictions": [
            *(check.name for check in predictions(wiring)),
            *([CHALLENGERS_SCORED.name] if wiring.spec.challengers else []),
            UP_TO_DATE,
            *([NEWEST_SCORED] if wiring.spec.monitoring.fresh_by else []),
        ],
        DRIFT: [check.name for check in drift(wiring)],
        "performance": list(measures(wiring)),
    }
    return [dg.AssetCheckKey(wiring.key(asset), name) for name in names.get(asset, [])]


def predictions(wiring: Wiring) -> list[RunCheck[Committed]]:
    """The checks of the predictions."""
    budget = wiring.spec.features.rejected_budget
    rejected_share = RunCheck[Committed](
        name="rejected_share",
        description=(
            f"At most half of the budget for rejected rows (features.max_rejected, {budget}) is used, and no larger share of "
            f"the rows is rejected than the last {MOST_REJECTING} partitions before explain. Beyond the whole budget the "
            "partition is not published and the run fails; this check warns before that."
        ),
        passed=lambda partition: (
            not budget.is_exceeded(math.ceil(partition.run.rows_rejected / NEAR_BUDGET), partition.run.rows_in)
            and _passed(partition, "rejected_share")
        ),
        metadata=lambda partition: {
            "rejected_share": _rejected_share(partition),
            "rows_rejected": partition.run.rows_rejected,
            **_aspect_numbers(partition, "rejected_share"),
        },
        summary=lambda partitions, failed: {"rejected": _worst_share(partitions), "too_many": _keys(failed)},
    )
    oldest = oldest_champion(wiring.spec)
    of_age = [] if oldest is None else [_champion_age(oldest)]
    return [ROWS_BALANCE, rejected_share, _VOLUME, _SCORE_DISTRIBUTION, *of_age]


def _passed(partition: Committed, name: AspectName) -> bool:
    aspect = partition.aspect(name)
    return aspect is None or aspect.passed


def _aspect_numbers(partition: Committed, name: AspectName) -> dict[str, Any]:
    """What is judged of a partition beside earlier ones."""
    aspect = partition.aspect(name)
    return {} if aspect is None else {**describe.rounded(aspect.numbers), "what": aspect.text}


def _champion_age(oldest: Duration) -> RunCheck[Committed]:
    """The check that a partition was scored by a model that is not too old."""
    return RunCheck[Committed](
        name="champion_age",
        description=(
            f"The serving period of the model began at most {oldest} before the partition (monitoring.max_champion_age; by "
            "default twice model.train.every, at least 7 days). An older one suggests that newer models are refused, wait for "
            "promotion, or are not trained."
        ),
        passed=lambda partition: _passed(partition, "champion_age"),
        metadata=lambda partition: _aspect_numbers(partition, "champion_age"),
        summary=lambda partitions, failed: {"partitions": _count(partitions), "scored_by_an_old_model": _keys(failed)},
    )


_BASELINES: dict[str, str] = {
    "reference": "the data that the version learned from (of an imported model, the rows before its serving period)",
    "previous": "the partition before",
    "week_before": "the same time of the week before",
}


def drift(wiring: Wiring) -> list[RunCheck[Committed]]:
    """The check that features and predictions are like their baseline, where it is declared."""
    declared = wiring.spec.monitoring.drift
    return [] if declared is None else [_drift(declared)]


def _drift(declared: Drift) -> RunCheck[Committed]:
    return RunCheck[Committed](
        name=DRIFT,
        description=(
            f"Features and predictions are like {_BASELINES[declared.baseline]}. A column gives a warning where its population "
            f"stability index is {declared.warn:g} or more beyond what chance explains and what is usual between the partitions of "
            f"the training data, and an error from {declared.fail:g} (monitoring.drift); nothing is blocked. The worst column "
            "comes first, and the index of each is plotted; the table `drift` has all measures against all baselines. The "
            "predictions of each segment (monitoring.segments) are judged in the same way beside the same segment of the "
            "training data; the worst one is named, and the table `drift_by_segment` has all of them."
        ),
        passed=lambda partition: not (describe.alarming(partition.drift) or partition.segment_alarms),
        metadata=lambda partition: _drift_numbers(partition, declared),
        summary=lambda partitions, failed: {
            "partitions": _count(partitions),
            **_not_judged_in(partitions),
            "drifted": _keys(failed),
            "columns": listed(
                dict.fromkeys(row.column_name for partition in failed for row in describe.alarming(partition.drift))
            )
            or "none",
            "segments": listed(
                dict.fromkeys(row.segment_column for partition in failed for row in partition.segment_alarms)
            )
            or "none",
        },
        is_error=lambda partition: any(row.level == "fail" for row in (*partition.drift, *partition.segment_alarms)),
    )


def _drift_numbers(partition: Committed, declared: Drift) -> dict[str, Any]:
    judged = [row for row in partition.drift if row.level is not None]
    if not judged:
        return {"not_judged": _not_judged(partition, declared)}
    alarming = describe.alarming(partition.drift)
    drifted = [*map(describe.drifted, alarming), *describe.drifted_segments(partition.segment_alarms)]
    drifted += filter(None, [score_not_judged(partition.drift)])
    metadata: dict[str, Any] = {"drifted": ", ".join(drifted) or "none"}
    metadata["the_worst"] = describe.most_drifted(alarming or judged)
    by_segment = {f"predictions by {row.segment_column}": row.level for row in reversed(partition.segment_alarms)}
    metadata[ALARMS] = dg.MetadataValue.json({row.column_name: row.level for row in alarming} | by_segment)
    numbers = {f"psi_{row.column_name}": row.unusual for row in judged[:MOST_PLOTTED]}
    strange = {*declared.ignore, *declared.columns} - {row.column_name for row in partition.drift}
    if strange:
        metadata["not_a_column"] = f"monitoring.drift names {listed(strange)}, which is no feature of this version"
    return metadata | describe.rounded(numbers)


def _not_judged_in(partitions: Sequence[Committed]) -> dict[str, str]:
    """In how many partitions the score is not judged, and why; empty if it is judged in all."""
    reasons = Counter(filter(None, (score_not_judged(partition.drift) for partition in partitions)))
    texts = [f"{reason} ({_partitions(count)})" for reason, count in reasons.items()]
    return {"not_judged": "; ".join(texts)} if texts else {}


def _not_judged(partition: Committed, declared: Drift) -> str:
    """Why no column of a partition is judged."""
    if not partition.run.rows_scored:
        return "no row was scored"
    if not partition.drift:
        version = partition.run.model_version
        return f"{version} has no reference profile, since an earlier release trained it: train it again to see drift"
    if declared.baseline != "reference":
        return f"{_BASELINES[declared.baseline]} has no profile"
    return "every column is ignored"


def _rejected_share(partition: Committed) -> float:
    run = partition.run
    return run.rows_rejected / run.rows_in if run.rows_in else 0.0


def _worst_share(partitions: Sequence[Committed]) -> str:
    worst = max(partitions, key=_rejected_share, default=None)
    return "nothing" if worst is None else f"{_rejected_share(worst):.2%} at most ({worst.partition.key})"


def _balance(partitions: Sequence[Committed]) -> str:
    runs = [partition.run for partition in partitions]
    return (
        f"{sum(run.rows_in for run in runs):,} rows in = {sum(run.rows_scored for run in runs):,} scored"
        f" + {sum(run.rows_rejected for run in runs):,} rejected"
    )


def _keys(partitions: Sequence[Committed]) -> str:
    return listed(partition.partition.key for partition in partitions) or "none"


def _count(items: Sized) -> str:
    return f"{len(items):,}"


ROWS_BALANCE = RunCheck[Committed](
    name="rows_balance",
    description="Every row of the features is either scored or rejected with a reason: rows_in = rows_scored + rows_rejected.",
    passed=lambda partition: partition.run.rows_in == partition.run.rows_scored + partition.run.rows_rejected,
    metadata=lambda partition: {
        name: getattr(partition.run, name) for name in ("rows_in", "rows_scored", "rows_rejected")
    },
    summary=lambda partitions, _: {"partitions": _count(partitions), "balance": _balance(partitions)},
    blocking=True,
)
_SCORE_DISTRIBUTION = RunCheck[Committed](
    name="score_distribution",
    description=(
        "The predictions of a partition differ from row to row. The same score for all rows suggests that all features "
        "are missing. Mean and quantiles are plotted, so that a shift can be seen."
    ),
    passed=lambda partition: partition.scores is None or not partition.scores.constant,
    metadata=lambda partition: describe.score_numbers(partition.scores),
    summary=lambda partitions, failed: {"partitions": _count(partitions), "one_score_for_all_rows": _keys(failed)},
)
_VOLUME = RunCheck[Committed](
    name="volume",
    description=(
        f"A partition has about as many rows as the last {MOST_COMPARED} of the same weekday before it (of an hour: of the same "
        f"hour of the week), within their 99.9% prediction interval. With fewer than {LEAST_HISTORY} nothing is judged. Its "
        "limits are plotted."
    ),
    passed=lambda partition: _passed(partition, "volume"),
    metadata=lambda partition: _aspect_numbers(partition, "volume"),
    summary=lambda partitions, failed: {"partitions": _count(partitions), "unusual": _keys(failed)},
)
GATE = RunCheck[Trained](
    name="gate",
    description="The trained version meets model.promote. A refused version is kept but never serves; the champion goes on serving.",
    passed=lambda trained: trained.decision.action == "approved",
    metadata=lambda trained: {
        "version": trained.version.version,
        "decision": trained.decision.action,
        "reason": trained.decision.reason,
        **describe.rounded(trained.version.metric_values),
    },
    summary=lambda trained, refused: {
        "trained": f"{len(trained)}",
        "refused": ", ".join(version.version.version for version in refused) or "none",
    },
)

NO_SUSPECTED_LEAKS = RunCheck[Trained](
    name="no_suspected_leaks",
    description=(
        "No feature tells the label so well that it may contain the outcome, and the model is not nearly perfect. A version "
        "with a suspected leak waits for promotion, unless model.allow_suspected_leaks names the columns."
    ),
    passed=lambda trained: all(leak.allowed for leak in trained.leaks),
    metadata=lambda trained: {
        "version": trained.version.version,
        "suspected": "; ".join(map(str, trained.leaks)) or "none",
    },
    summary=lambda trained, suspected: {
        "trained": f"{len(trained)}",
        "suspected": ", ".join(version.version.version for version in suspected) or "none",
    },
)


def _of_challengers(
    verb: str, key: Callable[[Attempt], str], metadata: Callable[[Sequence[Attempt]], Mapping[str, Any]]
) -> RunCheck[Sequence[Attempt]]:
    """The check that warns when a challenger fails; `key` says for which partition or serving period it was tried."""

    def summary(attempts: Sequence[Sequence[Attempt]], _: object) -> dict[str, Any]:
        runs = [run for partition in attempts for run in partition]
        failed = [f"{run.challenger} ({key(run)})" for run in runs if run.failure]
        return {verb: f"{len(runs) - len(failed)}", "failed": listed(failed) or "none"}

    return RunCheck(
        name="challengers",
        description=(
            "Every challenger was trained, and scored what the champion scored. A challenger that fails is recorded with "
            "its reason and gives a warning here; production continues without it."
        ),
        passed=lambda attempts: not any(run.failure for run in attempts),
        metadata=metadata,
        summary=summary,
    )


CHALLENGERS_TRAINED: RunCheck[Sequence[ChallengerTraining]] = _of_challengers(
    "trained",
    lambda training: training.serving_period,
    lambda trainings: {training.challenger: training.failure or training.version for training in trainings},
)
CHALLENGERS_SCORED: RunCheck[Sequence[ChallengerRun]] = _of_challengers(
    "scored",
    lambda run: run.partition_key,
    lambda runs: (
        describe.challenger_numbers(runs) | {f"{run.challenger}_failure": run.failure for run in runs if run.failure}
    ),
)


@dataclass(frozen=True)
class Judged:
    """One evaluated partition, judged by one measure."""

    partition_key: str
    judgement: Judgement


def measures(wiring: Wiring) -> dict[str, RunCheck[Judged]]:
    """One check for each measure that the pipeline declares a bound for, by measure."""
    return {
        name: RunCheck[Judged](
            name=name,
            description=check.description,
            passed=lambda partition: partition.judgement.passed,
            metadata=lambda partition: {
                "metric": partition.judgement.name,
                **describe.rounded(
                    {partition.judgement.name: partition.judgement.value, **partition.judgement.remarks}
                ),
            },
            summary=_worst,
        )
        for name, check in declared_checks(wiring.spec).items()
    }


def judge(wiring: Wiring, evaluated: Evaluated) -> Iterator[tuple[str, Judged]]:
    """Judge a partition by every measure, by name; a measure that has nothing to judge is left out."""
    for name, check in declared_checks(wiring.spec).items():
        judgement = check.judge(evaluated.served.tables[name], evaluated.served.version.task)
        if judgement is not None:
            yield name, Judged(evaluated.partition.key, judgement)


def _worst(partitions: Sequence[Judged], worse: Sequence[Judged]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"partitions": _count(partitions), "worse": _count(worse)}
    if worse:
        first = worse[0].judgement
        worst_first = sorted(worse, key=lambda judged: judged.judgement.value, reverse=first.lower_is_better)
        values = {judged.partition_key: f"{judged.judgement.value:.4f}" for judged in worst_first[:MOST_LISTED]}
        metadata["the_worst"] = dg.MetadataValue.md(describe.listing(("partition", first.name), values))
    return metadata


def build_standing(wiring: Wiring) -> list[dg.AssetChecksDefinition]:
    """The checks that can be executed alone."""
    of_freshness = [build_newest_scored(wiring)] if wiring.spec.monitoring.fresh_by else []
    return [build_up_to_date(wiring), *of_freshness]


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
    check = dg.AssetCheckKey(asset, UP_TO_DATE)

    @dg.asset_check(asset=asset, name=UP_TO_DATE, description=description)
    def up_to_date(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        pipeline = wiring.pipeline()
        with clear_failures(), at_work(context), pipeline.carrying(context.run.run_id):
            state, plan = pipeline.conclude(now())
            reasons = {**plan.remarks, **plan.stale}
            _log_for_each(context, wiring, check, lambda key: (key not in plan.stale, reasons.get(key, "none")))
        return _up_to_date(plan, state)

    return StandingCheck.of(up_to_date)


def build_newest_scored(wiring: Wiring) -> dg.AssetChecksDefinition:
    """A check that the newest due partition is scored in time; runs after every scoring, and alone on demand."""
    asset = wiring.key("predictions")
    check = dg.AssetCheckKey(asset, NEWEST_SCORED)
    description = (
        "The newest partition that was to be scored by now (monitoring.fresh_by) is scored. Dagster's own freshness is content "
        "with any materialization, also of an old partition. Reads the published copy; *Execute check* looks again without "
        "scoring anything."
    )

    @dg.asset_check(asset=asset, name=NEWEST_SCORED, description=description)
    def newest_partition_scored(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with clear_failures(), at_work(context):
            fresh = freshness(wiring.spec, wiring.pipeline().published_ledgers(), now())
            _log_for_each(context, wiring, check, lambda _: (fresh.passed, fresh.text))
        return dg.AssetCheckResult(
            passed=fresh.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=fresh.text,
            metadata={"partition": fresh.partition or "none"},
        )

    return StandingCheck.of(newest_partition_scored)


def _log_for_each(
    context: dg.AssetCheckExecutionContext,
    wiring: Wiring,
    check: dg.AssetCheckKey,
    result: Callable[[str], tuple[bool, str]],
) -> None:
    """Log whether each partition of the run passed, and the reason: Dagster expects a result for each."""
    asset = check.asset_key.path[-1]
    with quick_event_log(context.instance):
        for key in sorted({key for name, key in targets(wiring, context.run) if name == asset and key}):
            passed, reason = result(key)
            logged = evaluation(check, key, passed=passed, metadata={"reason": reason})
            context.op_execution_context.log_event(logged)


def _partitions(count: int) -> str:
    return counted(count, "partition")


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
        metadata["reasons"] = dg.MetadataValue.md(describe.listing(("reason", "partitions"), reasons))
    return dg.AssetCheckResult(
        passed=not reasons,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{_partitions(count)}: {reason}" for reason, count in reasons.items())
        or "none is stale",
        metadata=metadata,
    )
