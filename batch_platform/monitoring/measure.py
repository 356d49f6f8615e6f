"""What a measure is: a record of what it computes from a scored partition, into which table, and how it is judged.

The evaluation of partitions, the tables, the asset checks and the numbers in the UI are built from these records. To add
a measure, write its record in a module of this folder and list it in `catalogue.py`; what it needs to know of the
pipeline gets a block under `monitoring:` in `declaration/spec.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.metrics import CLASSIFICATION, known_to

TRUTH = "__truth"


@dataclass(frozen=True, eq=False)
class ScoredPartition:
    """One partition as one model scored it, with what is known of it now: all that a measure may look at.

    Args:
        task: Task of the model.
        classes: Classes of the model in the order of its probabilities; empty unless it is a classification.
        key: Names of the key columns.
        predictions: Key columns, `prediction` and the score columns.
        labels: Key columns and, last, the label, without nulls; None where the pipeline declares no labels.
        read_features: Reads what was scored: the rows with key, feature and prediction columns, and the same rows
            encoded [n, columns]. Raises a DataError or IntegrityError where they are no longer available.
    """

    task: str
    classes: Sequence[Any]
    key: Sequence[str]
    predictions: pl.DataFrame
    labels: pl.DataFrame | None
    read_features: Callable[[], tuple[pl.DataFrame, NDArray[np.float64]]]

    @cached_property
    def score_columns(self) -> list[str]:
        """Names of the score columns, in the order of the classes."""
        return [name for name in self.predictions.columns if name not in {*self.key, "prediction"}]

    @cached_property
    def labelled(self) -> pl.DataFrame:
        """The predictions whose label is known, with the label as TRUTH; a class that the model does not know is none."""
        if self.labels is None:
            return self.predictions.clear()
        truth = self.labels.rename({self.labels.columns[-1]: TRUTH})
        joined = self.predictions.join(truth, on=list(self.key), how="inner", maintain_order="left")
        return joined.filter(known_to(self.classes, joined[TRUTH])) if self.task in CLASSIFICATION else joined


@dataclass(frozen=True)
class Judgement:
    """A value held against its bound.

    Args:
        name: What was judged, e.g. the name of a metric.
        value: Its value.
        bound: The bound that is declared.
        lower_is_better: Whether a value above the bound is the worse one.
    """

    name: str
    value: float
    bound: float
    lower_is_better: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is not worse than the bound."""
        return not (self.value > self.bound if self.lower_is_better else self.value < self.bound)


@dataclass(frozen=True)
class Check:
    """How the values of a measure are judged for one pipeline.

    Args:
        description: What is expected and what happens otherwise, for the UI.
        judge: Judges the numbers of a partition, given the task of its model; None where there is nothing to judge.
    """

    description: str
    judge: Callable[[Mapping[str, float], str], Judgement | None]


@dataclass(frozen=True)
class Measure:
    """One measure.

    Args:
        name: Name of its table in the pipeline's schema, and of its asset check.
        description: One sentence for the UI: what it says of a partition.
        columns: Columns of its table besides those that every measure's table has.
        compute: Rows of its table for one partition, with exactly these columns.
        numbers: The rows as named numbers, to show and to plot for the partition.
        check: How they are judged, as declared; None where the pipeline declares nothing.
    """

    name: str
    description: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    compute: Callable[[ScoredPartition], pl.DataFrame]
    numbers: Callable[[pl.DataFrame], dict[str, float]]
    check: Callable[[PipelineSpec], Check | None]
