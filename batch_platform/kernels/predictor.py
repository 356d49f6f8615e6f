"""What a loaded model does: plain numbers in, plain numbers out."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Predictor(Protocol):
    """A loaded model: plain numbers in, plain numbers out.

    It fits nothing and keeps nothing between calls. Several threads may call it at once; on each of them, its library uses one thread.
    """

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes], values [rows] of a regression, or clusters [rows] of a clustering.

        For outliers, return how odd each row is [rows]: above 0 it is an outlier.
        """
        ...


@runtime_checkable
class DecidingPredictor(Predictor, Protocol):
    """A predictor of a library whose classifiers may have a decision function."""

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function [rows] of two classes or [rows, classes] of more; None if the model has none."""
        ...


def decisions(predictor: Predictor, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The decision function of a classifier for rows; None if it has none."""
    return predictor.decide(matrix) if isinstance(predictor, DecidingPredictor) else None
