"""A signal ends a query that DuckDB executes, in whatever moment it comes and whoever handles its error."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import duckdb
import pytest

from batch_platform.sources.interruption import interruptible
from batch_platform.warehouse.sql import connect

LONG = "SELECT max(a.range * b.range) FROM range(200000) a, range(200000) b"


@dataclass
class Noticing:
    """A connection, and whether it was interrupted."""

    con: duckdb.DuckDBPyConnection
    noticed: threading.Event = field(default_factory=threading.Event)

    def interrupt(self) -> None:
        self.con.interrupt()
        self.noticed.set()


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """The signals of a process whose handler notes them, and raises nothing."""
    signals: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, former)


def interrupted(noticing: Noticing, *, begins_after: bool) -> None:
    """Let a signal come before or while a query is executed, whose error is handled if it comes meanwhile."""
    if begins_after:
        os.kill(os.getpid(), signal.SIGTERM)
        noticing.noticed.wait()
        noticing.con.execute(LONG).fetchall()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with suppress(duckdb.Error):
        noticing.con.execute(LONG).fetchall()


@pytest.mark.parametrize("begins_after", [True, False])
def test_a_signal_that_is_only_noted_ends_a_query_and_the_block(noted, begins_after):
    with pytest.raises(KeyboardInterrupt) as ended, connect() as con, interruptible(noticing := Noticing(con)):
        interrupted(noticing, begins_after=begins_after)
    assert isinstance(ended.value.__cause__, duckdb.InterruptException) is begins_after
    assert noted == [signal.SIGTERM]
    with connect() as con, interruptible(con):
        assert con.execute("SELECT 1").fetchall() == [(1,)], "the next block is another"
