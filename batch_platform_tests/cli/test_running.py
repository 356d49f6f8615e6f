"""`run`: what it announces, does, skips and leaves, in this process and beside others."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.cli.app import INTERRUPTED
from batch_platform.declaration import importing
from batch_platform_tests.harness.command_line import (
    COMMAND,
    HANGS_AFTER,
    OVERRIDES,
    clean_environment,
    published,
    run_command,
    start_command,
    without_signs_of_life,
    write_project,
)
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import small_declaration

DAY = "2024-02-10"
PROGRESS = re.compile(r"(features|model|predictions|performance): [0-9]+ of ")  # only where a run takes ten seconds
SWITCH_ON = (
    "batch-platform ui, and switch on small_score_when_due, small_train_when_due, small_evaluate_when_due: "
    "new partitions are then done by themselves"
)
SCORED = "SELECT partition_key, count(*), min(run_id) FROM small.predictions GROUP BY 1 ORDER BY 1"
BALANCE = """
    SELECT count(*) FROM (
        SELECT DISTINCT ON (partition_key) * FROM batch_platform.score_runs ORDER BY partition_key, seq DESC
    ) AS runs
    WHERE rows_in <> rows_scored + rows_rejected
    OR rows_scored <> (SELECT count(*) FROM small.predictions AS p WHERE p.partition_key = runs.partition_key)
