"""What a backtest found, partition by partition: as it is reported, and as it is stored.

Its tables are `<pipeline>.backtests` and, where the scores are kept, `<pipeline>.backtest_scores`; rows are only ever
added to them. Knows nothing of how anything was scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    "metric": pl.String,  # null where nothing could be measured: `note` says why
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
class PairedMetrics:
    """The metrics of a candidate and of production; on the same rows, where production scored the partition."""

    rows: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    production: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class TestedPartition:
    """One partition as a candidate scored it, held against what production did."""

    partition: str
    model: Version  # as it is registered, or as it would have been
    in_sample: bool
    rows_in: int
    rows_scored: int
    rows_rejected: int
    comparison: PairedMetrics
    production_version: str | None
    production_in_sample: bool | None
    note: str = ""  # why nothing is measured, or what would have stood in the way of publishing it
    registered: bool = True


@dataclass(frozen=True)
class Total:
    """One metric over all partitions: means, each partition counting by its measured rows."""

    metric: str
    partitions: int
    value: float
    compared: int  # partitions that production scored too
    value_where_compared: float | None
    production_value: float | None
    better: int  # partitions in which the candidate is
    worse: int


def totals(found: Sequence[TestedPartition]) -> list[Total]:
    """What a backtest comes to, metric by metric."""
    metrics = sorted({name for one in found for name in one.comparison.metrics} - {COVERAGE})
    return [_total(metric, found) for metric in metrics]


def _total(metric: str, found: Sequence[TestedPartition]) -> Total:
    held = [one.comparison for one in found if metric in one.comparison.metrics]
    both = [one for one in held if metric in one.production]
    pairs = [(one.metrics[metric], one.production[metric]) for one in both]
    return Total(
        metric=metric,
        partitions=len(held),
        value=_mean([(one.metrics[metric], one.rows) for one in held]) or 0.0,
        compared=len(both),
        value_where_compared=_mean([(one.metrics[metric], one.rows) for one in both]),
        production_value=_mean([(one.production[metric], one.rows) for one in both]),
        better=sum(is_worse(metric, theirs, ours) for ours, theirs in pairs),
        worse=sum(is_worse(metric, ours, theirs) for ours, theirs in pairs),
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    weight = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values) / weight if weight else None


def commit_backtest(
    warehouse: Warehouse, pipeline: str, found: Sequence[TestedPartition], stamp: Stamp, scores: Sequence[Path]
) -> None:
    """Add a backtest to the tables of its pipeline, in one transaction with its notes in the journal of changes.

    Args:
        warehouse: Where it goes.
        pipeline: The schema of the tables.
        found: What it found.
        stamp: Its run is the name of the backtest.
        scores: Staged predictions of all rows; none if they are not kept.

    Raises:
        DataError: Scores do not fit those of earlier backtests; nothing is stored.
        WarehouseBusyError: Another process kept the warehouse for longer than the time-out.
    """
    rows = pl.DataFrame([row for one in found for row in _rows(one, stamp)], schema=_COLUMNS)
    files = [_named(file) for file in scores]
    with warehouse.transaction() as con:
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(pipeline)}")
        con.register("new_rows", rows)
        table = f"{quoted(pipeline)}.{BACKTESTS}"
        con.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM new_rows LIMIT 0")
        con.execute(f"INSERT INTO {table} BY NAME FROM new_rows")
        con.unregister("new_rows")
        changed = [(BACKTESTS, one.partition) for one in found]
        if files:
            replace_rows(con, pipeline, SCORES, [], files)
            changed += [(SCORES, one.partition) for one in found]
        seqs = next_numbers(con, len(changed))
        note(con, [Change(seq, pipeline, *what) for seq, what in zip(seqs, changed, strict=True)])


def _rows(one: TestedPartition, stamp: Stamp) -> Iterator[dict[str, Any]]:
    comparison, model = one.comparison, one.model
    for metric in sorted(comparison.metrics) or [None]:
        yield {
            "backtest_id": stamp.run_id,
            "partition_key": one.partition,
            "metric": metric,
            "value": None if metric is None else comparison.metrics[metric],
            "production_value": None if metric is None else comparison.production.get(metric),
            "rows_measured": comparison.rows,
            "rows_in": one.rows_in,
            "rows_scored": one.rows_scored,
            "rows_rejected": one.rows_rejected,
            "in_sample": one.in_sample,
            "model_version": model.version if one.registered else None,
            "estimator": model.estimator,
            "params": model.params,
            "serving_period": model.serving_period,
            "trained_from": model.trained_from,
            "trained_until": model.trained_until,
            "rows_trained": model.rows_trained,
            "production_version": one.production_version,
            "production_in_sample": one.production_in_sample,
            "note": one.note,
            "run_at": stamp.at,
        }


def _named(file: Path) -> Path:
    """Staged predictions whose run is called the backtest that it is."""
    named = file.with_name(f"{file.name}.named")
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        rows = f"SELECT * EXCLUDE (run_id), run_id AS backtest_id FROM read_parquet({literal(str(file))})"
        con.execute(f"COPY ({rows}) TO {literal(str(named))} (FORMAT parquet)")
    file.unlink()
    return named
