"""Committed predictions held against their true outcomes, one partition at a time, on plain frames.

Everything it needs of the model is in the registry or in its contract: no model is loaded.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from batch_platform.contract import Contract
from batch_platform.monitoring.performance import measure_classes, measure_outliers, measure_segments, measure_values
from batch_platform.scoring import prediction_columns
from batch_platform.training import as_truth, known_to

COVERAGE = "label_coverage"
_TRUTH = "__truth"


def measure(  # noqa: PLR0913 - predictions, labels, and what joins and explains them
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    key: Sequence[str],
    label: str,
    task: str,
    classes: Sequence[object],
) -> dict[str, float]:
    """The metrics of a partition, and which share of its scored rows has a label.

    Args:
        predictions: Key columns and those that the model gave.
        labels: Key columns and the label, without nulls.
        key: The key columns.
        label: The label's column.
        task: Of the model that scored it.
        classes: That the model tells apart; a label that is none of them counts as not covered.
    """
    joined = predictions.join(labels.rename({label: _TRUTH}), on=list(key), how="inner", maintain_order="left")
    if task == "outliers":
        found = measure_outliers(joined["score"].to_numpy(), as_truth(joined[_TRUTH]))
    elif task == "regression":
        found = measure_values(as_truth(joined[_TRUTH]).astype(np.float64), joined["prediction"].to_numpy())
    else:
        joined = joined.filter(known_to(classes, joined[_TRUTH]))
        scores = joined.select(prediction_columns(task, classes)[1:]).to_numpy()
        both = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if task == "binary" else scores
        found = measure_classes(as_truth(joined[_TRUTH]), both, classes)
    return found | {COVERAGE: joined.height / predictions.height if predictions.height else 0.0}


def measure_clusters(
    predictions: pl.DataFrame, features: pl.DataFrame, key: Sequence[str], contract: Contract
) -> dict[str, float]:
    """How well a partition falls into the segments that it was given.

    Args:
        predictions: Key columns and `prediction`.
        features: Key columns and those of the contract, as they were scored.
        key: The key columns.
        contract: Of the model that scored it.
    """
    joined = features.join(predictions, on=list(key), how="inner", maintain_order="left")
    kept = contract.split(joined).kept
    return measure_segments(contract.encode(kept), kept["prediction"].to_numpy()) if kept.height else {}
