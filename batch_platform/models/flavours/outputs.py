"""Raw outputs of other libraries, brought into the form that scoring expects. Anything else is refused, not converted."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError
from batch_platform.models.signature import Signature

BLOCK_ROWS = 1024
_TOLERANCE = 1e-4  # of probabilities in float32
_EXPECTED = {
    "binary": "a binary model must return probabilities, [rows] of the second class or [rows, 2]",
    "multiclass": "a multiclass model must return one probability per class, [rows, classes]",
    "regression": "a regression must return one number per row, [rows]",
    "outliers": "an outlier model must return one anomaly score per row, [rows], above 0 for an outlier",
    "clustering": "a clustering must return one integer per row, [rows]",
}


def as_scores(raw: object, rows: int, signature: Signature) -> NDArray[Any]:
    """Check a model's output and return probabilities [rows, classes], values [rows] or segments [rows].

    A binary model may return only the probability of the second class, [rows] or [rows, 1].

    Raises:
        DataError: The output has another shape or type, or is not a probability where one is needed.
    """
    values = np.asarray(raw)
    if values.ndim == 2 and values.shape[1] == 1:  # noqa: PLR2004 - one column of a table
        values = values[:, 0]
    if signature.task == "binary" and values.ndim == 1 and values.dtype.kind == "f":
        values = np.column_stack([1 - values, values])
    shape = (rows, len(signature.classes)) if signature.task in ("binary", "multiclass") else (rows,)
    kinds = "iub" if signature.task == "clustering" else "f" if len(shape) > 1 else "fiu"
    if values.shape != shape or values.dtype.kind not in kinds:
        msg = f"The model returned {values.dtype} of shape {list(values.shape)} for {rows} rows; {_EXPECTED[signature.task]}."
        raise DataError(msg, hint="check model.task, model.classes and what the model was saved to return.")
    if signature.task == "clustering":
        return values.astype(np.int32)
    values = values.astype(np.float64)
    if len(shape) > 1 and not _are_probabilities(values):
        msg = f"The model returned numbers from {np.nanmin(values):g} to {np.nanmax(values):g}, which are not probabilities."
        raise DataError(msg, hint="save it with its final softmax or sigmoid, or declare another model.task.")
    return values


def _are_probabilities(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        return True
    sums = np.abs(finite.sum(axis=1) - 1).max()
    return bool(finite.min() >= -_TOLERANCE and finite.max() <= 1 + _TOLERANCE and sums <= _TOLERANCE)


def in_blocks(
    matrix: NDArray[Any], predict: Callable[[NDArray[Any]], NDArray[Any]], size: int = BLOCK_ROWS
) -> NDArray[Any]:
    """Predict in blocks of equal size, for libraries whose last digits depend on the number of rows per call.

    The last block is padded with zero rows, whose predictions are dropped.
    """
    blocks: list[NDArray[Any]] = []
    for start in range(0, len(matrix), size):
        rows = matrix[start : start + size]
        padding = np.zeros_like(rows, shape=(size - len(rows), *rows.shape[1:]))
        block = np.concatenate([rows, padding]) if len(padding) else rows
        blocks.append(np.asarray(predict(block))[: len(rows)])
    return np.concatenate(blocks)
