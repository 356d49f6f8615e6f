"""The tasks of the nursery's children, which may kill themselves at a step.

A step is a statement that changes a database, or a call that changes the folders. Steps are observed by wrapping what
the product calls, so that every step has a number and a name, however the product changes.
"""

import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import drop_partitions
from batch_platform.operations.erase import erase_subject
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse import database as warehouse
from batch_platform.warehouse import published
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.recovery import restore_from_published
from batch_platform_tests.faults.invariants import rewrite
from batch_platform_tests.harness.nursery import mark
from batch_platform_tests.harness.small_pipeline import small_spec

CHANGING = re.compile(r"\s*(BEGIN|COMMIT|CHECKPOINT|DELETE|INSERT|CREATE|ALTER|UPDATE|ATTACH|DETACH|DROP)\b")
FOLDER_CALLS = ("replace", "rename", "symlink", "unlink", "rmdir", "mkdir", "link")


@dataclass(frozen=True)
class Job:
    """The files that a task works on, and the stamp of the rows it writes; all as JSON, so that it can be sent."""

    root: str
    project: str
    run_id: str
    at: str
    declared: dict[str, Any] = field(default_factory=dict[str, Any])  # overrides as for `small_spec`
    by_changes: bool = False  # publish by statements for what changed, as a large warehouse is, not by a copy

    @property
    def pipeline(self) -> Pipeline:
        """The small pipeline over those files."""
        return Pipeline(small_spec(**self.declared), Path(self.project), Home(Path(self.root)))

    @property
    def stamp(self) -> Stamp:
        """The stamp of the run."""
        return Stamp(self.run_id, datetime.fromisoformat(self.at))


def write(  # noqa: PLR0913 - what is written, and how it ends
    job: dict[str, Any],
    keys: list[str],
    stop_at: int | None = None,
    *,
    name_steps: bool = False,
    pause: bool = False,
    die_at: str | None = None,
) -> None:
    """Build, score and publish partitions as a forced run does.

    Args:
        job: The fields of a `Job`.
        keys: The partitions.
        stop_at: Number of the step before which the process kills itself.
        name_steps: Mark each step by its name.
        pause: Stop by SIGSTOP right before the commit.
        die_at: As for `die_at_step`.
    """
    pipeline, stamp = Job(**job).pipeline, Job(**job).stamp
    if Job(**job).by_changes:
        published.SMALL_BYTES = 0
    if die_at:
        die_at_step(die_at)
    if pause:
        _pause_before_the_commit()
    _watch(stop_at, named=name_steps)
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in keys]
    list(pipeline.build_features(partitions, stamp, force=True))
    list(pipeline.score(partitions, stamp, force=True))
    pipeline.publish()


def write_limited(job: dict[str, Any], key: str, kind: str | None = None, limit: int = 0) -> None:
    """Write a partition again under a limit of `resource`, such as RLIMIT_FSIZE; marks why it is refused.

    RLIMIT_DATA is a limit of what the process takes from here on, since imports and threads take more on a larger machine.
    """
    pipeline = Job(**job).pipeline
    # The libraries start their threads before memory is short: a thread that cannot start is waited for for good.
    numbers = pl.DataFrame({"n": range(200_000)})
    assert numbers.n_unique() == duckdb.sql("SELECT count(DISTINCT n) FROM numbers").fetchall()[0][0]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if kind:
        allowed = limit + (_mapped_data() if kind == "RLIMIT_DATA" else 0)
        resource.setrlimit(getattr(resource, kind), (allowed, allowed))
    try:
        rewrite(pipeline, key, run_id=Job(**job).run_id)
    except BatchPlatformError as error:
        mark(f"refused: {' '.join(str(error).split())}")


def _mapped_data() -> int:
    """The bytes that RLIMIT_DATA counts of this process."""
    (kilobytes,) = re.findall(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def fill_up(folder: str, left: int) -> None:
    """Leave so many bytes free on the file system of a folder."""
    Path(folder, "ballast").write_bytes(bytes(shutil.disk_usage(folder).free - left))


def make_room(folder: str) -> None:
    """Remove what `fill_up` has written."""
    Path(folder, "ballast").unlink()


def copy_out(folder: str, to: str) -> None:
    """Copy a folder that others do not see to one that they see."""
    shutil.copytree(folder, to, symlinks=True)


def score(job: dict[str, Any], keys: list[str], die_at: str) -> None:
    """Score partitions as a forced run does; `die_at` as for `die_at_step`."""
    pipeline = Job(**job).pipeline
    die_at_step(die_at)
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in keys]
    list(pipeline.score(partitions, Job(**job).stamp, force=True))


