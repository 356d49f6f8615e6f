"""Dagster runs in this process: those that the commands start, and what becomes of their errors."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import Project
from batch_platform.components.dagster_internals import (
    event_log_kept_open,
    execute_here,
    open_without_capture,
    waiting_for_slots,
    was_interrupted,
)
from batch_platform.components.jobs import Launch, announcing, launch_of, launch_of_all
from batch_platform.components.processes import PROCESS_TAG, TERMINATED, close_dead_runs, this_process
from batch_platform.components.progress import Listener, RunProgress, listening
from batch_platform.components.runs import held
from batch_platform.components.wiring import PIPELINE_TAG, SET_APART, Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import RunFailedError
from batch_platform.models.declared_model import require_libraries
from batch_platform.pipeline.set_apart import error_of
from batch_platform.planning.plan import Plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.planning.steps import Item, Step, ranges, requests

MOST_PARTITIONS = 1_000  # partitions of a run, if nothing else is declared: the UI takes 18 s to open one of 8,000


@contextmanager
def open_instance(project: Project) -> Generator[dg.DagsterInstance]:
    """The Dagster instance of a project's home, created on first use; runs of killed processes are marked as failed.

    What the runs print goes to the terminal. Dagster does not capture it too, which would start processes for every step.
    """
    with open_without_capture(prepare_instance(project.home)) as instance:
        close_dead_runs(instance)
        with event_log_kept_open():
            yield instance


def materialized_now(project: Project, states: Mapping[str, State]) -> dict[str, set[str]]:
    """The predictions that Dagster has as materialized, by pipeline; for those that a run holds now, what the ledger says."""
    materialized = dict[str, set[str]]()
    with open_instance(project) as instance:
        for name, state in states.items():
            wiring = project.pipeline(name)
            busy = {key for asset, key in held(wiring, instance) if asset == "predictions"}
            done = instance.get_materialized_partitions(wiring.key("predictions"))
            materialized[name] = (done - busy) | (busy & state.scores.keys())
    return materialized


@dataclass(frozen=True)
class Runs:
    """Dagster runs in this process."""

    wiring: Wiring
    project: Project
    instance: dg.DagsterInstance
    listener: Listener
    run_ids: set[str] = field(default_factory=set[str])  # runs so far
    findings: dict[str, Sequence[str]] = field(  # what is odd about the sources or the labels, by partition
        default_factory=dict[str, Sequence[str]]
    )

    def carry_out(self, request: PlanRequest, plan: Plan) -> None:
        """Carry out a plan with the job that brings partitions up to date, each range of partitions in one run, a long one in several.

        A run is handed its part of the plan. Where a model is due, the first run gets all that is due, and those after it plan
        anew what the model changes. The job has no partitions that no model can serve: their features are built by a job
        of their own.

        Raises:
            WrongUseError: A library that training needs is not installed; nothing is done.
        """
        if models := plan.of("model", "challengers"):
            require_libraries(self.wiring.spec)  # before any feature is built
        begin, asked = self.wiring.spec.periods.served.first_start, set(request.named)
        served = [partition for partition in request.named if partition.start >= begin]
        unserved = [item for item in plan.of("features") if item.partition in asked and item.partition.start < begin]
        self.bring(unserved, {"features": {"force": request.force}})
        if models and not served:
            self.bring(models)
        due = {item.partition for item in plan.of("features", "predictions", "performance", "deliveries")}
        for number, partitions in enumerate(self._divided(served if models else due & set(served))):
            part = None if models and number else plan if models else plan.part(partitions)
            share = replace(request, retrain=request.retrain and not number)
            with announcing(part):
                self._run(launch_of_all(self.wiring, partitions, share))

    def _divided(self, partitions: Iterable[Partition]) -> Iterator[tuple[Partition, ...]]:
        """Divide partitions into ranges without gaps, each of at most as many as one run takes."""
        most = self.wiring.spec.dagster.max_partitions_per_run or MOST_PARTITIONS
        for members in ranges(partitions):
            for at in range(0, len(members), most):
                yield members[at : at + most]

    def error(self, state: State) -> RunFailedError | None:
        """One error that names everything that failed by the state after the runs; None if nothing did."""
        return error_of(self.wiring.spec, state, self.run_ids, deliveries=True)

    def bring(
        self,
        items: Sequence[Item],
        config: Mapping[Step, Mapping[str, Any]] | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Do due items of steps that one run can do, each range of partitions in a run of its own.

        A training that is handed its `plan` leaves out what another run trains meanwhile.
        """
        for request in requests(items):
            with announcing(plan):
                self._run(launch_of(self.wiring, request, config))

    def _hear(self, progress: RunProgress) -> None:
        """Take note of what was found in sources, and pass the progress on."""
        if progress.findings:
            self.findings[progress.partition_key] = [*self.findings.get(progress.partition_key, ()), *progress.findings]
        self.listener(progress)

    def _run(self, launch: Launch) -> None:
        """Do what is launched in one run.

        Raises:
            RunFailedError: The run stopped before it had done all it could.
        """
        run_id = str(uuid4())
        log_level = "DEBUG" if terminal.debugging() else "CRITICAL"
        self.run_ids.add(run_id)
        try:
            with listening(self._hear), waiting_for_slots(self.instance, _say_that_it_waits):
                result = execute_here(
                    self.project.definitions.resolve_job_def(launch.job),
                    self.project.code_location,
                    self.instance,
                    assets=launch.assets,
                    tags={PIPELINE_TAG: self.wiring.spec.name, PROCESS_TAG: this_process()} | launch.tags,
                    run_config={"loggers": {"console": {"config": {"log_level": log_level}}}, "ops": launch.ops},
                    raise_on_error=terminal.debugging(),
                    run_id=run_id,
                )
        except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interruption:
            raise self._termination(run_id) or self._canceled(run_id) from interruption
        except dg.Failure as failure:  # raised only for debugging
            if SET_APART not in failure.metadata:
                raise
            return
        if not result.success and (error := self._termination(run_id) or _failure(result)) is not None:
            if isinstance(error, KeyboardInterrupt):
                raise self._canceled(run_id)
            apart = self.error(self.wiring.pipeline().state())
            raise RunFailedError(f"{apart.message} {error}") if apart else error

    def _canceled(self, run_id: str) -> KeyboardInterrupt:
        """Record a run that was interrupted in the terminal as canceled: as a failure, its planned partitions would count as failed."""
        if (run := self.instance.get_run_by_id(run_id)) is not None:
            self.instance.report_run_canceled(run, message="Interrupted in the terminal.")
        return KeyboardInterrupt()

    def _termination(self, run_id: str) -> RunFailedError | None:
        """The error that a run was terminated in Dagster; None if it was not."""
        run = self.instance.get_run_by_id(run_id)
        if run is None or run.status not in TERMINATED:
            return None
        msg = f"{self.wiring.spec.name}: run {run_id} was terminated in Dagster. What it committed before stays."
        return RunFailedError(msg, hint="the same command goes on with the rest.")


def _say_that_it_waits(pool: str) -> None:
    terminal.say(f"Waiting for a slot in Dagster's pool {pool!r}: other runs have them all.")


def _failure(result: dg.JobExecutionResult) -> BaseException | None:
    """The error of the first step that failed as a whole, without Dagster's own words if it is an error of this project.

    None if only partitions failed that were set apart, while all others were done.
    """
    if was_interrupted(result.all_events):
        return KeyboardInterrupt()
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failures:
        msg = f"Run {result.run_id} failed before its first step."
        return RunFailedError(msg, hint="batch-platform ui shows the run.")
    as_a_whole = [
        it for it in failures if it.user_failure_data is None or SET_APART not in it.user_failure_data.metadata
    ]
    if not as_a_whole:
        return None
    failure, raised = as_a_whole[0], as_a_whole[0].user_failure_data
    if raised is not None and raised.description:
        return RunFailedError(raised.description)
    error = failure.error.cause or failure.error if failure.error else None
    message = " ".join(error.message.split()).rstrip(".") if error else "a step failed"
    return RunFailedError(f"Run {result.run_id} failed: {message}.", hint=terminal.debug_hint())
