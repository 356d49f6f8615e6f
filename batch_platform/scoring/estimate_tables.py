"""The tables of estimates in the warehouse: the expected performance of each partition and of its segments, and what came true.

Written in the transaction of the predictions, from their profiles alone; an evaluation adds what came true.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl

from batch_platform.monitoring.estimates import Expectation, TrackRecord, estimates
from batch_platform.monitoring.performance import PERFORMANCE
from batch_platform.monitoring.profiles import Profile
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.scoring.drift_tables import ReferenceOf
from batch_platform.warehouse.ledger import ScoreRun, note_partitions, replace_records, rows_of_partitions
from batch_platform.warehouse.sql import has_table, quoted

ESTIMATES, OF_SEGMENTS = "estimates", "estimates_by_segment"
MEASURED_SEGMENTS = {  # columns of what came true of segments
    "partition_key": pl.String,
    "segment_column": pl.String,
    "segment": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
}


@dataclass(frozen=True)
class EstimatedMetric:
    """A metric of a partition as it was expected; a row of the table `estimates`."""

    partition_key: str
    metric: str
    estimate: float
    low: float
    high: float
    realised: float | None  # None until labels are known, and where the model has learned from them
    rows: int
    model_version: str
    run_id: str

    @property
    def within(self) -> bool | None:
        """Whether the interval held what came true; None as long as that is not known."""
        return None if self.realised is None else self.low <= self.realised <= self.high


@dataclass(frozen=True)
class EstimatedSegmentMetric(EstimatedMetric):
    """A metric of a segment of a partition as it was expected; a row of the table `estimates_by_segment`."""

    segment_column: str
    segment: str | None  # value of the column as text


def replace_estimates(
    con: duckdb.DuckDBPyConnection,
    committed: Sequence[ScoreRun],
    profiles: Mapping[str, Sequence[Profile]],
    by_segment: Mapping[str, SegmentCounts],
    reference_of: ReferenceOf,
) -> None:
    """Replace the estimates of the committed partitions, whose profiles and counts by segment are given by partition key."""
    rows, of_segments = list[EstimatedMetric](), list[EstimatedMetric]()
    for run in committed:
        of_run = profiles.get(run.partition_key, ())
        counted = next((profile for profile in of_run if profile.role == "estimate"), None)
        reference = None if counted is None else reference_of(run)
        if counted is None or reference is None or reference.basis is None:
            continue
        expectation = reference.basis.expectation
        rows += _rows(run, expectation, counted.histogram)
        for column, by_value in by_segment.get(run.partition_key, SegmentCounts()).of("estimate").items():
            for segment, histogram in by_value.items():
                of_segments += _rows(run, expectation, histogram, segment_column=column, segment=segment)
    replace_records(con, committed, ESTIMATES, EstimatedMetric, rows)
    replace_records(con, committed, OF_SEGMENTS, EstimatedSegmentMetric, of_segments)


def _rows(
    run: ScoreRun, expectation: Expectation, histogram: Sequence[int], **segment: str | None
) -> Iterator[EstimatedMetric]:
    """The estimates of a partition, or of a segment of it, given its rows in each cell."""
    make: Any = EstimatedSegmentMetric if segment else EstimatedMetric
    for estimate in estimates(expectation, histogram, segment.get("segment_column")):
        yield make(
            **segment,
            partition_key=run.partition_key,
            metric=estimate.metric,
            estimate=estimate.value,
            low=estimate.low,
            high=estimate.high,
            realised=None,
            rows=sum(histogram),
            model_version=run.model_version,
            run_id=run.run_id,
        )


def record_realised(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str], of_segments: pl.DataFrame
) -> None:
    """Record what came true of the estimates of evaluated partitions.

    The metrics of whole partitions are read from `performance`; `of_segments` has those of segments, in the columns
    MEASURED_SEGMENTS.
    """
    if not partition_keys or not has_table(con, pipeline, ESTIMATES):
        return
    table, measured = (f"{quoted(pipeline)}.{name}" for name in (ESTIMATES, PERFORMANCE.name))
    con.execute(
        f"""
        UPDATE {table} SET realised = (
            SELECT p.value FROM {measured} AS p
            WHERE p.partition_key = {table}.partition_key AND p.metric = {table}.metric
              AND p.model_version = {table}.model_version AND p.challenger IS NULL AND NOT p.in_sample
        ) WHERE partition_key IN $keys
        """,
        {"keys": list(partition_keys)},
    )
    note_partitions(con, pipeline, ESTIMATES, sorted(partition_keys))
    if not has_table(con, pipeline, OF_SEGMENTS):
        return
    table = f"{quoted(pipeline)}.{OF_SEGMENTS}"
    con.register("of_segments", of_segments)
    con.execute(
        f"""
        UPDATE {table} SET realised = (
            SELECT s.value FROM of_segments AS s
            WHERE s.partition_key = {table}.partition_key AND s.metric = {table}.metric
              AND s.segment_column = {table}.segment_column AND s.segment IS NOT DISTINCT FROM {table}.segment
        ) WHERE partition_key IN $keys
        """,
        {"keys": list(partition_keys)},
    )
    con.unregister("of_segments")
    note_partitions(con, pipeline, OF_SEGMENTS, sorted(partition_keys))


def read_estimates(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[EstimatedMetric, ...]]:
    """The estimates of some partitions by partition key; a partition without any is left out."""
    return rows_of_partitions(con, EstimatedMetric, pipeline, ESTIMATES, partition_keys, order="partition_key, metric")


def read_segment_estimates(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[EstimatedSegmentMetric, ...]]:
    """The estimates of the segments of some partitions by partition key, those with most rows first."""
    order = "partition_key, segment_column, rows DESC, segment, metric"
    return rows_of_partitions(con, EstimatedSegmentMetric, pipeline, OF_SEGMENTS, partition_keys, order=order)


def track_records(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, TrackRecord]:
    """How far the estimates of a pipeline were from what came true, by metric; empty before anything came true."""
    return {record.metric: record for record, *_ in _track_records(con, pipeline, ESTIMATES)}


def segment_track_records(
    con: duckdb.DuckDBPyConnection, pipeline: str, metric: str
) -> dict[tuple[str, str | None], TrackRecord]:
    """How far the estimates of a metric were from what came true, by column and segment."""
    records = _track_records(con, pipeline, OF_SEGMENTS, "segment_column", "segment")
    return {(column, segment): record for record, column, segment in records if record.metric == metric}


def _track_records(con: duckdb.DuckDBPyConnection, pipeline: str, table: str, *by: str) -> Iterator[tuple[Any, ...]]:
    """A track record for each metric and combination of values of some columns, and these values."""
    if not has_table(con, pipeline, table):
        return
    also = "".join(f", {column}" for column in by)
    query = f"""
        SELECT metric, count(*), avg(abs(estimate - realised)), avg((realised BETWEEN low AND high)::INTEGER){also}
        FROM {quoted(pipeline)}.{table} WHERE realised IS NOT NULL GROUP BY metric{also} ORDER BY metric{also}
    """
    for metric, partitions, mean_error, within, *values in con.execute(query).fetchall():
        yield TrackRecord(metric, partitions, mean_error, within), *values
