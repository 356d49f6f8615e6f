"""The scikit-learn flavour: estimators saved with skops instead of pickle.

The list of types that skops may construct is fixed here; a file cannot extend it. An estimator that holds other types is saved with
pickle where the declaration allows it. Whoever opens a bundle checks that permission, not this module.

A scikit-learn pipeline that ends in a booster or a network becomes two files, each in its library's own format: the preprocessing is
saved here and applied before the model.

A linear model is kept as plain numbers beside the file of skops. They give its scores, and scikit-learn is not even imported.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, TrainingRefusedError, listed
from batch_platform.kernels.forest.ensembles import Parts
from batch_platform.kernels.forest.estimators import malformed_estimator, read_estimator
from batch_platform.kernels.linear import LINEAR_FILE, Linear, LinearPredictor, as_linear, linear_file, read_linear
from batch_platform.kernels.predictor import Predictor, in_blocks
from batch_platform.models.contract import BINARY, Contract, ForeignModel, Input, Signature, Task, decoded
from batch_platform.models.flavours.flavour import Flavour, Transform, weight_option

MODEL_FILE, PICKLE_FILE, STEPS_FILE = "model.skops", "model.pkl", "preprocessing.skops"
ROW_BY_ROW = (
    "sklearn.tree.",
    "sklearn.ensemble._forest",
    "sklearn.ensemble._hist_gradient_boosting",
    "sklearn.ensemble._iforest",
)
PICKLE_ENDINGS = (".pkl", ".pickle", ".joblib")
TRUSTED_TYPES = (
    "functools.partial",  # check_array in histogram trees with categories; its function must be listed too
    "numpy.dtype",
    # Containers of calibration and voting for their parts: plain classes, which run nothing when they are built.
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
_TRAIN_AGAIN = "train the serving period again."


@dataclass(frozen=True)
class SklearnPredictor:
    """A fitted estimator, called the one way that scoring calls it."""

    estimator: Any
    task: str

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes], or values or segments [rows], on as many threads as the caller allows."""
        return self._by_row(matrix, self.answer)

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function [rows] of two classes or [rows, classes] of more; None if the estimator has none."""
        return self._by_row(matrix, self.decision) if hasattr(self.estimator, "decision_function") else None

    def _by_row(
        self, matrix: NDArray[np.float64], answer: Callable[[NDArray[np.float64]], NDArray[Any]]
    ) -> NDArray[Any]:
        if not type(self.estimator).__module__.startswith(ROW_BY_ROW):
            return in_blocks(matrix, answer)
        if len(matrix) == 1:  # alone, its sums over classes would be added in another order than among others
            return answer(np.repeat(matrix, 2, axis=0))[:1]
        return answer(matrix)

    def parts(self) -> Parts:
        """Return preprocessing and trees; raises NotCompilableError if the estimator is not a known tree ensemble."""
        steps: list[Any] = [self.estimator]
        if _is_pipeline(self.estimator):
            steps = [step for _, step in self.estimator.steps]
        *transformers, last = [step for step in steps if step not in (None, "passthrough")]
        ensemble = read_estimator(last)
        columns = getattr(steps[0], "n_features_in_", ensemble.features)
        return Parts([transformer.transform for transformer in transformers], columns, ensemble)

    def answer(self, table: NDArray[np.float64] | pl.DataFrame) -> NDArray[Any]:
        """Call the estimator once on a table."""
        if self.task in ("binary", "multiclass"):
            return np.asarray(self.estimator.predict_proba(table), dtype=np.float64)
        if self.task == "outliers":  # scikit-learn's score is lower for odder rows, and below 0 for an outlier
            return -self.decision(table)
        return np.asarray(self.estimator.predict(table))

    def decision(self, table: NDArray[np.float64] | pl.DataFrame) -> NDArray[np.float64]:
        """Call its decision function once on a table."""
        return np.asarray(self.estimator.decision_function(table), dtype=np.float64)


@dataclass(frozen=True)
class _NamedPredictor:
    """An estimator that was fitted elsewhere on a table with column names, and is given such a table."""

    by_table: SklearnPredictor
    contract: Contract

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        return in_blocks(matrix, lambda block: self.by_table.answer(decoded(block, self.contract)))

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if not hasattr(self.by_table.estimator, "decision_function"):
            return None
        return in_blocks(matrix, lambda block: self.by_table.decision(decoded(block, self.contract)))


@dataclass(frozen=True)
class Pickled:
    """An estimator saved with pickle. Loading it runs whatever code its bytes ask for."""

    data: bytes
    linear: Linear | None


def _linear_of(estimator: Any) -> Linear | None:
    """The numbers of a linear model; None for any other, and for one that is given a table with column names."""
    if hasattr(estimator, "feature_names_in_"):
        return None
    task = "binary" if hasattr(estimator, "predict_proba") else "regression"
    return as_linear(estimator, SklearnPredictor(estimator, task))


def _load_native(files: Mapping[str, bytes], signature: Signature) -> Predictor:
    pickled = files.get(PICKLE_FILE)
    estimator = pickle.loads(pickled) if pickled is not None else loads(files[MODEL_FILE], MODEL_FILE)  # noqa: S301 - whoever opened the bundle asked for trust
    if hasattr(estimator, "feature_names_in_"):
        return _NamedPredictor(SklearnPredictor(estimator, signature.task), signature.contract)
    return SklearnPredictor(_without_copies(estimator), signature.task)


def saved(model: object) -> bytes:
    """Save an estimator or a transformer with skops; raises TrainingRefusedError if loading would not trust a type in it."""
    from skops import io

    data = io.dumps(model)
    if untrusted := _untrusted_types(data):
        msg = f"The estimator holds types that are not trusted when a bundle is loaded: {listed(untrusted)}."
        hint = "use scikit-learn's own estimators and transformers, or declare model.allow_pickle: true if you trust everyone who can write to the home."
        raise TrainingRefusedError(msg, hint=hint)
    return data


def last_of(model: Any) -> Any:
    """The last step of a pipeline; a model without preprocessing as it is."""
    return model.steps[-1][1] if hasattr(model, "named_steps") else model


def saved_steps(model: Any) -> dict[str, bytes]:
    """The file of the preprocessing in front of a model of another library; none if there is no preprocessing."""
    return {STEPS_FILE: saved(model[:-1])} if hasattr(model, "named_steps") and len(model.steps) > 1 else {}


def load_steps(files: Mapping[str, bytes]) -> Transform | None:
    """Load the preprocessing of a model of another library; None if there is none."""
    return loads(files[STEPS_FILE], STEPS_FILE).transform if STEPS_FILE in files else None


def loads(data: bytes, name: str) -> Any:
    """Load what skops saved; raises IntegrityError for other data and for a type that is not trusted."""
    from skops import io

    try:
        with ZipFile(BytesIO(data)) as archive:
            entries = archive.namelist()
        # skops unpacks nothing, but a file that it wrote has no entries with a path.
        if outside := [entry for entry in entries if "/" in entry or "\\" in entry or entry in (".", "..")]:
            msg = f"{name} holds entries that lead outside: {listed(outside)}; it is not loaded."
            raise IntegrityError(msg, hint=_TRAIN_AGAIN)
        untrusted = _untrusted_types(data)
    except (BadZipFile, KeyError) as error:
        msg = f"{name} was not written by skops; it is not loaded."
        raise IntegrityError(msg, hint=_TRAIN_AGAIN) from error
    if untrusted:
        msg = f"{name} asks for types that are not trusted: {listed(untrusted)}; it is not loaded."
        raise IntegrityError(msg, hint=_TRAIN_AGAIN)
    return io.loads(data, trusted=list(TRUSTED_TYPES))


def _described(reference: str, estimator: Any, model: object) -> ForeignModel:
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        msg = f"{reference} holds {type(estimator).__name__}, which is not a fitted estimator."
        raise DataError(msg, hint="save the estimator after fit.") from error
    names = [str(name) for name in getattr(estimator, "feature_names_in_", [])]
    inputs = [Input(name, "any") for name in names] or None
    if not names and (count := getattr(estimator, "n_features_in_", None)) is not None:
        inputs = [Input("", "number")] * count
    tests: dict[Task, Any] = {"regression": is_regressor, "clustering": is_clusterer, "outliers": is_outlier_detector}
    task: Task | None = next((task for task, is_task in tests.items() if is_task(estimator)), None)
    classes = estimator.classes_.tolist() if is_classifier(estimator) else None
    if classes is not None:
        task = "binary" if len(classes) == BINARY else "multiclass"
    return ForeignModel(model, inputs, task, classes, {"class": type(estimator).__name__})


def _is_pipeline(estimator: object) -> bool:
    from sklearn.pipeline import Pipeline

    return isinstance(estimator, Pipeline)


def _without_copies(estimator: Any) -> Any:
    """Let the steps of a pipeline work in place: the block that they are given is a copy already."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    for _, step in estimator.steps if _is_pipeline(estimator) else ():
        if isinstance(step, SimpleImputer | StandardScaler):
            step.copy = False
    return estimator


