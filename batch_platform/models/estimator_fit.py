"""Fitting one estimator to a matrix: threads, convergence, and what its library says when it refuses."""

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import BatchPlatformError, TrainingRefusedError, first_few, listed
from batch_platform.kernels.native_threads import no_more_threads, one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Contract, Signature
from batch_platform.models.declared_model import name_of
from batch_platform.models.flavours.flavour import STOPPING, BoosterPredictor, Flavour
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.flavours.sklearn import SklearnPredictor, last_of
from batch_platform.monitoring.metrics import as_truth
from batch_platform.monitoring.outcomes import CLASSIFICATION, weights_of

AUTO_ROWS = 10_000  # scikit-learn's histogram trees stop early on more rows, unless a parameter says otherwise
MANY_ROWS = 50_000  # above, several threads are faster than one; on fewer rows they mostly wait
COMPARED_ROWS = 10_000  # rows for the comparison of a booster with its saved form
_PLACE_IN_LIBRARY = re.compile(
    r"^\[[\d:]+\] \S+:\d+: (Check failed: .*?: )?| at /\S+, line \d+ ?\.?$"
)  # names in XGBoost, LightGBM
_DRAWN = ("sklearn.neural_network.", "sklearn.linear_model._stochastic_gradient", "keras.")  # modules of estimators
QUICK_TREES = 30  # trees that tell whether a column can be learned
ROUNDING = 1e-5  # relative and absolute; XGBoost computes with 24 bits


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows to learn from that keep the contract."""

    matrix: NDArray[np.float64]  # [n, columns]
    truth: NDArray[Any] | None  # labels [n]; None for a task without
    weights: NDArray[np.float64] | None  # [n]; None if all count alike

    @classmethod
    def of(cls, rows: pl.DataFrame, contract: Contract, label: str | None) -> "EncodedRows":
        """Encode rows."""
        truth = None if label is None else as_truth(rows[label])
        return cls(contract.encode(rows), truth, weights_of(rows))

    def at(self, chosen: NDArray[np.bool_]) -> "EncodedRows":
        """Some of the rows."""
        truth, weights = (None if of is None else of[chosen] for of in (self.truth, self.weights))
        return EncodedRows(self.matrix[chosen], truth, weights)


def fit_estimator(
    kind: Flavour, estimator: Any, signature: Signature, rows: EncodedRows
) -> tuple[Predictor, tuple[str, ...]]:
    """Fit an estimator; returns its predictor, and what it says of the fit."""
    many = len(rows.matrix) >= MANY_ROWS
    with no_more_threads() if many else one_thread(), _convergence_recorded() as remarks:
        predictor = fitted_predictor(kind, estimator, signature, rows)
    if isinstance(predictor, BoosterPredictor):
        _require_own_scores(estimator, predictor, signature, rows.matrix)
    return predictor, tuple(remarks)


def fitted_predictor(kind: Flavour, estimator: Any, signature: Signature, rows: EncodedRows) -> Predictor:
    """Fit an estimator, on as many threads as the caller allows; if its own order of the classes is another, it learns positions."""
    truth = rows.truth
    if truth is not None and signature.task in CLASSIFICATION and signature.classes != np.unique(truth).tolist():
        positions = {label: at for at, label in enumerate(signature.classes)}
        truth = np.array([positions[label] for label in truth.tolist()])
        for name, value in estimator.get_params().items():
            if name.endswith("class_weight") and isinstance(value, dict):
                estimator.set_params(**{name: {positions.get(label, label): value[label] for label in value}})
    kind.fit(estimator, rows.matrix, truth, signature.contract, rows.weights)
    return kind.predictor(estimator, signature)


def draws_by_class(estimator: Any, rows: int) -> bool:
    """Return whether the order of the classes decides what an estimator draws at random.

    It does for the first weights of networks, and for the rows by which scikit-learn tells when to stop early. Boosters that
    stop early are counted too: one rounded sum can end them in another round.
    """
    for step in (estimator, *estimator.get_params().values()):
        if type(step).__module__.startswith(_DRAWN):
            return True
        own = step.get_params(deep=False) if isinstance(getattr(step, "get_params", None), MethodType) else {}
        stops = next((own[name] for name in STOPPING if own.get(name) is not None), False)
        if stops and (stops != "auto" or rows > AUTO_ROWS):
            return True
    return False


@contextmanager
def _convergence_recorded() -> Generator[list[str]]:
    """Collect scikit-learn's warnings that an estimator did not converge, as one remark; other warnings are warned of."""
    from sklearn.exceptions import ConvergenceWarning

    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield remarks
    reasons: set[str] = set()
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            reasons.add(str(warning.message).strip().partition("\n")[0].partition(". ")[0].rstrip(" .:"))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if reasons:
        remarks.append(f"it did not converge: {listed(reasons)}")


