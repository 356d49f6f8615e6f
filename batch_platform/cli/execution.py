"""Bring partitions up to date from the command line, in runs that Dagster records."""

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
from batch_platform.pipeline.plan import ASSET_OF, Item, Plan, Request, Step, make_plan, requests


class RunFailedError(BatchPlatformError):
    """A Dagster run failed; the message is that of the failed step."""


@dataclass(frozen=True)
class RunOptions:
    """What `run` was asked to do.

    Args:
        partitions: Partitions to bring up to date.
        now: Time of the request.
        force: Build and score the partitions again even if nothing changed.
        model: Version to score with instead of the champions; no model is trained then.
        replay: Score only the rows that were rejected before.
        named: Whether the user named the first partition, so that a model must serve each of them.
    """

    partitions: Sequence[Partition]
    now: datetime
    force: bool = False
    model: str | None = None
    replay: bool = False
    named: bool = False


@contextmanager
def open_instance(project: Project) -> Generator[dg.DagsterInstance]:
    """The Dagster instance of a project's home, created on first use; runs of killed processes are marked as failed.

    What the runs print goes to the terminal. Dagster does not capture it too, which would start processes for every step.
    """
    with open_without_capture(prepare_instance(project.home)) as instance:
        close_dead_runs(instance)
        with quick_event_log(instance):
            yield instance


def plan_run(wiring: Wiring, options: RunOptions) -> Plan:
    """Plan what a run has to do, upstream included.

    Raises:
        WrongUseError: The requested version does not exist.
    """
    state = wiring.pipeline().state()
    version = None if options.model is None else state.registry.named(options.model)
    return make_plan(wiring.spec, state, options.now, only=options.partitions, version=version, force=options.force)


def carry_out(runs: "Runs", plan: Plan) -> Plan:
    """Carry out a plan; returns the plan that is left, which holds what no model serves.

    Once models are trained, the rest is planned again, since a refused model serves nothing.

    Raises:
        RunFailedError: A run failed; what was committed before stays.
        KeyboardInterrupt: The user interrupted a run.
    """
    due, models = plan.of("features"), plan.of("model", "challengers")
    if models:
        for step in ("features", "model", "challengers"):
            runs.bring(plan.of(step))
        due, plan = [], plan_run(runs.wiring, runs.options)
    due += plan.of("predictions")
    runs.bring(due)
    if models or due:
        plan = plan_run(runs.wiring, runs.options)
    runs.bring(plan.of("performance"))
    return plan


@dataclass(frozen=True)
class Runs:
    """Dagster runs in this process with the same options."""

    wiring: Wiring
    project: Project
    instance: dg.DagsterInstance
    options: RunOptions
    listener: Listener

    def bring(self, items: Sequence[Item]) -> None:
        """Do due items of steps that one run can do, each range of partitions in a run of its own.

        Raises:
            RunFailedError: A run failed; what was committed before stays.
            KeyboardInterrupt: The user interrupted a run.
        """
        for request in requests(items):
            self._run(request)

    def _run(self, request: Request) -> None:
        name, duty = self.wiring.spec.name, DUTY_OF[request.steps[0]]
        tags = {PIPELINE_TAG: name, PROCESS_TAG: this_process()}
        single = duty == "train" and self.wiring.serving_periods is None
        if not single:
            tags |= {ASSET_PARTITION_RANGE_START_TAG: request.first, ASSET_PARTITION_RANGE_END_TAG: request.last}
        try:
            with listening(self.listener):
                result = self.project.definitions.resolve_job_def(job_name(name, duty)).execute_in_process(
                    instance=self.instance,
                    asset_selection=[self.wiring.key(ASSET_OF.get(step, step)) for step in request.steps],
                    tags=tags,
                    run_config={
                        "loggers": {
                            "console": {"config": {"log_level": "DEBUG" if terminal.debugging() else "CRITICAL"}}
                        },
                        "ops": self._config(request, single=single),
                    },
                    raise_on_error=terminal.debugging(),
                )
        except dg.DagsterExecutionInterruptedError as interruption:
            raise KeyboardInterrupt from interruption
        if not result.success:
            raise _failure(result)

    def _config(self, request: Request, *, single: bool) -> dict[str, Any]:
        """Dagster's run config of the assets, by the options."""
        force = {"force": True} if self.options.force else {}
        model = {"model": self.options.model} if self.options.model else {}
        replay = {"replay": True} if self.options.replay else {}
        until = {"until": request.first} if single else {}
        config: dict[Step, dict[str, Any]] = {
            "features": force,
            "predictions": force | model | replay,
            "model": until,
            "challengers": {"challengers_only": True} | until,
        }
        return {
            f"{self.wiring.spec.name}__{ASSET_OF.get(step, step)}": {"config": config[step]}
            for step in request.steps
            if config.get(step)
        }


def _failure(result: dg.ExecuteInProcessResult) -> BaseException:
    """The error of the failed step; without Dagster's own words if the step raised one of ours."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failures:
        return RunFailedError(
            f"Run {result.run_id} failed before its first step.", hint="batch-platform ui shows the run."
        )
    failure = failures[0]
    if was_interrupted(failure):
        return KeyboardInterrupt()
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return RunFailedError(failure.user_failure_data.description)
    error = failure.error.cause or failure.error if failure.error else None
    message = " ".join(error.message.split()).rstrip(".") if error else "a step failed"
    hint = "put --debug before the command to see the traceback: batch-platform --debug run NAME."
    return RunFailedError(f"Run {result.run_id} failed: {message}.", hint=hint)
