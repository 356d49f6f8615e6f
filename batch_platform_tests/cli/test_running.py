"""`run`: what it announces, does, skips and leaves, in this process and beside others."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from batch_platform.cli.app import INTERRUPTED
from batch_platform.declaration import extras
from batch_platform.models import declared_model
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
from batch_platform_tests.harness.small_pipeline import small_declaration, small_events, small_spec

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


def wait_for(process: "subprocess.Popen[str]", beginning: str) -> None:
    """Read what a process says until a line begins so."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"it ended without a line {beginning!r}: {process.stderr and process.stderr.read()}")


def wait_until_made(process: "subprocess.Popen[str]", folder: Path, pattern: str, number: int) -> None:
    """Wait until a running command has made some files in the home."""
    while len(list((folder / ".batch_platform").glob(pattern))) < number:
        if process.poll() is not None:
            pytest.fail(f"it ended before: {process.communicate()[1]}")
        time.sleep(0.005)


def append(folder: Path, text: str) -> None:
    """Add to the end of the project's features.sql."""
    with (pipeline_folder(folder) / "features.sql").open("a", encoding="utf-8") as file:
        file.write(text)


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


def test_run_goes_on_where_it_stopped_and_then_finds_nothing_due(cli, fresh):
    cli(fresh, "run", "small", "--to", "2024-02-03")
    answer = cli(fresh, "run", "small", "--from", "2024-02-02", "--to", "2024-02-05")
    assert answer.out.splitlines()[:4] == [
        "small: to do",
        "  build features of 2 partitions (2024-02-04 to 2024-02-05)",
        "  score 2 partitions (2024-02-04 to 2024-02-05)",
        "  evaluate 2 partitions (2024-02-04 to 2024-02-05)",
    ]
    assert re.fullmatch(r"  this takes (a few seconds|about .+), going by earlier runs", answer.out.splitlines()[4])
    before = published(fresh, SCORED)
    again = cli(fresh, "run", "small", "--from", "2024-02-01", "--to", "2024-02-05")
    assert again.out.splitlines()[0] == "small: everything asked for is up to date."
    assert published(fresh, SCORED) == before


def test_a_run_whose_training_lacks_a_library_does_nothing(cli, fresh, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda library: "1.9" if library == "scikit-learn" else None)
    for model in ({"build": "shop.models.made"}, {"import": "model.onnx", "task": "binary"}):
        served = {"name": "old", "version": "2024-02-01-3f9c1a2b"}
        declared_model.require_libraries(small_spec(model={"estimator": None, **model}, challengers=[served]))
    predictions = {**OVERRIDES["predictions"], "interval": "90%"}
    regression = {"estimator": "sklearn.linear_model.Ridge", "params": {}}
    lightgbm = {"name": "boosted", "estimator": "lightgbm.LGBMRegressor"}
    for library, extra, code_of_check, declared in (
        ("crepes", "interval", 2, {"model": regression, "predictions": predictions}),
        ("lightgbm", "lightgbm", 1, {"model": regression, "challengers": [lightgbm]}),  # beside a second problem
    ):
        write_defs_yaml(fresh, small_declaration(**{**OVERRIDES, **declared}))
        for command, code in (("run small", 2), ("check", code_of_check)):
            refused = cli(fresh, *command.split())
            assert refused.code == code
            assert (
                f"{library} is needed here, and cannot be imported (it is not installed)" in refused.err + refused.out
            )
            assert f"pip install 'batch-platform[{extra}]'" in refused.err + refused.out
        assert not (fresh / ".batch_platform" / "features").exists()


def test_partitions_that_no_model_serves_any_more_are_told_and_not_counted_as_scored(cli, project):
    train = {"every": "week", "start": "2024-02-15"}
    write_defs_yaml(project, small_declaration(**OVERRIDES, model={"train": train}))
    answer = cli(project, "run", "small", "--partition", DAY, "--force", "--json")
    assert answer.code == 1
    outcome = json.loads(answer.out)
    assert (outcome["scored"], outcome["unserved"]) == (0, 1)
    assert answer.err.splitlines()[-1] == (
        "Error: small, partition 2024-02-10: its predictions stay as they were scored; no model serves it, since predictions "
        "begin with 2024-02-15 now (an earlier model.train.start changes that). Hint: batch-platform drop small --partition "
        "2024-02-10 removes them."
    )


