"""What models of other libraries give, in the one form that scoring takes; anything else is refused, not bent."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError
from batch_platform.models.signature import Signature

BLOCK_ROWS = 1024
_SLACK = 1e-4  # of probabilities in float32


def as_scores(raw: object, rows: int, signature: Signature) -> NDArray[Any]:
    """Probabilities [n, classes], values [n] or segments [n] of what a model gave.

    Of two classes, the probability of the second one alone is enough: [n] or [n, 1].

    Raises:
        DataError: It is of another shape or type, or no probability where one is needed.
    """
    values = np.asarray(raw)
    if values.ndim == 2 and values.shape[1] == 1:  # noqa: PLR2004 - one column of a table
        values = values[:, 0]
    if signature.task == "binary" and values.ndim == 1 and values.dtype.kind == "f":
        values = np.column_stack([1 - values, values])
    shape = (rows, len(signature.classes)) if signature.task in ("binary", "multiclass") else (rows,)
    kinds = "iub" if signature.task == "clustering" else "f" if len(shape) > 1 else "fiu"
    if values.shape != shape or values.dtype.kind not in kinds:
        msg = f"The model gives {values.dtype} of the shape {list(values.shape)} for {rows} rows; {_WANTED[signature.task]}."
        raise DataError(msg, hint="see model.task and model.classes, and what the model was saved to give.")
    if signature.task == "clustering":
        return values.astype(np.int32)
    values = values.astype(np.float64)
    if len(shape) > 1 and _no_probabilities(values):
        msg = (
            f"The model gives numbers from {np.nanmin(values):g} to {np.nanmax(values):g}, which are no probabilities."
        )
        raise DataError(
            msg, hint="save it with its last step, the softmax or the sigmoid, or declare another model.task."
        )
    return values


_WANTED = {
    "binary": "of two classes it must give probabilities, [n] of the second one or [n, 2]",
    "multiclass": "it must give a probability for each class, [n, classes]",
    "regression": "a regression must give one number for each row, [n]",
    "outliers": "of outliers it must give how odd each row is, [n], above 0 for an outlier",
    "clustering": "a clustering must give one whole number for each row, [n]",
}


def _no_probabilities(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        return False
    return bool(finite.min() < -_SLACK or finite.max() > 1 + _SLACK or np.abs(finite.sum(axis=1) - 1).max() > _SLACK)


def in_blocks(
    matrix: NDArray[Any], predict: Callable[[NDArray[Any]], NDArray[Any]], size: int = BLOCK_ROWS
) -> NDArray[Any]:
    """Predictions of a library whose last digits depend on how many rows it is given: always the same number.

    The last block is filled up with zeros, of which nothing is kept.
    """
    found: list[NDArray[Any]] = []
    for start in range(0, len(matrix), size):
        rows = matrix[start : start + size]
        block = (
            rows
            if len(rows) == size
            else np.concatenate([rows, np.zeros_like(rows, shape=(size - len(rows), *rows.shape[1:]))])
        )
        found.append(np.asarray(predict(block))[: len(rows)])
    return np.concatenate(found)
