"""The probability as points of a scorecard, which clerks know: the column `points` of the predictions."""

import numpy as np
import polars as pl

from batch_platform.models.refinements.refinement import Batch, Learned, Refinement

POINTS, ODDS, DOUBLING = 600, 50, 20  # 600 points at odds of 50 good to 1 bad, and 20 more each time they double
SUREST = 1e-4  # a forest may be surer than that, and points have an end


def _points(_learned: Learned, batch: Batch) -> list[pl.Series]:
    bad = np.clip(batch.raw[:, 1], SUREST, 1 - SUREST)
    return [pl.Series("points", np.rint(POINTS + DOUBLING * np.log2((1 - bad) / bad / ODDS)), dtype=pl.Int64)]


points = Refinement("points", columns=_points)
