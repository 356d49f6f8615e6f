"""Two models on the same rows: how far they agree, the difference of a metric with its uncertainty, and the verdict.

For a difference, both models are measured again without the same units, so that what makes rows hard for both cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, log10
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import counted
from batch_platform.monitoring.metrics import METRICS, Metric, lower_is_better, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import Resampled

ROUNDING = 1e-9  # two ways to compute the same number may differ by as much


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus the metric of another, on the same rows, with its 95% interval."""

    metric: str
    estimate: float  # value on all rows
    low: float
    high: float
    rows: int
    resampled_by: str = "row"  # the unit: "row", "partition", "entity", "group", or a column
    groups: int = 0  # number of units


def paired_difference(metric: str, first: Outcomes, second: Outcomes) -> Difference | None:
    """A metric of the first model minus that of the second, on the same rows in the same order.

    None if there are no rows, if the metric has no weighted form or measures other tasks, if it is not defined on the rows or
    without one of their units, and if there are too few units.
    """
    record = METRICS[metric]
    if not len(first.predicted) or record.weighted is None or first.task not in record.tasks:
        return None
    value, other = _measured(record, first), _measured(record, second)
    if value is None or other is None:
        return None
    resampled = Resampled.of(first, least=2)
    others = second.at(resampled.kept)
    reach = resampled.reaches({metric: resampled.form_of_difference(record, others)}).get(metric)
    half = np.nan if reach is None else reach.half or resampled.least_half(record, others)
    if reach is None or np.isnan(half):
        return None
    estimate, (least, most) = value - other, record.bounds(first)
    ends = max(least - most, estimate - half), min(most - least, estimate + half)  # no difference is larger
    return Difference(metric, estimate, *ends, len(first.predicted), reach.unit, reach.units)


def _measured(metric: Metric, outcomes: Outcomes) -> float | None:
    rows = metric.rows_of(outcomes)
    return metric(rows) if len(rows.predicted) else None


Word = Literal["better", "worse", "cannot tell"]
MOST_TIMES = 100  # times as many rows as there are, beyond which it does not say how many would be needed
POWER_OF_80 = 1 + 0.84 / 1.96  # halves of a 95% interval by which models differ that are told apart in 80% of cases
MOST_DECIMALS = 6


@dataclass(frozen=True)
class Verdict:
    """A metric of a model beside that of another one, on the same rows."""

    metric: str
    value: float
    other: float
    rows: int
    difference: Difference | None  # value minus other; None if no interval can be computed

    @classmethod
    def on(cls, metric: str, first: Outcomes, second: Outcomes) -> "Verdict | None":
        """Hold a model against a second one on the same rows in the same order; None if the metric is not defined there."""
        value, other = (measure(outcomes, only=[metric]).get(metric) for outcomes in (first, second))
        if value is None or other is None:
            return None
        difference = None if first.truth is None else paired_difference(metric, first, second)
        return cls(metric, value, other, len(first.predicted), difference)

    @property
    def turned(self) -> "Verdict":
        """The verdict on the other model beside this one."""
        turned = self.difference
        if turned is not None:
            turned = replace(turned, estimate=-turned.estimate, low=-turned.high, high=-turned.low)
        return replace(self, value=self.other, other=self.value, difference=turned)

    @property
    def gain(self) -> tuple[float, float]:
        """The ends of the interval of the difference, turned so that what is above 0 is better; (-inf, inf) without one."""
        if self.difference is None:
            return -float("inf"), float("inf")
        signed = self.metric in METRICS and METRICS[self.metric].signed  # an error of which 0 is best
        turned = self.value + self.other > 0 if signed else lower_is_better(self.metric)
        low, high = self.difference.low, self.difference.high
        return (-high, -low) if turned else (low, high)

    @property
    def word(self) -> Word:
        """The verdict: better or worse if the whole interval says so."""
        low, high = self.gain
        return "better" if low > ROUNDING else "worse" if high < -ROUNDING else "cannot tell"

    def units_needed(self, worth: float | None) -> str:
        """About how many independent units would show a difference of `worth` in 8 of 10 cases; empty if no such number can be said.

        It cannot without an interval or a difference worth seeing, if so many units are there, or if far more would be needed. An interval is
        as wide as the root of their number is small, and a difference of (1 + 0.84 / 1.96) times half its width is seen in 80% of cases.
        """
        difference = self.difference
        if difference is None or not worth or self.word != "cannot tell":
            return ""
        times = (POWER_OF_80 * (difference.high - difference.low) / 2 / worth) ** 2
        present = difference.rows if difference.resampled_by == "row" else difference.groups
        if not 1 < times < MOST_TIMES:
            return ""
        units = round(times * present)
        about = round(units, 1 - floor(log10(units)))
        return f"about {counted(about, difference.resampled_by)} would be needed to see a difference of {worth:g} in 8 of 10 cases"

    def beside(self, other: str, unclear: str = "not clearly better or worse than", worth: float | None = None) -> str:
        """The verdict with its evidence, as a clause, e.g. `better than champion V: roc_auc 0.744 against 0.731 on 840 rows (…)`.

        `worth` is the smallest difference worth seeing; see `units_needed`.
        """
        relation = unclear if self.word == "cannot tell" else f"{self.word} than"
        digits = f",.{self._decimals}f"
        difference, rows = self.difference, counted(self.rows, "row")
        if difference is None:
            evidence = "no interval can be computed"
        elif max(abs(difference.low), abs(difference.high)) <= ROUNDING:
            evidence = "no difference"
        else:
            estimate = f"{round(difference.estimate, self._decimals) + 0.0:{digits}}"  # never -0
            low, high = map(self._end, (difference.low, difference.high))
            evidence = f"difference {estimate}, between {low} and {high}"
        if difference is not None and difference.resampled_by != "row":
            rows += f" of {counted(difference.groups, difference.resampled_by)}"
        values = f"{self.metric} {self.value:{digits}} against {self.other:{digits}}"
        clause = f"{relation} {other}: {values} on {rows} ({evidence})"
        return f"{clause}; {needed}" if (needed := self.units_needed(worth)) else clause

    def _end(self, end: float) -> str:
        """An end of the interval, with so many digits that only a 0 looks like one: the verdict depends on its sign."""
        decimals = self._decimals if abs(end) <= ROUNDING else max(self._decimals, -floor(log10(abs(end))))
        return f"{round(end, decimals) + 0.0:,.{decimals}f}"

    @property
    def _decimals(self) -> int:
        """Decimals that show three digits of the values, and one of half the width of the interval."""
        largest = max(abs(self.value), abs(self.other))
        needed = 3 if largest == 0 else 2 - floor(log10(largest))
        if self.difference is not None and (width := self.difference.high - self.difference.low) > ROUNDING:
            needed = max(needed, -floor(log10(width / 2)))
        return min(max(needed, 0), MOST_DECIMALS)


