"""Dagster's webserver and daemon for a project in a folder, started by `batch-platform ui`, and a client for them."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from batch_platform_tests.harness.command_line import COMMAND, clean_environment

PATIENCE = 300.0  # seconds, ten times what any wait needs
Seen = TypeVar("Seen")
LOCATIONS = """
{workspaceOrError {... on Workspace {locationEntries {
  name loadStatus
  locationOrLoadError {
    __typename
    ... on PythonError {message}
    ... on RepositoryLocation {repositories {name schedules {name} assetGroups {groupName}}}
  }
}}}}"""
LAUNCH = """
mutation ($executionParams: ExecutionParams!) {launchPipelineExecution(executionParams: $executionParams) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on PythonError {message}
  ... on RunConfigValidationInvalid {errors {message}}
}}"""
RUN = "query ($id: ID!) {runOrError(runId: $id) {... on Run {status tags {key value} assetSelection {path}}}}"
BACKFILL = """
mutation ($backfillParams: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $backfillParams) {
  __typename
  ... on LaunchBackfillSuccess {backfillId}
  ... on PythonError {message}
}}"""
BACKFILL_STATUS = """
query ($id: String!) {partitionBackfillOrError(backfillId: $id) {
  __typename
  ... on PartitionBackfill {status runs(limit: 100) {runId status tags {key value}} error {message}}
}}"""
RUNS_OF_LOCATION = """
query ($location: String!) {runsOrError(filter: {tags: [{key: ".dagster/repository", value: $location}]}) {... on Runs {
  results {runId jobName status repositoryOrigin {repositoryLocationName repositoryName} hasReExecutePermission}
}}}"""
RETRY = """
mutation ($params: ReexecutionParams!) {launchRunReexecution(reexecutionParams: $params) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on PythonError {message}
}}"""


@dataclass(frozen=True)
class Ui:
    """The two processes, and a client for their GraphQL interface."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    home: Path
    token: str = ""

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a GraphQL query or mutation; returns its only field."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            response = json.load(answer)
        assert "errors" not in response, response["errors"]
        (field,) = response["data"].values()
        return field

    def wait(self, look: Callable[[], Seen | None]) -> Seen:
        """Repeat a look until it returns something other than None; returns that."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if (seen := look()) is not None:
                return seen
            time.sleep(1)  # a look takes processor time that the processes lack
        pytest.fail(f"waited {PATIENCE:.0f} s in vain\n{self.log.read_text()[-5000:]}")

    def published(self, query: str) -> list[tuple[Any, ...]]:
        """Query the published copy, while everything runs."""
        with duckdb.connect(str((self.home / "published.duckdb").resolve()), read_only=True) as con:
            return con.execute(query).fetchall()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def served(folder: Path, home: Path, *options: str, command: str | Path = COMMAND, **variables: str) -> Iterator[Ui]:
    """Run both processes for a project until the block ends, with options of the command, also of another environment."""
    port = free_port()
    log = home.parent / f"ui{''.join(options)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "--project", str(folder), "ui", "--port", str(port), *options],
            env=clean_environment(**variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Ui(process, f"http://127.0.0.1:{port}", log, home, variables.get("BATCH_PLATFORM_UI_TOKEN", ""))
    try:
        running.wait(lambda: answers(running))
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE)
        for left in session_of(process.pid):
            os.kill(left, signal.SIGKILL)


def repository(ui: Ui) -> dict[str, str]:
    (location,) = ui.ask(LOCATIONS)["locationEntries"]
    return {"repositoryLocationName": location["name"], "repositoryName": "__repository__"}


def finished(ui: Ui, run_id: str) -> dict[str, Any] | None:
    run = ui.ask(RUN, id=run_id)
    return run if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["tags"]}


def launch(ui: Ui, job: str, chosen: Mapping[str, Any], partition: str | None = None, config: str = "{}") -> str:
    """Launch a run of the chosen assets or checks, as the launchpad does; returns the id of the run."""
    tags = [] if partition is None else [{"key": "dagster/partition", "value": partition}]
    answer = ui.ask(
        LAUNCH,
        executionParams={
            "mode": "default",
            "runConfigData": config,
            "selector": {**repository(ui), "pipelineName": job, **chosen},
            "executionMetadata": {"tags": tags},
        },
    )
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


def answers(ui: Ui) -> bool | None:
    try:
        return True if ui.ask("{version}") else None
    except OSError:
        return None


def session_of(leader: int) -> list[int]:
    """The ids of the living processes in the session of a process that leads one."""
    members: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, session = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            members.append(int(entry.name))
    return members
