"""What a user's project configures: its own resources, how Dagster runs a pipeline, and how Dagster shows it."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml

from batch_platform_tests.components.stores import Held
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.command_line import copy_of_finished_project, published
from batch_platform_tests.harness.dagster_project import (
    PACKAGE,
    forget_projects,
    pipeline_folder,
    write_dagster_project,
    write_defs_yaml,
)
from batch_platform_tests.harness.deployment import Deployment, deploy_trained
from batch_platform_tests.harness.small_pipeline import small_declaration
from batch_platform_tests.harness.ticks import at, requested
from batch_platform_tests.harness.workspace import Workspace, workspace_of

LONELY = """\
import dagster as dg
import polars as pl


@dg.asset(io_manager_key="batch_platform_io_manager")
def lonely():
    return pl.DataFrame({"n": [1]})
"""
LOOKING = """\
import dagster as dg


@dg.definitions
def looking(context: dg.ComponentLoadContext):
    context.build_defs("small")  # from within a file into which a pipeline looks for resources
    return dg.Definitions()
"""
NODES = """
{assetNodes {
  assetKey {path} isObservable groupName pools tags {key value} automationCondition {label}
  backfillPolicy {maxPartitionsPerRun}
}}"""
STEPS = ("features", "model", "predictions", "performance")


@pytest.fixture
def project(tmp_path) -> Iterator[Path]:
    """A project with two pipelines, its own resources as the guide shows them, and an asset of its own."""
    folder = write_dagster_project(tmp_path / "project")
    shutil.copytree(pipeline_folder(folder), pipeline_folder(folder, "churn"))
    defs = folder / PACKAGE / "defs"
    (defs / "resources.py").write_text(blocks("python", GUIDE["production"])[2])
    (defs / "lonely.py").write_text(LONELY)
    (defs / "looking.py").write_text(LOOKING)
    shown = yaml.safe_load(blocks("yaml", GUIDE["production"])[0])
    file = write_defs_yaml(folder, {**small_declaration(name="churn"), **shown["attributes"]}, "churn")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"post_processing": shown["post_processing"]}))
    yield folder
    forget_projects()


def test_resources_attributes_and_limits_of_the_users_own_win(project, monkeypatch):
    with workspace_of(project, monkeypatch) as location:
        nodes = {tuple(node["assetKey"]["path"]): node for node in location.ask(NODES)}
        assert {node["groupName"] for path, node in nodes.items() if path[0] == "churn"} == {"sales"}
        for asset in (*STEPS, "events"):
            assert {"key": "cost_center", "value": "42"} in nodes["churn", asset]["tags"]
        automated = [path for path, node in nodes.items() if node["automationCondition"]]
        assert automated == [("churn", "predictions")]
        for asset in STEPS:
            ours, others = nodes["churn", asset], nodes["small", asset]
            assert (ours["pools"], others["pools"]) == (["warehouse"], [])
            assert (ours["backfillPolicy"]["maxPartitionsPerRun"], others["backfillPolicy"]["maxPartitionsPerRun"]) == (
                31,
                None,
            )
        assert materialized(location, "lonely")
    assert published(project, "SELECT n FROM sales.lonely") == [(1,)]


def materialized(location: Workspace, asset: str) -> bool:
    """Whether an asset without partitions is materialized by a run in this process."""
    job = location.definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(asset_selection=[dg.AssetKey(asset)], instance=location.instance).success


def test_a_plain_definitions_composes_a_pipeline_with_resources_and_an_executor_of_its_own(tmp_path, monkeypatch, cli):
    folder = copy_of_finished_project(tmp_path)
    file = pipeline_folder(folder) / "defs.yaml"
    declared = yaml.safe_load(file.read_text())["attributes"]
    file.unlink()
    code = blocks("python", GUIDE["production"])[3]
    shown = re.search(r"BatchInference\(.*?^\)", code, flags=re.DOTALL | re.MULTILINE).group()
    code = code.replace(shown, f"BatchInference(**{declared!r})").replace('/ "churn"', '/ "small"')
    (folder / PACKAGE / "definitions.py").write_text(code.replace("crm.duckdb", f"{folder}/crm.duckdb"))
    assert cli(folder, "run", "small", "--partition", "2024-02-10", "--force").code == 0
    forget_projects()
    with workspace_of(folder, monkeypatch) as location:
        assert location.definitions.executor is dg.multiprocess_executor
        (run,) = location.instance.get_runs(limit=1)
        assert (run.job_name, run.status) == ("small_bring_up_to_date", dg.DagsterRunStatus.SUCCESS)
        assert materialized(location, "regions")
    assert published(folder, "SELECT region FROM sales.regions") == [("north",)]
    assert published(folder, "SELECT DISTINCT run_id FROM small.predictions WHERE partition_key = '2024-02-10'") == [
        (run.run_id,)
    ]


def test_a_tick_requests_no_more_partitions_for_a_run_than_is_declared(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, dagster={"max_partitions_per_run": 2})
    asked = requested(deployment, "predictions", at("2024-02-06T05:00"))
    assert [(first, last) for _, first, last in asked] == [
        ("2024-02-01", "2024-02-02"),
        ("2024-02-03", "2024-02-04"),
        ("2024-02-05", "2024-02-05"),
    ]


def retries_of(deployment: Deployment) -> int:
    (run, *_) = deployment.instance.get_runs(limit=1)
    return len(deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY))


@contextmanager
def held_until_it_begins_again(deployment: Deployment) -> Iterator[None]:
    """The warehouse is held by another until the step of a run has given up once."""

    def wait() -> None:
        while not deployment.instance.get_runs(limit=1) or not retries_of(deployment):
            time.sleep(0.05)
        held.__exit__()

    held = Held(deployment)
    with held:
        waiting = threading.Thread(target=wait)
        waiting.start()
        yield
        waiting.join()


def test_a_step_that_finds_the_warehouse_held_begins_again_and_fails_after_the_last_time(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", "0.1")
    deployment = deploy_trained(tmp_path, monkeypatch, dagster={"retry": {"times": 1, "delay": "1 second"}})
    with held_until_it_begins_again(deployment):
        assert deployment.run("features", first="2024-02-01").success
    assert retries_of(deployment) == 1
    with Held(deployment):
        result = deployment.run("features", first="2024-02-02")
    assert not result.success
    assert retries_of(deployment) == 1
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "BATCH_PLATFORM_LOCK_TIMEOUT" in failure.user_failure_data.description