def publish(root: str, die_at: str | None = None) -> None:
    """Publish a home, after a mark; `die_at` as for `die_at_step`."""
    if die_at:
        die_at_step(die_at)
    mark("publishing")
    published.publish(Home(Path(root)))


def train(job: dict[str, str], period: str, stop_at: int | None = None, *, name_steps: bool = False) -> None:
    """Train and register another model of a serving period; arguments as for `write`."""
    pipeline, stamp = Job(**job).pipeline, Job(**job).stamp
    _watch(stop_at, named=name_steps)
    pipeline.train(pipeline.spec.partitions.calendar.named(period), stamp)
    pipeline.publish()


def drop(job: dict[str, Any], keys: list[str], stop_at: int | None = None, *, name_steps: bool = False) -> None:
    """Drop partitions; arguments as for `write`."""
    pipeline, stamp = Job(**job).pipeline, Job(**job).stamp
    _watch(stop_at, named=name_steps)
    drop_partitions(pipeline, keys, "somebody", stamp)


def restore(root: str, stop_at: int | None = None, *, name_steps: bool = False) -> None:
    """Restore the warehouse from the published copy; arguments as for `write`."""
    _watch(stop_at, named=name_steps)
    restore_from_published(Home(Path(root)), datetime(2024, 2, 11, 12, tzinfo=UTC))


def erase(job: dict[str, Any], values: dict[str, str], stop_at: int | None = None, *, name_steps: bool = False) -> None:
    """Erase a subject; arguments as for `write`."""
    pipeline, stamp = Job(**job).pipeline, Job(**job).stamp
    _watch(stop_at, named=name_steps)
    erase_subject(pipeline, values, "somebody", stamp)


def write_often(job: dict[str, str], keys: list[str], times: int) -> None:
    """Score and publish partitions again and again."""
    pipeline, stamp = Job(**job).pipeline, Job(**job).stamp
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in keys]
    for number in range(times):
        list(pipeline.score(partitions, Stamp(f"{stamp.run_id}-{number}", stamp.at), force=True))
        pipeline.publish()


def _pause_before_the_commit() -> None:
    """Mark when a commit is about to begin, and stop."""
    commit = warehouse.Warehouse.commit_scores

    def paused(*args: Any, **kwargs: Any) -> Any:
        mark("committing")
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # here, not wherever another thread gets it
        return commit(*args, **kwargs)

    warehouse.Warehouse.commit_scores = paused


def _watch(stop_at: int | None, *, named: bool) -> None:
    """Count the steps from here on; mark each by name, or kill the process before the step of that number."""
    if stop_at is None and not named:
        return
    passed = -1

    def step(name: str) -> None:
        nonlocal passed
        passed += 1
        if named:
            mark(f"step {name}")
        if passed == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_steps(step)


def die_at_step(pattern: str) -> None:
    """Let the process kill itself before the first step whose name matches a regular expression."""

    def step(name: str) -> None:
        if re.search(pattern, name):
            os.kill(os.getpid(), signal.SIGKILL)

    watch_steps(step)


def watch_steps(step: Callable[[str], None]) -> None:
    """Call a function with the name of each step before it is done, from here on."""
    watched = {name: _watched(step, name) for name in FOLDER_CALLS}
    for name, call in watched.items():
        setattr(os, name, call)

    attach = warehouse.attach

    def attach_watched(file: Path, **options: Any) -> Any:
        database = attach(file, **options)
        return replace(database, con=_Watched(database.con, step))

    warehouse.attach = attach_watched


def _watched(step: Callable[[str], None], name: str) -> Callable[..., Any]:
    call = getattr(os, name)

    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        if not (name == "mkdir" and Path(path).is_dir()):
            step(f"{name} {_shortened(str(path))}")
        return call(path, *args, **kwargs)

    return watched


class _Watched:
    """A connection whose changing statements are steps."""

    def __init__(self, con: duckdb.DuckDBPyConnection, step: Callable[[str], None]) -> None:
        self._con, self._step = con, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def execute(self, query: str, *args: Any) -> duckdb.DuckDBPyConnection:
        if CHANGING.match(query):
            self._step(_shortened(query))
        return self._con.execute(query, *args)


def _shortened(text: str) -> str:
    """The first words of a step, without what differs from run to run."""
    text = re.sub(r"\S*/", "", text)
    return re.sub(r"[0-9a-f]{8,}|(?<=-)\w{8}$", "*", " ".join(text.split()[:5]))
