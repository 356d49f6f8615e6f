"""Killed, held and competing writers, and readers beside them."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from batch_platform.declaration.errors import WarehouseBusyError, WarehouseError
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.recovery import restore_from_published
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.inspection import OF_CHALLENGERS
from batch_platform_tests.faults.invariants import (
    NOW,
    SCORED,
    assert_survived,
    changed_events,
    contents,
    held,
    prepared,
    published,
    rewrite,
)
from batch_platform_tests.faults.killed_writers import KilledWriters
from batch_platform_tests.faults.reader import Reader
from batch_platform_tests.faults.stress import Storm
from batch_platform_tests.faults.victim import Job
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.small_pipeline import write_small_project

KEY = SCORED[3]
IN_FILES: dict[str, Any] = {"predictions": {"store": "parquet"}}
CHALLENGED = {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]}
HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.database import Warehouse
with Warehouse(Home(Path(sys.argv[1]))).open():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
OPEN_WITHOUT_THE_LOCK = """
import sys, time
import duckdb
con = duckdb.connect(sys.argv[1] + "/warehouse.duckdb")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""
READ_AND_NEVER_CLOSE = """
import sys
import duckdb
con = duckdb.connect(sys.argv[1] + "/published.duckdb", read_only=True)
con.execute("BEGIN")
look = "SELECT DISTINCT run_id FROM small.predictions ORDER BY ALL"
print(con.execute(look).fetchall(), flush=True)
for _ in sys.stdin:
    print(con.execute(look).fetchall(), flush=True)
"""


def killed_before_the_last_steps(folder: Path) -> None:
    with KilledWriters(folder) as writers:
        for step in ('^DELETE FROM "small".predictions', "^CHECKPOINT$", "^replace .published$"):
            writers.kill_write_before(step)
    assert set(writers.outcomes) == {"old", "new"}


def killed_at_every_step(folder: Path) -> None:
    with KilledWriters(folder) as writers:
        steps = writers.steps_of_a_write()
        assert {"COMMIT", "CHECKPOINT", "replace .published"} <= set(steps)
        for number in range(len(steps)):
            writers.kill_at_step_of_a_write(number)
    assert writers.kills["a step"] > 0.9 * len(steps)
    assert set(writers.outcomes) == {"old", "new"}


def killed_while_restored(folder: Path) -> None:
    """The warehouse opens with all that was committed, or is refused until the same command completes the restoration."""
    pipeline = prepared(folder)
    home, before, intact, outcomes = pipeline.home, held(pipeline), folder / "intact", Counter[str]()
    hints = set[str]()
    with Nursery() as nursery:
        nursery.fork("write", **task_arguments(pipeline, [KEY], "killed"), die_at="^CHECKPOINT").bury()
        assert home.warehouse_log.stat().st_size, "what was committed last is only in the log"
        shutil.copytree(home.root, intact, symlinks=True)
        marks, _ = nursery.fork("restore", root=str(home.root), name_steps=True).end()
        steps = [mark for mark in marks if mark.startswith("step ")]
        assert {"step rename warehouse.duckdb", "step rename warehouse.duckdb.wal"} <= {*steps}
        for number in range(len(steps)):
            shutil.rmtree(home.root)
            shutil.copytree(intact, home.root, symlinks=True)
            assert nursery.fork("restore", root=str(home.root), stop_at=number).bury() == -signal.SIGKILL
            try:
                builds = pipeline.warehouse.latest(FeatureBuild, "small")
                outcomes["opened"] += 1
                assert builds[KEY].run_id == "killed", steps[number]
            except WarehouseError as error:
                outcomes["refused"] += 1
                hints.add(error.hint.partition("; or ")[0])
            restore_from_published(home, NOW)
            assert held(pipeline) == before
    assert outcomes.keys() == {"opened", "refused"}
    assert hints == {"restore the newest published copy: batch-platform restore --from-published"}
    assert_survived(pipeline, before, {KEY})


