"""Full disks, damaged files and short memory."""

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    IntegrityError,
    NothingPublishedError,
    WarehouseError,
)
from batch_platform.operations.cleanup import find_garbage
from batch_platform.operations.export import export
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.reports.report import write_report
from batch_platform.scoring.rejected_rows import rejections
from batch_platform.warehouse.ledger import ScoreRun, read_latest
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.recovery import restore_from_published, verify
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import (
    NOW,
    SCORED,
    STAMP,
    Held,
    assert_others_unchanged,
    assert_survived,
    contents,
    days,
    held,
    prepared,
    published,
    rewrite,
)
from batch_platform_tests.faults.victim import Job
from batch_platform_tests.harness import command_line
from batch_platform_tests.harness.command_line import COMMAND, copy_of_finished_project, run_command, run_program
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, feature_file, small_events, small_pipeline

KEY = SCORED[4]


def wide_events() -> pl.DataFrame:
    """The events with four thousand orders on one day."""
    on_the_day = LOCAL_DAY == KEY
    wide = small_events(rows_per_day=4000).filter(on_the_day).with_columns(pl.col("id") + 1_000_000)
    return pl.concat([small_events().filter(~on_the_day), wide])


def limited(pipeline: Pipeline, kind: str | None = None, limit: int = 0) -> str:
    """How a process ends that writes a partition again under a limit: `done`, or why the write was refused."""
    with Nursery() as nursery:
        return written(nursery, pipeline, kind=kind, limit=limit)


def written(nursery: Nursery, pipeline: Pipeline, **limits: Any) -> str:
    """How a child ends that writes a partition again."""
    job = Job(str(pipeline.home.root), str(pipeline.folder), "short", NOW.isoformat())
    marks, status = nursery.fork("write_limited", job=asdict(job), key=KEY, **limits).end()
    assert (status, marks[-1]) == (0, "done"), marks
    return marks[0]


def file_size_limit(folder: Path, limit: int) -> None:
    """No file may grow beyond the limit, as on a full disk; without the limit the same run succeeds."""
    pipeline = prepared(folder, events=wide_events())
    before = held(pipeline)
    message = limited(pipeline, "RLIMIT_FSIZE", limit)
    assert re.match(
        r"refused: .*(cannot be written|could not be|cannot be read or written).*Hint: .*make room", message
    )
    assert published(pipeline.home) == before
    after = held(pipeline)
    if after != before:  # wholly new, and reported: only the checkpoint after the commit found no room
        assert "holds what was committed" in message
        assert after == before | {KEY: after[KEY]}
        assert (after[KEY].run_id, after[KEY].rows_in) == ("short", 4000)
    assert limited(pipeline) == "done"
    assert_survived(pipeline, before, {KEY})


def full_file_system(folder: Path) -> None:
    """A home on a small file system, where something else takes the last room and gives it back."""
    pipeline = prepared(folder, events=wide_events())
    before = held(pipeline)
    script = folder / "script.sh"
    home, aside = pipeline.home.root, folder / "aside"
    shutil.move(home, aside)
    home.mkdir()
    script.write_text(FULL)
    in_namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", str(script), str(home), str(aside))
    with Nursery(*in_namespace) as nursery:
        for left in (0, 40, 400, 1500):
            assert nursery.fork("fill_up", folder=str(home), left=left * 1024).bury() == 0
            message = written(nursery, pipeline)
            assert re.match(r"refused: .*Hint: .*make room", message), message
            assert nursery.fork("make_room", folder=str(home)).bury() == 0
        assert written(nursery, pipeline) == "done"
        assert nursery.fork("copy_out", folder=str(home), to=str(folder / "written")).bury() == 0
    home.rmdir()
    shutil.move(folder / "written", home)
    after = held(pipeline)
    assert (after[KEY].run_id, after[KEY].rows_in) == ("short", 4000)
    assert_survived(pipeline, before, {KEY})


