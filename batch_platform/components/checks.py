"""Asset checks: each partition's own result as it commits, one summary for the run, and what is out of date by now."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import dagster as dg

from batch_platform.components import describe
from batch_platform.components.dagster_internals import StandingCheck
from batch_platform.components.dagster_records import forget_planned
from batch_platform.components.processes import at_work
from batch_platform.components.runs import shown_range, targets
from batch_platform.components.wiring import Wiring, clear_failures, now
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import MOST_LISTED, BatchPlatformError, counted, listed
from batch_platform.models.registry import ChallengerTraining
from batch_platform.monitoring.catalogue import declared_checks, judgements
from batch_platform.monitoring.measure import Asset, Check, Judged, Judgement, listing, rounded
from batch_platform.monitoring.measures.challengers import NONE_FAILS
from batch_platform.pipeline.health import freshness
from batch_platform.pipeline.train import Trained
from batch_platform.planning.holds import unserved_error
from batch_platform.planning.plan import Plan
from batch_platform.planning.state import State
from batch_platform.planning.steps import ranges
from batch_platform.scoring.run import Committed

UP_TO_DATE, NEWEST_SCORED = "up_to_date", "newest_partition_scored"
MOST_TOGETHER = 500  # passes of partitions that share a result
OF_THE_RUN = "the run as a whole"  # says a result that sums up those of the partitions
Checked = TypeVar("Checked")


@dataclass(frozen=True)
class RunCheck(Generic[Checked]):
    """A check of each partition that a run commits, and of the run as a whole.

    The summary is text, so that no plot mixes it with the numbers of the partitions.
    """

    name: str
    description: str
    passed: Callable[[Checked], bool]
    metadata: Callable[[Checked], Mapping[str, Any]]
    summary: Callable[
        [Sequence[Checked], Sequence[Checked]], Mapping[str, Any]
    ]  # takes the values of all partitions and of those that failed
    blocking: bool = False  # an error that stops what depends on the asset, rather than a warning
    together: bool = True  # partitions that pass in one run share a result
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
        """The severity of a failure: an error or a warning."""
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


class CheckLog:
    """Logs the results of checks on the partitions of one asset: every warning and failure by itself, and passes together.

    Dagster stores a result three times. Passes wait until the log is flushed, and then are one result for each range of
    partitions, with the numbers of each. Its partition and description are the range as people read it.
    """

    def __init__(
        self,
        asset: dg.AssetKey,
        calendar: Calendar,
        log: Callable[[Any], object],
        forget: Callable[[dg.AssetCheckKey, Sequence[str]], bool] = lambda *_: True,
    ) -> None:
        """Log results on the partitions of a calendar with `log`.

        `forget` takes back that Dagster awaits results of some partitions, or returns False: then each gets its own.
        """
        self._asset, self._calendar, self._log, self._forget = asset, calendar, log, forget
        self._waiting: dict[str, dict[str, Any]] = {}  # logged later: by check and partition, the metadata of a pass

    def add(self, check: RunCheck[Checked], partition_key: str | None, checked: Checked) -> None:
        """Log the result of a check on one partition, now or later."""
        passed, metadata = check.passed(checked), check.metadata(checked)
        if not passed or partition_key is None or not check.together:
            key, severity = check.key(self._asset), check.severity(checked)
            self._log(evaluation(key, partition_key, passed=passed, metadata=metadata, severity=severity))
            return
        waiting = self._waiting.setdefault(check.name, {})
        waiting[partition_key] = metadata
        if len(waiting) >= MOST_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Log the passes that wait."""
        for name, waiting in self._waiting.items():
            check = dg.AssetCheckKey(self._asset, name)
            for partitions in ranges(map(self._calendar.named, waiting)):
                keys = [partition.key for partition in partitions]
                if len(keys) > 1 and self._forget(check, keys):
                    numbers = {key: _numbers(waiting[key]) for key in keys}
                    together = {"partitions": _count(keys), **({"numbers": numbers} if any(numbers.values()) else {})}
                    results = {shown_range(keys[0], keys[-1]): together}
                else:
                    results = {key: waiting[key] for key in keys}
                for shown, metadata in results.items():
                    self._log(evaluation(check, shown, passed=True, metadata=metadata))
        self._waiting.clear()


