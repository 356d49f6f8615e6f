"""Trees evaluated by NumPy alone, for runs of few rows: importing a compiler, or the library of the model, takes longer.

The bits are those of the library, as the digests in the file of the trees prove in every process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import LEAF, MOST_CATEGORIES, Ensemble, Tree, as_decisions
from batch_platform.kernels.forest.structure import require_sound
from batch_platform.kernels.predictor import Predictor, decisions

# Rows times trees up to which NumPy is quicker. It needs 0.15 µs for each; importing numba and loading a kernel takes 0.7 s of one core.
MOST_VISITS = 2_000_000


@dataclass(frozen=True)
class PlainPredictor:
    """Returns the bits that the native predictor returns; safe to call from several threads at once."""

    native: Predictor
    ensemble: Ensemble
    nodes: Tree  # the nodes of all trees, in one list
    roots: NDArray[np.int64]  # [trees]

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities [rows, classes], or values or segments [rows]."""
        scores = self.evaluated(matrix)
        return self.native.predict(matrix) if scores is None else scores

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function of a classifier that has one: the sums of its trees."""
        sums = self._sums(matrix)
        return decisions(self.native, matrix) if sums is None else as_decisions(sums, self.ensemble.finish)

    def evaluated(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Evaluate the trees; None for a matrix that they leave to the library."""
        sums = self._sums(matrix)
        return None if sums is None else np.asarray(self.ensemble.finish(sums))

    def _sums(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        ensemble = self.ensemble
        if matrix.dtype != np.float64 or matrix.shape[1:] != (ensemble.features,) or len(matrix) <= 1:
            return None  # a single row too: `SklearnPredictor` says why
        with np.errstate(over="ignore"):  # a value too large for 32 bits is infinite, as in the library
            if (values := coded(ensemble, matrix)) is None:
                return None
            sums = ensemble.start(matrix)
            for tree, leaves in zip(ensemble.trees, self._leaves(values), strict=True):
                part = sums[:, tree.output : tree.output + tree.value.shape[1]]
                part += self.nodes.value[leaves]
                if ensemble.single_sums:
                    part[:] = part.astype(np.float32)
        return sums

    def _leaves(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaf that each row reaches [trees, rows], as a node among those of all trees."""
        nodes = self.nodes
        at = np.repeat(self.roots, len(values))
        waiting = np.flatnonzero(nodes.left[at] >= 0)
        while len(waiting):
            node = at[waiting]
            value = values[waiting % len(values), nodes.feature[node]]
            goes_left = np.where(np.isnan(value), nodes.missing_left[node], value <= nodes.threshold[node])
            if len(nodes.left_sets):
                by_set = nodes.left_set[node] >= 0
                goes_left[by_set] = nodes.left_sets[nodes.left_set[node[by_set]], value[by_set].astype(np.int64)]
            at[waiting] = node = np.where(goes_left, nodes.left[node], nodes.right[node])
            waiting = waiting[nodes.left[node] >= 0]
        return at.reshape(len(self.roots), len(values))


def lay_out(ensemble: Ensemble, native: Predictor) -> PlainPredictor:
    """Join the trees of an ensemble; raises MalformedError if its nodes form no trees."""
    require_sound(ensemble)
    return PlainPredictor(native, ensemble, *joined(ensemble.trees))


def joined(trees: Sequence[Tree]) -> tuple[Tree, NDArray[np.int64]]:
    """The nodes of all trees in one list, and the place of each root."""
    roots, sets = _starts(len(tree.left) for tree in trees), _starts(len(tree.left_sets) for tree in trees)

    def together(name: str, starts: NDArray[np.int64] | None = None) -> NDArray[Any]:
        parts = [getattr(tree, name) for tree in trees]
        if starts is not None:  # a number below zero stands for none
            parts = [np.where(part >= 0, part + start, LEAF) for part, start in zip(parts, starts, strict=True)]
        return np.concatenate(parts)

    nodes = Tree(
        feature=together("feature"),
        threshold=together("threshold"),
        left=together("left", roots),
        right=together("right", roots),
        missing_left=together("missing_left"),
        value=together("value"),
        left_set=together("left_set", sets),
        left_sets=together("left_sets"),
        cover=together("cover"),
    )
    return nodes, roots


def coded(ensemble: Ensemble, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The values as the trees compare them, categories as their codes; None if the library might refuse a row."""
    values = matrix.astype(np.float32).astype(np.float64) if ensemble.single else matrix.copy()
    infinite = np.isinf(values[:, ensemble.infinity_refused]).any()
    if infinite or (ensemble.nan_refused and np.isnan(values).any()):
        return None
    for at, known in ensemble.categories.items():
        codes = np.minimum(np.searchsorted(known, values[:, at]), len(known) - 1)
        unknown = known[codes] != values[:, at]
        if ensemble.unknown_refused and (unknown & ~np.isnan(values[:, at])).any():
            return None
        values[:, at] = np.where(unknown, MOST_CATEGORIES, codes)
    return values


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    """The places at which the members of a joined list begin, given their lengths."""
    return np.cumsum([0, *lengths])[:-1]
