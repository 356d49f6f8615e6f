"""Decisions: the rule that a pipeline declares, made out for the classes of one model, and metrics of the decisions.

Without a rule, a row is decided to be of its most probable class; of two classes, to be positive from a probability of more than
one half. With `predictions.decide`, precision, recall and every other metric of decisions are those of the declared rule, as it
stands in the column `decision`: where its classes cost something, the expected cost of each row is lowest (Elkan, The Foundations
of Cost-Sensitive Learning, 2001). `top` needs a whole partition, so that only stored decisions can be measured under it: the gate
judges by the most probable class then.

With the selection rate and the rates of true and false positives of each segment, a segment can be compared with the others: equal
selection rates are demographic parity (Calders and Verwer, Three naive Bayes approaches for discrimination-free classification,
2010), equal rates of true positives equal opportunity, and equal rates of both equalized odds (Hardt, Price and Srebro, Equality
of Opportunity in Supervised Learning, 2016).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, did_you_mean, listed
from batch_platform.declaration.predictions import DECISION, Decide
from batch_platform.monitoring.outcomes import (
    CLASSIFICATION,
    Floats,
    Outcomes,
    Ratio,
    Rule,
    Weighted,
    class_texts,
    columns,
    total,
)

CELLS = 10  # cells of equal width in which calibration is measured


def rule_of(declared: Decide, task: str, classes: Sequence[Any]) -> Rule:
    """The declared rule for a model of a task, with its classes in the order of its probabilities.

    Raises:
        DataError: The model has no probabilities, or the costs are not those of its classes.
    """
    if task not in CLASSIFICATION:
        msg = f"predictions.decide needs probabilities of classes, and the model is of the task {task}."
        raise DataError(msg, hint="leave predictions.decide out, or train a classifier.")
    names, by_class = class_texts(classes), declared.by_class
    if by_class is None and task != "binary":
        msg = f"predictions.decide: the model has {len(names)} classes ({listed(names)}), among which only `costs` by class can decide."
        raise DataError(msg, hint=f"predictions.decide.costs: {{{names[0]}: {{{names[1]}: 1, …}}, …}}.")
    if by_class is None:
        costs = None
        if declared.of_errors is not None:
            costs = np.array([[0.0, declared.of_errors[0]], [declared.of_errors[1], 0.0]])
        elif declared.benefit is not None and declared.cost is not None:
            costs = np.array([[0.0, declared.cost], [0.0, declared.cost - declared.benefit]])
        return Rule(declared.probability, costs)
    named = {*by_class, *(name for row in by_class.values() for name in row)}
    if unknown := sorted(named - {*names}):
        msg = f"predictions.decide.costs: the model has no class {listed(map(repr, unknown))}; its classes are {listed(names)}."
        raise DataError(msg, hint=did_you_mean(unknown[0], names) or "name the classes as the labels write them.")
    lacking = [
        f"{true}.{name}" for true in names for name in names if (name in by_class.get(true, {})) == (name == true)
    ]
    if lacking:
        msg = f"predictions.decide.costs must name the cost of every wrong decision and of no right one; correct {listed(lacking)}."
        raise DataError(msg, hint="under each true class, give the cost of deciding each other class.")
    costs = np.array([[by_class[true].get(name, 0.0) for name in names] for true in names])
    return Rule(costs[0, 1] / (costs[0, 1] + costs[1, 0]) if task == "binary" else None, costs)


def fitting_rule(declared: Decide | None, task: str, classes: Sequence[Any]) -> Rule | None:
    """The declared rule for a model; None without one, and where it does not fit the model."""
    try:
        return None if declared is None else rule_of(declared, task, classes)
    except DataError:
        return None


def as_decided(outcomes: Outcomes, rows: pl.DataFrame, declared: Decide | None) -> Outcomes:
    """Outcomes of stored rows with the decisions that are stored with them, and what the rule that made them costs.

    A row without a decision is decided to be of its most probable class. Nothing changes where no rule fits the model.
    """
    rule = fitting_rule(declared, outcomes.task, outcomes.classes)
    if rule is None or DECISION not in rows.columns:
        return outcomes
    names = ["false", "true"] if outcomes.task == "binary" else class_texts(outcomes.classes)
    places = {text: at for at, text in enumerate(names)}
    stored = rows[DECISION].cast(pl.String).replace_strict(places, default=None, return_dtype=pl.Int64)
    decided = stored.fill_null(pl.Series(outcomes.predicted.argmax(axis=1))).to_numpy()
    return replace(outcomes, rule=rule, decided=decided)


def realised(outcomes: Outcomes) -> Weighted:
    """Mean cost per row of the decisions, by the declared costs and what came true; with a declared benefit, below 0 for a gain."""
    return _per_row(outcomes, outcomes.decisions)


def range_of_costs(outcomes: Outcomes, decided: slice = slice(None)) -> tuple[float, float]:
    """The cost of the cheapest and of the dearest decision on a row, among some classes to decide; no bounds without costs."""
    costs = None if outcomes.rule is None else outcomes.rule.costs
    return (-np.inf, np.inf) if costs is None else (float(costs[:, decided].min()), float(costs[:, decided].max()))


def range_of_always(outcomes: Outcomes) -> tuple[float, float]:
    """The costs of `of_always` on a row."""
    return range_of_costs(outcomes, slice(1 if outcomes.task == "binary" else 0, None))


def range_of_never(outcomes: Outcomes) -> tuple[float, float]:
    """The costs of `of_never` on a row: one and the same where a benefit is declared."""
    return range_of_costs(outcomes, slice(1))


def of_always(outcomes: Outcomes) -> Weighted:
    """Mean cost per row if every row were acted on; of several classes, if the same class were decided for all, the cheapest one."""
    if outcomes.task == "binary":
        return _per_row(outcomes, np.ones_like(outcomes.decisions))
    each = [_per_row(outcomes, np.full_like(outcomes.decisions, at)) for at in range(len(outcomes.classes))]
    return lambda weights: np.min([of_class(weights) for of_class in each], axis=0)


def of_never(outcomes: Outcomes) -> Weighted:
    """Mean cost per row if no row were acted on."""
    return _per_row(outcomes, np.zeros_like(outcomes.decisions))


def in_hindsight(outcomes: Outcomes) -> Weighted:
    """Mean cost per row with the probability to act from that would have been best for these rows: lower than can be known before."""
    costs = None if outcomes.rule is None else outcomes.rule.costs
    if costs is None:
        return _not_defined

    def value(weights: Floats) -> Floats:
        at = outcomes.ranked.counted(weights)
        positives = at.found[..., -1:]
        acted = costs[1, 1] * at.found + costs[0, 1] * (at.held - at.found) + costs[1, 0] * (positives - at.found)
        return np.minimum(acted.min(axis=-1), costs[1, 0] * positives[..., 0]) / total(weights)

    return value


def _per_row(outcomes: Outcomes, decided: NDArray[np.int64]) -> Weighted:
    """The mean cost of decisions; not defined without costs."""
    if outcomes.rule is None or outcomes.rule.costs is None:
        return _not_defined
    costs = outcomes.rule.costs[outcomes.true_positions, decided]
    return lambda weights: weights @ costs / total(weights)


def _not_defined(weights: Floats) -> Floats:
    return np.full(weights.shape[:-1], np.nan)


def precision(outcomes: Outcomes) -> Ratio:
    """Share of positives among the rows that are decided positive (`sklearn.metrics.precision_score`).

    Not defined where no row is.
    """
    held, positive = _held_and_positive(outcomes)
    return Ratio(held * positive, held)


def recall(outcomes: Outcomes) -> Ratio:
    """Share of the positives that are decided positive: the rate of true positives (`sklearn.metrics.recall_score`).

    Not defined without positives.
    """
    held, positive = _held_and_positive(outcomes)
    return Ratio(held * positive, positive)


def false_positive_rate(outcomes: Outcomes) -> Ratio:
    """Share of the negatives that are decided positive; not defined without negatives."""
    held, positive = _held_and_positive(outcomes)
    return Ratio(held * (1 - positive), 1 - positive)


def selection_rate(outcomes: Outcomes) -> Ratio:
    """Share of the rows that are decided positive, whatever came true."""
    held, _ = _held_and_positive(outcomes)
    return Ratio(held, np.ones(len(held)))


def f1(outcomes: Outcomes) -> Weighted:
    """Harmonic mean of precision and recall (`sklearn.metrics.f1_score`); of several classes, the mean over the classes.

    Not defined for a class that neither came true nor was predicted, which the mean leaves out.
    """
    decided, true = outcomes.decisions, outcomes.true_positions
    classes = [1] if outcomes.task == "binary" else range(len(outcomes.classes))
    held = np.stack([decided == at for at in classes], axis=1).astype(np.float64)
    real = np.stack([true == at for at in classes], axis=1).astype(np.float64)

    def value(weights: Floats) -> Floats:
        of_classes = 2 * (weights @ (held * real)) / (weights @ held + weights @ real)
        defined = np.isfinite(of_classes)
        return np.where(defined, of_classes, 0.0).sum(axis=-1) / defined.sum(axis=-1)

    return value


def calibration_error(outcomes: Outcomes) -> Weighted:
    """Distance of the mean probability from the share of positives, averaged over ten cells of equal width by their rows.

    The expected calibration error (Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian
    Binning, 2015). Few rows make it larger than it is.
    """
    positive, score = outcomes.positive_and_score
    cells = np.clip((score * CELLS).astype(np.int64), 0, CELLS - 1)
    parts = [(rows, score[rows] - positive[rows]) for at in range(CELLS) if len(rows := np.flatnonzero(cells == at))]

    def value(weights: Floats) -> Floats:
        return sum(np.abs(columns(weights, rows) @ differences) for rows, differences in parts) / total(weights)

    return value


def _held_and_positive(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """The decision on each row and its outcome [n]: 1 for positive, 0 for negative."""
    held = (outcomes.decisions == 1).astype(np.float64)
    return held, outcomes.positive_and_score[0].astype(np.float64)
