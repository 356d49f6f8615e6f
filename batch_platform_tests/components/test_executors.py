"""A project with an executor of its own, under which each step of a run is a process."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test as create_run

from batch_platform.components.processes import PROCESS_TAG, close_dead_runs
from batch_platform.declaration.threads import threads
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.harness.command_line import published
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.deployment import QUIET, range_tags
from batch_platform_tests.harness.small_pipeline import small_declaration

OWN = """\
import dagster as dg


@dg.definitions
def defs():
    return dg.Definitions(
        executor=dg.multiprocess_executor.configured(
            {"start_method": {"forkserver": {"preload_modules": ["batch_platform.scoring.run"]}}}
        ),
        jobs=[
            dg.define_asset_job("daily", dg.AssetSelection.assets(["small", "predictions"], ["small", "performance"])),
            dg.define_asset_job("two", dg.AssetSelection.assets(["small", "features"], ["churn", "features"])),
        ],
        resources={"io_manager": dg.FilesystemIOManager(base_dir="own")},
    )
"""
FORCED = {"small__predictions": {"config": {"force": True}}}


def own_job(folder: str, name: str) -> dg.JobDefinition:
    """A job of the project's own, loaded in whichever process a step works in."""
    return dg.load_from_defs_folder(path_within_project=Path(folder)).resolve_job_def(name)


@pytest.mark.full
def test_the_steps_of_a_run_work_in_processes_of_their_own_where_the_project_says_so(project, monkeypatch):
    write_defs_yaml(project, small_declaration(dagster={"executor": "project"}))
    (project / PACKAGE / "defs" / "own.py").write_text(OWN)
    other = shutil.copytree(pipeline_folder(project), pipeline_folder(project, "churn")) / "defs.yaml"
    other.write_text(other.read_text().replace("name: small", "name: churn"))
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setenv(HOME_VARIABLE, str(project / ".batch_platform"))
    job, two = (
        dg.build_reconstructable_job(own_job.__module__, own_job.__name__, reconstructable_args=(str(project), name))
        for name in ("daily", "two")
    )
    assert own_job(str(project), "churn_bring_up_to_date").executor_def.name == "multiprocess"
    whole = dg.build_reconstructable_job(
        own_job.__module__, own_job.__name__, reconstructable_args=(str(project), "small_bring_up_to_date")
    )
    with dg.DagsterInstance.from_config(str(project / ".batch_platform" / "dagster")) as instance:
        result = dg.execute_job(
            job, instance, tags=range_tags("2024-02-02", "2024-02-04"), run_config={"ops": FORCED, "loggers": QUIET}
        )
        assert result.success, [event.event_specific_data for event in result.all_events if event.is_failure]
        run = instance.get_run_by_id(result.run_id)
        processes = {
            record.event_log_entry.dagster_event.step_key
            for record in instance.get_records_for_run(result.run_id).records
            if record.event_log_entry.dagster_event_type == dg.DagsterEventType.STEP_WORKER_STARTED
        }
        committed = {event.partition for event in result.all_events if event.is_step_materialization}
        both = dg.execute_job(two, instance, tags=range_tags("2024-02-02", "2024-02-04"), run_config={"loggers": QUIET})
        assert both.success
        ours = dg.execute_job(
            whole, instance, tags=range_tags("2024-02-05", "2024-02-06"), run_config={"ops": FORCED, "loggers": QUIET}
        )
        assert ours.success
        apart = {it.pid for it in ours.all_events if it.event_type == dg.DagsterEventType.STEP_START}
        shared, alone = ([line for line in lines_of(instance, it.run_id) if "threads" in line] for it in (both, result))
    assert len(apart) == 3, "the predictions, the check on them, and the performance"
    one_of_all = f"2 pipelines work at once: this step uses {max(1, threads() // 2)} of {threads()} threads."
    assert (shared, alone) == ([one_of_all] * 2, [])
    assert processes == {"small__predictions", "small__predictions_up_to_date", "small__performance"}
    days = ["2024-02-02", "2024-02-03", "2024-02-04"]
    assert sorted(committed) == days
    scored = "SELECT DISTINCT partition_key FROM small.predictions WHERE run_id = $run ORDER BY 1"
    assert published(project, scored, {"run": result.run_id}) == [(day,) for day in days]
    assert {tag for tag in run.tags if tag.startswith(PROCESS_TAG)} <= {f"{PROCESS_TAG}/{step}" for step in processes}


def lines_of(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """What the steps of a run logged."""
    return [record.event_log_entry.user_message for record in instance.get_records_for_run(run_id).records]


def gone_and(pid: int, started: str) -> str:
    """A process that has ended, and another one, as a run records the process of a step and its parent."""
    return f"4194305 1, {pid} {started}"


def test_a_run_whose_executor_outlives_a_step_is_left_to_the_executor():
    with dg.DagsterInstance.ephemeral() as instance:
        me = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
        tag = f"{PROCESS_TAG}/small__features"
        started = {"status": dg.DagsterRunStatus.STARTED}
        alive = create_run(instance, tags={tag: gone_and(os.getpid(), me)}, **started)
        dead = create_run(instance, tags={tag: gone_and(4194304, "1")}, **started)
        between_steps = create_run(instance, tags=dead.tags, **started)
        ended = dg.DagsterEvent("STEP_SKIPPED", between_steps.job_name, step_key="small__features")
        instance.report_dagster_event(ended, between_steps.run_id)
        retried = create_run(instance, tags=dead.tags, parent_run_id=dead.run_id, root_run_id=dead.run_id, **started)
        close_dead_runs(instance)
        statuses = [instance.get_run_by_id(run.run_id).status for run in (alive, dead, between_steps, retried)]
    assert [status == dg.DagsterRunStatus.FAILURE for status in statuses] == [False, True, False, False]