@pytest.mark.full
def test_a_partition_that_failed_is_counted_once_and_said_to_be_left_as_it_was(cli, project):
    source = pipeline_folder(project) / "events.parquet"
    events = pl.read_parquet(source)
    of_day = events["ts"].dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d") == DAY
    events.with_columns(amount=pl.when(pl.Series(of_day)).then(-1.0).otherwise("amount")).write_parquet(source)
    answer = cli(project, "run", "small", "--from", "2024-02-09", "--to", "2024-02-11", "--force")
    assert answer.code == 1
    assert (
        "2 partitions scored by this run, 1 failed; in all, 3 of 3 partitions are scored: 120 rows in, 120 scored, 0 rejected.\n"
        f"  failed, and left as it was: {DAY};"
    ) in answer.out


@pytest.mark.full
def test_one_partition_is_one_run_of_the_job_that_brings_it_up_to_date(cli, project, monkeypatch):
    append(project, "AND id % 2 = 0\n")
    earlier = {run.run_id for run in runs_of(project, monkeypatch)}
    assert cli(project, "run", "small", "--partition", DAY).code == 0
    new = [run for run in runs_of(project, monkeypatch) if run.run_id not in earlier]
    assert [(run.job_name, run.status.value) for run in new] == [("small_bring_up_to_date", "SUCCESS")]


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
    assert report == {
        "pipeline": "small",
        "partitions": 29,
        "scored": 29,
        "scored_now": 0,
        "unserved": 0,
        "left_out": [],
        "models": [],
        "rejected": {"amount: below the minimum 0": 1},
        "table": "small.predictions",
        "next": [],
        "rows_in": 1160,
        "rows_scored": 1159,
        "rows_rejected": 1,
        "published": f"{project}/.batch_platform/published.duckdb",
        "findings": {},
        "failed_checks": [],
        "failures": [],
        "delivered": {},
        "error": None,
    }


def test_a_run_tells_of_a_source_that_is_gone(cli, project):
    (pipeline_folder(project) / "events.parquet").unlink()
    answer = cli(project, "run", "small", "--from", "2024-02-01")
    assert answer.code == 0
    assert (
        "  2024-02-01 to 2024-02-29 (29): source 'events' is gone; what was made from it stays"
        in answer.out.splitlines()
    )


def test_force_scores_again_and_changes_no_prediction(cli, project):
    query = f"SELECT id, prediction, score FROM small.predictions WHERE partition_key = '{DAY}' ORDER BY id"
    before, runs = published(project, query), published(project, SCORED)
    answer = cli(project, "run", "small", "--partition", DAY, "--force")
    assert answer.out.splitlines()[1:4] == [
        f"  build features of 1 partition ({DAY})",
        f"  score 1 partition ({DAY})",
        f"  evaluate 1 partition ({DAY})",
    ]
    assert published(project, query) == before
    assert {key for (key, *_), old in zip(published(project, SCORED), runs, strict=True) if (key, *_) != old} == {DAY}


def test_given_version_is_refused_where_no_model_can_serve_and_is_measured_there_by_a_backtest(cli, project):
    (version,) = cli(project, "run", "small", "--from", DAY, "--json").json["versions"]
    refused = cli(project, "run", "small", "--partition", "2024-01-05", "--model", version)
    assert refused.code == 2
    assert refused.error.startswith(
        "small, partition 2024-01-05: it cannot be scored, since predictions begin with 2024-02-01, in the first serving period"
    )
    command = refused.error.partition("Hint: batch-platform ")[2].partition(" measures")[0]
    assert cli(project, *command.split()).code == 0
    query = "SELECT DISTINCT partition_key, in_sample FROM small.backtests"
    assert published(project, query) == [("2024-01-05", True)]


