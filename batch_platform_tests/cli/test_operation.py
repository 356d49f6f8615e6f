"""What the command says and does where records, files or rights are not as they should be."""

import errno
import os
import re
import signal
import socket
import sqlite3
import time
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from batch_platform.declaration.explaining import explained
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.processes import copy_of_held_project, launched
from batch_platform_tests.harness.command_line import HANGS_AFTER, run_command, start_command
from batch_platform_tests.harness.dagster_project import PACKAGE, write_defs_yaml
from batch_platform_tests.harness.served import PATIENCE, served, session_of
from batch_platform_tests.harness.small_pipeline import small_declaration

LAST = "2024-02-29"
RECORDS = ("history/runs.db", "schedules/schedules.db")  # databases of Dagster


def home_of(project: Path) -> Home:
    return Home(project / ".batch_platform")


@pytest.mark.parametrize("file", RECORDS)
def test_f50_damaged_records_of_dagster_are_called_that_and_status_goes_on(cli, project, file):
    records = home_of(project).dagster / file
    records.write_bytes(b"not a database" * 1000)
    error = cli(project, "run", "small", "--partition", LAST, "--force").error
    assert error.startswith(
        "Dagster's own records cannot be used: DatabaseError: file is not a database. Hint: predictions,"
    )
    status = cli(project, "status", "small")
    assert (status.code, f"to {LAST} (29): scored" in status.out) == (0, True)
    assert status.err == "" if file == RECORDS[1] else "Dagster's own records cannot be used" in status.err
    records.rename(project / "damaged")
    again = cli(project, "run", "small", "--partition", LAST, "--force")
    assert (again.code, "1 of 1 partitions scored" in again.out) == (0, True), again.err
    assert cli(project, "status", "small").err == ""


@pytest.mark.parametrize("args", [("status",), ("run", "small"), ("gc",)])
def test_f36_a_home_that_lost_its_warehouse_and_its_copies_is_not_taken_for_a_new_one(cli, project, args):
    home = home_of(project)
    for path in (home.warehouse, home.published_marks, home.published, *home.root.glob("published-*.duckdb")):
        path.unlink()
    before = {path for path in home.root.rglob("*") if home.dagster not in path.parents}
    error = cli(project, *args).error
    assert error.startswith(f"The warehouse {home.warehouse} is missing, but {home.root} holds models and features")
    assert {path for path in home.root.rglob("*") if home.dagster not in path.parents} == before


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OperationalError("SELECT 1", {}, OSError("Connection refused")), "Dagster's own records cannot be used"),
        (
            sqlite3.OperationalError("database is locked"),
            "cannot be used: OperationalError: database is locked. Hint: another",
        ),
        (MemoryError(), "There is too little memory: MemoryError. Hint: give the process more memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "There is too little memory: "),
        (ImportError("x.so: failed to map segment from shared object"), "There is too little memory: "),
        (OSError(errno.ENOSPC, "No space left on device"), "A file cannot grow, probably because a disk is full"),
    ],
)
def test_an_error_of_the_machine_is_called_what_it_is(error, says):
    assert says in str(explained(error))


@pytest.mark.parametrize("file", ["manifest.json", pytest.param("model.skops", marks=pytest.mark.full)])
def test_a_damaged_model_is_found_by_verification_and_the_command_that_is_named_replaces_it(cli, project, file):
    bundle = max(home_of(project).bundles("small").iterdir())
    with (bundle / file).open("ab") as damaged:
        damaged.write(b"x")
    answer = cli(project, "status", "small", "--verify")
    command = re.search(r"train it again: batch-platform (train small --period \S+ --force)$", answer.error)
    assert command, answer.error
    assert bundle.name in answer.error
    assert cli(project, *command[1].split()).code == 0
    assert (
        "All feature files, and the models that serve, are as they were recorded."
        in cli(project, "status", "--verify").out
    )
    again = cli(project, "run", "small", "--partition", LAST, "--force")
    assert (again.code, "1 of 1 partitions scored" in again.out) == (0, True), again.err


