"""The correction of a classifier's probabilities for the shares that the classes had in a sample of its training rows.

A model that learned from a balanced sample takes a rare class for more frequent than it is. If class k was sampled at the rate
r_k and the rows within a class at random, Bayes' rule gives the probability under the shares of all rows:

    p_k = (q_k / r_k) / sum over j of (q_j / r_j)

where q is what the model returns. For two classes this shifts the log-odds by log(r_0 / r_1), the prior correction of King
and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9 (2001), eq. 7; for any number of classes it is
eq. 4 of Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", Neural
Computation 14 (2002). The order of rows by the score of a binary model stays the same.

The correction is one step after the model, whatever its flavour and whether its trees are compiled, so what gives the same bits
before it gives the same bits after it.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.features.history import TrainingData
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import ClassLabel
from batch_platform.models.refinements.refinement import Learned, Refinement, Unseen
from batch_platform.monitoring.metrics import as_truth


def _learned(_: object, unseen: Unseen) -> Learned | None:
    rates = sampling_rates(unseen.data, unseen.signature.classes)
    return {"rates": np.array(rates)} if rates else None


def _corrected(learned: Learned, predictor: Predictor, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities [rows, classes] under the shares of all rows."""
    probabilities: NDArray[np.float64] = predictor.predict(matrix)
    weighted = [probabilities[:, position] / rate for position, rate in enumerate(learned["rates"].tolist())]
    total = weighted[0]
    for column in weighted[1:]:  # each row is added in this order, however the matrix lies in memory
        total = total + column
    return np.column_stack([column / total for column in weighted])


# Declared by every pipeline: a sample is corrected for wherever it is not in proportion.
PRIOR = Refinement(
    "prior", fit=_learned, refine=_corrected, declared=lambda spec: spec.model.train.sample, retrains=False
)


def sampling_rates(data: TrainingData, classes: Sequence[ClassLabel]) -> tuple[float, ...]:
    """The share of its rows with which each class is in a sample; empty if all classes were sampled alike or not at all."""
    if data.label is None or not data.balanced or not classes:
        return ()
    names, truth = data.fit[data.label].cast(pl.String), as_truth(data.fit[data.label])
    rates: list[float] = []
    for label in classes:
        kept = names.filter(pl.Series(truth == label))
        rates.append(len(kept) / sum(data.classes_before_cap[name] for name in kept.unique()))
    return tuple(rates) if min(rates) < 1 else ()


def in_proportion(
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    label: str | None,
    classes: Sequence[ClassLabel],
    rates: Sequence[float],
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """Sampled rows and their encoding [n, columns], thinned out so that the classes have the shares that they have in all rows.

    Of a class, the rows are taken at equal distances; all of them without rates.
    """
    if label is None or not rates:
        return rows
    frame, matrix = rows
    truth, taken = as_truth(frame[label]), np.zeros(frame.height, dtype=np.bool_)
    for name, rate in zip(classes, rates, strict=True):
        members = np.flatnonzero(truth == name)
        count = max(1, round(len(members) * min(rates) / rate)) if len(members) else 0
        taken[members[np.arange(count) * len(members) // max(1, count)]] = True
    return frame.filter(pl.Series(taken)), matrix[taken]