@pytest.mark.full
def test_features_before_the_first_serving_period_are_built_where_they_are_forced(cli, project):
    built = "SELECT count(*) FROM batch_platform.feature_builds WHERE partition_key = '2024-01-05'"
    ((before,),) = published(project, built)
    answer = cli(project, "run", "small", "--from", "2024-01-05", "--to", "2024-01-05", "--force")
    assert "build features of 1 partition (2024-01-05)" in answer.out
    assert "1 partition is warm-up (2024-01-05): the first model serves from 2024-02-01" in answer.out
    assert published(project, built) == [(before + 1,)]


@pytest.mark.full
def test_partition_without_rows_is_a_success_with_a_row_of_zeros(cli, project):
    append(project, "AND 1 = 0\n")
    refused = cli(project, "run", "small", "--partition", DAY)
    assert refused.code == 1
    assert refused.error.startswith(f"small, partition {DAY}: it had 40 rows and would become empty. Hint: ")
    assert cli(project, "run", "small", "--partition", DAY, "--force").code == 0
    query = f"SELECT rows_in, rows_scored, rows_rejected FROM batch_platform.score_runs WHERE partition_key = '{DAY}' ORDER BY seq"
    assert published(project, query)[-1] == (0, 0, 0)


def test_pipeline_that_no_model_can_serve_fails(cli, tmp_path):
    folder = write_project(tmp_path / "project", model={"promote": {"metric": "roc_auc", "at_least": 1.1}})
    answer = cli(folder, "run", "small", "--to", "2024-02-01")
    assert answer.code == 1
    assert answer.error.startswith("small, partition 2024-02-01: no model serves it; no version is approved.")
    assert re.search("model 2024-02-01-[0-9a-f]{8}, learned from .*: roc_auc .*; refused: ", answer.out)
    assert re.search(
        "although it was refused: batch-platform models small promote 2024-02-01-[0-9a-f]{8}$", answer.error
    )
    again = cli(folder, "run", "small", "--to", "2024-02-01").out
    assert again.splitlines()[0] == "small: nothing can be scored"
    assert re.search("no model serves it: 2024-02-01-[0-9a-f]{8} was refused, .*roc_auc", again)


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
def test_a_partition_that_fails_holds_up_no_other_and_status_says_why_until_it_is_mended(cli, project):
    sql = pipeline_folder(project) / "features.sql"
    sound = sql.read_text()
    break_sql(project, 2001)
    answer = cli(project, "run", "small", "--from", "2024-02-15")
    assert answer.code == 1
    assert answer.error.startswith("small, partition 2024-02-20: the SQL of ")
    assert " fails: Invalid Input Error: broken. Hint: correct the SQL or its source; " in answer.error
    (status,) = cli(project, "status", "--json").json
    of = {line["partition"]: line for line in status["partitions"] if line["partition"] >= "2024-02-15"}
    failed = [key for key, line in of.items() if line["condition"] == "failed"]
    assert failed == ["2024-02-20"], "no other partition of the range is called failed"
    assert of["2024-02-20"]["reason"].startswith("the SQL of ")
    assert of["2024-02-20"]["reason"].endswith(" fails: Invalid Input Error: broken.")
    assert {line["rows_scored"] for key, line in of.items() if key not in ("2024-02-19", "2024-02-20")} == {40}
    assert f"  2024-02-20: failed, {of['2024-02-20']['reason']}" in cli(project, "status", "small").out.splitlines()
    assert published(project, BALANCE) == [(0,)]
    sql.write_text(sound.replace("items", "items + 0 AS items"), encoding="utf-8")
    assert "failed" not in cli(project, "status", "small").out, "with another SQL it need not fail"
    assert cli(project, "run", "small", "--from", "2024-02-15").code == 0
    assert "failed" not in cli(project, "status", "small").out
    assert published(project, "FROM small.failures") == []