MOST_SCORES = 500_000  # limit for a model over all score columns; with so many ranked rows the coefficient is known to about 0.002


@dataclass(frozen=True)
class Agreed:
    """The agreement of two models."""

    rank_correlation: float | None = None  # Spearman's, averaged over the score columns; None if a model ranks nothing
    decisions_flipped: float | None = None  # share of the rows whose decisions differ; None if nothing is decided


@dataclass(frozen=True, eq=False)
class Agreement:
    """The outputs of two models for some rows.

    Mergeable: the agreement on a whole is the merge of the agreements on its parts, bit for bit, whatever the parts. Memory is bounded:
    of a whole of very many rows, evenly spaced ones are ranked, fewer of them the more score columns there are.
    """

    rows: int = 0
    flipped: int | None = None  # number of rows whose decisions differ; None if nothing is decided
    places: tuple[NDArray[np.int64], ...] = ()  # position of each ranked row in the whole
    scores: tuple[NDArray[np.float64], ...] = ()  # scores of both models for the ranked rows [2, n, columns]

    @classmethod
    def of(  # noqa: PLR0913 - the outputs of two models, and their place in the whole
        cls,
        places: NDArray[np.int64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
        flipped: NDArray[np.bool_] | None,
        whole: int,
        most_scores: int = MOST_SCORES,
    ) -> "Agreement":
        """Take the scores [n, columns] of both models for some rows of a whole of so many, and where their decisions differ [n]."""
        ranked = places % max(1, -(-whole * first.shape[1] // most_scores)) == 0
        count = None if flipped is None else int(flipped.sum())
        return cls(len(places), count, (places[ranked],), (np.stack([first[ranked], second[ranked]]),))

    def __add__(self, further: "Agreement") -> "Agreement":
        """The agreement on the rows of both, in either order."""
        flipped = [count for count in (self.flipped, further.flipped) if count is not None]
        places, scores = self.places + further.places, self.scores + further.scores
        return Agreement(self.rows + further.rows, sum(flipped) if flipped else None, places, scores)

    def result(self) -> Agreed:
        """The agreement on all of these rows."""
        if not self.rows:
            return Agreed()
        places, (first, second) = np.concatenate(self.places), np.concatenate(self.scores, axis=1)
        if (np.diff(places) < 0).any():  # sums depend on the order of the rows, by their last bit
            order = np.argsort(places)
            first, second = first[order], second[order]
        columns = [spearman(first[:, at], second[:, at]) for at in range(first.shape[1])]
        known = [value for value in columns if value is not None]
        return Agreed(
            rank_correlation=float(np.mean(known)) if known and len(known) == len(columns) else None,
            decisions_flipped=None if self.flipped is None else self.flipped / self.rows,
        )


def columns_of(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Some columns as a matrix [n, columns]."""
    return np.column_stack([frame[name].to_numpy() for name in columns]) if columns else np.empty((frame.height, 0))


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Pearson's coefficient of the ranks (Spearman, The Proof and Measurement of Association, 1904); None without order."""
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])
