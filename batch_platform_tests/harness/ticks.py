"""Ticks of schedules and sensors, and what they request."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.deployment import QUIET, Deployment, range_tags

SCHEDULES = {"predictions": "score", "training": "train", "performance": "evaluate"}  # what each brings up to date
AFTER_ALL = datetime(2024, 3, 10, 12, tzinfo=UTC)
RANGE_START, RANGE_END = range_tags("first", "last")
Requested = tuple[tuple[str, ...], str, str]  # assets, first and last partition


def at(text: str) -> datetime:
    """The instant at which clocks in Berlin show a time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


def look(deployment: Deployment, schedule: str, when: datetime) -> tuple[list[dg.RunRequest], str | None]:
    """What a schedule requests at a time, or why it requests nothing."""
    definition = deployment.definitions.resolve_schedule_def(
        f"{deployment.pipeline.spec.name}_{SCHEDULES[schedule]}_when_due"
    )
    with dg.build_schedule_context(
        instance=deployment.instance,
        scheduled_execution_time=when,
        repository_def=deployment.definitions.get_repository_def(),
    ) as context:
        result = definition.evaluate_tick(context)
    return list(result.run_requests or []), result.skip_message


def requested(deployment: Deployment, schedule: str, when: datetime) -> list[Requested]:
    return [shown(request) for request in look(deployment, schedule, when)[0]]


def shown(request: dg.RunRequest) -> Requested:
    assets = tuple(key.path[1] for key in request.asset_selection or [])
    return assets, request.tags[RANGE_START], request.tags[RANGE_END]


def execute(deployment: Deployment, schedule: str, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    job = deployment.definitions.resolve_job_def(f"{deployment.pipeline.spec.name}_{SCHEDULES[schedule]}")
    return job.execute_in_process(
        instance=deployment.instance,
        asset_selection=list(request.asset_selection) if request.asset_selection else None,
        tags=dict(request.tags),
        run_config={**request.run_config, "loggers": QUIET},
        raise_on_error=False,
    )


def tick(deployment: Deployment, schedule: str, when: datetime) -> list[bool]:
    """Do what a schedule requests at a time; says which runs succeeded."""
    return [execute(deployment, schedule, request).success for request in look(deployment, schedule, when)[0]]


def under_way(
    deployment: Deployment,
    *assets: str,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
    tags: Mapping[str, str],
    job: str = "__ASSET_JOB",
    run_config: Mapping[str, Any] | None = None,
) -> str:
    """Record a run as Dagster would, without running it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("project"), "__repository__")
    return create_run_for_test(
        deployment.instance,
        job_name=job,
        asset_selection=frozenset(deployment.key(asset) for asset in assets) or None,
        status=status,
        tags=dict(tags),
        run_config=run_config,
        remote_job_origin=RemoteJobOrigin(repository, job),
    ).run_id


HOLD = """
import sys
from pathlib import Path
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
with Warehouse(Home(Path(sys.argv[1]))).transaction() as con:
    con.execute("DELETE FROM batch_platform.score_runs")
    print("held", flush=True)
    sys.stdin.readline()
    raise SystemExit
"""


def in_a_long_commit(home: Home) -> subprocess.Popen:
    """Another process in the middle of a transaction; it ends, and its transaction is undone, when its input is closed."""
    command = [sys.executable, "-c", HOLD, str(home.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process
