"""Fitting a model on the beginning of a training window and evaluating it on the end.

Rows are in order of time and are never shuffled between the two parts. Nothing here knows where rows come from or where the model goes.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.declaration.spec import Features, Model
from batch_platform.features.history import TrainingData, feature_columns
from batch_platform.models.contract import (
    BINARY,
    ClassLabel,
    Contract,
    Predictor,
    Signature,
    Task,
    classes_of_one_name,
    infer_contract,
)
from batch_platform.models.declared_model import make_estimator, name_of, task_of
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.forest.compiled import Proof, prove
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.leakage import nearly_deciding
from batch_platform.monitoring.metrics import Outcomes, as_truth, known_to, measure

LEAST_ROWS = 20
MANY_ROWS = 50_000  # from here on several threads are faster than one; on few rows they mostly wait


@dataclass(frozen=True)
class Fitted:
    """A fitted or imported model, what it takes, and how it did on rows that it had not seen."""

    estimator: Any
    signature: Signature
    metrics: dict[str, float]
    rows_fitted: int
    rows_evaluated: int
    rows_rejected: int
    suspicious: list[str]  # features that alone nearly decide the label
    proof: Proof
    flavour: Flavour
    predictor: Predictor
    details: dict[str, Any] = field(default_factory=dict[str, Any])  # what an imported model states about itself


def fit(model: Model, features: Features, data: TrainingData, params: dict[str, Any]) -> Fitted:
    """Fit the declared estimator and evaluate it.

    Raises TrainingRefusedError for too few rows, a single class, or an estimator that cannot serve; DataError for a column that
    cannot be a feature; WrongUseError for an unknown estimator or parameter.
    """
    names = feature_columns(features, data.fit.schema if data.label is None else data.fit.drop(data.label).schema)
    contract = infer_contract(data.fit.select(names), features.columns)
    kept, evaluated = contract.split(data.fit), contract.split(data.evaluate)
    if not names:
        msg = "There is no feature column to learn from: the features hold only the key, the time and excluded columns."
        raise TrainingRefusedError(msg, hint="add columns to the features.")
    if kept.kept.height < LEAST_ROWS:
        msg = f"There are {kept.kept.height} rows to learn from; at least {LEAST_ROWS} are needed."
        raise TrainingRefusedError(msg, hint="train a later serving period, or declare a longer model.train.window.")
    matrix = contract.encode(kept.kept)
    truth = None if data.label is None else as_truth(kept.kept[data.label])
    estimator = make_estimator(model, params, contract)
    kind = flavour_of(estimator)
    classes = _classes(estimator, truth)
    task = task_of(estimator, len(classes))
    if task not in ("clustering", "outliers") and truth is None:
        msg = f"{name_of(estimator)} learns from labels, but the pipeline declares none."
        raise TrainingRefusedError(msg, hint="add `labels` to its YAML.")
    if task == "regression" and truth is not None and len(np.unique(truth)) == 1:
        msg = f"All labels to learn from are {truth[0]!r}; a regression needs values that differ."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    try:
        with one_thread() if len(matrix) < MANY_ROWS else nullcontext():
            kind.fit(estimator, matrix, truth, contract)
        signature = Signature(task, classes, contract)
        predictor = (kind.predictor or kind.reloaded)(estimator, signature)
        metrics = evaluate(predictor, signature, evaluated.kept, data.label)
    except (ValueError, TypeError) as error:
        msg = f"{name_of(estimator)} rejects the training data: {' '.join(str(error).split())}"
        raise TrainingRefusedError(msg.rstrip(".") + ".", hint=_hint(contract)) from error
    return Fitted(
        estimator=estimator,
        signature=signature,
        metrics=metrics,
        rows_fitted=kept.kept.height,
        rows_evaluated=evaluated.kept.height,
        rows_rejected=kept.rejected.height + evaluated.rejected.height,
        suspicious=_suspicious(contract, matrix, truth, task),
        proof=prove(predictor, contract.encode(evaluated.kept)),
        flavour=kind,
        predictor=predictor,
    )


def evaluate(predictor: Predictor, signature: Signature, rows: pl.DataFrame, label: str | None) -> dict[str, float]:
    """Measure a fitted model on rows that keep its contract; rows of a class it does not know are left out."""
    if label is not None and signature.task in ("binary", "multiclass"):
        rows = rows.filter(known_to(signature.classes, rows[label]))
    if not rows.height:
        return {}
    matrix = signature.contract.encode(rows)
    with one_thread():
        predicted = predictor.predict(matrix)
    truth = None if label is None else as_truth(rows[label])
    return measure(Outcomes(signature.task, predicted, truth, signature.classes, matrix))


def _classes(estimator: Any, truth: NDArray[Any] | None) -> list[ClassLabel]:
    from sklearn.base import is_classifier

    if truth is None or not is_classifier(estimator):
        return []
    classes: list[ClassLabel] = np.unique(truth).tolist()
    if len(classes) == 1:
        msg = f"All labels to learn from are {classes[0]!r}; a classification needs two classes."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    if len(classes) > BINARY and (alike := classes_of_one_name(classes)):
        msg = f"The classes {listed(map(repr, alike))} differ only by case, so their score columns would have one name."
        raise TrainingRefusedError(msg, hint="write each class in one way, or rename one of them, in labels.sql.")
    return classes


def _hint(contract: Contract) -> str:
    """Explain what may keep an estimator from learning: some cannot take a number that is always null."""
    empty = [column.name for column in contract.columns if column.type != "category" and column.lowest is None]
    if not empty:
        return "check model.params, the features and the labels."
    return (
        f"{listed(empty)} has no values: leave it out of the features, or set features.columns.<name>.feature: false."
    )


def _suspicious(contract: Contract, matrix: NDArray[np.float64], truth: NDArray[Any] | None, task: Task) -> list[str]:
    """Features that alone nearly decide the label, a sign that they know the outcome."""
    if truth is None or task in ("clustering", "outliers"):
        return []
    categorical = [column.type == "category" for column in contract.columns]
    positions = nearly_deciding(matrix, categorical, truth, classes=task != "regression")
    return [contract.columns[at].name for at in positions]