STEPS_WITH_FILES = (
    "^link ",
    '^DELETE FROM "small".prediction_files',
    '^INSERT INTO "small".prediction_files',
    '^CREATE OR REPLACE VIEW "small"',
    '^INSERT INTO "small".challenger_score_files',  # all files are in the lake, and nothing names them yet
    '^INSERT INTO copy."small"."prediction_files"',
    '^CREATE OR REPLACE VIEW "copy"',
    "^symlink published-",
    r"^ATTACH .*READ_ONLY",  # the link is flipped, and the former files are there
    r"^unlink \*\.parquet",
    "^DETACH copy$",
)


def killed_while_files_are_published(folder: Path) -> None:
    with KilledWriters(folder, declared=IN_FILES | CHALLENGED) as writers:
        pipeline = writers.projects[0]
        for step in STEPS_WITH_FILES:
            writers.kill_write_before(step)
            with open_published(pipeline.home) as con:
                torn = [row for query in OF_CHALLENGERS.values() for row in con.sql(query.format(s="small")).fetchall()]
            assert not torn
    assert set(writers.outcomes) == {"old", "new"}
    for number in range(2):
        rewrite(pipeline, *SCORED, run_id=f"more-{number}")
    for table in ("predictions", "challenger_scores"):
        files = [path.parent.name for path in pipeline.home.lake.glob(f"small/{table}/*/*")]
        assert sorted(files) == sorted(2 * SCORED), "what is published, and what the copy before it names"


def storm(folder: Path) -> None:
    """What `python -m batch_platform_tests.faults.stress` does for as long as one likes."""
    summary = Storm(folder, seed=1, workers=2).rage(seconds=4, kills=12)
    assert summary["violations"] == []
    assert summary["kills"]["all"] >= 12
    assert all(checks > 50 for checks in summary["checks"].values())


