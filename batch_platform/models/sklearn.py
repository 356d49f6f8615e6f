"""The scikit-learn flavour: estimators kept with skops, never with pickle.

The list of types that skops may construct is written here; a file cannot ask for more.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from batch_platform.errors import IntegrityError, TrainingRefusedError, listed

FLAVOUR = "sklearn"
MODEL_FILE = "model.skops"
BLOCK_ROWS = 16_384  # of a matrix that passes through preprocessing: what each step makes of it stays in the cache
LIBRARIES = ("scikit-learn", "skops", "numpy")

TRUSTED_TYPES = (
    "functools.partial",  # of check_array, inside histogram trees with categories; its function must be listed too
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)


@dataclass(frozen=True)
class SklearnPredictor:
    """A fitted estimator behind the one call that scoring makes."""

    estimator: Any
    task: str

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]; on as many threads as the caller lets."""
        if not _has_steps(self.estimator):
            return self._predict(matrix)
        rows = range(0, max(1, len(matrix)), BLOCK_ROWS)  # no rows are refused in the words of the first step
        return np.concatenate([self._predict(matrix[at : at + BLOCK_ROWS].copy(order="F")) for at in rows])

    def _predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """A single row goes in twice: alone, its sums over classes would be made in another order than among others."""
        if len(matrix) == 1:
            return self._predict(np.repeat(matrix, 2, axis=0))[:1]
        if self.task in ("binary", "multiclass"):
            return np.asarray(self.estimator.predict_proba(matrix), dtype=np.float64)
        return np.asarray(self.estimator.predict(matrix))


def _has_steps(estimator: object) -> bool:
    from sklearn.pipeline import Pipeline

    return isinstance(estimator, Pipeline)


def _without_copies(estimator: Any) -> Any:  # noqa: ANN401 - any estimator
    """The same estimator, its steps working in place: the block that they are given is a copy already."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    for _, step in estimator.steps if _has_steps(estimator) else ():
        if isinstance(step, SimpleImputer | StandardScaler):
            step.copy = False
    return estimator


def one_thread() -> AbstractContextManager[object]:
    """Hold the numeric libraries loaded by now to one thread each, in this process: for many short calls.

    Waking more threads costs more than a batch is worth, and sums come out the same on every machine.
    """
    return ThreadpoolController().limit(limits=1)


def one_thread_here() -> None:
    """The same for a new thread that lives within `one_thread`: OpenMP keeps its limit for each thread that calls it."""
    ThreadpoolController().select(user_api="openmp").limit(limits=1)


def import_libraries() -> None:
    """Import what loading a model needs.

    Who knows that a model will be loaded calls it first of all: skops looks through every imported module for the names
    of the types that it knows, and the fewer there are the quicker it is.
    """
    import_module("skops.io")


def save(model: object, folder: Path) -> list[str]:
    """Write a fitted estimator; gives the names of the files.

    Raises:
        TrainingRefusedError: It holds a type that would not be trusted when it is loaded.
    """
    from skops import io

    data = io.dumps(model)
    if foreign := sorted(set(io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES)):
        msg = f"The estimator holds types that are not trusted when a bundle is loaded: {listed(foreign)}."
        raise TrainingRefusedError(msg, hint="use scikit-learn's own estimators and transformers.")
    (folder / MODEL_FILE).write_bytes(data)
    return [MODEL_FILE]


def load(files: Mapping[str, bytes], task: str) -> SklearnPredictor:
    """Construct the estimator from bytes that were found unchanged.

    Raises:
        IntegrityError: The file is none of skops, or asks for a type that is not on the list.
    """
    from skops import io

    data = files[MODEL_FILE]
    try:
        with ZipFile(BytesIO(data)) as archive:
            _require_plain(archive.namelist())
        asked = set(io.get_untrusted_types(data=data))
    except (BadZipFile, KeyError) as error:
        msg = f"{MODEL_FILE} was not written by skops; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.") from error
    if foreign := sorted(asked - set(TRUSTED_TYPES)):
        msg = f"{MODEL_FILE} asks for types that are not trusted: {listed(foreign)}; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.")
    return SklearnPredictor(_without_copies(io.loads(data, trusted=list(TRUSTED_TYPES))), task)


def _require_plain(names: Sequence[str]) -> None:
    """Skops unpacks nothing, but a file that it wrote holds no entry that would lead elsewhere."""
    if outside := [name for name in names if "/" in name or "\\" in name or name in (".", "..")]:
        msg = f"{MODEL_FILE} holds entries that lead outside: {listed(outside)}; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.")
