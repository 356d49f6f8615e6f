"""The output of a model for some rows beside the truth, on plain arrays, and the units of rows that depend on each other: what metrics measure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import listed
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.predictions import ENDS
from batch_platform.declaration.spec import PipelineSpec

CLASSIFICATION = ("binary", "multiclass")
BINARY = ("binary",)
REGRESSION = ("regression",)
UNSUPERVISED = ("clustering", "outliers")
TASKS = (*CLASSIFICATION, *REGRESSION, *UNSUPERVISED)
ENTITY, PARTITION = "entity", "partition"  # names of units that are not declared
UNKNOWN = -1  # position of a class that the model does not know
LOW, HIGH = ENDS

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]  # a metric of some rows, given weights [..., rows]; NaN where it is not defined


@dataclass(frozen=True, eq=False)
class Rule:
    """A declared rule, made out for the classes of one model."""

    probability: float | None = None  # least probability of the positive class to act on; None for other rules
    costs: Floats | None = None  # cost where a class is true and one is decided [true, decided]; None without costs

    def decided(self, probabilities: NDArray[Any]) -> NDArray[np.int64] | None:
        """Position of the decided class of each row [n], given class probabilities [n, classes]; None for `top`.

        Of classes that cost the same, the first is decided. Each row is added up by itself, so that a decision does not depend on
        the other rows of a batch, by its last bit either.
        """
        scores = probabilities.astype(np.float64, copy=False)
        if self.probability is not None:
            return (scores[:, 1] >= self.probability).astype(np.int64)
        if self.costs is None:
            return None
        expected = np.zeros(scores.shape)
        for true, of_true in enumerate(self.costs):
            for decided, cost in enumerate(of_true):
                expected[:, decided] += scores[:, true] * cost
        return expected.argmin(axis=1)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The output of a model for some rows, and the truth.

    `predicted` holds class probabilities [n, classes] of a classification, otherwise values, clusters or outlier scores
    [n]; a row is an outlier if its score is above 0.
    """

    task: str
    predicted: Floats
    truth: NDArray[Any] | None = None  # true classes or values [n]; None without labels
    classes: Sequence[Any] = ()  # classes in the order of the columns; of two, and of outliers, the last is positive
    matrix: Floats | None = None  # encoded features of a clustering [n, columns]; NaN is a missing value
    # Number of each row's unit [n], by the name of the unit: rows that share one depend on each other. Partitions ascend in time.
    units: Mapping[str, NDArray[np.integer]] = field(default_factory=dict[str, NDArray[np.integer]])
    positions: NDArray[np.int64] | None = None  # positions of the true classes [n], if they are known already
    rule: Rule | None = None  # the declared rule of decision
    decided: NDArray[np.int64] | None = None  # positions of the decided classes [n], where they are stored
    weights: Floats | None = None  # declared weight of each row [n]; None: all count alike

    @cached_property
    def true_positions(self) -> NDArray[np.int64]:
        """Position of each row's true class in `classes` [n]; -1 for a class that the model does not know."""
        if self.positions is not None:
            return self.positions
        positions = {label: position for position, label in enumerate(self.classes)}
        return np.array([positions.get(label, UNKNOWN) for label in self.labels.tolist()], dtype=np.int64)

    @cached_property
    def decisions(self) -> NDArray[np.int64]:
        """Position of the class that was decided for each row [n]: by the declared rule, otherwise the most probable one."""
        decided = self.decided
        if decided is None and self.rule is not None:
            decided = self.rule.decided(self.predicted)
        return self.predicted.argmax(axis=1) if decided is None else decided

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The true classes, or the true values as float64 [n]; they must be known."""
        if self.truth is None:
            msg = f"the metrics of a {self.task} model need labels"
            raise ValueError(msg)
        return self.truth.astype(np.float64) if self.task == "regression" else self.truth

    @cached_property
    def of_known_class(self) -> NDArray[np.bool_]:
        """Mask of the rows [n] whose true class the model knows; it does for tasks without classes."""
        if self.task not in CLASSIFICATION:
            return np.ones(len(self.predicted), dtype=np.bool_)
        return self.true_positions != UNKNOWN

    @property
    def known(self) -> "Outcomes":
        """The rows whose true class the model knows."""
        return (
            self if self.of_known_class.all() else self._known
        )  # not kept in itself, or its arrays would not be freed

    @cached_property
    def _known(self) -> "Outcomes":
        return self.at(self.of_known_class)

    def at(self, rows: slice | NDArray[Any]) -> "Outcomes":
        """Some of the rows."""
        by_row = ("truth", "matrix", "positions", "weights", "decided")
        present = {name: values[rows] for name in by_row if (values := getattr(self, name)) is not None}
        units = {name: numbers[rows] for name, numbers in self.units.items()}
        return replace(self, predicted=self.predicted[rows], units=units, **present)

    @cached_property
    def ranked(self) -> "Ranked":
        """The rows by the score of the positive class."""
        return Ranked(*self.positive_and_score)

    @cached_property
    def row_weights(self) -> Floats:
        """Weights of the rows, of mean 1 [n]; what several metrics count with them is counted once."""
        return np.ones(len(self.predicted)) if self.weights is None else self.weights / self.weights.mean()

    @cached_property
    def positives(self) -> int | None:
        """Number of positive rows; None for tasks without a positive class, and without labels."""
        if self.truth is None or self.task not in ("binary", "outliers"):
            return None
        return int(self.positive_and_score[0].sum())

    def every(self, step: int) -> "Outcomes":
        """Every so many rows."""
        return self if step == 1 else self.at(slice(None, None, step))

    @cached_property
    def positive_and_score(self) -> tuple[NDArray[np.bool_], Floats]:
        """Mask of the positive rows, and all scores [n]; of outliers without exactly two labels, no row is."""
        if self.task != "outliers":
            return self.true_positions == 1, self.predicted[:, 1]
        labels = self.classes or ([] if self.truth is None else np.unique(self.truth))
        if len(labels) < 2 or (len(labels) > 2 and not self.classes):  # noqa: PLR2004 - two classes
            return np.zeros(len(self.predicted), dtype=np.bool_), self.predicted
        return self.labels == labels[-1], self.predicted


def weights_of(rows: pl.DataFrame) -> Floats | None:
    """The weights of some rows [n]; None where none are declared."""
    return rows[WEIGHT].to_numpy() if WEIGHT in rows.columns else None


@dataclass(frozen=True, eq=False)
class Ratio:
    """A metric that follows from the ratio of two sums over the rows: a share of rows, or a mean."""

    part: Floats  # 1 for the rows of a share, 0 for others; or the values of a mean [n]
    whole: Floats  # 1 for the rows that count, 0 for others [n]
    scaled: Callable[[Any], Any] = lambda ratio: ratio  # the metric, given the ratio

    def weighted(self, weights: Floats) -> Floats:
        """The ratio of weighted rows."""
        return weights @ self.part / (weights @ self.whole)


@dataclass(frozen=True, eq=False)
class Counted:
    """Weights at each distinct score, the highest first [..., scores]."""

    hits: Floats  # weight of the positive rows with the score
    rows: Floats  # weight of all rows with the score
    found: Floats  # weight of the positive rows with at least the score
    held: Floats  # weight of all rows with at least the score


class Ranked:
    """Rows by their score, the highest first."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        """Rank rows; `positive` and `score` are of each row [n]."""
        self._order = np.argsort(-score, kind="stable")
        ranked = score[self._order]
        self._ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # last row with each distinct score
        self._positives = self._order[positive[self._order]]
        self._reached = np.cumsum(positive[self._order])[self._ends]  # number of these with at least each score
        self._last: tuple[Floats, Counted] | None = None  # several metrics ask for the same weights in turn

    def counted(self, weights: Floats) -> Counted:
        """The weights at each distinct score, given those of rows [..., n], which are whole numbers."""
        if self._last is None or self._last[0] is not weights:
            positives = np.cumsum(columns(weights, self._positives), axis=-1).T
            none = np.zeros((1, *positives.shape[1:]))
            found = columns(np.concatenate([none, positives]).T, self._reached)
            held = np.cumsum(columns(weights, self._order), axis=-1)
            if len(self._ends) < len(self._order):  # each draw in one piece, of which sums are quicker
                found, held = np.ascontiguousarray(found), np.ascontiguousarray(columns(held, self._ends))
            self._last = weights, Counted(_steps(found), _steps(held), found, held)
        return self._last[1]

    @cached_property
    def turns(self) -> NDArray[np.int64]:
        """Positions of the distinct scores at which the shares of positive and negative rows found so far can be furthest apart.

        Those are the scores of positive rows, each one before them, and the last: between them only one share grows.
        """
        at_positives = np.flatnonzero(np.diff(self._reached, prepend=0))
        return np.unique(np.r_[np.maximum(at_positives - 1, 0), at_positives, len(self._ends) - 1])


def columns(values: Floats, chosen: NDArray[Any]) -> Floats:
    """Some columns [..., n], row by row: where the values lie in memory row by row too, three times as quick as an index."""
    return np.take(values.T, chosen, axis=0).T if values.T.flags.c_contiguous else values[..., chosen]


def _steps(sums: Floats) -> Floats:
    """The summands [..., n] of cumulative sums; NumPy's `diff` takes five times as long, to put a 0 before them."""
    steps = sums.copy(order="K")
    steps[..., 1:] -= sums[..., :-1]
    return steps


