"""A fitted estimator whose trees are evaluated by compiled code.

Preprocessing in front of the trees stays scikit-learn's own, and so does every matrix that scikit-learn refuses or
that is not plain numbers: it goes the native way, to the same result or the same error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.forest.ensembles import Ensemble, read_ensemble
from batch_platform.models.sklearn import SklearnPredictor

if TYPE_CHECKING:  # it imports numba
    from batch_platform.forest.arrays import Flat

# Rows times trees from which compiled code is worth its loading: importing numba and loading a kernel take about 0.4 s
# of one core, and scikit-learn needs some 40 ns for a row and a tree, which is 0.8 s for this many. The first process
# on a machine compiles for about 1.5 s instead, once.
WORTH_COMPILING = 20_000_000


@dataclass(frozen=True)
class CompiledPredictor:
    """Gives what the native predictor gives, bit for bit, sooner; safe to call from several threads at once."""

    native: SklearnPredictor
    steps: Sequence[Any]  # fitted transformers in front of the trees
    ensemble: Ensemble
    flat: "Flat"

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        given: Any = matrix.copy(order="F") if self.steps else matrix  # steps may work in place
        for step in self.steps:
            given = step.transform(given)
        if not self._is_plain(given):
            return self.native.predict(matrix)
        try:
            sums = self.ensemble.start(given)
        except ValueError:  # the native way tells it in the words of the estimator
            return self.native.predict(matrix)
        if not self.flat.add(given, sums):
            return self.native.predict(matrix)
        return np.asarray(self.ensemble.finish(sums))

    def _is_plain(self, given: Any) -> bool:
        """Whether it is what the kernels read; a single row goes the native way, see there."""
        if not isinstance(given, np.ndarray) or given.dtype != np.float64 or given.ndim != 2:  # noqa: PLR2004 - a matrix
            return False
        return len(given) > 1 and given.shape[1] == self.ensemble.features


def compile_predictor(native: SklearnPredictor) -> CompiledPredictor:
    """Lay the trees of a fitted estimator out and compile for them, or load what was compiled before.

    Raises:
        NotCompilableError: The estimator stays with scikit-learn's own code.
    """
    steps, ensemble = parts_of(native.estimator)
    from batch_platform.forest.arrays import flatten

    flat = flatten(ensemble)
    flat.prepare()
    return CompiledPredictor(native, steps, ensemble, flat)


def parts_of(estimator: Any) -> tuple[list[Any], Ensemble]:
    """The transformers in front of an estimator, and its trees.

    Raises:
        NotCompilableError: It is no tree ensemble that is known.
    """
    if not hasattr(estimator, "named_steps"):
        return [], read_ensemble(estimator)
    *steps, last = [step for _, step in estimator.steps]
    return [step for step in steps if step is not None and step != "passthrough"], read_ensemble(last)
