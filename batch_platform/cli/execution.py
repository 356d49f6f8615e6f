"""Bring partitions up to date from the command line: each step of a plan is a run that Dagster records."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.project import Project
from batch_platform.components.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    open_without_capture,
    quick_event_log,
    was_interrupted,
)
from batch_platform.components.instance import prepare_instance
from batch_platform.components.jobs import DUTY_OF, job_name
from batch_platform.components.progress import Listener, listening
from batch_platform.components.runs import PROCESS_TAG, close_dead_runs, this_process
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.windows import matures
from batch_platform.pipeline.plan import (
    ASSET_OF,
    Item,
    Plan,
    State,
    Step,
    contiguous,
    features_due,
    make_plan,
    stale_reason,
)


class RunFailedError(BatchPlatformError):
    """A run of Dagster's failed; the message is that of the step."""


@dataclass(frozen=True)
class RunOptions:
    """What was asked for.

    Args:
        partitions: To be brought up to date.
        now: The time of asking.
        force: Build and score them again even where nothing changed.
        model: Score by this version instead of the champions; no model is trained then.
        replay: Score only the rows that were rejected before.
        named: Whether the user named the first partition, so that each must be served by a model.
    """

    partitions: Sequence[Partition]
    now: datetime
    force: bool = False
    model: str | None = None
    replay: bool = False
    named: bool = False


@contextmanager
def open_instance(project: Project) -> Generator[dg.DagsterInstance]:
    """The Dagster instance of a project's home, made on first use; runs of killed processes are closed in it.

    What runs here print is on the terminal; it is not captured a second time, which would cost processes for every step.
    """
    with open_without_capture(prepare_instance(project.home)) as instance:
        close_dead_runs(instance)
        with quick_event_log(instance):
            yield instance


def plan_run(wiring: Wiring, options: RunOptions) -> Plan:
    """Plan what a run has to do, upstream included.

    Raises:
        WrongUseError: The given version does not exist.
    """
    state = wiring.pipeline().state()
    if options.model is not None:
        return _plan_for_version(wiring, state, options, options.model)
    plan = make_plan(wiring.spec, state, options.now, only=options.partitions, force=options.force)
    if not options.force:
        return plan
    due = {item.partition.key for item in plan.of("features")}
    again = [Item("features", one, "forced") for one in options.partitions if one.key not in due]
    return Plan(items=[*again, *plan.items], blocked=plan.blocked)


def carry_out(runs: "Runs", plan: Plan) -> Plan:
    """Carry out a plan; returns the plan that is left, which holds what no model serves.

    Once models are trained, what they serve is planned anew: a refused one serves nothing.

    Raises:
        RunFailedError: A run failed; what had been committed stays.
        KeyboardInterrupt: The user interrupted a run.
    """
    features = plan.of("features")
    if models := plan.of("model", "challengers"):
        runs.bring(features, "features")
        runs.bring(plan.of("model"), "model")
        runs.bring(plan.of("challengers"), "challengers")
        features, plan = [], plan_run(runs.wiring, runs.options)
    scores = plan.of("predictions")
    built = {item.partition.key for item in features}
    scored = {item.partition.key for item in scores}
    runs.bring([item for item in features if item.partition.key not in scored], "features")
    runs.bring([item for item in scores if item.partition.key in built], "features", "predictions")
    runs.bring([item for item in scores if item.partition.key not in built], "predictions")
    if models or features or scores:
        plan = plan_run(runs.wiring, runs.options)
    runs.bring(plan.of("performance"), "performance")
    return plan


def _plan_for_version(wiring: Wiring, state: State, options: RunOptions, name: str) -> Plan:
    """As `make_plan`, with a given version in the place of the champions."""
    version = state.registry.named(name)
    items: list[Item] = []
    for partition in options.partitions:
        run = state.scores.get(partition.key)
        forced = "forced" if options.force else None
        build = forced or features_due(state, partition)
        score = forced or build or (stale_reason(state, run, version) if run else "missing")
        evaluated = state.evaluations.get(partition.key)
        measured = run is not None and evaluated is not None and evaluated.score_seq == run.seq
        if build:
            items.append(Item("features", partition, build))
        if score:
            items.append(Item("predictions", partition, score))
        if (score or not measured) and matures(wiring.spec, partition) <= options.now:
            items.append(Item("performance", partition, "scored"))
    return Plan(items=items, blocked=[])


@dataclass(frozen=True)
class Runs:
    """Dagster runs in this process with the same options."""

    wiring: Wiring
    project: Project
    instance: dg.DagsterInstance
    options: RunOptions
    listener: Listener

    def bring(self, items: Sequence[Item], *assets: Step) -> None:
        """Bring some assets up to date, each range of partitions without a gap in one run."""
        for found in contiguous(assets[0], [item.partition for item in items]):
            self._run(assets, found.first, found.last)

    def _run(self, assets: Sequence[Step], first: str, last: str) -> None:
        name = self.wiring.spec.name
        job = self.project.definitions.resolve_job_def(job_name(name, DUTY_OF[assets[0]]))
        tags = {PIPELINE_TAG: name, PROCESS_TAG: this_process()}
        if not self._is_single_model(assets):
            tags |= {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
        try:
            with listening(self.listener):
                result = job.execute_in_process(
                    instance=self.instance,
                    asset_selection=[self.wiring.key(ASSET_OF.get(asset, asset)) for asset in assets],
                    tags=tags,
                    run_config={"loggers": _loggers(), "ops": self._config(assets, first)},
                    raise_on_error=terminal.debugging(),
                )
        except dg.DagsterExecutionInterruptedError as interruption:
            raise KeyboardInterrupt from interruption
        if not result.success:
            raise _failure(result)

    def _config(self, assets: Sequence[Step], first: str) -> dict[str, Any]:
        config: dict[Step, dict[str, Any]] = {asset: {} for asset in assets}
        if self.options.force:
            for asset in assets:
                if asset in ("features", "predictions"):
                    config[asset]["force"] = True
        if "predictions" in config and self.options.model:
            config["predictions"]["model"] = self.options.model
        if "predictions" in config and self.options.replay:
            config["predictions"]["replay"] = True
        if "challengers" in config:
            config["model"] = {"challengers_only": True, **config.pop("challengers")}
        if self._is_single_model(assets):
            config["model"]["until"] = first
        return {f"{self.wiring.spec.name}__{asset}": {"config": values} for asset, values in config.items() if values}

    def _is_single_model(self, assets: Sequence[Step]) -> bool:
        return bool({"model", "challengers"} & {*assets}) and self.wiring.serving_periods is None


def _loggers() -> dict[str, Any]:
    return {"console": {"config": {"log_level": "DEBUG" if terminal.debugging() else "CRITICAL"}}}


def _failure(result: dg.ExecuteInProcessResult) -> BaseException:
    """What the failed step says: our own words where the error is ours."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failures:
        return RunFailedError(f"Run {result.run_id} failed before its first step.", hint="batch-platform ui shows it.")
    failure = failures[0]
    if was_interrupted(failure):
        return KeyboardInterrupt()
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return RunFailedError(failure.user_failure_data.description)
    error = failure.error.cause or failure.error if failure.error else None
    message = " ".join(error.message.split()).rstrip(".") if error else "a step failed"
    hint = "batch-platform --debug, before the command, shows where."
    return RunFailedError(f"Run {result.run_id} failed: {message}.", hint=hint)