def test_a_damaged_feature_file_is_found_by_verification(cli, project):
    (file,) = home_of(project).features("small").glob(f"{LAST}.*")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    error = cli(project, "status", "small", "--verify").error
    assert error.startswith(f"small, partition {LAST}: the bytes of {file} are not those that were recorded. Hint: ")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.full), signal.SIGHUP])
def test_a_signal_before_anything_is_set_up_ends_the_command_as_ctrl_c_does(fresh, number):
    reached = fresh / "reached"
    loading = f"import time\nfrom pathlib import Path\n\nPath({str(reached)!r}).touch()\ntime.sleep(600)\n"
    (fresh / PACKAGE / "defs" / "slow.py").write_text(loading)
    former = signal.signal(number, signal.SIG_DFL)  # a process inherits that a signal is ignored
    process = start_command(fresh, "run", "small")
    signal.signal(number, former)
    try:
        while not reached.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=HANGS_AFTER)
    finally:
        process.kill()
    assert (process.returncode, error) == (
        130,
        "Error: interrupted; everything committed so far stays. Hint: run the same command again to continue.\n",
    )


@pytest.mark.full
def test_a_run_says_that_it_waits_for_a_pool_and_a_signal_ends_the_wait(project):
    write_defs_yaml(project, small_declaration(dagster={"pool": "warehouse"}))
    with dg.DagsterInstance.from_config(str(home_of(project).dagster)) as instance:
        instance.event_log_storage.set_concurrency_slots("warehouse", 1)
        assert instance.event_log_storage.claim_concurrency_slot("warehouse", "another run", "features").is_claimed
        process = start_command(project, "run", "small", "--partition", LAST, "--force")
        try:
            assert process.stdout is not None
            said = "Waiting for a slot in Dagster's pool 'warehouse': other runs have them all.\n"
            assert said in iter(process.stdout.readline, ""), process.communicate()
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=HANGS_AFTER)
        finally:
            process.kill()
        assert (process.returncode, error.splitlines()[-1]) == (
            130,
            "Error: interrupted; everything committed so far stays. Hint: run the same command again to continue.",
        )
        (run,) = instance.get_runs(limit=1)
        assert run.status == dg.DagsterRunStatus.CANCELED
        instance.event_log_storage.free_concurrency_slots_for_run("another run")
    assert run_command(project, "run", "small", "--partition", LAST, "--force").code == 0


@pytest.mark.full
def test_the_ui_says_which_of_its_programs_died_in_a_run_and_the_next_one_goes_on(tmp_path):
    project = copy_of_held_project(tmp_path)
    with served(project.folder, home_of(project.folder).root) as ui:
        run_id = launched(ui, project, "2024-02-11")
        project.reached()
        (died,) = [
            pid for pid in session_of(ui.process.pid) if "dagster._daemon" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(died, signal.SIGKILL)
        assert ui.process.wait(PATIENCE) == 1
        hint = "Hint: start batch-platform ui again."
        assert f"The daemon stopped unexpectedly; its last messages are above. {hint}" in ui.log.read_text()
    project.release()
    project.run("--from", "2024-02-11", "--to", "2024-02-12")
    with project.instance() as instance:
        assert instance.get_run_by_id(run_id).is_finished


@pytest.mark.full
def test_the_ui_names_its_address_once_it_answers_and_refuses_one_that_another_program_has(project):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = run_command(project, "ui", "--port", str(port))
    assert refused.code == 2
    assert f"Another program answers at http://127.0.0.1:{port}. Hint: choose another port" in refused.err
    with served(project, home_of(project).root, "--token", BATCH_PLATFORM_UI_TOKEN="of-our-own") as ui:  # and no other
        while f"{ui.url}/?token=of-our-own serves" not in ui.log.read_text():
            assert ui.process.poll() is None
            time.sleep(0.05)
