"""The usual numbers of rows and of rejected rows of a partition, by those of earlier partitions alone."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import log, sqrt
from statistics import median

from batch_platform.declaration.calendar import Calendar
from batch_platform.warehouse.ledger import ScoreRun

COMPARED = 8  # number of partitions, the newest, that a partition is compared with
LEAST_ALIKE = 4  # with fewer partitions of the same weekday, those of all days count too: one may have been at fault
LEAST_SHARE = 0.6  # share of the median that is enough: half of the rows is too few
CHANCE = 2.5  # standard deviations of a number of rows that comes about by chance
LEAST_HISTORY = 6  # partitions whose rejected rows are known; with fewer, none is unusual
MOST_REJECTING = 30  # partitions whose rejected rows are compared, the newest
_SURPRISE = 1e-4  # probability of so many rejected rows from which they are more than chance

_Rhythm = tuple[int, ...]  # what partitions have in common whose numbers of rows are compared


class Past:
    """The scored partitions of a pipeline in order of time, and which of them are alike."""

    def __init__(self, calendar: Calendar, runs: Iterable[ScoreRun]) -> None:
        """Begin with some commits, the newest of each partition."""
        self._calendar, self._runs = calendar, dict[datetime, ScoreRun]()
        self._starts = defaultdict[_Rhythm | None, list[datetime]](list)  # None: all
        for run in sorted(runs, key=lambda run: run.partition_start):
            self.add(run)

    def add(self, run: ScoreRun) -> None:
        """Take account of a commit, which replaces an earlier one of the same partition."""
        if run.partition_start not in self._runs:
            for rhythm in {None, self._rhythm(run), self._rhythm(run, weekday=False)}:
                insort(self._starts[rhythm], run.partition_start)
        self._runs[run.partition_start] = run

    def before(self, run: ScoreRun, most: int, *, alike: bool, weekday: bool = True) -> list[ScoreRun]:
        """The newest commits before a partition, oldest first; if `alike`, of its hour if it is one, and of its `weekday`."""
        starts = self._starts[self._rhythm(run, weekday=weekday) if alike else None]
        end = bisect_left(starts, run.partition_start)
        return [self._runs[start] for start in starts[max(0, end - most) : end]]

    def _rhythm(self, run: ScoreRun, *, weekday: bool = True) -> _Rhythm:
        local = run.partition_start.astimezone(self._calendar.zone)
        day = (local.weekday(),) if weekday else ()
        match self._calendar.every:
            case "hour":
                return *day, local.hour
            case "day":
                return day
            case "week" | "month":
                return ()


@dataclass(frozen=True)
class UsualRows:
    """The usual number of rows."""

    middle: float
    low: float
    high: float

    def holds(self, rows: int) -> bool:
        """Return whether so many rows are usual."""
        return self.low <= rows <= self.high


def usual_rows(alike: Sequence[int], all_days: Sequence[int]) -> UsualRows | None:
    """Return the usual number of rows after partitions with so many, the newest last; None with fewer than COMPARED.

    The limits are LEAST_SHARE of the median of the newest COMPARED partitions that are `alike` (of the same weekday) and the median over
    LEAST_SHARE, chance aside. With fewer than LEAST_ALIKE of them, whatever is usual among the newest of `all_days` is usual too.
    """
    if len(all_days) < COMPARED:
        return None
    compared = [alike] if len(alike) >= LEAST_ALIKE else [alike or all_days, all_days]
    medians = [median(history[-COMPARED:]) for history in compared]
    lowest, highest = min(medians), max(medians)
    return UsualRows(
        medians[0],
        max(0.0, min(lowest * LEAST_SHARE, lowest - CHANCE * sqrt(lowest))),
        max(highest / LEAST_SHARE, highest + CHANCE * sqrt(highest + 1)),
    )


def unusually_many(rejected: int, rows: int, history: Collection[tuple[int, int]]) -> bool:
    """Return whether more rows are rejected than earlier partitions explain; never with fewer than LEAST_HISTORY of them.

    Args:
        rejected: Rejected rows of the partition.
        rows: Its rows.
        history: The same of earlier partitions, each with at least one row.

    The share that is usual is the highest of a partition, and at least that of one more row in all of them together. Chance
    is ruled out by the bound of Chernoff and Hoeffding on the tail of the binomial distribution (Hoeffding, 1963).
    """
    if len(history) < LEAST_HISTORY or not rejected:
        return False
    pooled = (1 + sum(before for before, _ in history)) / (1 + sum(of for _, of in history))
    usual = max(pooled, *(before / of for before, of in history))
    share = rejected / rows
    if share <= usual or usual >= 1:
        return False
    divergence = share * log(share / usual)
    if share < 1:
        divergence += (1 - share) * log((1 - share) / (1 - usual))
    return rows * divergence > -log(_SURPRISE)