def no_room_for_the_records(folder: Path) -> None:
    """Dagster's SQLite files cannot grow: one paragraph that says what to do, and the same command goes on with room."""
    project = copy_of_finished_project(folder)
    rows = "SELECT partition_key, run_id FROM small.predictions ORDER BY ALL"
    before = command_line.published(project, rows)
    arguments = ("run", "small", "--partition", "2024-02-02", "--force")
    for limit in (0, 200_000):
        answer = run_program(project, "prlimit", f"--fsize={limit}", COMMAND, *arguments)
        assert re.search(r"A file cannot grow, .*Error: .*Hint: make room on the disk of the home", answer.error)
        assert command_line.published(project, rows) == before
    assert run_command(project, *arguments).code == 0


FULL = """\
mount -t tmpfs -o size=24m none "$1"
cp -a "$2"/. "$1"
shift 2
exec "$@"
"""


def memory_limit(folder: Path, spare: int) -> None:
    """With little memory beyond what the imports take, the partition is scored or stays as it was."""
    pipeline = prepared(folder, events=wide_events())
    before = held(pipeline)
    message = limited(pipeline, "RLIMIT_DATA", spare)
    after = held(pipeline)
    assert message == "done" or message.startswith("refused: "), message
    assert (after[KEY].run_id == "short") == (message == "done")
    assert_others_unchanged(before, after, {KEY})
    assert limited(pipeline) == "done"
    assert_survived(pipeline, before, {KEY})


def held_or_refused(pipeline: Pipeline) -> dict[str, Held] | WarehouseError:
    """The partitions of the warehouse, or the error with which it does not open."""
    try:
        return held(pipeline)
    except WarehouseError as error:
        return error


def flipped_in_the_warehouse(folder: Path) -> None:
    """A flipped bit in any block or header is refused when it is read, unless nothing is stored there."""
    pipeline = prepared(folder)
    before = held(pipeline)
    file = pipeline.home.warehouse
    intact = file.read_bytes()
    choice, refused = random.Random(9), 0
    spots = [0, 8, 20, 4096, 4104, 8192, 8200, *(choice.randrange(12288, len(intact)) for _ in range(60))]
    for spot in spots:
        damaged = flipped(intact, spot)
        file.write_bytes(damaged)
        outcome = held_or_refused(pipeline)
        if isinstance(outcome, WarehouseError):
            refused += 1
            assert re.search(r"(is damaged|cannot be opened): .*Hint: nothing was changed", str(outcome), re.DOTALL)
            assert file.read_bytes() == damaged
        else:
            assert outcome == before, "a block that holds nothing"
        assert published(pipeline.home) == before
    assert refused > 10, "a block is checked when it is read, a header at once"
    file.write_bytes(intact)
    assert_survived(pipeline, before, {KEY})


def committed_to_the_log(pipeline: Pipeline, *keys: str) -> Path:
    """Leave a commit in the write-ahead log only, as a run does that is killed before its checkpoint."""
    job = Job(str(pipeline.home.root), str(pipeline.folder), "in-the-log", NOW.isoformat())
    with Nursery() as nursery:
        assert nursery.fork("score", job=asdict(job), keys=keys, die_at="^CHECKPOINT$").bury() == -signal.SIGKILL
    log = pipeline.home.root / "warehouse.duckdb.wal"
    assert log.stat().st_size > 0
    return log


def flipped_in_the_log(folder: Path) -> None:
    """A flipped bit is refused, or in the first or last bytes taken for a log that ends earlier: the old state, whole."""
    pipeline = prepared(folder)
    before = held(pipeline)
    log = committed_to_the_log(pipeline, KEY)
    file, entries = pipeline.home.warehouse, log.read_bytes()
    intact = file.read_bytes()
    committed = held(pipeline)
    assert committed[KEY].run_id == "in-the-log"
    choice, refused = random.Random(9), 0
    for spot in [*range(0, 60, 5), *(choice.randrange(60, len(entries)) for _ in range(40)), len(entries) - 1]:
        damaged = flipped(entries, spot)
        file.write_bytes(intact)
        log.write_bytes(damaged)
        outcome = held_or_refused(pipeline)
        if isinstance(outcome, WarehouseError):
            refused += 1
            assert re.search(r"Hint: nothing was changed.*backup", str(outcome))
            assert (file.read_bytes(), log.read_bytes()) == (intact, damaged), "nothing is deleted"
        else:
            assert outcome in (before, committed), "the commit is gone as a whole, or it is there as a whole"
    assert refused > 40
    file.write_bytes(intact)
    log.write_bytes(entries)
    assert held(pipeline)[KEY].run_id == "in-the-log"
    assert_survived(pipeline, before, {KEY})


