"""Metrics of decisions: what becomes of rows that are held to be positive, and rates by which groups are compared.

A row is held to be of its most probable class; of two classes, to be positive from a probability of more than one half. No other
threshold can be declared: it would also be that of the stored predictions, of challengers' agreement with them and of estimated
accuracy, or else the metrics would be of decisions that no table holds.

With the selection rate and the rates of true and false positives of each segment, a segment can be compared with the others: equal
selection rates are demographic parity (Calders and Verwer, Three naive Bayes approaches for discrimination-free classification,
2010), equal rates of true positives equal opportunity, and equal rates of both equalized odds (Hardt, Price and Srebro, Equality
of Opportunity in Supervised Learning, 2016).
"""

import numpy as np

from batch_platform.monitoring.outcomes import Floats, Outcomes, Weighted, columns, total, unweighted

CELLS = 10  # cells of equal width in which calibration is measured


def precision(outcomes: Outcomes) -> float | None:
    """Share of positives among the rows that are held to be positive (`sklearn.metrics.precision_score`).

    Not defined where no row is.
    """
    return unweighted(weighted_precision, outcomes)


def weighted_precision(outcomes: Outcomes) -> Weighted:
    """The precision of weighted rows."""
    held, positive = _held_and_positive(outcomes)
    return _share(held * positive, held)


def recall(outcomes: Outcomes) -> float | None:
    """Share of the positives that are held to be positive: the rate of true positives (`sklearn.metrics.recall_score`).

    Not defined without positives.
    """
    return unweighted(weighted_recall, outcomes)


def weighted_recall(outcomes: Outcomes) -> Weighted:
    """The recall of weighted rows."""
    held, positive = _held_and_positive(outcomes)
    return _share(held * positive, positive)


def false_positive_rate(outcomes: Outcomes) -> float | None:
    """Share of the negatives that are held to be positive; not defined without negatives."""
    return unweighted(weighted_false_positive_rate, outcomes)


def weighted_false_positive_rate(outcomes: Outcomes) -> Weighted:
    """The rate of false positives of weighted rows."""
    held, positive = _held_and_positive(outcomes)
    return _share(held * (1 - positive), 1 - positive)


def selection_rate(outcomes: Outcomes) -> float | None:
    """Share of the rows that are held to be positive, whatever came true."""
    return unweighted(weighted_selection_rate, outcomes)


def weighted_selection_rate(outcomes: Outcomes) -> Weighted:
    """The selection rate of weighted rows."""
    held, _ = _held_and_positive(outcomes)
    return _share(held, np.ones(len(held)))


def f1(outcomes: Outcomes) -> float | None:
    """Harmonic mean of precision and recall (`sklearn.metrics.f1_score`); of several classes, the mean over the classes.

    Not defined for a class that neither came true nor was predicted, which the mean leaves out.
    """
    return unweighted(weighted_f1, outcomes)


def weighted_f1(outcomes: Outcomes) -> Weighted:
    """The F1 score of weighted rows."""
    decided, true = outcomes.predicted.argmax(axis=1), outcomes.true_positions
    classes = [1] if outcomes.task == "binary" else range(len(outcomes.classes))
    held = np.stack([decided == at for at in classes], axis=1).astype(np.float64)
    real = np.stack([true == at for at in classes], axis=1).astype(np.float64)

    def value(weights: Floats) -> Floats:
        of_classes = 2 * (weights @ (held * real)) / (weights @ held + weights @ real)
        defined = np.isfinite(of_classes)
        return np.where(defined, of_classes, 0.0).sum(axis=-1) / defined.sum(axis=-1)

    return value


def calibration_error(outcomes: Outcomes) -> float | None:
    """Distance of the mean probability from the share of positives, averaged over ten cells of equal width by their rows.

    The expected calibration error (Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian
    Binning, 2015). Few rows make it larger than it is.
    """
    return unweighted(weighted_calibration_error, outcomes)


def weighted_calibration_error(outcomes: Outcomes) -> Weighted:
    """The calibration error of weighted rows."""
    positive, score = outcomes.positive_and_score
    cells = np.clip((score * CELLS).astype(np.int64), 0, CELLS - 1)
    parts = [(rows, score[rows] - positive[rows]) for at in range(CELLS) if len(rows := np.flatnonzero(cells == at))]

    def value(weights: Floats) -> Floats:
        return sum(np.abs(columns(weights, rows) @ differences) for rows, differences in parts) / total(weights)

    return value


def _held_and_positive(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """The decision on each row and its outcome [n]: 1 for positive, 0 for negative."""
    held = (outcomes.predicted.argmax(axis=1) == 1).astype(np.float64)
    return held, outcomes.positive_and_score[0].astype(np.float64)


def _share(part: Floats, whole: Floats) -> Weighted:
    return lambda weights: weights @ part / (weights @ whole)