"""


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    """A command in a process group of its own, as a shell starts it."""
    return start_command(folder, *args, start_new_session=True)


def wait_until_made(process: "subprocess.Popen[str]", folder: Path, pattern: str, number: int) -> None:
    """Wait until a running command has made some files in the home."""
    while len(list((folder / ".batch_platform").glob(pattern))) < number:
        if process.poll() is not None:
            pytest.fail(f"it ended before: {process.communicate()[1]}")
        time.sleep(0.005)


def runs_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dg.DagsterRun]:
    """What Dagster has recorded, newest first."""
    monkeypatch.setenv("DAGSTER_HOME", str(folder / ".batch_platform" / "dagster"))
    with dg.DagsterInstance.get() as instance:
        return list(instance.get_runs())


def test_run_announces_what_it_will_do_and_concludes(cli, fresh):
    answer = cli(fresh, "run", "small", "--to", "2024-02-03")
    assert (answer.code, answer.err) == (0, "")
    lines = [line for line in answer.out.splitlines() if not PROGRESS.match(line)]
    assert lines[:7] == [
        "small: to do",
        "  build features of 30 partitions (2024-01-01 to 2024-01-30)",
        "  build features of 3 partitions (2024-02-01 to 2024-02-03)",
        "  train 1 model (2024-02-01)",
        "  score 3 partitions (2024-02-01 to 2024-02-03)",
        "  evaluate 3 partitions (2024-02-01 to 2024-02-03)",
        "  31 partitions are warm-up (2024-01-01 to 2024-01-31): the first model serves from 2024-02-01",
    ]
    (version,) = cli(fresh, "models", "small", "--json").json
    assert re.fullmatch(
        rf"model {version['version']}, learned from 1,\d{{3}} rows of 30 days: (roc_auc|log_loss) \d\.\d{{4}} \(of the judged fit, which learned from \d{{3}} rows of 22 days\)(, against \d\.\d{{4}} by guessing \(.+\))?; approved: .+",
        lines[7],
    )
    assert lines[8:] == [
        "3 partitions scored by this run; in all, 3 of 34 partitions are scored: 120 rows in, 120 scored, 0 rejected.",
        "  left out 31 partitions (2024-01-01 to 2024-01-31): warm-up, the first model serves from 2024-02-01",
        f"Read them in {fresh}/.batch_platform/published.duckdb, table small.predictions.",
        f"Next: batch-platform models small show {version['version']}",
        "      batch-platform run small, to score from 2024-02-04 on too",
        f"      {SWITCH_ON}",
    ]
    assert [key for key, *_ in published(fresh, SCORED)] == ["2024-02-01", "2024-02-02", "2024-02-03"]
    whole = cli(fresh, "run", "small")
    assert whole.out.splitlines()[-1] == f"      move partitions.end on, which is 2024-03-01; then {SWITCH_ON}"


def test_a_run_whose_training_lacks_a_library_does_nothing(cli, fresh, monkeypatch):
    monkeypatch.setattr(importing, "installed", lambda library: "1.9" if library == "scikit-learn" else None)
    predictions = {**OVERRIDES["predictions"], "interval": "90%"}
    regression = {"estimator": "sklearn.linear_model.Ridge", "params": {}}
    write_defs_yaml(fresh, small_declaration(**{**OVERRIDES, "model": regression, "predictions": predictions}))
    for command in ("run small", "check"):
        refused = cli(fresh, *command.split())
        assert refused.code == 2
        assert "crepes is needed here, and cannot be imported (it is not installed)" in refused.error
        assert "pip install 'batch-platform[interval]'" in refused.error
    assert not (fresh / ".batch_platform" / "features").exists()


@pytest.mark.full
def test_a_long_range_is_divided_into_runs_that_train_once_and_leave_nothing_to_do(cli, fresh, monkeypatch):
    write_defs_yaml(fresh, small_declaration(**{**OVERRIDES, "dagster": {"max_partitions_per_run": 2}}))
    assert cli(fresh, "run", "small", "--from", "2024-02-01", "--to", "2024-02-05", "--retrain").code == 0
    ranges = [run.tags["batch_platform/partitions"] for run in reversed(runs_of(fresh, monkeypatch))]
    assert ranges == ["2024-02-01...2024-02-02", "2024-02-03...2024-02-04", "2024-02-05"]
    assert len(published(fresh, "FROM batch_platform.model_versions")) == 1
    again = cli(fresh, "run", "small", "--from", "2024-02-01", "--to", "2024-02-05")
    assert again.out.splitlines()[0] == "small: everything asked for is up to date."


def test_run_reports_as_json(cli, project):
    report = cli(project, "run", "small", "--from", "2024-02-01", "--json").json
    (version,) = report.pop("versions")
    assert version.startswith("2024-02-01-")
    expected = {
        "partitions": 29,
        "scored": 29,
        "scored_now": 0,
        "rows_in": 1160,
        "rows_scored": 1159,
        "rows_rejected": 1,
    }
    expected |= {"pipeline": "small", "rejected": {"amount: below the minimum 0": 1}, "table": "small.predictions"}
    expected |= {"published": f"{project}/.batch_platform/published.duckdb", "unserved": 0, "error": None}
    lists = ("left_out", "models", "next", "failed_checks", "failures")
    assert report == expected | {name: [] for name in lists} | {"findings": {}, "delivered": {}}


def test_pipeline_whose_first_partition_is_to_come_does_nothing(cli, tmp_path):
    folder = write_project(tmp_path / "project", partitions={"start": "2999-01-01", "end": None})
    answer = cli(folder, "run", "small")
    assert (answer.code, answer.err, answer.out) == (0, "", "small: no partition is due yet.\n")


def break_sql(project: Path, *ids: int) -> None:
    """Make the features of the partitions of some orders fail."""
    sql = pipeline_folder(project) / "features.sql"
    broken = f"CASE WHEN id IN ({', '.join(map(str, ids))}) THEN error('broken') ELSE items END AS items"
    sql.write_text(sql.read_text().replace("items", broken), encoding="utf-8")


@pytest.mark.full
def test_everything_that_failed_is_named_in_one_paragraph_by_its_first_sentence(cli, fresh):
    break_sql(fresh, 100, 1300)  # of 3 January, in the training window, and of 2 February
    asked = ("run", "small", "--from", "2024-02-01", "--to", "2024-02-03")
    answer = cli(fresh, *asked)
    assert answer.code == 1
    assert answer.error.startswith("small: 2 partitions and 1 model failed. 2024-01-03, 2024-02-02: the SQL of ")
    assert "model 2024-02-01: the model is not trained, since the features of 2024-01-03 are missing" in (answer.error)
    assert "  failed, and left as they were: 2024-01-03, 2024-02-02 (2); see the error at the end" in answer.out
    assert "  1 model could not be trained: 2024-02-01; see the error at the end" in answer.out
    report = run_command(fresh, *asked, "--json")
    assert report.code == 1
    failures = json.loads(report.out)["failures"]
    assert [(failure["step"], failure["partition_key"]) for failure in failures] == [
        ("features", "2024-01-03"),
        ("model", "2024-02-01"),
        ("features", "2024-02-02"),
    ]


@pytest.mark.full
def test_interruption_ends_with_one_line_and_the_work_goes_on_later(fresh, monkeypatch):
    process = start(fresh, "run", "small")
    wait_until_made(process, fresh, "models/small/2024-*/manifest.json", 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        without_signs_of_life(err)
        == "Error: interrupted; everything committed so far stays. Hint: run the same command again to continue.\n"
    )
    statuses = {run.status for run in runs_of(fresh, monkeypatch)}
    canceled = "a failed run would leave its planned partitions as failed in Dagster"
    assert statuses == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED}, canceled
    assert run_command(fresh, "run", "small").code == 0
    assert len(published(fresh, SCORED)) == 29
    assert published(fresh, BALANCE) == [(0,)]


def test_the_end_of_the_input_at_a_prompt_ends_the_command_as_an_interruption_does(project):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "drop", "small", "--partition", DAY],
        cwd=project,
        env=clean_environment(),
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(leader, b"\x04")
    _, err = process.communicate(timeout=HANGS_AFTER)
    os.close(follower)
    os.close(leader)
    assert process.returncode == INTERRUPTED
    assert err.splitlines()[-1].startswith("Error: interrupted; everything committed so far stays.")
    assert DAY in {key for key, *_ in published(project, SCORED)}


@pytest.mark.full
def test_terminal_shows_bars_and_no_lines(project):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "run", "small", "--force", "--from", "2024-02-20"],
        cwd=project,
        env=clean_environment(TERM="xterm", COLUMNS="100", LINES="30"),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    output = b""
    with suppress(OSError):  # once the other end is closed
        while part := os.read(leader, 65536):
            output += part
    os.close(leader)
    assert process.communicate(timeout=60) == (None, b"")
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert re.search(r"features +\S* +\d+/30", text), text
    assert re.search(r"performance +━+ +30/30", text), text
    assert "10 of 10, 2024-02-29" not in text
    assert "10 of 10 partitions scored" in text


def test_status_says_that_a_killed_run_did_more_than_is_published(cli, project):
    warehouse = project / ".batch_platform" / "warehouse.duckdb"
    assert "As published at" not in cli(project, "status", "small").out
    later = warehouse.stat().st_mtime + 60
    os.utime(warehouse, (later, later))
    answer = cli(project, "status", "small")
    assert re.match(
        r"As published at \d{4}-.* UTC\. What was done since then, by a run that goes on or was killed, ", answer.out
    )
    assert cli(project, "run", "small").code == 0


def test_output_may_be_cut_off_by_its_reader(project):
    command, environment = f"{COMMAND} status --json | head -1", clean_environment()
    done = subprocess.run(command, shell=True, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[\n", "")
