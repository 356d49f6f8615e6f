"""Let Ctrl-C, Dagster's cancelling and a time limit end a query that DuckDB executes.

Python runs the handler of a signal only once the main thread is back from DuckDB, which a query may keep for hours. So a thread
watches for signals and interrupts what the open connections execute. It goes on until they are closed, since a signal may come just
before a query begins. DuckDB drops what the handler raises, so a block that went on after a signal ends with a KeyboardInterrupt.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

import duckdb

from batch_platform.declaration.errors import threads_explained

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_AGAIN_AFTER = 100  # milliseconds between two interruptions


class Interruptible(Protocol):
    """A connection to DuckDB, or to other databases."""

    def interrupt(self) -> None:
        """End what it executes; called from another thread."""
        ...


_open: list[Interruptible] = []
_ended = threading.Event()  # whether a signal came since the first of them was opened


@contextmanager
def interruptible(con: Interruptible) -> Generator[None]:
    """Let signals end what a connection executes, for the length of the block; only the main thread receives signals.

    Raises:
        KeyboardInterrupt: A signal came, and the block handled the error of the query that it interrupted, or raised another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _open.append(con)
    try:
        if len(_open) > 1:  # is watched already
            yield
            return
        try:
            with _watching():
                yield
        except Exception as error:
            if _ended.is_set():
                raise KeyboardInterrupt from error
            raise
        if _ended.is_set():
            raise KeyboardInterrupt
    finally:
        _open.remove(con)


def was_interrupted() -> bool:
    """Return whether a signal to end came while connections to DuckDB were last open."""
    return _ended.is_set()


class TimeLimit:
    """Time limit of a query of DuckDB or Spark; None for no limit."""

    def __init__(self, limit: timedelta | None) -> None:
        """Limit nothing yet."""
        self.limit, self.passed = limit, False

    @contextmanager
    def over(self, interrupt: Callable[[], object]) -> Generator[None]:
        """Call `interrupt`, on another thread, if the block takes too long; `passed` then says so."""
        self.passed = False
        if self.limit is None:
            yield
            return

        def pass_limit() -> None:
            self.passed = True
            interrupt()

        timer = threading.Timer(self.limit.total_seconds(), pass_limit)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def _watching() -> Generator[None]:
    """Python writes the number of each signal into a pipe as soon as it arrives, whatever the main thread does."""
    _ended.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read, former), daemon=True)
    try:
        with threads_explained():
            watcher.start()
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(write)
        if watcher.ident is not None:  # it was started
            watcher.join()
        os.close(read)


def _watch(read: int, former: int) -> None:
    arrivals = select.poll()
    arrivals.register(read)
    while True:
        if arrivals.poll(_AGAIN_AFTER if _ended.is_set() else None):
            if not (numbers := os.read(read, 64)):
                return
            if former != -1:
                os.write(former, numbers)
            if _ENDING.intersection(numbers):
                _ended.set()
        for con in [*_open] if _ended.is_set() else ():
            interrupt(con)


def interrupt(con: Interruptible) -> None:
    """Interrupt what a connection executes, unless it is closed."""
    with suppress(duckdb.Error):  # closed meanwhile
        con.interrupt()