def _untrusted_types(data: bytes) -> list[str]:
    from skops import io

    return sorted(set(io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES))


class _Sklearn(Flavour):
    name = "sklearn"
    libraries = ("scikit-learn", "skops", "numpy")
    endings = (".skops", *PICKLE_ENDINGS)
    pickle_files = (PICKLE_FILE,)
    calls_estimator = True
    package = "sklearn"

    def fit(self, estimator: Any, matrix: NDArray[np.float64], labels: Any, contract: Contract, weights: Any) -> None:
        """Fit on rows in which a column may have no value at all, which histogram trees reject: as a constant it splits nothing."""
        del contract
        empty = np.isnan(matrix).all(axis=0)
        filled = np.where(empty, 0.0, matrix) if empty.any() else matrix
        estimator.fit(filled, labels, **weight_option(estimator, weights))

    def save(self, model: object) -> dict[str, bytes]:
        if isinstance(model, Pickled):
            files, linear = {PICKLE_FILE: model.data}, model.linear
        else:
            files, linear = {MODEL_FILE: saved(model)}, _linear_of(model)
        return files if linear is None else files | {LINEAR_FILE: linear_file(linear)}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> Predictor:
        native = partial(_load_native, files, signature)
        return LinearPredictor(read_linear(files[LINEAR_FILE]), native) if LINEAR_FILE in files else native()

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        data = Path(reference).read_bytes()
        if not reference.lower().endswith(PICKLE_ENDINGS):
            estimator = loads(data, Path(reference).name)
            if (problem := malformed_estimator(estimator)) is not None:
                msg = f"{reference} is damaged: {problem}."
                raise DataError(msg, hint="save it again, and import only what you trust.")
            return _described(reference, estimator, estimator)
        import joblib

        try:
            estimator = joblib.load(BytesIO(data))
        except Exception as error:  # a pickle may raise anything
            msg = f"{reference} cannot be unpickled: {type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(msg.rstrip(".") + ".", hint="save it with the library versions installed here.") from error
        return _described(reference, estimator, self.pickled(estimator))

    def runs_code(self, located: str) -> bool:
        return located.lower().endswith(PICKLE_ENDINGS)

    def pickled(self, model: object) -> object:
        """The estimator, or its pickle if it holds types that are not trusted."""
        if isinstance(model, Pickled):
            return model
        try:
            saved(model)
        except TrainingRefusedError:
            return Pickled(pickle.dumps(model), _linear_of(model))
        return model

    def predictor(self, estimator: Any, signature: Signature) -> Predictor:
        """The predictor of a fitted estimator; estimators of scikit-learn come back from disk exactly as they are."""
        native, linear = SklearnPredictor(estimator, signature.task), _linear_of(estimator)
        return native if linear is None else LinearPredictor(linear, lambda: native)


FLAVOUR = _Sklearn()
