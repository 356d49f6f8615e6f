"""The class that each kind of model extends, and the imports, predictors and checks that several share.

An output that does not have the form that scoring expects is refused, not converted.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import (
    DataError,
    TrainingRefusedError,
    WrongUseError,
    did_you_mean,
    require_local,
)
from batch_platform.kernels.forest.ensembles import Ensemble, Finish, Link, Parts
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor, in_blocks
from batch_platform.models.contract import Contract, ForeignModel, Signature

Transform = Callable[[NDArray[np.float64]], NDArray[Any]]  # preprocessing in front of a model
STOPPING = (
    "early_stopping_round",
    "early_stopping_rounds",
    "early_stopping",
    "n_iter_no_change",
)  # parameters of all libraries
STOPPING_SHARE = 0.2  # share of the rows to learn from, the newest, that tells a booster when to stop
MOST_BYTES = 4 << 30  # size of an imported file at most, and of all that an archive unpacks to
_TOLERANCE = 1e-4  # tolerance of probabilities in float32
_EXPECTED = {
    "binary": "a binary model must return probabilities, [rows] of the second class or [rows, 2]",
    "multiclass": "a multiclass model must return one probability per class, [rows, classes]",
    "regression": "a regression must return one number per row, [rows]",
    "outliers": "an outlier model must return one anomaly score per row, [rows], above 0 for an outlier",
    "clustering": "a clustering must return one integer per row, [rows]",
}


def weight_option(estimator: Any, weights: NDArray[np.float64] | None) -> dict[str, NDArray[np.float64]]:
    """The option of an estimator's `fit` that gives each row its weight, if there are weights [n].

    Raises TrainingRefusedError for an estimator that does not take any.
    """
    from sklearn.utils.validation import has_fit_parameter

    if weights is None:
        return {}
    name, last = estimator.steps[-1] if hasattr(estimator, "named_steps") else ("", estimator)
    if not has_fit_parameter(last, "sample_weight"):
        msg = f"labels.weight: {type(last).__name__} cannot learn from rows of different weight."
        raise TrainingRefusedError(
            msg, hint="declare an estimator whose fit takes sample_weight, or leave labels.weight out."
        )
    return {f"{name}__sample_weight" if name else "sample_weight": weights}


def existing_file(folder: Path, reference: str) -> str:
    """Resolve a path relative to the folder of the declaration.

    Raises WrongUseError if there is no such file, and DataError if it, or what it unpacks to, is too large.
    """
    hint = "download the file and name it in model.import, or name a version of MLflow as models:/name/1."
    require_local(Path(reference), hint, key="model.import: ")
    path = folder / reference
    if not path.is_file():
        names = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        msg = f"model.import: there is no file {path}."
        hint = did_you_mean(path.name, names) or "give the path relative to the folder of the YAML file."
        raise WrongUseError(msg, hint=hint)
    size, unpacked = path.stat().st_size, 0
    if is_zipfile(path):
        with suppress(BadZipFile), ZipFile(path) as archive:  # its library says what is wrong with a damaged one
            unpacked = sum(entry.file_size for entry in archive.infolist())
    if max(size, unpacked) > MOST_BYTES:
        unpacks = "unpacks to" if unpacked > size else "has"
        msg = f"model.import: {path} {unpacks} {max(size, unpacked):,} bytes, more than the {MOST_BYTES:,} allowed; it is not opened."
        raise DataError(msg, hint="it is damaged or hostile, or too large a model: save a smaller one.")
    return str(path)


class Flavour(ABC):
    """A kind of model: how it is recognised, imported, trained, saved and loaded.

    Training follows the estimators of its library; the defaults suit one that behaves like scikit-learn's.
    """

    name: str  # name in `model.flavour` and in manifests
    libraries: tuple[str, ...]  # distributions whose minor version may change predictions, the main one first
    details: ClassVar[Mapping[str, Any]] = {}  # facts for every manifest of this flavour
    endings: tuple[str, ...] = ()  # endings of the files that can be imported, in lower case
    takes_params = False  # True if an import has parameters
    pickle_files: tuple[str, ...] = ()  # saved files that may run code when they are loaded
    environment: ClassVar[Mapping[str, str]] = {}  # variables for the import of its library
    calls_estimator = False  # True if a fitted estimator scores by its own methods, before it is saved and afterwards
    package = ""  # top-level package of the estimators, e.g. `lightgbm`; empty if the flavour is only imported

    @abstractmethod
    def save(self, model: Any) -> dict[str, bytes]:
        """The model's files by name; raises TrainingRefusedError for a model that could not be loaded again."""

    @abstractmethod
    def load(self, files: Mapping[str, bytes], signature: Signature) -> Predictor:
        """The predictor of files whose hashes were checked.

        Raises IntegrityError for a file that is not to be trusted, DataError for one that it cannot use, and WrongUseError
        without the library.
        """

    @abstractmethod
    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        """A model made elsewhere, with the parameters declared for it; raises as `load` does."""

    def recognises(self, folder: Path, reference: str) -> bool:
        """Tell whether a reference without a known ending is one of this flavour."""
        del folder, reference
        return False

    def locate(self, folder: Path, reference: str) -> str:
        """Resolve the declared reference to what `read` takes."""
        return existing_file(folder, reference)

    def is_remote(self, located: str) -> bool:
        """Tell whether reading what `locate` returned may need a server."""
        del located
        return False

    def runs_code(self, located: str) -> bool:
        """Tell whether reading what `locate` returned may run code in it."""
        del located
        return False

    def pickled(self, model: Any) -> Any:
        """Return the model as `save` takes it where pickle is allowed."""
        return model

    def fit(self, estimator: Any, matrix: Any, labels: Any, contract: Contract, weights: Any) -> None:
        """Fit an estimator to a matrix, its labels (None: unsupervised) and the weights of its rows (None: all alike)."""
        del contract
        estimator.fit(matrix, labels, **weight_option(estimator, weights))

    def accept_codes(self, estimator: Any, contract: Contract) -> bool:
        """Set an unfitted estimator up to read category codes and NaN as the contract encodes them.

        Returns False if it cannot, and gets scaled numbers and one-hot columns instead.
        """
        del estimator, contract
        return False

    def parameters(self) -> set[str]:
        """The names of parameters that the library accepts beyond those in the signature."""
        return set()

    def predictor(self, estimator: Any, signature: Signature) -> Predictor:
        """A predictor of a fitted estimator that scores exactly as it will after saving and loading."""
        return self.reloaded(estimator, signature)

    def reloaded(self, model: Any, signature: Signature) -> Predictor:
        """Save a model and load it again, so that what is evaluated is exactly what will score."""
        return self.load(self.save(model), signature)

    @property
    def single(self) -> bool:
        """True if its library returns numbers of 32 bits."""
        return self.details.get("precision") == "float32"

    def set_environment(self) -> None:
        """Set the variables that the library reads when it is first imported, unless they are set already."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)


@dataclass(frozen=True)
class PredictorInTurns:
    """A model that need not be thread-safe: calls take turns."""

    model: Any
    table: Callable[[NDArray[np.float64]], Any]  # makes the argument of its `predict` from a matrix
    signature: Signature
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return what the model returns, in the form of scores."""
        table = self.table(matrix)
        with self._lock, one_thread():
            raw = self.model.predict(table)
        return as_scores(raw, len(matrix), self.signature)


