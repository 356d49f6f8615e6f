"""The results of backtests, as they are reported and as they are stored.

Their tables are `<pipeline>.backtests` and, if the scores are kept, `<pipeline>.backtest_scores`; rows are only ever added.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.stamp import Stamp
from batch_platform.models.registry import Version
from batch_platform.monitoring.metrics import is_worse
from batch_platform.monitoring.performance import COVERAGE
from batch_platform.warehouse.database import Warehouse, replace_rows
from batch_platform.warehouse.ledger import Change, next_numbers, note
from batch_platform.warehouse.sql import literal, quoted

BACKTESTS, SCORES = "backtests", "backtest_scores"
_COLUMNS = {
    "backtest_id": pl.String,
    "partition_key": pl.String,
    "metric": pl.String,  # null if nothing could be measured; `note` says why
    "value": pl.Float64,
    "production_value": pl.Float64,
    "rows_measured": pl.Int64,
    "rows_in": pl.Int64,
    "rows_scored": pl.Int64,
    "rows_rejected": pl.Int64,
    "in_sample": pl.Boolean,
    "model_version": pl.String,  # null for a model that is not registered
    "estimator": pl.String,
    "params": pl.String,
    "serving_period": pl.String,
    "trained_from": pl.Datetime("us", "UTC"),
    "trained_until": pl.Datetime("us", "UTC"),
    "rows_trained": pl.Int64,
    "production_version": pl.String,
    "production_in_sample": pl.Boolean,
    "note": pl.String,
    "run_at": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True)
class TestedPartition:
    """One partition as the tested model scored it, and what production did; as it is reported."""

    partition: str
    model: str  # the registered version, or the serving period that it was trained for
    in_sample: bool
    rows_in: int
    rows_scored: int
    rows_rejected: int
    rows_measured: int
    metrics: dict[str, float]
    production: dict[str, float]  # on the same rows; empty if production did not score the partition
    production_version: str | None
    production_in_sample: bool | None
    note: str  # why nothing is measured, or what would have kept the partition from being published


@dataclass(frozen=True)
class Backtested:
    """The result of a backtest.

    Args:
        partitions: The tested partitions, oldest first.
        versions: The version that scored each partition, by key.
        registered: Whether these are registered versions, and not trained for the backtest alone.
    """

    partitions: list[TestedPartition]
    versions: Mapping[str, Version]
    registered: bool

    @property
    def task(self) -> str:
        """Task of the tested model."""
        return next(iter(self.versions.values())).task


@dataclass(frozen=True)
class Total:
    """One metric over all partitions: means weighted by the measured rows of each partition."""

    metric: str
    partitions: int
    value: float
    compared: int  # partitions that production scored too
    value_where_compared: float | None
    production_value: float | None
    better: int  # partitions in which the tested model is better than production
    worse: int


def totals(partitions: Sequence[TestedPartition]) -> list[Total]:
    """The result of a backtest over all partitions, by metric."""
    metrics = sorted({name for partition in partitions for name in partition.metrics} - {COVERAGE})
    return [_total(metric, partitions) for metric in metrics]


def _total(metric: str, partitions: Sequence[TestedPartition]) -> Total:
    measured = [partition for partition in partitions if metric in partition.metrics]
    compared = [partition for partition in measured if metric in partition.production]
    pairs = [(partition.metrics[metric], partition.production[metric]) for partition in compared]
    return Total(
        metric=metric,
        partitions=len(measured),
        value=_mean([(partition.metrics[metric], partition.rows_measured) for partition in measured]) or 0.0,
        compared=len(compared),
        value_where_compared=_mean([(partition.metrics[metric], partition.rows_measured) for partition in compared]),
        production_value=_mean([(partition.production[metric], partition.rows_measured) for partition in compared]),
        better=sum(is_worse(metric, production, tested) for tested, production in pairs),
        worse=sum(is_worse(metric, tested, production) for tested, production in pairs),
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    weight = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values) / weight if weight else None


def commit_backtest(
    warehouse: Warehouse, pipeline: str, result: Backtested, stamp: Stamp, scores: Sequence[Path]
) -> None:
    """Add a backtest to the tables of its pipeline, in one transaction with its entries in the journal of changes.

    Args:
        warehouse: The warehouse.
        pipeline: The schema of the tables.
        result: The result of the backtest.
        stamp: Its run names the backtest.
        scores: Files of staged predictions of all rows; empty if they are not kept.

    Raises:
        DataError: Scores do not fit those of earlier backtests; nothing is stored.
        WarehouseBusyError: Another process kept the warehouse for longer than the time-out.
    """
    rows = pl.DataFrame(list(_rows(result, stamp)), schema=_COLUMNS)
    files = [_named(file) for file in scores]
    with warehouse.transaction() as con:
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(pipeline)}")
        con.register("new_rows", rows)
        table = f"{quoted(pipeline)}.{BACKTESTS}"
        con.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM new_rows LIMIT 0")
        con.execute(f"INSERT INTO {table} BY NAME FROM new_rows")
        con.unregister("new_rows")
        if files:
            replace_rows(con, pipeline, SCORES, [], files)
        tables = [BACKTESTS, SCORES] if files else [BACKTESTS]
        changed = [(table, partition.partition) for table in tables for partition in result.partitions]
        seqs = next_numbers(con, len(changed))
        note(con, [Change(seq, pipeline, *change) for seq, change in zip(seqs, changed, strict=True)])


def _rows(result: Backtested, stamp: Stamp) -> Iterator[dict[str, Any]]:
    for partition in result.partitions:
        version = result.versions[partition.partition]
        for metric in sorted(partition.metrics) or [None]:
            yield {
                **{
                    name: value
                    for record in (version, partition)
                    for name, value in vars(record).items()
                    if name in _COLUMNS
                },
                "backtest_id": stamp.run_id,
                "partition_key": partition.partition,
                "metric": metric,
                "value": None if metric is None else partition.metrics[metric],
                "production_value": None if metric is None else partition.production.get(metric),
                "model_version": version.version if result.registered else None,
                "run_at": stamp.at,
            }


def _named(file: Path) -> Path:
    """Staged predictions with the column `backtest_id` instead of `run_id`."""
    named = file.with_name(f"{file.name}.named")
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        rows = f"SELECT * EXCLUDE (run_id), run_id AS backtest_id FROM read_parquet({literal(str(file))})"
        con.execute(f"COPY ({rows}) TO {literal(str(named))} (FORMAT parquet)")
    file.unlink()
    return named
