"""The `train` command: train the model of a serving period, and build the features of its window first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project
from batch_platform.cli.running import Runs, open_instance
from batch_platform.cli.summary import TrainedModel, trained_model
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.training import require_trainable
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.planning.steps import TASKS, ranges
from batch_platform.planning.trainings import training_asked_for, trainings_asked_for


@terminal.command("train", "train flight_delays", "train flight_delays --period 2013-06-01 --force")
@click.argument("pipeline")
@click.option(
    "--period",
    "key",
    metavar="KEY",
    help="Serving period. Default: the newest one whose model is due, otherwise the newest one that has begun.",
)
@click.option("--all", "every", is_flag=True, help="Every serving period that has begun, not only the newest.")
@click.option("--force", is_flag=True, help="Train again even if nothing has changed.")
def train_command(folder: Path | None, pipeline: str, key: str | None, *, every: bool, force: bool) -> None:
    """Train the model of a serving period of PIPELINE if it has none or its declaration changed.

    Builds the features of its training window first, and scores nothing. Ends with exit code 1 if the gate refuses the model.
    """
    if key and every:
        msg = "--period names one serving period, and --all means every one."
        raise WrongUseError(msg, hint="leave one of the two out.")
    with terminal.uncollected():
        project = replace(find_project(folder), only=pipeline)
        wiring = project.pipeline(pipeline)
    models, refusal = train(project, wiring, key, every=every, force=force)
    reports = [{"pipeline": pipeline, "trained": trained, **vars(model)} for model, trained in models]
    terminal.report(reports if every else reports[0])
    for model, trained in [it for it in models if it[1]] or models[-1:]:
        _show(pipeline, model, trained=trained)
    if refusal:
        raise refusal


def train(
    project: Project, wiring: Wiring, key: str | None, *, every: bool = False, force: bool
) -> tuple[list[tuple[TrainedModel, bool]], TrainingRefusedError | None]:
    """Train the models that are due of a serving period, or of every one; announce them.

    Returns the newest version of each period, with whether it was trained now, and the error if the gate refused one of these.
    """
    now, spec = datetime.now(UTC), wiring.spec
    with open_instance(project) as instance, wiring.pipeline().carrying(uuid4().hex):
        state = wiring.pipeline().state()
        asked = _asked(spec, state, now, key, every=every, force=force)
        run_ids = set[str]()
        if due := {period: reason for period, reason in asked if reason is not None}:
            plan = make_plan(spec, state, PlanRequest(now, (), train=list(due)))
            for period, reason in due.items():
                terminal.say(f"{spec.name}, serving period {period.key}: {reason}")
            for step in ("features", "model"):
                for partitions in ranges(item.partition for item in plan.of(step)):
                    terminal.say(f"  {TASKS[step][0]} {terminal.span([partition.key for partition in partitions])}")
            with terminal.progress(Counter[str](item.step for item in plan.items)) as listener:
                runs = Runs(wiring, project, instance, listener)
                # Its job builds the features that are due.
                runs.bring(plan.of("model"), plan=None if force else plan)
            state, run_ids = wiring.pipeline().state(), runs.run_ids
            if error := runs.error(state):
                raise error
    newest = {period: state.registry.newest_of(period.key) for period, _ in asked}
    # What was due may have been trained by another run meanwhile.
    versions = [(version, version.run_id in run_ids) for version in newest.values() if version is not None]
    refusal = state.registry.refusal({version.version for version, trained in versions if trained})
    return [(trained_model(wiring.pipeline(), state, version), trained) for version, trained in versions], refusal


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
        require_trainable(spec, period, spec.periods.window(period.start))
    return asked


def _show(name: str, model: TrainedModel, *, trained: bool) -> None:
    if not trained:
        standing = "" if model.decision == "approved" else f", which is {model.decision}: {model.reason}"
        terminal.say(
            f"{name}, serving period {model.serving_period}: nothing is due; the newest version is {model.version}{standing}."
        )
        terminal.say(f"  batch-platform train {name} --force   trains again")
        return
    if model.decision != "refused":  # otherwise the error at the end says so
        terminal.say(f"{model.version} is {model.decision}: {model.reason}.")
    if learned := terminal.learned_from(model.rows_trained, model.days_trained):
        terminal.say(f"  {learned}")
    judged = terminal.learned_from(model.judged_fit_rows, model.judged_fit_days)
    terminal.show_metrics(model.metrics, model.baseline, refit=model.refit, judged=judged)
    if model.decision == "approved":
        terminal.say(f"  batch-platform run {name}   scores with it")
