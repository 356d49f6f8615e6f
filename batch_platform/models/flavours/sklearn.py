"""The scikit-learn flavour: estimators kept with skops, never with pickle.

The list of types that skops may construct is written here; a file cannot ask for more. What holds other types is kept
with pickle, where the declaration allows it by name; whoever opens a bundle asks for that permission, not this module.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, TrainingRefusedError, listed
from batch_platform.models.contract import Contract
from batch_platform.models.forest.compiled import Parts
from batch_platform.models.forest.estimators import read_estimator
from batch_platform.models.signature import Found, Input, Predictor, Signature, Task, decoded

FLAVOUR = "sklearn"
MODEL_FILE, PICKLE_FILE = "model.skops", "model.pkl"
BLOCK_ROWS = 16_384  # of a matrix that passes through preprocessing: what each step makes of it stays in the cache
LIBRARIES = ("scikit-learn", "skops", "numpy")
UNPICKLES = (PICKLE_FILE,)
PICKLES = (".pkl", ".pickle", ".joblib")  # endings of files that are imported
DETAILS: Mapping[str, Any] = {}
TRUSTED_TYPES = (
    "functools.partial",  # of check_array, inside histogram trees with categories; its function must be listed too
    "numpy.dtype",
    # What calibration and voting hold their parts in: plain classes, which run nothing when they are made.
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
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

    def parts(self) -> Parts:
        """What it does, where the estimator is a tree ensemble."""
        stages: list[Any] = (
            [step for _, step in self.estimator.steps] if _has_steps(self.estimator) else [self.estimator]
        )
        *steps, last = [stage for stage in stages if stage not in (None, "passthrough")]
        ensemble = read_estimator(last)
        columns = getattr(stages[0], "n_features_in_", ensemble.features)
        return Parts([step.transform for step in steps], columns, ensemble)

    def _predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """A single row goes in twice: alone, its sums over classes would be made in another order than among others."""
        if len(matrix) == 1:
            return self._predict(np.repeat(matrix, 2, axis=0))[:1]
        return self.answer(matrix)

    def answer(self, table: NDArray[np.float64] | pl.DataFrame) -> NDArray[Any]:
        """What the estimator says of a table, in one call."""
        if self.task in ("binary", "multiclass"):
            return np.asarray(self.estimator.predict_proba(table), dtype=np.float64)
        if self.task == "outliers":  # scikit-learn's is the lower the odder, and below 0 an outlier
            return -np.asarray(self.estimator.decision_function(table), dtype=np.float64)
        return np.asarray(self.estimator.predict(table))


def _has_steps(estimator: object) -> bool:
    from sklearn.pipeline import Pipeline

    return isinstance(estimator, Pipeline)


def _without_copies(estimator: Any) -> Any:
    """The same estimator, its steps working in place: the block that they are given is a copy already."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    for _, step in estimator.steps if _has_steps(estimator) else ():
        if isinstance(step, SimpleImputer | StandardScaler):
            step.copy = False
    return estimator


@dataclass(frozen=True)
class NamedPredictor:
    """An estimator that was fitted elsewhere on a table with column names, and is given one."""

    of_table: SklearnPredictor
    contract: Contract

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        if len(matrix) == 1:  # for the reason told above
            return self.predict(np.repeat(matrix, 2, axis=0))[:1]
        return self.of_table.answer(decoded(matrix, self.contract))


@dataclass(frozen=True)
class Pickled:
    """An estimator that is kept with pickle: loading it runs whatever code its bytes ask for."""

    data: bytes


def safest(estimator: object) -> object:
    """What to save where pickle is allowed: the estimator, or its pickle if it holds types that are not trusted."""
    if isinstance(estimator, Pickled):
        return estimator
    return Pickled(pickle.dumps(estimator)) if _foreign_types(_dumped(estimator)) else estimator


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a file has no parameters
    """Read an estimator that skops or pickle wrote; whoever calls has asked for trust in the latter.

    Raises:
        IntegrityError: skops wrote it with types that are not trusted.
        DataError: It is no fitted estimator.
    """
    data = Path(reference).read_bytes()
    if not reference.lower().endswith(PICKLES):
        return _told(reference, (estimator := constructed(data, Path(reference).name)), estimator)
    import joblib

    try:
        estimator = joblib.load(BytesIO(data))
    except Exception as error:  # a pickle may raise anything
        msg = f"{reference} cannot be unpickled: {type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(msg.rstrip(".") + ".", hint="save it with the libraries that are installed here.") from error
    return _told(reference, estimator, safest(estimator))


