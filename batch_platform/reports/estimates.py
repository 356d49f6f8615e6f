"""Estimates in the report: what a metric of each partition was expected to be, and how far such estimates were off so far."""

from dataclasses import dataclass

import duckdb

from batch_platform.monitoring.estimates import TrackRecord, estimated_metric
from batch_platform.reports.span import Span
from batch_platform.scoring.estimate_tables import EstimatedMetric, read_estimates, track_records

MOST_UNMEASURED = 7  # partitions that are listed, the newest


@dataclass(frozen=True)
class EstimateFigures:
    """The expected values of one metric."""

    metric: str
    partitions: tuple[EstimatedMetric, ...]  # in order of time
    record: TrackRecord | None  # of every estimate of the metric, of any partition; None before one came true

    @property
    def unmeasured(self) -> tuple[EstimatedMetric, ...]:
        """The newest partitions that were not measured, in order of time: of them an estimate is all that is known."""
        return tuple(row for row in self.partitions if row.realised is None)[-MOST_UNMEASURED:]


def read_estimate_figures(
    con: duckdb.DuckDBPyConnection, pipeline: str, judged_by: str, span: Span
) -> EstimateFigures | None:
    """Read the estimates of the metric that a model is judged by, or of the one that stands in for it.

    Partitions that a model has learned from are left out. None where nothing was estimated.
    """
    keys = [run.partition_key for run in span.runs if not run.in_sample]
    by_partition = read_estimates(con, pipeline, keys)
    rows = [row for key in keys for row in by_partition.get(key, ())]
    metric = estimated_metric(judged_by, {row.metric for row in rows})
    if metric is None:
        return None
    partitions = tuple(row for row in rows if row.metric == metric)
    return EstimateFigures(metric, partitions, track_records(con, pipeline).get(metric))