def total(weights: Floats) -> Floats:
    """The sum of weights [..., n], which are whole numbers: several times as quick as NumPy's sum."""
    return weights @ np.ones(weights.shape[-1])


def over_all_rows(prepare: Callable[[Outcomes], Weighted], outcomes: Outcomes) -> float | None:
    """A metric of rows that weigh what is declared, else 1; None where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(prepare(outcomes)(outcomes.row_weights))
    return value if np.isfinite(value) else None


def class_texts(classes: Sequence[Any]) -> list[str]:
    """Classes as text."""
    return pl.Series(list(classes)).cast(pl.String).to_list() if classes else []


def prediction_columns(task: str, classes: Sequence[object]) -> list[str]:
    """Names of the columns that a model of a task adds to a row."""
    match task:
        case "binary" | "outliers":
            return ["prediction", "score"]
        case "multiclass":
            return ["prediction", *(f"score_{label}" for label in classes)]
        case _:
            return ["prediction"]


CONFIDENCE = (
    "A 95% confidence interval says where a number lies in the whole population that the rows stand for, if the world stays the "
    "same: of 100 such intervals, about 95 hold it. A new measurement on other rows varies too, and falls into it less often."
)


@dataclass(frozen=True)
class UnitRule:
    """The rule by which rows depend on each other."""

    declared: str | None = None  # "row", "partition", or a column
    group: Sequence[str] = ()  # columns by which training holds out rows together

    @classmethod
    def of(cls, spec: PipelineSpec) -> "UnitRule":
        """The rule of a pipeline."""
        return cls(spec.monitoring.unit, spec.model.train.group)

    def __str__(self) -> str:
        """A sentence that says what depends on each other."""
        if self.declared == "row":
            return "All rows are held to be independent, as monitoring.unit declares."
        if self.column:
            return f"Several rows with the same {self.column[0]} count as one, as monitoring.unit declares."
        entity = f"with the same {listed(self.group)}" if self.group else "of one entity (same key, times aside)"
        rows = "" if self.declared else f"Several rows {entity} count as one. "
        return f"{rows}Where partitions differ by more than chance explains, each counts as a single observation, so that more rows can give a wider interval."

    @property
    def column(self) -> list[str]:
        """The declared column, if there is one."""
        return [self.declared] if self.declared and self.declared not in ("row", PARTITION) else []

    @property
    def columns(self) -> list[str]:
        """The columns that tell the unit of a row, unless its key does."""
        return self.column or ([] if self.declared else [*self.group])

    def numbers(
        self, rows: pl.DataFrame, key: Sequence[str], partition: str | None = None
    ) -> dict[str, NDArray[np.integer]]:
        """The number of each row's unit [n], by the name of the unit.

        `partition` is the column with the partition of each row; without it, all are rows of one.
        """
        units = dict[str, Sequence[str]]()
        if self.column:
            units[self.column[0]] = self.column
        elif self.declared is None:
            lasting = [name for name in key if not rows.schema[name].is_temporal()]
            recurs = partition is not None or len(lasting) < len(key)
            grouped = self.group and {*self.group} <= {*rows.columns}  # a feature that is not kept is not known
            units = {"group": self.group} if grouped else {ENTITY: lasting if recurs else ()}
        numbers = {
            name: rows.select(columns).hash_rows().to_numpy()
            for name, columns in units.items()
            if columns and {*columns} <= {*rows.columns}
        }
        if partition is not None and self.declared in (None, PARTITION):
            numbers[PARTITION] = rows[partition].rank("dense").to_numpy()
        return numbers
