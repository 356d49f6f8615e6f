"""The share of a column that others tell, by a few trees: a quick answer before there is a model."""

from typing import Any
from warnings import catch_warnings

from numpy.typing import NDArray

TREES = 30


def share_told(matrix: NDArray[Any], truth: NDArray[Any], *, classes: bool) -> float:
    """The share of the `truth` [rows] that a matrix [rows, columns] tells, each row by the trees that have not seen it.

    It is the explained share of the variance of numbers; of classes it is the balanced accuracy, on a scale on which guessing is 0.
    """
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.metrics import balanced_accuracy_score

    values = len({*truth})
    if values == 1:
        return 0.0
    options: Any = {"max_features": min(0.5, 25 / matrix.shape[1]), "min_samples_leaf": 3, "bootstrap": True}
    options |= {"oob_score": balanced_accuracy_score, "class_weight": "balanced"} if classes else {"oob_score": True}
    trees = (ExtraTreesClassifier if classes else ExtraTreesRegressor)(TREES, random_state=0, **options)
    with catch_warnings(action="ignore"):  # a row that every tree has seen
        score = float(trees.fit(matrix, truth).oob_score_)
    guessing = 1 / values if classes else 0
    return (score - guessing) / (1 - guessing)
