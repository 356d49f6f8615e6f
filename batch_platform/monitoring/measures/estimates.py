"""The measure `estimates`: the expected performance of a partition and of its segments before labels are known, and what came true.

Made from the profiles alone; an evaluation adds what came true.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import duckdb
import polars as pl

from batch_platform.declaration.errors import counted
from batch_platform.monitoring.measure import (
    Commits,
    ScoredMeasure,
    ScoredPart,
    ScoredPartition,
    rounded,
    table,
    table_of,
)
from batch_platform.monitoring.measures.performance import PERFORMANCE, labelled_outcomes
from batch_platform.monitoring.metrics import measure
from batch_platform.monitoring.reference import ESTIMATED, Expectation, estimates
from batch_platform.warehouse.descriptions import MODEL_VERSION, SEGMENT
from batch_platform.warehouse.ledger import Change, ScoreRun, note_partitions, replace_records, rows_of_partitions
from batch_platform.warehouse.sql import has_table, quoted

OF_SEGMENTS = "estimates_by_segment"
REALISED = "realised_by_segment"
_INSTEAD = ("accuracy", "mae")  # what is shown of models that are judged by a metric that is not estimated
_REALISED = {"segment_column": pl.String, "segment": pl.String, "metric": pl.String, "value": pl.Float64}


@dataclass(frozen=True)
class EstimatedMetric:
    """A metric of a partition as it was expected; a row of the table `estimates`."""

    partition_key: str
    metric: Annotated[str, "name of the metric"]
    estimate: Annotated[float, "its expected value"]
    low: Annotated[float, "start of the interval in which 95 of 100 values are expected to come true"]
    high: Annotated[float, "end of the interval"]
    realised: Annotated[
        float | None, "what came true; null until labels are known, and where the model has learned from the partition"
    ]
    rows: Annotated[int, "scored rows"]
    model_version: Annotated[str, MODEL_VERSION]
    run_id: str

    @property
    def within(self) -> bool | None:
        """True if the interval held what came true; None as long as that is not known."""
        return None if self.realised is None else self.low <= self.realised <= self.high


@dataclass(frozen=True)
class EstimatedSegmentMetric(EstimatedMetric):
    """A metric of a segment of a partition as it was expected; a row of the table `estimates_by_segment`."""

    rows: Annotated[int, "scored rows of the segment"]
    segment_column: Annotated[str, SEGMENT["segment_column"]]
    segment: Annotated[str | None, SEGMENT["segment"]]


@dataclass(frozen=True)
class TrackRecord:
    """The distance of estimates of a metric from what came true, in partitions that their models had not learned from."""

    metric: str
    partitions: int
    mean_error: float  # mean absolute difference
    within: float  # share of the partitions in which the interval held what came true

    @property
    def partitions_within(self) -> int:
        """The number of partitions in which the interval held what came true."""
        return round(self.within * self.partitions)

    def __str__(self) -> str:
        """Say how far to believe an estimate."""
        of = counted(self.partitions, "partition")
        return f"off by {self.mean_error:.4f} on average in {of}, {self.within:.0%} within the interval"


def estimated_metric(judged_by: str, estimated: Collection[str]) -> str | None:
    """The estimated metric to show of a model that is judged by a metric: the same, or another; None where there is none."""
    return next((metric for metric in (judged_by, *_INSTEAD) if metric in estimated), None)


@dataclass(frozen=True)
class Estimated:
    """The estimates of a partition, and how far those of all partitions were off so far."""

    metrics: tuple[EstimatedMetric, ...]
    records: Mapping[str, TrackRecord]  # record of each metric


class Estimates(ScoredMeasure[Estimated]):
    """The expected performance of a partition and of its segments before labels are known; an evaluation adds what came true."""

    name = "estimates"
    description = "How good the predictions of each partition are expected to be before their labels are known."
    tables: ClassVar = {
        "estimates": table_of(
            EstimatedMetric, "a metric of a partition as it was expected before its labels were known"
        ),
        OF_SEGMENTS: table_of(EstimatedSegmentMetric, "the same for each value of the columns in monitoring.segments"),
    }

    def replace(
        self, con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]
    ) -> list[Change]:
        """Replace the estimates of committed partitions, made from their profiles alone."""
        rows, of_segments = list[EstimatedMetric](), list[EstimatedMetric]()
        for run in commits.runs:
            part = parts[run.partition_key]
            counted = next((profile for profile in part.profiles if profile.role == "estimate"), None)
            reference = None if counted is None else commits.reference_of(run)
            if counted is None or reference is None or reference.basis is None:
                continue
            expectation = reference.basis.expectation
            rows += _rows(run, expectation, counted.histogram)
            for column, by_value in reference.named(part.by_segment).of("estimate").items():
                for segment, histogram in by_value.items():
                    of_segments += _rows(run, expectation, histogram, segment_column=column, segment=segment)
        return [
            *replace_records(con, commits.runs, self.name, EstimatedMetric, rows),
            *replace_records(con, commits.runs, OF_SEGMENTS, EstimatedSegmentMetric, of_segments),
        ]

    def beside(self, partition: ScoredPartition) -> dict[str, pl.DataFrame]:
        """The metrics that are estimated too, of each segment of a partition that the model has not learned from."""
        if partition.in_sample or not partition.segments or not partition.labelled.height:
            return {}
        segments = partition.read_segments()
        if segments is None:
            return {}
        outcomes, key, realised = (
            labelled_outcomes(partition),
            list(partition.key),
            list[tuple[str, str | None, str, float]](),
        )
        rows = partition.labelled.select(key).join(segments, on=key, how="left", maintain_order="left")
        for column in (name for name in partition.segments if name in segments.columns):
            places = rows.select(value=pl.col(column).cast(pl.String)).with_row_index("place")
            for (segment,), of_segment in places.group_by("value", maintain_order=True):
                values = measure(outcomes.at(of_segment["place"].to_numpy()), only=ESTIMATED)
                name = None if segment is None else str(segment)
                realised += [(column, name, metric, value) for metric, value in values.items()]
        return {REALISED: pl.DataFrame(realised, schema=_REALISED, orient="row")}

    def settle(
        self, con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str], rows: Mapping[str, pl.DataFrame]
    ) -> None:
        """Record what came true of the estimates of evaluated partitions.

        The metrics of whole partitions are read from `performance`; `rows` has those of segments.
        """
        if not keys or not has_table(con, pipeline, self.name):
            return
        estimates_table, measured = (f"{quoted(pipeline)}.{name}" for name in (self.name, PERFORMANCE.name))
        con.execute(
            f"""
            UPDATE {estimates_table} SET realised = (
                SELECT p.value FROM {measured} AS p
                WHERE p.partition_key = {estimates_table}.partition_key AND p.metric = {estimates_table}.metric
                  AND p.model_version = {estimates_table}.model_version AND p.challenger IS NULL AND NOT p.in_sample
            ) WHERE partition_key IN $keys
            """,
            {"keys": list(keys)},
        )
        note_partitions(con, pipeline, self.name, sorted(keys))
        if not has_table(con, pipeline, OF_SEGMENTS):
            return
        estimates_table = f"{quoted(pipeline)}.{OF_SEGMENTS}"
        con.register("of_segments", rows.get(REALISED, pl.DataFrame(schema={"partition_key": pl.String, **_REALISED})))
        con.execute(
            f"""
            UPDATE {estimates_table} SET realised = (
                SELECT s.value FROM of_segments AS s
                WHERE s.partition_key = {estimates_table}.partition_key AND s.metric = {estimates_table}.metric
                  AND s.segment_column = {estimates_table}.segment_column AND s.segment IS NOT DISTINCT FROM {estimates_table}.segment
            ) WHERE partition_key IN $keys
            """,
            {"keys": list(keys)},
        )
        con.unregister("of_segments")
        note_partitions(con, pipeline, OF_SEGMENTS, sorted(keys))

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, Estimated]:
        """The estimates of committed partitions."""
        records = track_records(con, commits.pipeline)
        by_partition = read_estimates(con, commits.pipeline, commits.keys)
        return {key: Estimated(metrics, records) for key, metrics in by_partition.items()}

    def shown(self, value: Estimated) -> dict[str, Any]:
        """The expected metrics, to plot, with their intervals and how far such estimates were off so far, to read."""
        numbers = {f"estimated_{estimate.metric}": estimate.estimate for estimate in value.metrics}
        rows = [
            (
                *(estimate.metric, f"{estimate.estimate:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"),
                str(value.records.get(estimate.metric, "none has come true yet")),
            )
            for estimate in value.metrics
        ]
        text = table(("metric", "expected", "95% interval", "estimates so far"), rows, ("expected",))
        return {**rounded(numbers), "estimates": text}


ESTIMATES = Estimates()


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


def read_estimates(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[EstimatedMetric, ...]]:
    """The estimates of some partitions by partition key; a partition without any is left out."""
    return rows_of_partitions(
        con, EstimatedMetric, pipeline, ESTIMATES.name, partition_keys, order="partition_key, metric"
    )


def track_records(
    con: duckdb.DuckDBPyConnection, pipeline: str, without: Collection[str] = ()
) -> dict[str, TrackRecord]:
    """The track record of a pipeline's estimates `without` some partitions, by metric; empty before anything came true."""
    if not has_table(con, pipeline, ESTIMATES.name):
        return {}
    query = f"""
        SELECT metric, count(*), avg(abs(estimate - realised)), avg((realised BETWEEN low AND high)::INTEGER)
        FROM {quoted(pipeline)}.{ESTIMATES.name} WHERE realised IS NOT NULL AND partition_key NOT IN $without
        GROUP BY metric ORDER BY metric
    """
    rows = con.execute(query, {"without": [*without]}).fetchall()
    return {metric: TrackRecord(metric, *numbers) for metric, *numbers in rows}


def in_words(estimate: EstimatedMetric, records: Mapping[str, TrackRecord]) -> str:
    """An estimate in words, with its interval and how far such estimates were off so far."""
    record = records.get(estimate.metric)
    so_far = "no such estimate has come true yet" if record is None else f"such estimates were {record}"
    interval = f"{estimate.low:.4f} to {estimate.high:.4f}"
    return (
        f"{estimate.metric} about {estimate.estimate:.4f} expected on {estimate.partition_key} ({interval}; {so_far})"
    )
