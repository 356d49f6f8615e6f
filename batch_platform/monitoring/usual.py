"""The usual numbers of rows and of rejected rows of a partition, by those of earlier partitions alone."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from math import exp, expm1, hypot, inf, log, log1p, sqrt
from statistics import NormalDist, median

from batch_platform.declaration.calendar import Calendar
from batch_platform.warehouse.ledger import ScoreRun

LEAST_HISTORY = 6  # partitions; with fewer, nothing is unusual
MOST_COMPARED = 12  # partitions of the same weekday, the newest
DAYS_OF_WEEK = 7
MOST_REJECTING = 30  # partitions whose rejected rows are compared, the newest
_STEADY = 0.05  # relative spread that is taken to be usual, however steady the history is
_SURPRISE = 1e-4  # probability of so many rejected rows from which they are more than chance
_NORMAL = 1.4826  # times the median absolute deviation is the standard deviation of a normal variable
_HIGH = 0.9995  # quantile up to which a number of rows is usual, and as far down
_CLOSE = NormalDist().inv_cdf(_HIGH)  # standard deviations: less than the same quantile of any Student's distribution

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

    location: float  # of the logarithm of one row more
    spread: float  # standard deviation of that logarithm in a further partition
    partitions: int  # number of partitions that it is known from
    least: float = inf  # at least the numbers from this one
    most: float = -inf  # to this one are usual

    @property
    def middle(self) -> float:
        """The number in the middle."""
        return expm1(self.location)

    @property
    def low(self) -> float:
        """The lowest usual number."""
        return min(self.least, expm1(max(0.0, self.location - self._reach)))

    @property
    def high(self) -> float:
        """The highest usual number."""
        end = self.location + self._reach
        return inf if end > 700 else max(self.most, expm1(end))  # noqa: PLR2004 - beyond the range of a float

    def holds(self, rows: int) -> bool:
        """Return whether so many rows are usual."""
        is_close = abs(log1p(rows) - self.location) <= _CLOSE * self.spread
        return is_close or self.least <= rows <= self.most or self.low <= rows <= self.high

    @cached_property
    def _reach(self) -> float:
        from scipy.special import stdtrit  # takes longer to import than a status to show, and is needed for few numbers

        return float(stdtrit(self.partitions - 1, _HIGH)) * self.spread


def usual_rows(history: Sequence[int]) -> UsualRows | None:
    """Compute the usual number of rows after partitions with so many, oldest first; None with fewer than LEAST_HISTORY.

    The 99.9% prediction interval of a log-normal variable, with the median in place of the mean and the median absolute
    deviation in place of the standard deviation, so that a day of failure in the history does not hide the next (Hahn and
    Meeker, Statistical Intervals, 1991; the correction for few values is that of Croux and Rousseeuw, 1992). The spread is
    at least that of chance and 5% together. Of log-normal numbers fewer than 1% are outside, whatever their spread.
    """
    compared = history[-MOST_COMPARED:]
    count = len(compared)
    if count < LEAST_HISTORY:
        return None
    logs = [log1p(rows) for rows in compared]
    middle = median(logs)
    deviation = median(abs(value - middle) for value in logs) * _NORMAL * count / (count - 0.8)
    spread = hypot(deviation, sqrt(_STEADY**2 + exp(-middle)))
    return UsualRows(middle, spread * sqrt(1 + 1 / count), count)


def usual_rows_of_first_weeks(history: Sequence[int]) -> UsualRows | None:
    """The usual number of rows while too few partitions of a weekday are known; None in the first week.

    Takes those of all weekdays together. As a weekend may differ, and only one is known, all between half of the fewest and
    twice the most is usual, chance aside.
    """
    usual, compared = usual_rows(history), history[-MOST_COMPARED:]
    if usual is None or len(history) < DAYS_OF_WEEK:
        return None
    half, twice = min(compared) / 2, 2 * max(compared)
    return replace(usual, least=max(0.0, half - 3 * sqrt(half)), most=twice + 3 * sqrt(twice))


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
