"""A model whose trees are evaluated by compiled code.

Preprocessing in front of the trees stays scikit-learn's own, and so does every matrix that the model's library refuses
or that is not plain numbers: it goes the native way, to the same result or the same error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.forest.ensembles import Ensemble
from batch_platform.models.signature import Predictor

if TYPE_CHECKING:  # it imports numba
    from batch_platform.models.forest.arrays import Flat
# Rows times trees from which compiled code is worth its loading: importing numba and loading a kernel take about 0.4 s
# of one core, and scikit-learn needs some 40 ns for a row and a tree, which is 0.8 s for this many. The first process
# on a machine compiles for about 1.5 s instead, once.
WORTH_COMPILING = 20_000_000


@dataclass(frozen=True)
class Parts:
    """What a model does to a matrix.

    Args:
        steps: Transformers in front of the trees; each may work in place.
        columns: Of the matrix.
        ensemble: The trees.
    """

    steps: Sequence[Callable[[NDArray[np.float64]], Any]]
    columns: int
    ensemble: Ensemble


@runtime_checkable
class CompilablePredictor(Predictor, Protocol):
    """A predictor, evaluated by the model's own library, that can tell what it does."""

    def parts(self) -> Parts:
        """Tell it.

        Raises:
            NotCompilableError: It is no tree ensemble that is known.
        """
        ...


@dataclass(frozen=True)
class CompiledPredictor:
    """Gives what the native predictor gives, bit for bit, sooner; safe to call from several threads at once."""

    native: Predictor
    parts: Parts
    flat: "Flat"

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        found = self.evaluated(matrix)
        return self.native.predict(matrix) if found is None else found

    def evaluated(self, matrix: NDArray[np.float64]) -> NDArray[Any] | None:
        """What the compiled trees say; None of what they leave to the library."""
        steps, ensemble = self.parts.steps, self.parts.ensemble
        given: Any = matrix.copy(order="F") if steps else matrix
        for step in steps:
            given = step(given)
        if not self._is_plain(given):
            return None
        try:
            sums = ensemble.start(given)
        except ValueError:  # the native way tells it in the words of the estimator
            return None
        return np.asarray(ensemble.finish(sums)) if self.flat.add(given, sums) else None

    def _is_plain(self, given: Any) -> bool:
        """Whether it is what the kernels read; a single row goes the native way, see there."""
        if not isinstance(given, np.ndarray) or given.dtype != np.float64 or given.ndim != 2:  # noqa: PLR2004 - a matrix
            return False
        return len(given) > 1 and given.shape[1] == self.parts.ensemble.features


def compile_predictor(native: CompilablePredictor) -> CompiledPredictor:
    """Lay the trees of a fitted model out and compile for them, or load what was compiled before.

    Raises:
        NotCompilableError: The model stays with its library's own code.
    """
    return compile_parts(native.parts(), native)


def compile_parts(parts: Parts, native: Predictor) -> CompiledPredictor:
    """The same for what a model is known to do; `native` is asked for what the compiled trees leave to it."""
    from batch_platform.models.forest.arrays import flatten

    flat = flatten(parts.ensemble)
    flat.prepare()
    return CompiledPredictor(native, parts, flat)