@dataclass(frozen=True)
class BoosterPredictor:
    """A booster with the preprocessing in front of it."""

    run: Callable[[Any], Any]  # the library's own prediction for a matrix, on one thread
    read: Callable[[Mapping[int, int]], Ensemble]  # reads its trees, given the number of categories by column
    transform: Transform | None  # the preprocessing; None if there is none
    signature: Signature
    margins: Callable[[Any], Any] | None = None  # the library's decision function for a matrix; None if it has none

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes] or values [rows]."""
        return as_scores(self._answer(self.run, matrix), len(matrix), self.signature)

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function [rows] of two classes or [rows, classes] of more; None if the library has none."""
        return None if self.margins is None else np.asarray(self._answer(self.margins, matrix), dtype=np.float64)

    def _answer(self, run: Callable[[Any], Any], matrix: NDArray[np.float64]) -> Any:
        transform = self.transform
        return run(matrix) if transform is None else in_blocks(matrix, lambda block: run(transform(block)))

    def parts(self) -> Parts:
        """Return preprocessing and trees, with a finish that returns scores; raise NotCompilableError for an unknown booster."""
        columns = self.signature.contract.columns
        direct = self.transform is None  # only then are the columns of the trees those of the contract
        categories = {at: len(columns[at].categories) for at in self.signature.contract.categorical if direct}
        ensemble = self.read(categories)
        finish = ensemble.finish
        if isinstance(finish, Link) and finish.name == "probability" and self.signature.task == "binary":
            finish = replace(finish, name="probabilities")
        elif not isinstance(finish, Link) or finish.name == "values":
            finish = partial(_finished, finish, self.signature)
        steps = [] if self.transform is None else [self.transform]
        return Parts(steps, len(columns), replace(ensemble, finish=finish))