def _require_own_scores(
    estimator: Any, predictor: BoosterPredictor, signature: Signature, matrix: NDArray[np.float64]
) -> None:
    """Refuse a booster whose file scores differently than its estimator: what only the estimator does would be lost."""
    sample = matrix[:: -(-len(matrix) // COMPARED_ROWS)]
    with one_thread():
        own, saved = SklearnPredictor(estimator, signature.task).predict(sample), predictor.predict(sample)
    same = own.shape == saved.shape and np.isclose(own, saved, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    if not np.all(same):
        differing = (
            "" if own.shape != saved.shape else f" in {(~np.asarray(same)).reshape(len(own), -1).any(axis=1).sum()}"
        )
        msg = f"{name_of(estimator)} scores differently once it is saved{differing} of {len(sample)} rows."
        hint = "leave out of model.params what acts outside of the booster, and do it in the features' SQL."
        raise TrainingRefusedError(msg, hint=hint)


@contextmanager
def refusals_explained(estimator: Any, contract: Contract, tried: str = "") -> Generator[None]:
    """Say which estimator rejects the training data; other errors than its own and those of its library are raised as they are."""
    try:
        yield
    except Exception as error:
        own = type(error).__module__.partition(".")[0] == flavour_of(estimator).package
        if isinstance(error, BatchPlatformError) or not (own or isinstance(error, ValueError | TypeError)):
            raise
        text = " ".join(str(error).partition("Stack trace:")[0].split())
        msg = f"{name_of(estimator)}{tried} rejects the training data: {_PLACE_IN_LIBRARY.sub('', text)}"
        # A step that selects columns by name or type asks for dataframes.
        remedy = "select columns by their positions" if "dataframes" in text else "check model.params"
        raise TrainingRefusedError(msg.rstrip(" .") + ".", hint=what_may_keep_it(contract, remedy)) from error


def stopped_at(estimator: Any) -> dict[str, int]:
    """The iteration at which an estimator stopped early, from 1; empty for any other."""
    last = last_of(estimator)
    if best := getattr(last, "best_iteration_", 0):  # LightGBM
        return {"best_iteration": int(best)}
    if hasattr(last, "get_booster") and last.early_stopping_rounds:  # XGBoost, which counts from 0
        return {"best_iteration": int(last.best_iteration) + 1}
    if getattr(last, "do_early_stopping_", False):  # trees of scikit-learn, which keep those after the best one
        return {"last_iteration": int(last.n_iter_)}
    return {}


def without_values(contract: Contract) -> list[str]:
    """The numbers that are null in every row that is fitted."""
    return [column.name for column in contract.columns if column.type != "category" and column.lowest is None]


def what_may_keep_it(contract: Contract, remedy: str) -> str:
    """Explain what may keep an estimator from learning: some cannot take a number that is always null; otherwise a remedy."""
    if not (empty := without_values(contract)):
        columns = [
            f"{at} {column.name}{' (text)' if column.type == 'category' else ''}"
            for at, column in enumerate(contract.columns)
        ]
        return (
            f"{remedy}, or check the features and the labels. An estimator is given a float64 matrix without names, with the "
            f"columns {first_few(columns)}; text as the number of its category, null as NaN."
        )
    return (
        f"{listed(empty)} has no values: leave it out of the features, or set features.columns.<name>.feature: false."
    )


def share_told(matrix: NDArray[Any], truth: NDArray[Any], *, classes: bool) -> float:
    """The share of the `truth` [rows] that a matrix [rows, columns] tells, each row by trees that have not seen it: a quick answer.

    It is the explained share of the variance of numbers; of classes it is the balanced accuracy, on a scale on which guessing is 0.
    """
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.metrics import balanced_accuracy_score

    values = len({*truth})
    if values == 1:
        return 0.0
    options: Any = {"max_features": min(0.5, 25 / matrix.shape[1]), "min_samples_leaf": 3, "bootstrap": True}
    options |= {"oob_score": balanced_accuracy_score, "class_weight": "balanced"} if classes else {"oob_score": True}
    trees = (ExtraTreesClassifier if classes else ExtraTreesRegressor)(QUICK_TREES, random_state=0, **options)
    with warnings.catch_warnings(action="ignore"):  # a row that every tree has seen
        score = float(trees.fit(matrix, truth).oob_score_)
    guessing = 1 / values if classes else 0
    return (score - guessing) / (1 - guessing)