def log_cut_off(folder: Path) -> None:
    """A log of any length opens at a complete state; `status` names what Dagster knows and the ledger does not.

    Unless a published copy holds what the log has lost.
    """
    with pytest.MonkeyPatch.context() as patch:
        prepared(folder)
        deployment = deploy(folder, patch)
        pipeline = deployment.pipeline
        with pipeline.warehouse.transaction() as con:  # as if the last day had never been scored
            for table in ("small.predictions", "batch_platform.score_runs"):
                con.execute(f"DELETE FROM {table} WHERE partition_key = $key", {"key": SCORED[-1]})
        before = held(pipeline)
        deployment.score(SCORED[0], SCORED[-2])
        assert deployment.run("features", "predictions", first=SCORED[0], last=SCORED[-2]).success
        log = committed_to_the_log(pipeline, SCORED[-1])
        file, entries = pipeline.home.warehouse, log.read_bytes()
        intact = file.read_bytes()
        assert len(held(pipeline)) == len(before) + 1
        assert deployment.run("predictions", first=SCORED[-1]).success
        file.write_bytes(intact)
        log.unlink(missing_ok=True)
        assert "batch-platform restore --from-published" in str(held_or_refused(pipeline))
        for copy in pipeline.home.root.glob("published-*.duckdb"):
            copy.unlink()
        pipeline.home.published_marks.unlink()
        for length in (0, 10, len(entries) // 3, len(entries) - 1):
            file.write_bytes(intact)
            log.write_bytes(entries[:length])
            assert set(held(pipeline)) == set(before)
            state = pipeline.state()
            materialized = deployment.instance.get_materialized_partitions(deployment.key("predictions"))
            report = status_of(
                pipeline.spec, state, make_plan(pipeline.spec, state, PlanRequest(NOW)), NOW, materialized
            )
            assert (report.only_in_dagster, report.only_in_ledger) == ([SCORED[-1]], [])
            assert {each.partition: each.condition for each in report.partitions}[SCORED[-1]] == "missing"
        assert deployment.run("predictions", first=SCORED[-1]).success
        assert_survived(pipeline, before, {SCORED[-1]})


def flipped(data: bytes, spot: int) -> bytes:
    """The same bytes with one bit changed."""
    return data[:spot] + bytes([data[spot] ^ 1 << spot % 8]) + data[spot + 1 :]


def damaged_features(folder: Path, damages: Callable[[bytes], Iterable[bytes]]) -> None:
    """A damaged file of the same time is not scored, and holds up no other; forced, it is built again."""
    pipeline = prepared(folder)
    before, path = held(pipeline), feature_file(pipeline, KEY)
    intact, times = path.read_bytes(), path.stat()
    for damaged in damages(intact):
        path.write_bytes(damaged)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises((DataError, IntegrityError)) as caught:
            list(pipeline.score(days(pipeline, *SCORED[3:6]), STAMP, force=True))
        assert f"small, partition {KEY}: " in str(caught.value)
        assert f"batch-platform run small --partition {KEY}" in str(caught.value)
    assert held(pipeline)[KEY] == before[KEY]
    rewrite(pipeline, KEY)
    assert_survived(pipeline, before, SCORED[3:6])


def bits_anywhere(data: bytes) -> Iterator[bytes]:
    """The bytes with one bit changed, at thirty places: most would silently be read back wrong."""
    choice = random.Random(10)
    return (flipped(data, choice.randrange(len(data))) for _ in range(30))


def lost_warehouse(folder: Path) -> None:
    """Without the file nothing is written, published or removed; restoring it from the published copy brings all back."""
    pipeline = prepared(folder)
    home, before = pipeline.home, held(pipeline)
    home.warehouse.unlink()
    files = sorted(path for path in home.root.rglob("*") if path.parent != home.dagster)
    for command in (
        lambda: rewrite(pipeline, KEY),
        lambda: pipeline.train(days(pipeline, SCORED[0])[0], STAMP),
        lambda: publish(home),
        lambda: find_garbage([pipeline.spec], home, NOW, trained_before=NOW),
    ):
        with pytest.raises(WarehouseError, match=r"is missing, but .* Hint: .*batch-platform restore --from-published"):
            command()
    assert set(pipeline.published_state().scores) == set(before), "a report reads what was published"
    assert published(home) == before
    assert sorted(path for path in home.root.rglob("*") if path.parent != home.dagster) in (
        files,
        sorted([*files, home.warehouse_lock]),
    )
    assert restore_from_published(home, NOW).set_aside is None
    assert held(pipeline) == before
    assert_survived(pipeline, before, {KEY})


def copy_in_place_of_the_warehouse(folder: Path) -> None:
    """A published copy that somebody put back as the warehouse goes on as it, with new numbers."""
    pipeline = prepared(folder)
    for number in range(2):  # so that the copy was brought up to date by changes, not made as a whole
        rewrite(pipeline, KEY, run_id=f"write-{number}")
    home, before = pipeline.home, held(pipeline)
    shutil.copyfile(home.published, home.warehouse)
    assert held(pipeline) == before
    rewrite(pipeline, KEY)
    with pipeline.warehouse.open() as con:
        query = "SELECT count(*) - count(DISTINCT seq), max(seq) FROM batch_platform.score_runs"
        ((repeated, newest),) = con.execute(query).fetchall()
    assert (repeated, newest) == (0, held(pipeline)[KEY].seq)
    assert newest > before[KEY].seq
    assert_survived(pipeline, before, {KEY})


def stranger_in_a_copy(folder: Path, *, killed: bool) -> None:
    """What another program wrote into the readers' copy is said and replaced, however the program ended."""
    pipeline = prepared(folder)
    rewrite(pipeline, KEY)
    expected, copy = held(pipeline), pipeline.home.published.resolve()
    end = "os.kill(os.getpid(), 9)" if killed else "con.close()"
    script = (
        f"import duckdb, os; con = duckdb.connect({str(copy)!r}); con.execute('DELETE FROM small.predictions'); {end}"
    )
    subprocess.run([sys.executable, "-c", script], check=not killed)
    assert Path(f"{copy}.wal").exists() == killed
    with told() as warnings:
        pipeline.publish()
    assert [text for text in warnings if f"{copy} was changed by another program at " in text] == warnings
    assert len(warnings) == 1
    assert published(pipeline.home) == expected
    with told() as warnings:
        assert_survived(pipeline, expected, {KEY})
    assert warnings == []


def copy_held_for_writing(folder: Path) -> None:
    """Readers are told which program has the copy open for writing; nothing that writes is held up."""
    pipeline = prepared(folder)
    before = held(pipeline)
    script = (
        f"import duckdb; con = duckdb.connect({str(pipeline.home.published)!r}); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(WarehouseError, match=rf"held by another program \(process {holder.pid}\).*read_only=True"):
            open_published(pipeline.home)
        rewrite(pipeline, KEY)
        open_published(pipeline.home).close()
        holder.communicate(b"\n")
    assert_survived(pipeline, before, {KEY})


def damaged_copy(folder: Path) -> None:
    """A flipped bit of the readers' copy is found by reading it whole; without the copy no report answers from nothing."""
    pipeline = prepared(folder)
    home, before = pipeline.home, held(pipeline)
    copy, choice, found = home.published.resolve(), random.Random(26), 0
    copy.chmod(0o644)
    intact = copy.read_bytes()
    for _ in range(40):
        copy.write_bytes(flipped(intact, choice.randrange(len(intact))))
        try:
            reading = verify(home)
        except WarehouseError as error:
            found += f"The published copy {copy} " in error.message and "publishes a new copy" in error.hint
        else:
            assert reading.differing == (), "a bit that no row needs"
    assert found > 20
    for path in (copy, home.published):
        path.unlink()
        for report in (lambda: rejections("small", home), lambda: open_published(home), pipeline.published_state):
            with pytest.raises(WarehouseError, match=r"published copy .*(cannot be opened|is missing)") as refused:
                report()
            assert not isinstance(refused.value, NothingPublishedError)
    pipeline.publish()
    assert published(home) == before
    assert verify(home).is_newest
    assert_survived(pipeline, before, {KEY})


def damaged_predictions(folder: Path) -> None:
    """A flipped bit of a file of predictions, whose size and time stay, is noticed wherever its rows leave, and scored again."""
    pipeline = small_pipeline(folder, predictions={"store": "parquet"})
    carry_out(pipeline, NOW)
    before, (path,) = held(pipeline), [path for path in pipeline.state().records.files if path.parent.name == KEY]
    intact, times, choice = path.read_bytes(), path.stat(), random.Random(40)
    with open_published(pipeline.home) as con:
        scored = read_latest(con, ScoreRun, "small")
    for number in range(12):
        path.write_bytes(flipped(intact, choice.randrange(len(intact))))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        leaving = [lambda: export(pipeline, folder / "scores.csv"), lambda: write_report(pipeline, NOW)]
        if not number:
            leaving.append(lambda: list(pipeline.evaluate(days(pipeline, KEY), STAMP)))
        for leave in leaving:
            with pytest.raises(
                BatchPlatformError, match=f"small, partition {KEY}: the file of predictions {path} "
            ) as refused:
                leave()
            assert f"--partition {KEY} --force" in refused.value.hint
    assert not (folder / "scores.csv").exists()
    assert export(pipeline, folder / "others.csv", partition_keys=scored.keys() - {KEY}).partitions == len(scored) - 1
    rewrite(pipeline, SCORED[0], KEY)
    assert export(pipeline, folder / "scores.csv").partitions == len(scored)
    assert contents(held(pipeline)) == contents(before)


@contextmanager
def told() -> Generator[list[str]]:
    """The warnings of publishing."""
    texts = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    log = logging.getLogger("batch_platform.warehouse")
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


CASES: dict[str, Case] = {
    **{
        f"F5 no file may exceed {limit // 1000} kB": lambda folder, limit=limit: file_size_limit(folder, limit)
        for limit in (1_000, 20_000, 200_000, 2_000_000)
    },
    "F5 a small file system, full": full_file_system,
    "F5 no room for the records of Dagster": no_room_for_the_records,
    "F8 the log is cut off": log_cut_off,
    "F9 a bit of the warehouse": flipped_in_the_warehouse,
    "F9 a bit of the log": flipped_in_the_log,
    "F23 the warehouse is missing": lost_warehouse,
    "F25 a copy changed by a program that ended": lambda folder: stranger_in_a_copy(folder, killed=False),
    "F25 a copy changed by a program that was killed": lambda folder: stranger_in_a_copy(folder, killed=True),
    "F25 a copy held for writing": copy_held_for_writing,
    "F26 a damaged copy, and none": damaged_copy,
    "F40 a bit of a file of predictions": damaged_predictions,
    "F31 a published copy in place of the warehouse": copy_in_place_of_the_warehouse,
    "F10 a feature file is cut off": lambda folder: damaged_features(folder, lambda data: [data[: len(data) // 2]]),
    "F10 a bit anywhere in a feature file": lambda folder: damaged_features(folder, bits_anywhere),
    **{
        f"F19 {spare} MB of memory to spare": lambda folder, spare=spare: memory_limit(folder, spare * 1_000_000)
        for spare in (0, 20, 150, 220, 1000)
    },
}
