"""The summary of `run`: the models that it trained, what was scored, rejected and left out, and what to do next."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.failed_checks import FailedCheck, failed_in, show_failed
from batch_platform.components.jobs import SCHEDULED, schedule_name
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Calendar, Partition
from batch_platform.declaration.errors import counted, listed
from batch_platform.declaration.predictions import PREFIX
from batch_platform.models.baseline import Baseline
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import ClassLabel
from batch_platform.models.registry import Version
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.monitoring.metrics import default_metric
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import Plan
from batch_platform.planning.state import State
from batch_platform.planning.steps import ranges
from batch_platform.scoring.rejected_rows import rejections
from batch_platform.warehouse.failures import Failure

MOST_SHOWN = 5  # models, reasons and ranges


@dataclass(frozen=True)
class TrainedModel:
    """A version after its training, on the rows that it was not fitted on."""

    version: str
    serving_period: str
    challenger: str | None  # its name; None for the model itself
    metric: str  # metric that judges it
    value: float | None  # None without labels to measure by
    metrics: dict[str, float]  # metrics of the fit that the gate judged
    baseline: Baseline | None  # trivial model beside it
    refit: bool  # whether the version was fitted again on all rows after that
    decision: str
    reason: str
    rows_trained: int
    days_trained: float | None  # None for a snapshot
    judged_fit_rows: int  # rows that the judged fit learned from, which the metrics are of; 0 if it serves
    judged_fit_days: float | None
    positive: ClassLabel | None  # class whose probability the score is; None for a model without two classes
    suspected_leaks: list[SuspectedLeak]


@dataclass(frozen=True)
class LeftOut:
    """Partitions that are not scored, and why."""

    reason: str
    partitions: int
    first: str
    last: str


@dataclass(frozen=True)
class RunSummary:
    """The requested partitions and the models after a run."""

    pipeline: str
    partitions: int
    scored: int
    scored_now: int  # partitions scored by this command
    unserved: int  # partitions that no model serves
    rows_in: int
    rows_scored: int
    rows_rejected: int
    rejected: dict[str, int]  # rows by column and reason, the most frequent first
    left_out: list[LeftOut]
    versions: list[str]  # versions that scored the partitions
    models: list[TrainedModel]  # trained by this command
    published: str
    table: str
    findings: dict[str, Sequence[str]]  # what is odd about the sources, or not there yet, by partition
    failed_checks: list[FailedCheck]  # checks that partitions failed as this command scored or evaluated them
    delivered: dict[str, int]  # partitions delivered by this command, by name of the delivery
    failures: list[Failure]  # what failed while the rest was done
    error: str | None  # why the command fails once it is done
    next: list[str]


def summary_of(  # noqa: PLR0913 - what was asked for, and what came of it
    wiring: Wiring,
    instance: dg.DagsterInstance,
    state: State,
    now: datetime,
    asked: Sequence[Partition],
    left: Plan,
    run_ids: Collection[str],
    findings: Mapping[str, Sequence[str]],
    error: str | None,
) -> RunSummary:
    """Sum up what runs did."""
    pipeline = wiring.pipeline()
    name, home = pipeline.spec.name, pipeline.home
    failures = [failure for failure in state.failures.values() if failure.run_id in run_ids]
    unserved = {item.partition.key for item in left.blocked}
    # Scores stand that could not be made again; those that no model serves any more are told apart.
    runs = [state.scores[it.key] for it in asked if it.key in state.scores.keys() - unserved]
    rejected = sum(run.rows_rejected for run in runs)
    keys = [run.partition_key for run in runs if run.rows_rejected]
    models = [
        trained_model(pipeline, state, version) for version in state.registry.versions if version.run_id in run_ids
    ]
    left_alone = {*state.scores, *state.dropped}
    later = [
        it
        for it in pipeline.spec.partitions.calendar.due(now)
        if asked and it.start >= asked[-1].end and it.key not in left_alone
    ]
    odd = {key: [f"its evaluation waits: {reason}"] for key, reason in left.awaiting.items()} | {
        partition.key: [f"{state.seen.gone[partition.key]}; what was made from it stays"]
        for partition in asked
        if partition.key in state.seen.gone
    }
    return RunSummary(
        pipeline=name,
        partitions=len(asked),
        scored=len(runs),
        scored_now=sum(run.run_id in run_ids for run in runs),
        unserved=len(unserved),
        rows_in=sum(run.rows_in for run in runs),
        rows_scored=sum(run.rows_scored for run in runs),
        rows_rejected=rejected,
        rejected=rejections(name, home, partition_keys=keys, most=0).reasons if keys else {},
        left_out=_left_out(left),
        versions=sorted({run.model_version for run in runs}),
        models=models,
        published=str(home.published),
        table=f"{name}.predictions",
        findings={key: [*findings.get(key, ()), *odd.get(key, ())] for key in sorted({*findings, *odd})},
        failed_checks=failed_in(pipeline, run_ids),
        delivered=dict(Counter(row.name for row in state.deliveries.values() if row.run_id in run_ids)),
        failures=failures,
        error=error,
        next=_next_steps(wiring, instance, models, later, left, rejected, failures) if run_ids else [],
    )


def trained_model(pipeline: Pipeline, state: State, version: Version) -> TrainedModel:
    """A registered version as its training left it; nothing of its manifest where its bundle was removed since."""
    spec, decision = pipeline.spec, state.registry.last_decision(version.version)
    metric, metrics = spec.model.promote.metric or default_metric(version.task), version.metric_values
    folder = pipeline.home.bundle(spec.name, version.version)
    manifest = read_manifest(folder, version.sha256) if folder.is_dir() else None
    judged = manifest.judged_fit.training if manifest and manifest.judged_fit else None
    return TrainedModel(
        version=version.version,
        serving_period=version.serving_period,
        challenger=state.registry.challengers.get(version.version),
        metric=metric,
        value=metrics.get(metric),
        metrics=metrics,
        baseline=manifest and manifest.evaluation.baseline,
        refit=manifest is not None and manifest.refit,
        decision=decision.action if decision else "none",
        reason=decision.reason if decision else "",
        rows_trained=version.rows_trained,
        days_trained=None if spec.partitions.snapshot else version.days_trained,
        judged_fit_rows=judged.rows if judged else 0,
        judged_fit_days=None if spec.partitions.snapshot or judged is None else judged.days,
        positive=manifest and manifest.positive,
        suspected_leaks=state.registry.suspected_leaks(version.version),
    )


def _left_out(left: Plan) -> list[LeftOut]:
    by_reason: dict[str, list[str]] = {}
    for item in left.blocked:
        by_reason.setdefault(f"warm-up, {item.reason}" if item.warm_up else item.reason, []).append(item.partition.key)
    return [LeftOut(reason, len(keys), keys[0], keys[-1]) for reason, keys in by_reason.items()]


def _next_steps(  # noqa: PLR0913 - what a run left to do
    wiring: Wiring,
    instance: dg.DagsterInstance,
    models: Sequence[TrainedModel],
    later: Sequence[Partition],
    left: Plan,
    rejected: int,
    failures: Sequence[Failure],
) -> list[str]:
    """The commands that show more of what happened, and the schedules that are not switched on."""
    name, steps = wiring.spec.name, list[str]()
    if failures:
        steps.append(f"batch-platform status {name}")
    if refused := [failure.partition_key for failure in failures if "max_rejected" in failure.reason]:
        steps.append(f"batch-platform rejected {name} --partition {refused[0]}")
    elif rejected:
        steps.append(f"batch-platform rejected {name}")
    if models:
        newest = next((model for model in reversed(models) if not model.challenger), models[-1])
        steps.append(f"batch-platform models {name} show {newest.version}")
    if models and any(item.warm_up for item in left.blocked) and (first := _could_serve_from(wiring, left)):
        steps.append(f"batch-platform run {name} --from {first}, to score the past too, by a model of what was before")
    if later and not failures:
        steps.append(f"batch-platform run {name}, to score from {later[0].key} on too")
    running = {state.instigator_name for state in instance.all_instigator_state() if state.is_running}
    off = [schedule for duty in SCHEDULED if (schedule := schedule_name(name, duty)) not in running]
    if off and not failures:
        calendar = wiring.spec.partitions.calendar
        ended = calendar.ended(datetime.now(UTC)) and not later
        first = f"move partitions.end on, which is {calendar.end_key}; then " if ended else ""
        steps.append(
            f"{first}batch-platform ui, and switch on {', '.join(off)}: new partitions are then done by themselves"
        )
    return steps


def _could_serve_from(wiring: Wiring, left: Plan) -> str | None:
    """The first partition of warm-up that a model could be trained for, where one model serves all; None if there is none."""
    spec = wiring.spec
    if spec.periods.serving is not None or spec.partitions.snapshot or (first := spec.periods.first_service) is None:
        return None
    return first.key if any(item.partition.key == first.key for item in left.blocked) else None


def show(outcome: RunSummary, calendar: Calendar) -> None:
    """Print the outcome on less than a screen."""
    for model in outcome.models[-MOST_SHOWN:]:
        _show_model(model)
    if more := len(outcome.models[:-MOST_SHOWN]):
        terminal.say(f"and {counted(more, 'more model')}; batch-platform models {outcome.pipeline} lists them.")
    for positive in dict.fromkeys(model.positive for model in outcome.models if isinstance(model.positive, str)):
        terminal.say(f"  the score is that of {positive!r}; labels.positive in the YAML chooses the class")
    _show_scored(outcome)
    for name, count in outcome.delivered.items():
        terminal.say(f"  delivered {counted(count, 'partition')} to {name!r}")
    for reason, count in list(outcome.rejected.items())[:MOST_SHOWN]:
        terminal.say(f"  rejected {counted(count, 'row')}: {reason}")
    for group in outcome.left_out[:MOST_SHOWN]:
        span = group.first if group.partitions == 1 else f"{group.first} to {group.last}"
        terminal.say(f"  left out {counted(group.partitions, 'partition')} ({span}): {group.reason}")
    show_failed(outcome.failed_checks, calendar)
    _show_findings(outcome, calendar)
    _show_failures(outcome.failures, calendar)
    if outcome.scored:
        terminal.say(f"Read them in {outcome.published}, table {outcome.table}.")
    for at, step in enumerate(outcome.next):
        terminal.say(f"{'Next: ' if not at else '      '}{step}")


def _show_scored(outcome: RunSummary) -> None:
    """Say what this run scored, and what is scored of all that was asked for."""
    failed = len({it.partition_key for it in outcome.failures if it.step in ("features", "predictions")})
    if not (outcome.scored or failed):
        return
    done = f"{outcome.scored} of {outcome.partitions} partitions"
    if outcome.scored_now != outcome.partitions:
        now = f"{counted(outcome.scored_now, 'partition')} scored by this run"
        now += f", {failed} failed" if failed else ""
        done = f"{now}; in all, {done} are"
    rows = f"{outcome.rows_in:,} rows in, {outcome.rows_scored:,} scored, {outcome.rows_rejected:,} rejected"
    terminal.say(f"{done} scored: {rows}.")


def _show_failures(failures: Sequence[Failure], calendar: Calendar) -> None:
    for asset in sorted({failure.step for failure in failures if failure.of_delivery}):
        count = sum(failure.step == asset for failure in failures)
        terminal.say(
            f"  {counted(count, 'partition')} not delivered to {asset.removeprefix(PREFIX)!r}; see the error at the end"
        )
    failures = [failure for failure in failures if not failure.of_delivery]
    if failed := {failure.partition_key for failure in failures if failure.step != "model"}:
        which = terminal.spans(ranges(map(calendar.named, failed)))
        terminal.say(
            f"  failed, and left as {'it was' if len(failed) == 1 else 'they were'}: {which}; see the error at the end"
        )
    if untrained := [failure.partition_key for failure in failures if failure.step == "model"]:
        models = counted(len(untrained), "model")
        terminal.say(f"  {models} could not be trained: {listed(untrained)}; see the error at the end")


def _show_findings(outcome: RunSummary, calendar: Calendar) -> None:
    keys: dict[str, list[str]] = {}
    for key, findings in outcome.findings.items():
        for finding in findings:
            keys.setdefault(finding, []).append(key)
    for finding, of_partitions in list(keys.items())[:MOST_SHOWN]:
        terminal.say(f"  {terminal.spans(ranges(map(calendar.named, of_partitions)))}: {finding}")
    if (more := len(keys) - MOST_SHOWN) > 0:
        terminal.say(f"  and {more:,} more; the log of the run has them all")


def _show_model(model: TrainedModel) -> None:
    name = f"challenger {model.challenger}" if model.challenger else "model"
    value = "not measured" if model.value is None else f"{model.metric} {model.value:.4f}"
    if judged := terminal.learned_from(model.judged_fit_rows, model.judged_fit_days):
        value += f" (of the judged fit, which {judged})"
    if model.baseline is not None and model.metric in model.baseline.metrics:
        value += f", against {model.baseline.metrics[model.metric]:.4f} by guessing ({model.baseline.name})"
    learned = terminal.learned_from(model.rows_trained, model.days_trained)
    terminal.say(f"{name} {model.version}{learned and ', '}{learned}: {value}; {model.decision}: {model.reason}")
    if leaks := [leak for leak in model.suspected_leaks if not leak.allowed]:
        columns = sorted({name for leak in leaks for name in leak.columns})
        allowed = ", ".join(columns or ["'*'"])
        terminal.say(
            f"  If that is known when a row is scored, promote it, or declare model.allow_suspected_leaks: [{allowed}]."
        )
        if columns:
            terminal.say(
                f"  If not, take {'it' if len(columns) == 1 else 'them'} out of the features' SQL in the lines named above, "
                f"or set features.columns.{columns[0]}.feature: false."
            )
