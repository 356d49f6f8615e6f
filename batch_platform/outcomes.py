"""Committed predictions held against their true outcomes, one partition at a time, on plain frames."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from batch_platform.models.bundle import Bundle
from batch_platform.monitoring.performance import measure_classes, measure_segments, measure_values
from batch_platform.scoring import prediction_columns

COVERAGE = "label_coverage"


def measure(predictions: pl.DataFrame, labels: pl.DataFrame, key: Sequence[str], label: str, bundle: Bundle) -> dict[str, float]:
    """The metrics of a partition, and which share of its scored rows has a label.

    Args:
        predictions: Key columns and those that the model gave.
        labels: Key columns and the label, without nulls.
        key: The key columns.
        label: The label's column.
        bundle: The model that scored it. A label that it does not know counts as not covered.
    """
    known = labels.rename({label: "__truth"})
    joined = predictions.join(known, on=list(key), how="inner", maintain_order="left")
    classes = bundle.manifest.classes
    if bundle.manifest.task == "regression":
        found = measure_values(joined["__truth"].cast(pl.Float64).to_numpy(), joined["prediction"].to_numpy())
    else:
        joined = joined.filter(pl.Series([value in classes for value in joined["__truth"].to_list()], dtype=pl.Boolean))
        scores = joined.select(prediction_columns(bundle)[1:]).to_numpy()
        both = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if bundle.manifest.task == "binary" else scores
        found = measure_classes(joined["__truth"].to_numpy(), both, classes)
    return found | {COVERAGE: joined.height / predictions.height if predictions.height else 0.0}


def measure_clusters(features: pl.DataFrame, bundle: Bundle) -> dict[str, float]:
    """How well a partition falls into the segments of a clustering."""
    kept = bundle.contract.split(features).kept
    if not kept.height:
        return {}
    matrix = bundle.contract.encode(kept)
    return measure_segments(matrix, bundle.predictor.predict(matrix))
