"""The progress of a run, reported within its process; the command line draws its bars from the reports."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run of an asset; reported for each finished partition, and on the way through a large one."""

    asset: str
    partition_key: str  # partition that is finished or on its way
    done: int  # finished partitions
    total: int  # partitions of the run
    rows: int  # rows of this partition so far
    of: int | None = None  # rows of a partition that is on its way; None once it is finished
    rows_per_second: float | None = None  # mean of the run so far; None if unknown
    seconds_per_partition: float | None = None  # likewise
    findings: tuple[str, ...] = ()  # what is odd about the sources or the labels of a partition

    @property
    def part(self) -> float:
        """The share of the unfinished partition that is done, at most 1."""
        return min(self.rows / self.of, 1.0) if self.of else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until all partitions are done at this speed; None if it is not known."""
        each = self.seconds_per_partition
        return None if each is None else each * max(0.0, self.total - self.done - self.part)

    def __str__(self) -> str:
        """Give one line for a log."""
        rows = f"{self.rows:,} of {self.of:,} rows" if self.of else f"{self.rows:,} rows"
        pace = f", {self.rows_per_second:,.0f} rows/s" if self.rows_per_second else ""
        left = "" if self.seconds_left is None else f", {self.seconds_left:,.0f} s left"
        return f"{self.done} of {self.total}, {self.partition_key}, {rows}{pace}{left}"


class Pace:
    """Adds up the rows of one run of an asset and measures its mean speed.

    Partitions may be committed together, so the first of several says nothing of the time that each takes.
    """

    def __init__(self, asset: str, total: int, clock: Callable[[], float] = monotonic) -> None:
        """Start the clock; `total` partitions are to come."""
        self._asset, self._total, self._clock, self._began = asset, total, clock, clock()
        self._rows: dict[str, int] = {}
        self._seen = self._done = 0

    def reached(self, partition_key: str, rows: int, of: int | None = None) -> RunProgress:
        """The progress at so many rows of a partition: out of `of` rows, or of the whole partition if `of` is None."""
        self._done += of is None
        self._seen += rows - self._rows.get(partition_key, 0)
        self._rows[partition_key] = rows
        seconds, done = self._clock() - self._began, self._done + (min(rows / of, 1.0) if of else 0.0)
        tells = seconds > 0 and (done != 1 or self._total == 1)
        return RunProgress(
            asset=self._asset,
            partition_key=partition_key,
            done=self._done,
            total=self._total,
            rows=rows,
            of=of,
            rows_per_second=self._seen / seconds if tells and self._seen else None,
            seconds_per_partition=seconds / done if tells and done else None,
        )


Listener = Callable[[RunProgress], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Call a function with every progress report of the runs in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(progress: RunProgress) -> None:
    """Report progress to the listener, if there is one."""
    if (listener := _listener.get()) is not None:
        listener(progress)
