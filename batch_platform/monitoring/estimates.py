"""Performance without labels: what a metric is expected to be, from how many rows lie in each cell of a score.

Training learns, on rows that the model has not seen, what came true in each cell: of two classes the share of positives, of
several how often the most probable one was right, of a regression the mean absolute error. The expected metric of other
rows follows from their counts alone, so the estimate of a whole is that of its merged profile. It holds as long as what came
true in a cell does: it follows a change of the rows, and not a change of what the same rows lead to.

For classes this is confidence-based performance estimation (Bialek, Kuberski and Perrakis, Estimating Model Performance Under
Covariate Shift Without Labels, 2024), for a regression direct loss estimation with a tree.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import counted
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.profiles import Bins
from batch_platform.monitoring.resampling import TWO_SIDED

AREA = "roc_auc"
ESTIMATED = (AREA, "accuracy", "brier", "log_loss", "mae")  # metrics that can be estimated
_INSTEAD = ("accuracy", "mae")  # what is shown of models that are judged by a metric that is not estimated
_LEAST_OF_A_CLASS = 0.5  # expected rows without which the area is not defined

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanMetric:
    """A metric that is the mean of a loss of each row, in each cell."""

    loss: tuple[float, ...]  # mean of a row
    spread: tuple[float, ...]  # variance of a row
    contrast: tuple[float, ...]  # change of the mean per unit of what was learned of the cell


@dataclass(frozen=True)
class Expectation:
    """The knowledge of training about each cell of a score."""

    bins: Bins
    blocks: tuple[int, ...]  # number of the block in which each cell was learned
    doubt: tuple[float, ...]  # variance of what was learned of each block
    means: Mapping[str, MeanMetric] = field(default_factory=dict[str, MeanMetric])  # means by metric
    rate: tuple[float, ...] | None = None  # share of positives of each cell; None unless there are two classes
    # By metric, factors of the variance in the outcomes and in what was learned, since rows of a unit share what makes them hard.
    clustered: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    # By metric, the standard deviation between the partitions of the evaluation window that chance does not explain, larger if
    # these are few.
    usual: Mapping[str, float] = field(default_factory=dict[str, float])
    # The same between the segments of these partitions, by column and metric.
    usual_of_segments: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Expectation":
        """Read what `to_json` returned."""
        rate = values["rate"]
        return cls(
            bins=Bins(tuple(values["bins"]["edges"])),
            blocks=tuple(values["blocks"]),
            doubt=tuple(values["doubt"]),
            means={
                name: MeanMetric(**{part: tuple(cells) for part, cells in mean.items()})
                for name, mean in values["means"].items()
            },
            rate=None if rate is None else tuple(rate),
            clustered={name: (chance, doubt) for name, (chance, doubt) in values.get("clustered", {}).items()},
            usual=values["usual"],
            usual_of_segments=values["usual_of_segments"],
        )


@dataclass(frozen=True)
class Estimate:
    """An expected metric; the interval is that of what comes true in 95 of 100 cases."""

    metric: str
    value: float
    low: float
    high: float


def estimates(expectation: Expectation, histogram: Sequence[int], segment_column: str | None = None) -> list[Estimate]:
    """The expected metrics of rows with these counts in the cells, by name; empty without rows.

    The variance of an interval adds up three parts: chance in the outcomes of the rows, chance in what was learned of the cells,
    and what differs between partitions beyond both. The rows of a value of `segment_column` share more than those of a whole
    partition, such as the weather of an airport: what differs between segments counts for them, if it is more.
    """
    of_segments = expectation.usual_of_segments.get(segment_column or "", {})
    made: list[Estimate] = []
    for name, (value, variance) in sorted(expected(expectation, histogram).items()):
        usual = max(expectation.usual.get(name, 0.0), of_segments.get(name, 0.0))
        reach = TWO_SIDED * sqrt(variance + usual**2)
        made.append(
            Estimate(name, value, max(METRICS[name].least, value - reach), min(METRICS[name].most, value + reach))
        )
    return made


def expected(expectation: Expectation, histogram: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Each metric that rows with these counts are expected to have, and its variance by chance; empty without rows."""
    counts = np.asarray(histogram, dtype=np.float64)
    rows = counts.sum()
    if not rows:
        return {}
    values = dict[str, tuple[float, float]]()
    for name, mean in expectation.means.items():
        chance = float(counts @ np.asarray(mean.spread)) / rows**2
        variance = _variance(expectation, name, chance, counts * np.asarray(mean.contrast) / rows)
        values[name] = float(counts @ np.asarray(mean.loss)) / rows, variance
    if expectation.rate is not None and (area := _area(expectation, np.asarray(expectation.rate), counts)) is not None:
        values[AREA] = area
    return values


def _area(expectation: Expectation, rate: Floats, counts: Floats) -> tuple[float, float] | None:
    """The area under the ROC curve of expected positives and negatives, and its variance; rows of one cell count half.

    The variance is that of its first derivative by the number of positives in each cell.
    """
    positives = counts * rate
    negatives = counts - positives
    hits, misses = positives.sum(), negatives.sum()
    if min(hits, misses) < _LEAST_OF_A_CLASS:
        return None
    below = np.cumsum(negatives) - negatives / 2
    above = hits - np.cumsum(positives) + positives / 2
    value = float(positives @ below) / (hits * misses)
    change = (below - above) / (hits * misses) - value / hits + value / misses
    chance = float(counts @ (rate * (1 - rate) * change**2))
    return value, _variance(expectation, "log_loss", chance, counts * change)  # between units both vary alike


def _variance(expectation: Expectation, metric: str, chance: float, influence: Floats) -> float:
    """The variance by chance in the outcomes, and that from what was learned of the cells, given the influence of each cell."""
    by_block = np.bincount(expectation.blocks, weights=influence, minlength=len(expectation.doubt))
    of_chance, of_doubt = expectation.clustered.get(metric, (1.0, 1.0))
    return of_chance * chance + of_doubt * float(by_block**2 @ np.asarray(expectation.doubt))


@dataclass(frozen=True)
class TrackRecord:
    """The distance of estimates of a metric from what came true, in partitions that their models had not learned from."""

    metric: str
    partitions: int
    mean_error: float  # mean absolute difference
    within: float  # share of the partitions in which the interval held what came true

    @property
    def partitions_within(self) -> int:
        """The number of partitions in which the interval held what came true."""
        return round(self.within * self.partitions)

    def __str__(self) -> str:
        """Say how far to believe an estimate."""
        of = counted(self.partitions, "partition")
        return f"off by {self.mean_error:.4f} on average in {of}, {self.within:.0%} within the interval"


def estimated_metric(judged_by: str, estimated: Collection[str]) -> str | None:
    """The estimated metric to show of a model that is judged by a metric: the same, or another; None where there is none."""
    return next((metric for metric in (judged_by, *_INSTEAD) if metric in estimated), None)
