"""What Dagster's webserver answers for a deployed pipeline, asked in this process, and the runs that it queues."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.test.utils import execute_dagster_graphql

from batch_platform_tests.deployment import Deployment

LOCATION = "project"
REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
MODULE = """\
from pathlib import Path

from batch_platform.components.batch_inference import build_definitions
from batch_platform.declaration.spec import PipelineSpec

defs = build_definitions(PipelineSpec.model_validate_json({declared!r}), Path({folder!r}))
"""
LAUNCH = """
mutation ($executionParams: ExecutionParams!) {launchPipelineExecution(executionParams: $executionParams) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on PythonError {message}
  ... on RunConfigValidationInvalid {errors {message}}
}}"""


@dataclass(frozen=True)
class Workspace:
    """The code location of a deployed pipeline, as the webserver sees it."""

    deployment: Deployment
    process: WorkspaceProcessContext

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a GraphQL query or mutation; returns its only field."""
        context = self.process.create_request_context()
        result = execute_dagster_graphql(context, query, variables)
        assert not result.errors, result.errors
        (field,) = result.data.values()
        return field

    def launch(self, params: dict[str, Any]) -> dg.DagsterRun:
        """Launch a run as the UI does, and do what the daemon then does with it; returns the finished run."""
        launched = self.ask(LAUNCH, executionParams=params)
        assert launched["__typename"] == "LaunchRunSuccess", launched
        instance = self.deployment.instance
        run = self.recorded(launched["run"]["runId"])
        assert run.status == dg.DagsterRunStatus.QUEUED
        job = self.deployment.definitions.get_repository_def().get_job(run.job_name)
        subset = job.get_subset(asset_selection=run.asset_selection, asset_check_selection=run.asset_check_selection)
        starting = DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, run.job_name)
        instance.report_dagster_event(starting, run.run_id)
        execute_run(InMemoryJob(subset), self.recorded(run.run_id), instance)
        return self.recorded(run.run_id)

    def recorded(self, run_id: str) -> dg.DagsterRun:
        """A run as it is recorded now."""
        run = self.deployment.instance.get_run_by_id(run_id)
        assert run is not None
        return run


@contextmanager
def workspace(deployment: Deployment) -> Iterator[Workspace]:
    """The deployed pipeline as a code location of its own."""
    file = deployment.pipeline.folder / "definitions.py"
    declared = json.dumps(deployment.pipeline.spec.model_dump(mode="json", by_alias=True, exclude_unset=True))
    file.write_text(MODULE.format(declared=declared, folder=str(deployment.pipeline.folder)))
    target = LoadableTargetOrigin(python_file=str(file), working_directory=str(Path(file).parent), attribute="defs")
    origin = InProcessCodeLocationOrigin(target, location_name=LOCATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Dagster's, about Dagster
        process = WorkspaceProcessContext(deployment.instance, InProcessWorkspaceLoadTarget(origin))
    with process:
        yield Workspace(deployment, process)