def test_everything_that_failed_is_named_in_one_paragraph_by_its_first_sentence(cli, fresh):
    break_sql(fresh, 100, 1300)  # of 3 January, in the training window, and of 2 February
    asked = ("run", "small", "--from", "2024-02-01", "--to", "2024-02-03")
    answer = cli(fresh, *asked)
    assert answer.code == 1
    assert answer.error.startswith("small: 2 partitions and 1 model failed. 2024-01-03, 2024-02-02: the SQL of ")
    assert "model 2024-02-01: the model is not trained, since the features of 2024-01-03 are missing" in (answer.error)
    assert answer.error.endswith("Hint: batch-platform status small shows each partition with its reason.")
    assert "  failed, and left as they were: 2024-01-03, 2024-02-02 (2); see the error at the end" in answer.out
    assert "  1 model could not be trained: 2024-02-01; see the error at the end" in answer.out
    training = cli(fresh, "train", "small", "--period", "2024-02-01")
    assert training.error.startswith("small: 1 partition and 1 model failed. 2024-01-03: the SQL of ")
    lines = cli(fresh, "status", "small").out.splitlines()
    assert any(line.startswith("  2024-01-03: failed, the SQL of ") for line in lines)
    (at,) = [
        at
        for at, line in enumerate(lines)
        if line.startswith("  model 2024-02-01: failed, the model is not trained, since ")
    ]
    assert (
        "If the rows of 2024-01-03 never come, batch-platform drop small --partition 2024-01-03 leaves" in lines[at + 1]
    )
    report = run_command(fresh, *asked, "--json")
    assert report.code == 1
    failures = json.loads(report.out)["failures"]
    assert [(failure["step"], failure["partition_key"]) for failure in failures] == [
        ("features", "2024-01-03"),
        ("model", "2024-02-01"),
        ("features", "2024-02-02"),
    ]
    assert cli(fresh, "drop", "small", "--partition", "2024-01-03", "--yes").code == 0
    assert cli(fresh, "train", "small", "--period", "2024-02-01").code == 0, "the hint helps"


@pytest.mark.full
def test_the_older_model_scores_while_a_newer_one_cannot_be_trained(cli, tmp_path):
    declared = {"model": {"train": {"every": "week", "start": "2024-01-07", "evaluate": "1 day"}}}
    folder = write_project(tmp_path / "project", **declared)
    assert cli(folder, "run", "small", "--to", "2024-01-15").code == 0
    break_sql(folder, 20 * 40 + 1)  # of 21 January, in the window of the models from 28 January on
    answer = cli(folder, "run", "small", "--from", "2024-01-27", "--to", "2024-01-29")
    assert "model 2024-01-28" in answer.error
    versions = "SELECT DISTINCT partition_key, model_version[:10] FROM small.predictions WHERE partition_key >= '2024-01-27' ORDER BY 1"
    assert published(folder, versions) == [(f"2024-01-{day}", "2024-01-21") for day in (27, 28, 29)]


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


@pytest.mark.parametrize(
    ("pattern", "number"), [("lake/small/features/2*", 4), ("models/small/2024-*/manifest.json", 1)]
)
@pytest.mark.full
def test_killed_run_is_closed_as_failed_by_the_next_command_and_the_work_converges(fresh, monkeypatch, pattern, number):
    process = start(fresh, "run", "small", "--to", "2024-02-10")
    wait_until_made(process, fresh, pattern, number)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left, *_) = runs_of(fresh, monkeypatch)
    assert not left.is_finished
    assert run_command(fresh, "status").code == 0
    (closed,) = [run for run in runs_of(fresh, monkeypatch) if run.run_id == left.run_id]
    assert closed.status == dg.DagsterRunStatus.FAILURE
    assert run_command(fresh, "run", "small", "--to", "2024-02-10").code == 0
    assert len(published(fresh, SCORED)) == 10
    assert published(fresh, BALANCE) == [(0,)]