@contextmanager
def holder(script: str, home: Home, seconds: float) -> Generator[int]:
    """Another process that holds the warehouse for a time, or until the block ends."""
    command = [sys.executable, "-c", script, str(home.root), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


def held_for_five_seconds(folder: Path, script: str) -> None:
    pipeline = prepared(folder)
    before = held(pipeline)
    with holder(script, pipeline.home, 5):
        rewrite(pipeline, KEY)
    assert held(pipeline)[KEY].run_id == "rewrite"
    assert_survived(pipeline, before, {KEY})


def held_for_good(folder: Path, script: str) -> None:
    pipeline = prepared(folder)
    before = held(pipeline)
    with holder(script, pipeline.home, 3600) as pid, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", "0.5")
        with pytest.raises(WarehouseBusyError) as caught:
            rewrite(Pipeline(pipeline.spec, pipeline.folder, pipeline.home), KEY)
        assert published(pipeline.home) == before
    assert f"is held by process {pid}; waited 0.5 s" in str(caught.value)
    assert str(pipeline.home.published) in str(caught.value)
    assert "BATCH_PLATFORM_LOCK_TIMEOUT" in str(caught.value)
    assert_survived(pipeline, before, {KEY})


def reader_in_a_loop(folder: Path, **declared: Any) -> None:
    pipeline = prepared(folder, **declared)
    before = held(pipeline)
    with Reader(pipeline.home, {key: {content} for key, content in contents(before).items()}) as reader:
        for number in range(20):
            rewrite(pipeline, *SCORED[number % 5 : number % 5 + 3], run_id=f"write-{number}")
    assert reader.states > 1
    assert_survived(pipeline, before, SCORED)


def reader_that_never_closes(folder: Path, **declared: Any) -> None:
    pipeline = prepared(folder, **declared)
    before = held(pipeline)
    command = [sys.executable, "-c", READ_AND_NEVER_CLOSE, str(pipeline.home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        for number in range(4):
            rewrite(pipeline, *SCORED, run_id=f"write-{number}")
            assert {partition.run_id for partition in published(pipeline.home).values()} == {f"write-{number}"}
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == first, "it goes on reading the state that it opened"
        process.stdin.close()
    assert_survived(pipeline, before, SCORED)


def task_arguments(pipeline: Pipeline, keys: list[str], run_id: str, project: Path | None = None) -> dict[str, Any]:
    """Arguments of the task of a run over some partitions, from the files of the pipeline or of another project."""
    job = Job(str(pipeline.home.root), str(project or pipeline.folder), run_id, NOW.isoformat())
    return {"job": asdict(job), "keys": keys}


def same_partition_from_two_runs_at_once(folder: Path, *, other_rows: bool) -> None:
    """Of two runs that would write different rows one is committed, and the other says why it is not."""
    pipeline = prepared(folder)
    before = held(pipeline)
    other = write_small_project(folder / "other", events=changed_events(KEY)) if other_rows else pipeline.folder
    rewrite(Pipeline(pipeline.spec, other, pipeline.home), KEY)
    allowed = {before[KEY].content, held(pipeline)[KEY].content}
    assert len(allowed) == 1 + other_rows
    with Nursery() as nursery:
        for number in range(8):
            runs = [
                nursery.fork("write", **task_arguments(pipeline, [KEY], f"{number}-{name}", project))
                for name, project in (("a", pipeline.folder), ("b", other))
            ]
            marks = [run.rest() for run in runs]
            codes = [run.bury() for run in runs]
            assert 0 in codes
            assert other_rows or codes == [0, 0]
            assert held(pipeline)[KEY].content in allowed
            errors = [line for lines in marks for line in lines if line.startswith("error ")]
            assert all(re.match(rf"error small, partition {KEY}: .*Hint: ", error) for error in errors)
    rewrite(pipeline, KEY)
    assert_survived(pipeline, before, {KEY})


def eight_partitions_by_eight_processes(folder: Path) -> None:
    pipeline = prepared(folder)
    before = held(pipeline)
    with ExitStack() as stack:
        nursery = stack.enter_context(Nursery())
        reader = Reader(pipeline.home, {key: {content} for key, content in contents(before).items()})
        stack.enter_context(reader)
        writers = [
            nursery.fork("write_often", **task_arguments(pipeline, [key], f"writer-{key}"), times=3)
            for key in SCORED[:8]
        ]
        assert [writer.bury() for writer in writers] == [0] * 8
    after = held(pipeline)
    assert {key: after[key].run_id for key in SCORED[:8]} == {key: f"writer-{key}-2" for key in SCORED[:8]}
    with pipeline.warehouse.open() as con:
        commits = con.execute("SELECT count(*) FROM batch_platform.score_runs WHERE run_id LIKE 'writer-%'").fetchall()
    assert commits == [(8 * 3,)], "no commit was lost"
    assert_survived(pipeline, before, SCORED)


CASES: dict[str, Case] = {
    "F1 killed before the last steps of a write": killed_before_the_last_steps,
    "F1 killed before every step of a write": killed_at_every_step,
    "F1 killed before every step with files of predictions": killed_while_files_are_published,
    "F1 a storm of competing processes": storm,
    "F38 killed before the steps of a restoration": killed_while_restored,
    "F6 held for five seconds by a run": lambda folder: held_for_five_seconds(folder, HOLD_THE_LOCK),
    "F6 held for five seconds by a stranger": lambda folder: held_for_five_seconds(folder, OPEN_WITHOUT_THE_LOCK),
    "F6 held for good by a run": lambda folder: held_for_good(folder, HOLD_THE_LOCK),
    "F6 held for good by a stranger": lambda folder: held_for_good(folder, OPEN_WITHOUT_THE_LOCK),
    "F7 a reader that looks all the time": reader_in_a_loop,
    "F7 a reader that never closes": reader_that_never_closes,
    "F7 a reader that looks all the time, with predictions in files": lambda folder: reader_in_a_loop(
        folder, **IN_FILES
    ),
    "F7 a reader that never closes, with predictions in files": lambda folder: reader_that_never_closes(
        folder, **IN_FILES
    ),
    **{
        f"F14 {name} rows from two runs at once": lambda folder, other=other: same_partition_from_two_runs_at_once(
            folder, other_rows=other
        )
        for name, other in (("the same", False), ("other", True))
    },
    "F15 eight processes": eight_partitions_by_eight_processes,
}
