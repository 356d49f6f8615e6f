"""The lock on the warehouse: one process holds it, others wait for a bounded time and then learn which process holds it.

A flock on a file beside the database. The file names the process that holds the lock; the lock is free as soon as that
process ends, however it ends.

A run's own folder for staged files is locked as long as the run lives. The next run sweeps the folders whose lock is free: what a
killed run left behind, never what a live run uses. The lock is on the folder itself, so there is no moment in which a folder exists
and nobody can tell whose it is.
"""

import fcntl
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import TIMEOUT_MAX, Lock, Thread

from batch_platform.declaration.errors import WarehouseBusyError, WrongUseError
from batch_platform.warehouse.home import Home

TIMEOUT_VARIABLE = "BATCH_PLATFORM_LOCK_TIMEOUT"
LOCK_TIMEOUT_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1


def lock_timeout() -> float:
    """Seconds to wait for the warehouse: BATCH_PLATFORM_LOCK_TIMEOUT, or 120 if it is not set."""
    return seconds_in(TIMEOUT_VARIABLE, LOCK_TIMEOUT_SECONDS)


def seconds_in(variable: str, default: float) -> float:
    """The seconds that a variable of the environment holds; raises WrongUseError if it holds something else."""
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        msg = f"{variable} is {text!r}, which is not a number of seconds."
        raise WrongUseError(msg, hint=f"for example {variable}=300; without it, {default:g}.")
    return seconds


@dataclass
class Patience:
    """The total time that a process waits for another process to release the warehouse."""

    home: Home
    timeout: float  # seconds
    _began: float = field(default_factory=time.monotonic)
    _pause: float = _FIRST_PAUSE_SECONDS

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._began + self.timeout - time.monotonic())

    def busy(self, holder: str) -> WarehouseBusyError:
        """The error to raise when no time is left."""
        msg = f"The warehouse {self.home.warehouse} is held by process {holder}; waited {self.timeout:g} s."
        hint = f"end that process, set {TIMEOUT_VARIABLE}, or read {self.home.published}, which is never locked."
        return WarehouseBusyError(msg, hint=hint)

    def pause(self, holder: str) -> None:
        """Wait before the next try, each time a little longer, with jitter; raises WarehouseBusyError if no time is left."""
        if not self.left:
            raise self.busy(holder)
        time.sleep(min(self.left, self._pause * random.uniform(0.5, 1.5)))  # noqa: S311 - jitter, not a secret
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock of a home."""

    process: str  # its id
    since: datetime


def standing_holder(home: Home) -> Holder | None:
    """The process that holds the lock now, without waiting for it; None if it is free."""
    try:
        file = home.warehouse_lock.open(encoding="ascii")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Holder(file.read() or "unknown", datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC))
    return None


@contextmanager
def locked(patience: Patience) -> Generator[None]:
    """Hold the lock of a home; raises WarehouseBusyError if another process holds it for longer than the patience lasts."""
    descriptor = os.open(patience.home.warehouse_lock, os.O_RDWR | os.O_CREAT, 0o644)
    if not _taken_at_once(descriptor) and not _Queued(descriptor).taken_within(patience.left):
        raise patience.busy(patience.home.warehouse_lock.read_text(encoding="ascii") or "unknown")
    try:
        name = str(os.getpid()).encode()
        os.pwrite(descriptor, name, 0)  # so that the file is never empty for a process that reads it
        os.ftruncate(descriptor, len(name))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_locked(folder: Path, on_wait: Callable[[], object]) -> Generator[None]:
    """Hold the lock of a folder, which is created if missing; `on_wait` is called before waiting for another process, however long it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _taken_at_once(descriptor):
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _taken_at_once(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Queued(Thread):
    """Waits for a lock in the kernel's queue, since a process that polls may starve among many.

    The call has no time-out of its own, so it is made in a thread. When the time is over, the thread is left behind and
    releases the lock as soon as it gets it.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._settling = Lock()
        self._taken = self._left_behind = False

    def taken_within(self, seconds: float) -> bool:
        """Wait for the lock and return whether it is taken; if not, the descriptor no longer belongs to the caller."""
        self.start()
        try:
            self.join(min(seconds, TIMEOUT_MAX))
        finally:
            with self._settling:
                self._left_behind = not self._taken
        return self._taken

    def run(self) -> None:
        """Wait."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._settling:
            if self._left_behind:
                os.close(self._descriptor)
            else:
                self._taken = True


@contextmanager
def staging_folder(home: Home, run_id: str) -> Generator[Path]:
    """A fresh folder, removed at the end; sweeps those of dead runs first."""
    sweep_all(home.create())
    folder, descriptor = _claim(home, run_id)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _claim(home: Home, run_id: str) -> tuple[Path, int]:
    """Make a folder and lock it; try again if another run swept it before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{run_id}-", dir=home.staging))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def left_behind(home: Home) -> list[Path]:
    """The folders of runs that are gone."""
    return [folder for folder in _folders(home) if if_free(folder, lambda _: None)]


def sweep_all(home: Home) -> None:
    """Remove the folders of all runs that are gone."""
    for folder in _folders(home):
        sweep(folder)


def _folders(home: Home) -> list[Path]:
    """The folders that have the name of a run's folder; everything else is somebody else's."""
    return sorted(filter(home.knows, home.staging.iterdir())) if home.staging.is_dir() else []


def sweep(folder: Path) -> None:
    """Remove a folder whose run is gone; the folder of a live run stays."""
    if_free(folder, lambda free: shutil.rmtree(free, ignore_errors=True))


def if_free(path: Path, do: Callable[[Path], None], *, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> bool:
    """Lock a folder (with other `flags`, a file) that no run has locked and do something with it; False if it is locked."""
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False  # another run is removing it, or it is not a staging folder, or that of another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        do(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
