"""Runs that hang until somebody terminates them, while others wait for them."""

from pathlib import Path

from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import assert_others_unchanged, held
from batch_platform_tests.faults.processes import SELECTION, TERMINATE, copy_of_held_project, served
from batch_platform_tests.harness.served import finished, launch


def hanging_runs(folder: Path) -> None:
    """F27: as many runs hang as may work at once; commands go on, and the next run does once the others are terminated."""
    project = copy_of_held_project(folder)
    before, hanging, waiting = held(project.pipeline), [f"2024-02-1{day}" for day in range(1, 5)], "2024-02-15"
    with served(project) as (ui, _), project.instance() as instance:

        def is_status(run_id: str, status: str) -> bool:
            run = instance.get_run_by_id(run_id)
            return run is not None and run.status.value == status

        project.hold(*hanging)
        run_ids = [launch(ui, "__ASSET_JOB", {"assetSelection": SELECTION}, partition=key) for key in hanging]
        ui.wait(lambda: all(is_status(run_id, "STARTED") for run_id in run_ids) or None)
        last = launch(ui, "__ASSET_JOB", {"assetSelection": SELECTION}, partition=waiting)
        project.run("--partition", "2024-02-16")  # a command waits for no run that has committed nothing
        assert is_status(last, "QUEUED")
        for run_id in run_ids:
            answer = ui.ask(TERMINATE, id=run_id)
            assert answer["__typename"] == "TerminateRunSuccess", answer
            assert ui.wait(lambda run_id=run_id: finished(ui, run_id))["status"] == "CANCELED"
        assert ui.wait(lambda: finished(ui, last))["status"] == "SUCCESS"
    project.release()
    after = held(project.pipeline)
    assert_others_unchanged(before, after, {waiting, "2024-02-16"})
    project.run("--from", hanging[0], "--to", waiting)
    assert set(hanging) <= set(held(project.pipeline))


CASES: dict[str, Case] = {"F27 as many runs as may work at once": hanging_runs}
