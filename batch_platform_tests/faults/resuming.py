"""A run over three hundred partitions, killed while it builds and again while it scores, resumes with the rest."""

import subprocess
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import held
from batch_platform_tests.harness.command_line import run_command, start_command
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_dagster_project
from batch_platform_tests.harness.served import PATIENCE
from batch_platform_tests.harness.small_pipeline import small_events, small_spec

LEARNED_UNTIL, LAST = date(2024, 1, 31), date(2024, 11, 26)
KEYS = [str(LEARNED_UNTIL + timedelta(days=n)) for n in range(1, (LAST - LEARNED_UNTIL).days + 1)]
OVERRIDES: dict[str, Any] = {
    "partitions": {"end": str(LAST + timedelta(days=1))},
    "model": {"train": {"every": None, "window": "all", "evaluate": "7 days"}},
}
ASKED = ("run", "small", "--from", KEYS[0], "--to", KEYS[-1])
LEDGER = "SELECT partition_key, seq FROM batch_platform.{} WHERE partition_key >= $first ORDER BY seq"


def committed(pipeline: Pipeline, ledger: str) -> list[tuple[str, int]]:
    """Key and number of every commit of the partitions, in order."""
    with pipeline.warehouse.open() as con:
        return con.execute(LEDGER.format(ledger), {"first": KEYS[0]}).fetchall()


def killed_when_some_are_committed(project: Path, pipeline: Pipeline, ledger: str) -> list[tuple[str, int]]:
    """Kill a run that has committed some partitions to a ledger, while holding the warehouse so that it cannot go on."""
    with start_command(project, *ASKED, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            with pipeline.warehouse.open() as con:
                commits = con.execute(LEDGER.format(ledger), {"first": KEYS[0]}).fetchall()
                if 1 < len(commits) < len(KEYS):  # the first partition is committed from the start
                    process.kill()
                    process.wait()
                    return commits
            time.sleep(0.02)  # looks that follow at once would keep the run from the warehouse
        process.kill()
    msg = f"{ledger} was never seen with some of the {len(KEYS)} partitions"
    raise AssertionError(msg)


def killed_run_of_300_partitions(folder: Path) -> None:
    """No committed features or scores are computed again, and nothing is left out."""
    assert len(KEYS) == 300
    project = write_dagster_project(folder / "project", events=small_events(last=LAST), **OVERRIDES)
    pipeline = Pipeline(small_spec(**OVERRIDES), pipeline_folder(project), Home(project / ".batch_platform"))
    trained = run_command(project, "run", "small", "--partition", KEYS[0])
    assert trained.code == 0, trained.err
    before = held(pipeline)

    built = killed_when_some_are_committed(project, pipeline, "feature_builds")
    scored = killed_when_some_are_committed(project, pipeline, "score_runs")
    at_the_kill = held(pipeline)
    assert set(at_the_kill) == {key for key, _ in scored}
    assert run_command(project, *ASKED).code == 0

    after = held(pipeline)
    assert list(after) == KEYS
    assert {key: after[key] for key in at_the_kill} == at_the_kill, "what was committed stays as it was"
    assert after[KEYS[0]] == before[KEYS[0]]
    for ledger, earlier in (("feature_builds", built), ("score_runs", scored)):
        commits = committed(pipeline, ledger)
        assert commits[: len(earlier)] == earlier
        assert sorted(key for key, _ in commits) == KEYS, f"each partition is in {ledger} once"
    assert run_command(project, *ASKED).code == 0
    assert held(pipeline) == after


CASES: dict[str, Case] = {"F2 a run of 300 partitions, twice": killed_run_of_300_partitions}
