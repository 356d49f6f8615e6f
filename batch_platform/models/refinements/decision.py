"""The decision on each row of a batch, by the rule that the pipeline declares now: nothing of it is learned, or kept in a bundle.

Under `top` a batch cannot tell: its decisions are null until the whole partition is scored, and what is computed for selected rows
alone is computed for every row that may still be among them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.predictions import DECISION, Decide
from batch_platform.models.contract import BINARY, ClassLabel
from batch_platform.monitoring.decisions import rule_of


def decision_column(
    declared: Decide, probabilities: NDArray[Any], task: str, classes: Sequence[ClassLabel]
) -> pl.Series:
    """The decision on each row: of two classes whether to act on it, of several the class; null under `top`.

    Raises:
        DataError: The rule does not fit the model.
    """
    decided = rule_of(declared, task, classes).decided(probabilities)
    if decided is None:
        return pl.repeat(None, len(probabilities), dtype=pl.Boolean, eager=True).alias(DECISION)
    if len(classes) == BINARY:
        return pl.Series(DECISION, decided == 1)
    return pl.Series(np.array(classes)).gather(decided.astype(np.uint32)).alias(DECISION)


def may_be_selected(
    declared: Decide, probabilities: NDArray[Any], task: str, classes: Sequence[ClassLabel]
) -> pl.Series:
    """Mask of the rows of a batch that are acted on or, under `top`, may be; of several classes, every row."""
    if declared.top is not None:
        # Of a share, the partition has more rows than the batch, and any of these may be among the highest.
        most = declared.top if isinstance(declared.top, int) else len(probabilities)
        scores = probabilities[:, 1].astype(np.float64)
        return pl.Series(scores >= np.sort(scores)[-min(most, len(scores))] if len(scores) else scores > 0)
    decided = decision_column(declared, probabilities, task, classes)
    return decided if decided.dtype == pl.Boolean else pl.repeat(value=True, n=len(decided), eager=True)
