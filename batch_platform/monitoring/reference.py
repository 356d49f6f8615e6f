"""The reference profile of a version: what its features and its prediction were like when it was trained, kept in its bundle.

Features are profiled over the rows that the version was fitted on (of a balanced sample, over as many of each class as all rows
have), the prediction over rows that it had not seen when it was judged. Scoring profiles its rows in the same bins.

The last part of it is what performance is estimated from without labels. Training learns, on rows that the model has not seen, what came true in each cell: of two classes the share of positives, of
several how often the most probable one was right, of a regression the mean absolute error. The expected metric of other
rows follows from their counts alone, so the estimate of a whole is that of its merged profile. It holds as long as what came
true in a cell does: it follows a change of the rows, and not a change of what the same rows lead to.

For classes this is confidence-based performance estimation (Bialek, Kuberski and Perrakis, Estimating Model Performance Under
Covariate Shift Without Labels, 2024), for a regression direct loss estimation with a tree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.divergence import Moves, usual_of
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.profiles import Bins, Profile, Role, RowReference
from batch_platform.monitoring.resampling import TWO_SIDED
from batch_platform.monitoring.segments import SegmentCounts

FORMAT = 1
Floats = NDArray[np.float64]
AREA = "roc_auc"
ESTIMATED = (AREA, "accuracy", "brier", "log_loss", "mae")  # metrics that can be estimated
_LEAST_OF_A_CLASS = 0.5  # expected rows without which the area is not defined


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
    if (
        expectation.rate is not None
        and (area := _expected_area(expectation, np.asarray(expectation.rate), counts)) is not None
    ):
        values[AREA] = area
    return values


def _expected_area(expectation: Expectation, rate: Floats, counts: Floats) -> tuple[float, float] | None:
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
class ErrorTree:
    """A regression tree for the absolute error, by its nodes; the first one is the root, and a leaf has no feature (-1).

    A refinement's file gives each sequence of numbers as an array of float64.
    """

    feature: tuple[int, ...]  # column of the encoded row; the one after the last is the prediction
    threshold: tuple[float, ...]  # values up to this one go to the left
    left: tuple[int, ...]
    right: tuple[int, ...]
    null_left: tuple[bool, ...]  # whether a row without a value goes to the left
    error: tuple[float, ...]  # mean absolute error of a leaf

    def leaves(self, matrix: Floats, predicted: Floats) -> NDArray[np.int64]:
        """The leaf of each row, given encoded rows [n, columns] and their predictions [n]."""
        leaves = np.zeros(len(predicted), dtype=np.int64)
        pending = [(0, np.arange(len(predicted)))]
        while pending:
            node, rows = pending.pop()
            feature = int(self.feature[node])
            if feature < 0:
                leaves[rows] = node
                continue
            values = predicted[rows] if feature == matrix.shape[1] else matrix[rows, feature]
            left = values <= self.threshold[node]
            if self.null_left[node]:
                left |= np.isnan(values)
            pending += [(int(self.left[node]), rows[left]), (int(self.right[node]), rows[~left])]
        return leaves

    def errors(self, matrix: Floats, predicted: Floats) -> Floats:
        """The absolute error that is expected of each row."""
        return np.asarray(self.error)[self.leaves(matrix, predicted)]


@dataclass(frozen=True)
class EstimateBasis:
    """The basis of the estimates of a version."""

    task: str
    expectation: Expectation
    tree: ErrorTree | None = None  # None unless it is a regression

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tree = None if self.tree is None else asdict(self.tree)
        return {"task": self.task, "expectation": self.expectation.to_json(), "tree": tree}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EstimateBasis":
        """Read what `to_json` returned."""
        tree = values["tree"]
        return cls(
            values["task"],
            Expectation.from_json(values["expectation"]),
            None if tree is None else ErrorTree(**{name: tuple(nodes) for name, nodes in tree.items()}),
        )


BySegment = Mapping[str | None, Mapping[str, float]]  # distances by value of a column and start of a partition


@dataclass(frozen=True)
class ReferenceProfile:
    """The profiles of the features, in the order of the contract, and of the prediction; None without rows to predict."""

    features: tuple[Profile, ...]
    prediction: Profile | None = None
    prediction_is_baseline: bool = True
    # How far the partitions of the training data are from the others, as index beyond chance: of each feature what is
    # usual, of the prediction that of the newest partitions that no fit had seen, by their start in UTC. Empty if unknown.
    usual: tuple[float, ...] = ()
    distances: Mapping[str, float] = field(default_factory=dict[str, float])
    # The same of the prediction in each segment, beside that of the same segment in the reference, by column and value.
    segment_distances: Mapping[str, BySegment] = field(default_factory=dict[str, BySegment])
    basis: EstimateBasis | None = None  # None where estimates could not be learned
    # Counts of `prediction`; empty where it is no baseline.
    by_segment: SegmentCounts = field(default_factory=SegmentCounts)
    # How far the partitions of the training data are from the others by range and mean; None for text. Empty if unknown.
    moves: tuple[Moves | None, ...] = ()
    rows: RowReference = field(default_factory=RowReference)
    # Index between the scores that the judged fit and the one that serves give the rows that the former was judged by.
    apart: float = 0.0

    @property
    def usual_by_column(self) -> dict[tuple[Role, str], float]:
        """The usual distance of a partition, by role and name; without unknown ones."""
        known = dict[tuple[Role, str], float]()
        for profile, usual in zip(self.features, self.usual, strict=False):
            known[profile.role, profile.name] = usual
        if self.prediction is not None and (self.distances or self.apart):
            usual = usual_of(self.distances.values()) if self.distances else 0.0
            known[self.prediction.role, self.prediction.name] = usual + self.apart
        return known

    @property
    def moves_by_column(self) -> dict[str, Moves | None]:
        """The usual distance of a number by its range and mean, at most, by name of the feature; empty if unknown."""
        return {profile.name: moves for profile, moves in zip(self.features, self.moves, strict=False)}

    def usual_of_segment(self, column: str, segment: str | None) -> float | None:
        """The largest usual distance of the prediction in a segment from the reference, never less than that of all rows.

        None where it is not known: then the partitions that no fit had seen do not hold the segment twice.
        """
        if not (own := self.segment_distances.get(column, {}).get(segment)):
            return None
        return max([*own.values(), *self.distances.values()]) + self.apart

    @property
    def baseline(self) -> tuple[Profile, ...]:
        """The profiles that those of other rows can be compared with."""
        return self.profiles if self.prediction_is_baseline else self.features

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, that of the prediction last."""
        return self.features if self.prediction is None else (*self.features, self.prediction)

    def named(self, by_segment: SegmentCounts) -> SegmentCounts:
        """Counts of a partition under the names that may be kept: values that are frequent in it or in the reference."""
        own, known = by_segment.frequent, self.by_segment.frequent
        return by_segment.naming({column: {*values, *known.get(column, ())} for column, values in own.items()})

    def of_segment(self, counts: Sequence[int]) -> Profile:
        """The profile of the prediction in a segment, from its counts: those of the cells, and then of unknown categories."""
        if self.prediction is None:
            msg = "there is no prediction"
            raise ValueError(msg)
        *histogram, unknown = counts
        name, bins = self.prediction.name, self.prediction.bins
        return Profile(name, "prediction", bins, sum(counts), unknown=unknown, histogram=tuple(histogram))

    def to_json(self) -> bytes:
        """Write the file of a bundle."""
        values = {
            "format": FORMAT,
            "features": [profile.to_json() for profile in self.features],
            "prediction": None if self.prediction is None else self.prediction.to_json(),
            "prediction_is_baseline": self.prediction_is_baseline,
            "usual": {"reference": self.usual},  # by baseline, as former versions wrote it
            "moves": {"reference": [moves and vars(moves) for moves in self.moves]},
            "distances": {"reference": self.distances},
            "segment_distances": {column: [*of.items()] for column, of in self.segment_distances.items()},
            "basis": None if self.basis is None else self.basis.to_json(),
            "by_segment": self.by_segment.to_json(),
            "rows": self.rows.to_json(),
            "apart": self.apart,
        }
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "ReferenceProfile":
        """Read the file of a bundle."""
        values = json.loads(text)
        prediction, basis = values["prediction"], values["basis"]
        return cls(
            tuple(map(Profile.from_json, values["features"])),
            None if prediction is None else Profile.from_json(prediction),
            values["prediction_is_baseline"],
            tuple(values["usual"].get("reference", ())),
            values["distances"].get("reference", {}),
            {column: dict(pairs) for column, pairs in values["segment_distances"].items()},
            None if basis is None else EstimateBasis.from_json(basis),
            SegmentCounts.from_json(values["by_segment"]),
            tuple(moves and Moves(**moves) for moves in values["moves"].get("reference", ())),
            RowReference.from_json(values.get("rows")),
            values.get("apart", 0.0),
        )