def fit_booster(  # noqa: PLR0913 - a booster, and what it learns from
    estimator: Any,
    matrix: NDArray[np.float64],
    labels: NDArray[Any] | None,
    options: Mapping[str, Any],
    watching: Callable[[Any, Any, Any], Mapping[str, Any]] | None,
    weights: NDArray[np.float64] | None,
) -> None:
    """Fit a booster, alone or as the last step of a pipeline; one that stops early watches the newest of the rows.

    Args:
        estimator: Unfitted.
        matrix: Encoded rows in order of time. The rows on which the model is evaluated are not among them.
        labels: One for each row.
        options: For the booster's own `fit`.
        watching: The options that make the booster watch rows, given them, their labels, of a class its position among those
            that are learned from, and their weights; None if it does not stop early.
        weights: One for each row; None if all count alike.
    """
    from sklearn.base import is_classifier

    if watching is None or labels is None:
        estimator.fit(matrix, labels, **options, **weight_option(estimator, weights))
        return
    count = len(matrix) - max(1, int(len(matrix) * STOPPING_SHARE))
    earlier, later = matrix[:count], matrix[count:]
    watched = labels[count:]
    if is_classifier(estimator):  # LightGBM encodes the labels that it learns from, but not those that it watches
        watched = np.searchsorted(np.unique(labels[:count]), watched)
    booster = estimator
    if hasattr(estimator, "named_steps"):
        steps, booster = estimator[:-1], estimator.steps[-1][1]
        earlier = steps.fit_transform(earlier, labels[:count])
        later = steps.transform(later)
    of_earlier, of_later = (None, None) if weights is None else (weights[:count], weights[count:])
    booster.fit(earlier, labels[:count], sample_weight=of_earlier, **options, **watching(later, watched, of_later))


def _finished(finish: Finish, signature: Signature, sums: NDArray[np.float64]) -> NDArray[Any]:
    return as_scores(finish(sums), len(sums), signature)


def as_scores(raw: object, rows: int, signature: Signature) -> NDArray[Any]:
    """Check a model's output and return probabilities [rows, classes], values [rows] or segments [rows].

    A binary model may return only the probability of the second class, [rows] or [rows, 1]. Probabilities that rounding has
    led out of their range are brought back to 0 or 1; a masked value is none, which is NaN. Raises DataError for an output
    of another shape or type, or that is not a probability where a probability is needed.
    """
    values = np.ma.filled(raw.astype(np.float64), np.nan) if isinstance(raw, np.ma.MaskedArray) else np.asarray(raw)
    if values.shape[1:] == (1,):  # a table of one column
        values = values[:, 0]
    if signature.task == "binary" and values.ndim == 1 and values.dtype.kind == "f":
        values = np.column_stack([1 - values, values])
    shape = (rows, len(signature.classes)) if signature.task in ("binary", "multiclass") else (rows,)
    kinds = "iub" if signature.task == "clustering" else "f" if len(shape) > 1 else "fiu"
    if values.shape != shape or values.dtype.kind not in kinds:
        msg = f"The model returned {values.dtype} of shape {list(values.shape)} for {rows} rows; {_EXPECTED[signature.task]}."
        raise DataError(msg, hint="check model.task, model.classes and what the model was saved to return.")
    if signature.task == "clustering":
        return values.astype(np.int32)
    values = values.astype(np.float64)
    if len(shape) > 1 and not _are_probabilities(values):
        msg = f"The model returned numbers from {np.nanmin(values):g} to {np.nanmax(values):g}, which are not probabilities."
        raise DataError(msg, hint="save it with its final softmax or sigmoid, or declare another model.task.")
    return np.where(np.isfinite(values), values.clip(0, 1), values) if len(shape) > 1 else values


def _are_probabilities(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        return True
    sums = np.abs(finite.sum(axis=1) - 1).max()
    return bool(finite.min() >= -_TOLERANCE and finite.max() <= 1 + _TOLERANCE and sums <= _TOLERANCE)
