"""Estimates in the report: the expected metric of each partition, and the errors of such estimates so far."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measures.estimates import (
    EstimatedMetric,
    TrackRecord,
    estimated_metric,
    read_estimates,
    track_records,
)
from batch_platform.monitoring.resampling import LEVEL, wilson
from batch_platform.reports.performance import thin_together
from batch_platform.reports.span import Span

MOST_UNMEASURED = 7  # newest partitions that are listed


@dataclass(frozen=True)
class EstimateFigures:
    """The expected values of one metric."""

    metric: str
    partitions: tuple[EstimatedMetric, ...]  # estimates in order of time
    measured: tuple[tuple[str, ...], ...]  # keys of the measured partitions, those of thin neighbours together
    record: TrackRecord | None  # record over every estimate of the metric; None before one came true

    @property
    def falls_short(self) -> bool:
        """True if the intervals held fewer observed values than LEVEL promises, by more than chance."""
        record = self.record
        return record is not None and wilson(record.within, record.partitions).high < LEVEL

    @property
    def drawn(self) -> list[EstimatedMetric]:
        """The estimates with what came true, those of thin neighbours as one; and those that are not measured."""
        realised = {row.partition_key: row for row in self.partitions if row.realised is not None}
        together = [[realised[key] for key in keys if key in realised] for keys in self.measured]
        return [row for row in self.partitions if row.realised is None] + [_as_one(rows) for rows in together if rows]

    @property
    def unmeasured(self) -> tuple[EstimatedMetric, ...]:
        """The newest partitions that were not measured, in order of time."""
        return tuple(row for row in self.partitions if row.realised is None)[-MOST_UNMEASURED:]


def _as_one(rows: Sequence[EstimatedMetric]) -> EstimatedMetric:
    """The mean of some partitions by their rows, at the middle one; the interval is as wide as theirs, which share some of their error."""
    shares = np.array([row.rows for row in rows]) / sum(row.rows for row in rows)
    numbers = [(row.estimate, row.low, row.high, row.realised) for row in rows]
    estimate, low, high, realised = (shares @ np.array(numbers, dtype=np.float64)).tolist()
    return replace(rows[len(rows) // 2], estimate=estimate, low=low, high=high, realised=realised)


def read_estimate_figures(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, judged_by: str, span: Span, doubtful: Collection[str]
) -> EstimateFigures | None:
    """Read the estimates of the metric that a model is judged by, or of the one that stands in for it.

    Partitions that a model has learned from are left out, and those that are `doubtful` out of the record. None where nothing was estimated.
    """
    keys = [run.partition_key for run in span.runs if not run.in_sample]
    pipeline, by_partition = spec.name, read_estimates(con, spec.name, keys)
    rows = [row for key in keys for row in by_partition.get(key, ())]
    metric = estimated_metric(judged_by, {row.metric for row in rows})
    if metric is None:
        return None
    partitions = tuple(row for row in rows if row.metric == metric)
    return EstimateFigures(
        metric,
        partitions,
        tuple(tuple(row["partition_key"] for row in rows) for rows in thin_together(con, spec, metric, span)),
        track_records(con, pipeline, doubtful).get(metric),
    )
