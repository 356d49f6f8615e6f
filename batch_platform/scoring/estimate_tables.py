"""The table of estimates in the warehouse: the expected performance of each partition, and what came true.

Written in the transaction of the predictions, from their profiles alone; an evaluation adds what came true.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from batch_platform.models.reference import ReferenceProfile
from batch_platform.monitoring.estimates import TrackRecord, estimates
from batch_platform.monitoring.performance import PERFORMANCE
from batch_platform.monitoring.profiles import Profile
from batch_platform.warehouse.ledger import (
    Change,
    ScoreRun,
    create_table,
    insert,
    note,
    note_partitions,
    rows_of_partitions,
)
from batch_platform.warehouse.sql import has_table, quoted

ESTIMATES = "estimates"


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


def replace_estimates(
    con: duckdb.DuckDBPyConnection,
    committed: Sequence[ScoreRun],
    profiles: Mapping[str, Sequence[Profile]],
    reference_of: Callable[[ScoreRun], ReferenceProfile | None],
) -> None:
    """Replace the estimates of the committed partitions, whose profiles are given by partition key."""
    pipeline = committed[0].pipeline
    rows = [row for run in committed for row in _rows(run, profiles.get(run.partition_key, ()), reference_of)]
    if not rows and not has_table(con, pipeline, ESTIMATES):
        return
    create_table(con, pipeline, ESTIMATES, EstimatedMetric)
    keys = {"keys": [run.partition_key for run in committed]}
    con.execute(f"DELETE FROM {quoted(pipeline)}.{ESTIMATES} WHERE partition_key IN $keys", keys)
    insert(con, ESTIMATES, [vars(row) for row in rows], schema=pipeline)
    note(con, [Change(run.seq, pipeline, ESTIMATES, run.partition_key) for run in committed])


def _rows(
    run: ScoreRun, profiles: Sequence[Profile], reference_of: Callable[[ScoreRun], ReferenceProfile | None]
) -> list[EstimatedMetric]:
    counted = next((profile for profile in profiles if profile.role == "estimate"), None)
    reference = None if counted is None else reference_of(run)
    if counted is None or reference is None or reference.basis is None:
        return []
    return [
        EstimatedMetric(
            partition_key=run.partition_key,
            metric=estimate.metric,
            estimate=estimate.value,
            low=estimate.low,
            high=estimate.high,
            realised=None,
            rows=counted.rows,
            model_version=run.model_version,
            run_id=run.run_id,
        )
        for estimate in estimates(reference.basis.expectation, counted.histogram)
    ]


def record_realised(con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]) -> None:
    """Record what came true of the estimates of evaluated partitions, from the rows of `performance`."""
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


def read_estimates(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[EstimatedMetric, ...]]:
    """The estimates of some partitions by partition key; a partition without any is left out."""
    return rows_of_partitions(con, EstimatedMetric, pipeline, ESTIMATES, partition_keys, order="partition_key, metric")


def track_records(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, TrackRecord]:
    """How far the estimates of a pipeline were from what came true, by metric; empty before anything came true."""
    if not has_table(con, pipeline, ESTIMATES):
        return {}
    query = f"""
        SELECT metric, count(*), avg(abs(estimate - realised)), avg((realised BETWEEN low AND high)::INTEGER)
        FROM {quoted(pipeline)}.{ESTIMATES} WHERE realised IS NOT NULL GROUP BY metric ORDER BY metric
    """
    return {values[0]: TrackRecord(*values) for values in con.execute(query).fetchall()}
