"""The reference profile of a version: what its features and its prediction were like when it was trained, kept in its bundle.

Features are profiled over the rows that the version was fitted on (of a balanced sample, over as many of each class as all rows
have), the prediction over rows that it had not seen when it was judged. Scoring profiles its rows in the same bins.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.drift import Moves, usual_of
from batch_platform.monitoring.estimates import Expectation
from batch_platform.monitoring.profiles import Profile, Role
from batch_platform.monitoring.rows import RowReference
from batch_platform.monitoring.segments import SegmentCounts

FORMAT = 1
Floats = NDArray[np.float64]


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
