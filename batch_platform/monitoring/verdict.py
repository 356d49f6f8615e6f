"""The verdict on a model beside another one on the same rows: better, worse, or cannot tell, from one paired interval."""

from dataclasses import dataclass, replace
from math import floor, log10
from typing import Literal

from batch_platform.declaration.errors import counted
from batch_platform.monitoring.comparison import ROUNDING, Difference, paired_difference
from batch_platform.monitoring.metrics import METRICS, lower_is_better, measure
from batch_platform.monitoring.outcomes import Outcomes

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
