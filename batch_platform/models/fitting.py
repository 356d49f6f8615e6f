"""Fitting a model on the beginning of a training window, evaluating it on the end, and judging it by the gate's rule.

Rows are in order of time and are never shuffled between the two parts. Nothing here knows where rows come from or where the model goes.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.declaration.spec import Features, Model, Promote
from batch_platform.features.labelled import TrainingData, feature_columns
from batch_platform.models.contract import Column, Contract, declare_column, infer_contract
from batch_platform.models.estimator import make_estimator, name_of, task_of
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.known import flavour_of, predictor_of
from batch_platform.models.forest.compiled import NOT_TREES, CompilablePredictor, Proof, prove
from batch_platform.models.native_threads import one_thread
from batch_platform.models.signature import ClassLabel, Predictor, Signature, Task, classes_of_one_name
from batch_platform.monitoring.leakage import nearly_deciding
from batch_platform.monitoring.metrics import (
    Outcomes,
    as_truth,
    default_metric,
    is_worse,
    known_to,
    lower_is_better,
    measure,
)

LEAST_ROWS = 20
MANY_ROWS = 50_000  # from here on several threads are faster than one; on few rows they mostly wait


@dataclass(frozen=True)
class Fitted:
    """A fitted or imported model, what it takes, and how it did on rows that it had not seen."""

    estimator: Any
    task: Task
    classes: list[ClassLabel]
    contract: Contract
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

    Raises:
        TrainingRefusedError: Too few rows, one class only, or an estimator that cannot serve.
        DataError: A column cannot be a feature.
        WrongUseError: The estimator does not exist, or a parameter of it.
    """
    names = feature_columns(features, data.fit.schema if data.label is None else data.fit.drop(data.label).schema)
    contract = infer_contract(data.fit.select(names), declared_columns(features, data.fit.select(names)))
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
    if task == "regression" and truth is not None and len(np.unique(truth)) < 2:  # noqa: PLR2004 - it varies
        msg = f"All labels to learn from are {truth[0]!r}; a regression needs values that differ."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    try:
        with one_thread() if len(matrix) < MANY_ROWS else nullcontext():
            kind.training.fit(estimator, matrix, truth, contract)
        signature = Signature(task, classes, contract)
        predictor = (kind.training.predictor or partial(predictor_of, kind))(estimator, signature)
        metrics = evaluate(
            predictor,
            task=task,
            classes=classes,
            contract=contract,
            rows=evaluated.kept,
            label=data.label,
        )
    except (ValueError, TypeError) as error:
        msg = f"{name_of(estimator)} rejects the training data: {' '.join(str(error).split())}"
        raise TrainingRefusedError(msg.rstrip(".") + ".", hint=_hint(contract)) from error
    return Fitted(
        estimator=estimator,
        task=task,
        classes=classes,
        contract=contract,
        metrics=metrics,
        rows_fitted=kept.kept.height,
        rows_evaluated=evaluated.kept.height,
        rows_rejected=kept.rejected.height + evaluated.rejected.height,
        suspicious=_suspicious(contract, matrix, truth, task),
        proof=compiled_form(predictor, contract, evaluated.kept),
        flavour=kind,
        predictor=predictor,
    )


def evaluate(  # noqa: PLR0913 - a fitted model is all of these
    predictor: Predictor,
    *,
    task: Task,
    classes: list[ClassLabel],
    contract: Contract,
    rows: pl.DataFrame,
    label: str | None,
) -> dict[str, float]:
    """Measure a fitted model on rows that keep its contract; rows of a class it does not know are left out."""
    if label is not None and task in ("binary", "multiclass"):
        rows = rows.filter(known_to(classes, rows[label]))
    if not rows.height:
        return {}
    matrix = contract.encode(rows)
    with one_thread():
        predicted = predictor.predict(matrix)
    return measure(Outcomes(task, predicted, None if label is None else as_truth(rows[label]), classes, matrix))


def judge(gate: Promote, task: Task, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> str | None:
    """Why a version may not serve; None if it may.

    Args:
        gate: What it must meet.
        task: Decides the metric where the gate names none.
        metrics: Of the version, on the evaluation rows.
        champion: Of the version that serves now, on the same rows; None if there is none.
    """
    metric = gate.metric or default_metric(task)
    value = metrics.get(metric)
    if value is None:
        return f"{metric} cannot be measured on the evaluation rows (measured: {listed(metrics) or 'nothing'})"
    if gate.at_least is not None and is_worse(metric, value, gate.at_least):
        return f"{metric} {value:.4f} is worse than the required {gate.at_least:g}"
    standing = None if champion is None else champion.get(metric)
    if gate.tolerance is not None and standing is not None:
        bound = standing + gate.tolerance if lower_is_better(metric) else standing - gate.tolerance
        if is_worse(metric, value, bound):
            return f"{metric} {value:.4f} is worse than the champion's {standing:.4f} by more than {gate.tolerance:g}"
    return None


def compiled_form(predictor: Predictor, contract: Contract, rows: pl.DataFrame) -> Proof:
    """Compile a model and prove the result on rows that it was not fitted on."""
    return prove(predictor, contract.encode(rows)) if isinstance(predictor, CompilablePredictor) else NOT_TREES


def declared_columns(features: Features, training: pl.DataFrame) -> dict[str, Column]:
    """The declared columns of training data.

    Raises:
        DataError: A declaration does not fit its column.
    """
    declared: dict[str, Column] = {}
    for name, rule in features.columns.items():
        if rule.feature and name in training.columns:
            values = training[name]
            bounds = rule.model_dump(exclude={"feature"})
            declared[name] = declare_column(name, values.dtype, nulls=values.null_count() > 0, **bounds)
        elif rule.feature:
            declared[name] = Column(name=name, type="float", nullable=True)
    return declared


def _classes(estimator: Any, truth: NDArray[Any] | None) -> list[ClassLabel]:
    from sklearn.base import is_classifier

    if truth is None or not is_classifier(estimator):
        return []
    classes: list[ClassLabel] = np.unique(truth).tolist()
    if len(classes) < 2:  # noqa: PLR2004 - one class is nothing to learn
        msg = f"All labels to learn from are {classes[0]!r}; a classification needs two classes."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    if len(classes) > 2 and (alike := classes_of_one_name(classes)):  # noqa: PLR2004 - two classes have one score
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