def _numbers(metadata: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metadata.items() if type(value) in (int, float)}


def _count(items: Sized) -> str:
    return f"{len(items):,}"


def _balance(partitions: Sequence[Committed]) -> str:
    runs = [partition.run for partition in partitions]
    return (
        f"{sum(run.rows_in for run in runs):,} rows in = {sum(run.rows_scored for run in runs):,} scored"
        f" + {sum(run.rows_rejected for run in runs):,} rejected"
    )


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
GATE = RunCheck[Trained](
    name="gate",
    together=False,
    description=(
        "The trained version meets model.promote, and is better than guessing beyond chance. A refused version is kept but never "
        "serves; the champion goes on serving."
    ),
    passed=lambda trained: trained.decision.action == "approved" and not trained.guesses,
    metadata=lambda trained: {
        "version": trained.version.version,
        "decision": trained.decision.action,
        "reason": trained.decision.reason,
        **rounded(trained.version.metric_values),
    },
    summary=lambda trained, _: {
        "trained": f"{len(trained)}",
        "refused": ", ".join(model.version.version for model in trained if model.decision.action != "approved")
        or "none",
        "not_better_than_guessing": ", ".join(model.version.version for model in trained if model.guesses) or "none",
    },
)

NO_SUSPECTED_LEAKS = RunCheck[Trained](
    name="no_suspected_leaks",
    together=False,
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


def _challengers_trained(attempts: Sequence[Sequence[ChallengerTraining]], _: object) -> dict[str, Any]:
    trainings = [training for of_period in attempts for training in of_period]
    failed = [f"{training.challenger} ({training.serving_period})" for training in trainings if training.failure]
    return {"trained": f"{len(trainings) - len(failed)}", "failed": listed(failed) or "none"}


CHALLENGERS_TRAINED = RunCheck[Sequence[ChallengerTraining]](
    name="challengers",
    together=False,
    description=NONE_FAILS,
    passed=lambda trainings: not any(training.failure for training in trainings),
    metadata=lambda trainings: {training.challenger: training.failure or training.version for training in trainings},
    summary=_challengers_trained,
)


@dataclass(frozen=True, eq=False)
class JudgedValue:
    """The value of a measure of one partition, as its check judges it."""

    partition_key: str
    value: Any  # None for a check without a summary, which alone looks at it
    judgement: Judged


def of_measures(wiring: Wiring, asset: Asset) -> dict[str, RunCheck[JudgedValue]]:
    """The checks of the measures that an asset shows, by measure."""
    return {name: _of_measure(name, check) for name, check in declared_checks(wiring.spec, asset).items()}


def predictions(wiring: Wiring) -> list[RunCheck[Any]]:
    """The checks of the predictions."""
    return [ROWS_BALANCE, *of_measures(wiring, "predictions").values()]


def judge(
    wiring: Wiring, asset: Asset, partition_key: str, values: Mapping[str, Any], task: str
) -> dict[RunCheck[Any], JudgedValue]:
    """Judge the measures of a partition that an asset shows; a measure that has nothing to judge is left out."""
    checks, judged = of_measures(wiring, asset), dict[RunCheck[Any], JudgedValue]()
    summed_up = {name for name, check in declared_checks(wiring.spec, asset).items() if check.summary is not None}
    for name, judgement in judgements(wiring.spec, asset, values, task).items():
        value = values[name] if name in summed_up else None
        judged[checks[name]] = JudgedValue(partition_key, value, judgement)
    return judged


def _of_measure(name: str, check: Check[Any]) -> RunCheck[JudgedValue]:
    def summary(judged: Sequence[JudgedValue], failed: Sequence[JudgedValue]) -> Mapping[str, Any]:
        if check.summary is None:
            return _worst(judged, failed)
        values = {partition.partition_key: partition.value for partition in judged}
        return describe.metadata(check.summary(values, [partition.partition_key for partition in failed]))

    return RunCheck(
        name=check.name or name,
        description=check.description,
        passed=lambda judged: judged.judgement.level == "none",
        metadata=lambda judged: describe.metadata(judged.judgement.shown),
        summary=summary,
        is_error=lambda judged: judged.judgement.level == "fail",
    )


def _worst(judged: Sequence[JudgedValue], worse: Sequence[JudgedValue]) -> dict[str, Any]:
    """The number of partitions and of those that are worse; with the worst numbers, if they are numbers."""
    metadata: dict[str, Any] = {"partitions": _count(judged), "worse": _count(worse)}
    numbers = {
        partition.partition_key: partition.judgement
        for partition in worse
        if isinstance(partition.judgement, Judgement)
    }
    if numbers:
        first = next(iter(numbers.values()))
        worst_first = sorted(numbers, key=lambda key: numbers[key].value, reverse=first.lower_is_better)
        values = {key: f"{numbers[key].value:.4f}" for key in worst_first[:MOST_LISTED]}
        metadata["the_worst"] = dg.MetadataValue.md(listing(("partition", first.name), values))
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
        "No committed partition is out of date, and a model serves what is due. A partition is out of date if it was scored by a version that is no longer "
        "its champion, if its features, SQL, sources or declaration changed since, or if a newer model is due. "
        f"{what}; the table `batch_platform.partition_status` lists each partition with its reason. *Execute check* looks "
        "again without scoring anything."
    )

    asset = wiring.key("predictions")
    check = dg.AssetCheckKey(asset, UP_TO_DATE)

    @dg.asset_check(asset=asset, name=UP_TO_DATE, description=description, op_tags=wiring.op_tags)
    def up_to_date(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        pipeline = wiring.pipeline()
        with clear_failures(), at_work(context), pipeline.carrying(context.run.run_id):
            state, plan = pipeline.conclude(now())
            _forget_partitions(context, wiring, check)
            asked = wiring.spec.partitions.calendar.due(now())
        return _up_to_date(plan, state, unserved_error(state, asked, plan.blocked, named=False))

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

    @dg.asset_check(asset=asset, name=NEWEST_SCORED, description=description, op_tags=wiring.op_tags)
    def newest_partition_scored(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with clear_failures(), at_work(context):
            fresh = freshness(wiring.spec, wiring.pipeline().published_ledgers(), now())
            _forget_partitions(context, wiring, check)
        return dg.AssetCheckResult(
            passed=fresh.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=fresh.text,
            metadata={"partition": fresh.partition or "none"},
        )

    return StandingCheck.of(newest_partition_scored)


def _forget_partitions(context: dg.AssetCheckExecutionContext, wiring: Wiring, check: dg.AssetCheckKey) -> None:
    """Take back that Dagster awaits a result for each partition of the run: the one result is about all partitions."""
    keys = [key for asset, key in targets(wiring, context.run) if asset == check.asset_key.path[-1] and key]
    forget_planned(context.instance, context.run.run_id, check, keys)


def _up_to_date(plan: Plan, state: State, unserved: BatchPlatformError | None) -> dg.AssetCheckResult:
    """The stale partitions by reason, and which models learned from labels that were corrected since.

    `unserved` is the error that no model serves what is due, if there is none.
    """
    stale = defaultdict[str, list[str]](list)
    for key, reason in plan.stale.items():
        stale[reason].append(key)
    reasons = dict(sorted(stale.items(), key=lambda item: len(item[1]), reverse=True))
    metadata: dict[str, Any] = {
        "partitions": _count(state.scores),
        "stale": len(plan.stale),
        "first_stale": min(plan.stale, default="none"),
        "last_stale": max(plan.stale, default="none"),
        "models_with_corrected_labels": listed(state.seen.relabelled) or "none",
    }
    due = [f"{counted(len(keys), 'partition')}: {reason}" for reason, keys in reasons.items()]
    if reasons:
        partitions = {reason: f"{_count(keys)}: {listed(keys)}" for reason, keys in reasons.items()}
        metadata["reasons"] = dg.MetadataValue.md(listing(("reason", "partitions"), partitions))
    return dg.AssetCheckResult(
        passed=not (reasons or state.seen.unread) and unserved is None,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join([*due, *map(str, state.seen.unread.values()), *([str(unserved)] if unserved else [])])
        or "none is stale",
        metadata=metadata,
    )
