"""What Dagster's webserver and daemon do with a code location, in this process: the same code without servers."""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster_graphql.test.utils import execute_dagster_graphql

from batch_platform.cli.instance import prepare_instance
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform_tests.harness.dagster_project import PACKAGE
from batch_platform_tests.harness.deployment import Deployment
from batch_platform_tests.harness.served import LAUNCH

LOCATION = "project"
REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
MODULE = """\
from logging import getLogger
from pathlib import Path

from batch_platform.components.batch_inference import build_definitions
from batch_platform.declaration.spec import PipelineSpec

defs = build_definitions(PipelineSpec.model_validate_json({declared!r}), Path({folder!r}))
"""


@dataclass(frozen=True)
class Workspace:
    """A code location as the webserver and the daemon see it."""

    definitions: dg.Definitions
    process: WorkspaceProcessContext
    selector: Mapping[str, str]  # of its repository

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.process.instance

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a GraphQL query or mutation; returns its only field."""
        context = self.process.create_request_context()
        result = execute_dagster_graphql(context, query, variables)
        assert not result.errors, result.errors
        (field,) = result.data.values()
        return field

    def launch(self, params: dict[str, Any]) -> dg.DagsterRun:
        """Launch a run as the UI does; returns the finished run."""
        launched = self.ask(LAUNCH, executionParams=params)
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return self.execute(launched["run"]["runId"])

    def execute(self, run_id: str) -> dg.DagsterRun:
        """Do what the daemon does with a queued run; returns the finished run."""
        run = self.recorded(run_id)
        assert run.status == dg.DagsterRunStatus.QUEUED
        job = self.definitions.get_repository_def().get_job(run.job_name)
        subset = job.get_subset(asset_selection=run.asset_selection, asset_check_selection=run.asset_check_selection)
        starting = DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, run.job_name)
        self.instance.report_dagster_event(starting, run_id)
        execute_run(InMemoryJob(subset), self.recorded(run_id), self.instance)
        return self.recorded(run_id)

    def recorded(self, run_id: str) -> dg.DagsterRun:
        """A run as it is recorded now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def evaluate_sensors(self) -> None:
        """Let every sensor that is on look once, as the daemon does."""
        for _ in execute_sensor_iteration(self.process, getLogger(), None, None):
            pass

    def tick(self, schedule: str, until: datetime) -> list[str]:
        """Switch a schedule on and let it look until a time, as the daemon does; returns the ids of the runs in the queue."""
        code = self.process.create_request_context().get_code_location(LOCATION)
        self.instance.start_schedule(code.get_repository(REPOSITORY["repositoryName"]).get_schedule(schedule))
        for _ in launch_scheduled_runs(self.process, getLogger(), until, {}):
            pass
        requested = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], tags={"dagster/schedule_name": schedule})
        return [run.run_id for run in self.instance.get_runs(filters=requested)]


@contextmanager
def workspace(deployment: Deployment) -> Iterator[Workspace]:
    """A deployed pipeline as a code location of its own."""
    file = deployment.pipeline.folder / "definitions.py"
    declared = json.dumps(deployment.pipeline.spec.model_dump(mode="json", by_alias=True, exclude_unset=True))
    file.write_text(MODULE.format(declared=declared, folder=str(deployment.pipeline.folder)))
    target = LoadableTargetOrigin(python_file=str(file), working_directory=str(Path(file).parent), attribute="defs")
    with _loaded(deployment.instance, target) as process:
        yield Workspace(deployment.definitions, process, REPOSITORY)


@contextmanager
def workspace_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A project on disk as its code location, in the home that the command line uses."""
    home = Home(project / ".batch_platform")
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(prepare_instance(home)))
    target = LoadableTargetOrigin(module_name=f"{PACKAGE}.definitions", working_directory=str(project))
    with dg.DagsterInstance.get() as instance, _loaded(instance, target) as process:
        loaded = importlib.import_module(f"{PACKAGE}.definitions").defs
        yield Workspace(loaded if isinstance(loaded, dg.Definitions) else loaded(), process, REPOSITORY)


def _loaded(instance: dg.DagsterInstance, target: LoadableTargetOrigin) -> WorkspaceProcessContext:
    origin = InProcessCodeLocationOrigin(target, location_name=LOCATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Dagster's, about Dagster
        return WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin))
