"""The loss by which volatility forecasts are compared."""

import numpy as np

from batch_platform.monitoring.metrics import Metric
from batch_platform.monitoring.outcomes import REGRESSION, Outcomes, Weighted, over_all_rows, total


def _qlike(outcomes: Outcomes) -> float | None:
    """Mean of v/f - ln(v/f) - 1, for the variance v of a day and its forecast f (Patton, Journal of Econometrics 160, 2011).

    A forecast that is too low costs more than one that is too high by the same factor, and noise in the estimate of v does not
    change which forecast is better, if v is right on average.
    """
    return over_all_rows(_weighted, outcomes)


def _weighted(outcomes: Outcomes) -> Weighted:
    logarithm = 2 * (outcomes.labels - outcomes.predicted)  # label and prediction are logarithms of volatilities
    losses = np.exp(logarithm) - logarithm - 1
    return lambda weights: weights @ losses / total(weights)


qlike = Metric("qlike", REGRESSION, _qlike, lower_is_better=True, weighted=_weighted, least=0)
