"""What a measure is: a record of what it computes from a scored partition, in which table, and how the values are judged.

The evaluation of partitions, the tables, the asset checks and the numbers in the UI are built from these records. To add
a measure, write its record in a module of this folder and list it in `catalogue.py`; what it needs to know of the
pipeline gets a block under `monitoring:` in `declaration/spec.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.metrics import Metric, known_to
from batch_platform.monitoring.outcomes import CLASSIFICATION

TRUTH = "__truth"


@dataclass(frozen=True, eq=False)
class ScoredPartition:
    """One partition as one model scored it, with its labels as known now: all that a measure may look at."""

    task: str  # of the model
    classes: Sequence[Any]  # in the order of the model's probabilities; empty unless it is a classification
    key: Sequence[str]  # names of the key columns
    predictions: pl.DataFrame  # key columns, `prediction` and the score columns
    labels: pl.DataFrame | None  # key columns and, last, the label, without nulls; None if no labels are declared
    # The rows that were scored, with key, feature and prediction columns, and the same rows encoded [n, columns]. Raises
    # DataError or IntegrityError if they are no longer available.
    read_features: Callable[[], tuple[pl.DataFrame, NDArray[np.float64]]]
    own_metrics: Sequence[Metric] = ()  # that the pipeline declares
    in_sample: bool = False  # whether the model has learned from the partition

    @cached_property
    def score_columns(self) -> list[str]:
        """Names of the score columns, in the order of the classes."""
        return [name for name in self.predictions.columns if name not in {*self.key, "prediction"}]

    @cached_property
    def labelled(self) -> pl.DataFrame:
        """The predictions whose label is known, with the label as TRUTH, in the order of their keys."""
        if self.labels is None:
            return self.predictions.clear()
        truth = self.labels.rename({self.labels.columns[-1]: TRUTH})
        return self.predictions.join(truth, on=list(self.key), how="inner").sort(self.key)

    @cached_property
    def of_unknown_class(self) -> pl.Series:
        """The known labels, a class each, that the model does not know."""
        labels = self.labelled[TRUTH] if self.labels is not None else pl.Series(dtype=pl.String)
        return labels.filter(~known_to(self.classes, labels)) if self.task in CLASSIFICATION else labels.clear()


@dataclass(frozen=True)
class Judgement:
    """A value compared with its declared bound."""

    name: str  # what was judged, e.g. the name of a metric
    value: float
    bound: float
    lower_is_better: bool = False
    best: float | None = None  # end of the value's interval; None without one
    remarks: Mapping[str, float] = field(default_factory=dict[str, float])  # to show beside it

    @property
    def passed(self) -> bool:
        """Whether the value is not worse than the bound by more than chance."""
        value = self.value if self.best is None else self.best
        return not (value > self.bound if self.lower_is_better else value < self.bound)


@dataclass(frozen=True)
class Check:
    """How the values of a measure are judged for one pipeline."""

    description: str  # for the UI: what is expected, and what happens otherwise
    judge: Callable[[pl.DataFrame, str], Judgement | None]  # of a partition's rows of the table and its model's task


@dataclass(frozen=True)
class Measure:
    """One measure."""

    name: str  # of its table in the pipeline's schema, and of its asset check
    description: str  # for the UI, one sentence: what the measure says about a partition
    columns: Mapping[str, pl.DataType | type[pl.DataType]]  # of its table, besides those of every measure's table
    compute: Callable[[ScoredPartition], pl.DataFrame]  # the rows of its table for one partition, with these columns
    numbers: Callable[[pl.DataFrame], dict[str, float]]  # the rows as named numbers, to show and to plot
    check: Callable[[PipelineSpec], Check | None]  # how they are judged; None if the pipeline declares nothing
