"""The `train` command: train the model of a serving period, and build the features of its window first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from batch_platform.cli import terminal
from batch_platform.cli.models import show_metrics
from batch_platform.cli.project import find_project
from batch_platform.cli.run import TASKS
from batch_platform.cli.running import Runs, open_instance
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.windows import training_window
from batch_platform.models.baseline import Baseline
from batch_platform.models.bundle import read_manifest
from batch_platform.pipeline.plan import make_plan, training_asked_for, trainings_asked_for
from batch_platform.pipeline.state import State
from batch_platform.pipeline.steps import ranges
from batch_platform.pipeline.training import require_trainable
from batch_platform.pipeline.wanted import PlanRequest


@dataclass(frozen=True)
class TrainingOutcome:
    """The newest version of a serving period after the command."""

    pipeline: str
    serving_period: str
    trained: bool  # False: nothing was due
    version: str
    decision: str
    reason: str
    metrics: dict[str, float]  # metrics of the fit that the gate judged, on the evaluation rows
    baseline: Baseline | None
    refit: bool  # whether the version was fitted again on all rows after that
    rows_trained: int
    days_trained: float | None  # None for a snapshot


@click.command(
    "train", epilog=terminal.examples("train flight_delays", "train flight_delays --period 2013-06-01 --force")
)
@click.argument("pipeline")
@click.option("--period", "key", metavar="KEY", help="Serving period. Default: the newest one that has begun.")
@click.option("--all", "every", is_flag=True, help="Every serving period that has begun, not only the newest.")
@click.option("--force", is_flag=True, help="Train again even if nothing has changed.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, key: str | None, *, every: bool, force: bool) -> None:
    """Train the model of a serving period of PIPELINE if it has none or its declaration changed.

    Builds the features of its training window first, and scores nothing. Ends with exit code 1 if the gate refuses the model.
    """
    if key and every:
        msg = "--period names one serving period, and --all means every one."
        raise WrongUseError(msg, hint="leave one of the two out.")
    with terminal.uncollected():
        project = replace(find_project(folder), only=pipeline)
        wiring = project.pipeline(pipeline)
    now, spec = datetime.now(UTC), wiring.spec
    with open_instance(project) as instance, wiring.pipeline().carrying(uuid4().hex):
        state = wiring.pipeline().state()
        asked = _asked(spec, state, now, key, every=every, force=force)
        if due := {period: reason for period, reason in asked if reason is not None}:
            plan = make_plan(spec, state, PlanRequest(now, (), train=list(due)))
            for period, reason in due.items():
                terminal.say(f"{spec.name}, serving period {period.key}: {reason}")
            for step in ("features", "model"):
                for partitions in ranges(item.partition for item in plan.of(step)):
                    terminal.say(f"  {TASKS[step][0]} {terminal.span([partition.key for partition in partitions])}")
            with terminal.progress(Counter[str](item.step for item in plan.items)) as listener:
                runs = Runs(wiring, project, instance, listener)
                runs.bring(plan.of("model"))  # its job builds the features that are due
            if error := runs.error():
                raise error
            state = wiring.pipeline().state()
    outcomes = [_outcome(wiring, state, period.key, trained=period in due) for period, _ in asked]
    terminal.report(outcomes if every else outcomes[0])
    for outcome in [outcome for outcome in outcomes if outcome.trained] or outcomes[-1:]:
        _show(outcome)
    if error := state.registry.refusal({outcome.version for outcome in outcomes if outcome.trained}):
        raise error


def _asked(  # noqa: PLR0913 - the options of the command
    spec: PipelineSpec, state: State, now: datetime, key: str | None, *, every: bool, force: bool
) -> Sequence[tuple[Partition, str | None]]:
    """The serving periods that the options name, and why the model of each is to be trained; raises TrainingRefusedError."""
    period, reason = training_asked_for(spec, state, now, key, force=force)
    if period is None:
        msg = f"{spec.name}: no serving period that has begun has enough history before it."
        raise TrainingRefusedError(msg, hint="wait for more history, or give a shorter model.train.evaluate.")
    asked = trainings_asked_for(spec, state, now, force=force) if every else [(period, reason)]
    for period, _ in asked:
        require_trainable(spec, period, training_window(spec, period.start))
    return asked


def _outcome(wiring: Wiring, state: State, period: str, *, trained: bool) -> TrainingOutcome:
    registry, name = state.registry, wiring.spec.name
    version = registry.newest_of(period)
    if version is None:
        msg = f"{name}, serving period {period}: its training registered no version."
        raise TrainingRefusedError(msg, hint=f"batch-platform models {name} lists the versions.")
    decision = registry.last_decision(version.version)
    removed = decision is not None and decision.action == "removed"
    manifest = None if removed else read_manifest(wiring.pipeline().home.bundle(name, version.version), version.sha256)
    return TrainingOutcome(
        pipeline=name,
        serving_period=period,
        trained=trained,
        version=version.version,
        decision=decision.action if decision else "none",
        reason=decision.reason if decision else "",
        metrics=version.metric_values,
        baseline=manifest and manifest.evaluation.baseline,
        refit=manifest is not None and manifest.refit,
        rows_trained=version.rows_trained,
        days_trained=None if wiring.spec.partitions.snapshot else version.days_trained,
    )


def _show(outcome: TrainingOutcome) -> None:
    name, version = outcome.pipeline, outcome.version
    if not outcome.trained:
        standing = "" if outcome.decision == "approved" else f", which is {outcome.decision}: {outcome.reason}"
        terminal.say(
            f"{name}, serving period {outcome.serving_period}: nothing is due; the newest version is {version}{standing}."
        )
        terminal.say(f"  batch-platform train {name} --force   trains again")
        return
    if outcome.decision != "refused":  # otherwise the error at the end says so
        terminal.say(f"{version} is {outcome.decision}: {outcome.reason}.")
    if learned := terminal.learned_from(outcome.rows_trained, outcome.days_trained):
        terminal.say(f"  {learned}")
    baseline = outcome.baseline and {"name": outcome.baseline.name, "metrics": outcome.baseline.metrics}
    show_metrics(outcome.metrics, baseline, refit=outcome.refit)
    if outcome.decision == "approved":
        terminal.say(f"  batch-platform run {name}   scores with it")
