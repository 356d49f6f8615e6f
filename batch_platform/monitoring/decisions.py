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

from batch_platform.monitoring.outcomes import Floats, Outcomes, Share, Weighted, columns, total

CELLS = 10  # cells of equal width in which calibration is measured


def precision(outcomes: Outcomes) -> Share:
    """Share of positives among the rows that are held to be positive (`sklearn.metrics.precision_score`).

    Not defined where no row is.
    """
    held, positive = _held_and_positive(outcomes)
    return Share(held * positive, held)


def recall(outcomes: Outcomes) -> Share:
    """Share of the positives that are held to be positive: the rate of true positives (`sklearn.metrics.recall_score`).

    Not defined without positives.
    """
    held, positive = _held_and_positive(outcomes)
    return Share(held * positive, positive)


def false_positive_rate(outcomes: Outcomes) -> Share:
    """Share of the negatives that are held to be positive; not defined without negatives."""
    held, positive = _held_and_positive(outcomes)
    return Share(held * (1 - positive), 1 - positive)


def selection_rate(outcomes: Outcomes) -> Share:
    """Share of the rows that are held to be positive, whatever came true."""
    held, _ = _held_and_positive(outcomes)
    return Share(held, np.ones(len(held)))


def f1(outcomes: Outcomes) -> Weighted:
    """Harmonic mean of precision and recall (`sklearn.metrics.f1_score`); of several classes, the mean over the classes.

    Not defined for a class that neither came true nor was predicted, which the mean leaves out.
    """
    decided, true = outcomes.predicted.argmax(axis=1), outcomes.true_positions
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
    held = (outcomes.predicted.argmax(axis=1) == 1).astype(np.float64)
    return held, outcomes.positive_and_score[0].astype(np.float64)