@pytest.mark.full
def test_readers_see_predictions_while_another_run_goes_on(project):
    statement = (
        "import duckdb; "
        "duckdb.connect('.batch_platform/published.duckdb', read_only=True).sql('from small.predictions').show()"
    )
    process = start(project, "run", "small", "--force", "--from", "2024-02-15")
    wait_for(process, "small: to do")
    reads = 0
    while process.poll() is None:
        done = subprocess.run(
            [sys.executable, "-"], cwd=project, input=statement, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "1159 rows" in done.stdout.replace(",", "")
        reads += 1
    assert process.returncode == 0
    assert reads > 1
    assert process.communicate()[1] == ""


@pytest.mark.full
def test_two_runs_at_once_both_end_well_or_say_why_not(project):
    both = [start(project, "run", "small", "--force", "--from", "2024-02-20") for _ in range(2)]
    errors = [process.communicate(timeout=HANGS_AFTER)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 0], [0, 1])
    assert all("this run changes nothing" in err for code, err in zip(codes, errors, strict=True) if code)
    assert published(project, BALANCE) == [(0,)]
    assert len(published(project, SCORED)) == 29


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


def test_output_may_be_cut_off_by_its_reader(project):
    done = subprocess.run(
        f"{COMMAND} status --json | head -1",
        shell=True,
        cwd=project,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[\n", "")


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


@pytest.mark.full
def test_interruption_outside_of_a_run_is_one_line(fresh):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(fresh, "ui", "--port", str(port))
    wait_for(process, "Starting Dagster for ")
    wait_for(process, "http://127.0.0.1:")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.full
def test_the_end_of_a_run_tells_of_models_leaks_rejected_rows_and_what_to_do_next(cli, tmp_path):
    events = small_events().with_columns(  # amounts that hardly recur: equal rows would be learned from and judged by
        amount=pl.when(pl.col("id") % 40 == 7)
        .then(-pl.col("id"))
        .otherwise(pl.col("amount").fill_null(pl.col("id") / 40)),
        known=pl.col("returned").fill_null(value=False),
    )
    folder = write_project(
        tmp_path / "project",
        events=events,
        sources={"events": {"parquet": "events-{partition_month}.parquet"}},
        model={"allow_suspected_leaks": ["known"]},
    )
    of_january, misplaced = pl.col("id") <= 40 * 31, pl.datetime(2023, 12, 31, 12, time_zone="UTC")
    january = pl.concat([events.filter(of_january), events.head(1).with_columns(ts=misplaced)])
    january.write_parquet(pipeline_folder(folder) / "events-2024-01.parquet")
    events.filter(~of_january).write_parquet(pipeline_folder(folder) / "events-2024-02.parquet")
    asked = ("run", "small", "--from", "2024-02-01", "--to", "2024-02-03")
    answer = cli(folder, *asked)
    lines = answer.out.splitlines()
    assert any("a leak is suspected (allowed): known alone nearly decides the label" in line for line in lines)
    assert "3 of 3 partitions scored: 120 rows in, 117 scored, 3 rejected." in lines
    assert "  rejected 3 rows: amount: below the minimum 0" in lines
    misplaced = "1 row in the file of source 'events' lies outside 2024-01, such as one at 2023-12-31 13:00:00+01"
    assert f"  2024-01-01 to 2024-01-30 (30): {misplaced}" in lines
    assert "Next: batch-platform rejected small" in lines
    assert len(lines) < 24, "it fits on a screen"
    report = cli(folder, *asked, "--force", "--json").json
    assert (report["scored_now"], report["rejected"]) == (3, {"amount: below the minimum 0": 3})
    assert report["models"] == []
    assert report["next"][0] == "batch-platform rejected small"


@pytest.mark.full
def test_models_that_were_trained_are_reported_as_json(cli, fresh):
    report = cli(fresh, "run", "small", "--to", "2024-02-01", "--json").json
    (model,) = report["models"]
    assert model["version"] == report["versions"][0]
    assert (model["challenger"], model["decision"], model["suspected_leaks"]) == (None, "approved", [])
    assert 0.5 < model["value"] <= 1
    assert report["left_out"] == [
        {
            "reason": "warm-up, the first model serves from 2024-02-01",
            "partitions": 31,
            "first": "2024-01-01",
            "last": "2024-01-31",
        }
    ]
