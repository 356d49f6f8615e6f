"""The lock on the warehouse: one process holds it, others wait for a bounded time and then learn which process holds it.

A flock on a file beside the database. The file names the process that holds the lock; the lock is free as soon as that
process ends, however it ends.
"""

import fcntl
import math
import os
import random
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