def _told(reference: str, estimator: Any, model: object) -> Found:
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        msg = f"{reference} holds {type(estimator).__name__}, which is no fitted estimator."
        raise DataError(msg, hint="save the estimator after fit.") from error
    names = [str(name) for name in getattr(estimator, "feature_names_in_", [])]
    count = getattr(estimator, "n_features_in_", None)
    inputs = (
        None
        if count is None
        else [Input(names[at] if names else "", "any" if names else "number") for at in range(count)]
    )
    classes = estimator.classes_.tolist() if is_classifier(estimator) else None
    kinds: tuple[tuple[Any, Task], ...] = (
        (is_regressor, "regression"),
        (is_clusterer, "clustering"),
        (is_outlier_detector, "outliers"),
    )
    task: Task | None = next((task for is_one, task in kinds if is_one(estimator)), None)
    if classes is not None:
        task = "binary" if len(classes) == 2 else "multiclass"  # noqa: PLR2004 - two classes are binary
    return Found(model, inputs, task, classes, {"class": type(estimator).__name__})


def save(model: object, folder: Path) -> list[str]:
    """Write a fitted estimator; gives the names of the files.

    Raises:
        TrainingRefusedError: It holds a type that would not be trusted when it is loaded.
    """
    if isinstance(model, Pickled):
        (folder / PICKLE_FILE).write_bytes(model.data)
        return [PICKLE_FILE]
    (folder / MODEL_FILE).write_bytes(dumped(model))
    return [MODEL_FILE]


def load(files: Mapping[str, bytes], signature: Signature) -> Predictor:
    """Construct the estimator from bytes that were found unchanged.

    Raises:
        IntegrityError: The file is none of skops, or asks for a type that is not on the list.
    """
    pickled = files.get(PICKLE_FILE)
    estimator = pickle.loads(pickled) if pickled is not None else constructed(files[MODEL_FILE], MODEL_FILE)  # noqa: S301 - whoever opened the bundle asked for trust
    if hasattr(estimator, "feature_names_in_"):
        return NamedPredictor(SklearnPredictor(estimator, signature.task), signature.contract)
    return SklearnPredictor(_without_copies(estimator), signature.task)


def dumped(model: object) -> bytes:
    """An estimator or a transformer as skops writes it.

    Raises:
        TrainingRefusedError: It holds a type that would not be trusted when it is loaded.
    """
    data = _dumped(model)
    if foreign := _foreign_types(data):
        msg = f"The estimator holds types that are not trusted when a bundle is loaded: {listed(foreign)}."
        hint = "use scikit-learn's own estimators and transformers, or declare model.allow_pickle: true if all who can write the home are trusted."
        raise TrainingRefusedError(msg, hint=hint)
    return data


def constructed(data: bytes, name: str) -> Any:
    """What skops reads from bytes, of trusted types only.

    Raises:
        IntegrityError: They were not written by skops, or ask for a type that is not on the list.
    """
    from skops import io

    try:
        with ZipFile(BytesIO(data)) as archive:
            _require_plain(name, archive.namelist())
        foreign = _foreign_types(data)
    except (BadZipFile, KeyError) as error:
        msg = f"{name} was not written by skops; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.") from error
    if foreign:
        msg = f"{name} asks for types that are not trusted: {listed(foreign)}; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.")
    return io.loads(data, trusted=list(TRUSTED_TYPES))


def _dumped(model: object) -> bytes:
    from skops import io

    return io.dumps(model)


def _foreign_types(data: bytes) -> list[str]:
    from skops import io

    return sorted(set(io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES))


def _require_plain(file: str, names: Sequence[str]) -> None:
    """Skops unpacks nothing, but a file that it wrote holds no entry that would lead elsewhere."""
    if outside := [name for name in names if "/" in name or "\\" in name or name in (".", "..")]:
        msg = f"{file} holds entries that lead outside: {listed(outside)}; it is not loaded."
        raise IntegrityError(msg, hint="train the serving period again.")
