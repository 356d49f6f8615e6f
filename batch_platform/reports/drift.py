"""Drift in the report: a cell for each column and period, and the worst columns in a sentence each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import polars as pl

from batch_platform.declaration.errors import number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import OUTSIDE_MATTERS, UNUSUAL
from batch_platform.monitoring.measures.drift import COLUMNS, REFERENCE, ColumnDrift
from batch_platform.monitoring.measures.scored import read_profiles
from batch_platform.monitoring.profiles import Profile
from batch_platform.reports.span import Span
from batch_platform.warehouse.ledger import selected
from batch_platform.warehouse.sql import has_table, quoted

MOST_COLUMNS = 12  # columns in the heat map, those that drifted most
NOTICEABLE = 0.1  # index from which a difference is worth a look by common rule
MOST_PERIODS = 62  # periods in the heat map; more partitions are shown by week, and more weeks by month
WORST = 5
_MATTERS = 0.05  # change of a share of rows that explains a drift
_STRENGTHS = ((1.0, "a very strong"), (0.25, "a strong"), (0.0, "a noticeable"))
_CELLS = {"column": pl.String, "period": pl.String, "index": pl.Float64, "alarms": pl.Int64, "partitions": pl.Int64}


@dataclass(frozen=True)
class Drifted:
    """A column that raised an alarm, at its worst partition."""

    column: str
    partition_key: str
    change: str  # how it differs there, as a clause
    sentence: str
    alarms: list[str]  # partitions with an alarm, in order of time
    again: str | None  # first partition after them all, where it is as usual again
    shares: list[tuple[str, float, float]]  # values, and their shares without an alarm and in the worst partition


@dataclass(frozen=True)
class DriftFigures:
    """Distance of features and predictions from the training data."""

    every: str  # length of a period: that of a partition, week or month
    cells: pl.DataFrame  # columns column, period, index (the highest of the period), alarms, partitions
    worst: list[Drifted]  # worst first
    columns: int  # number of measured columns
    judged: bool  # whether any column was held against limits
    early: int  # partitions that were scored before there were limits
    drifted: int  # number of columns that raised an alarm
    unjudged: int  # partitions whose predictions have no baseline, though features have

    @property
    def moved(self) -> list[str]:
        """The columns that were noticeably far from the training data in some period, the farthest first."""
        farthest = self.cells.group_by("column").agg(pl.max("index")).filter(pl.col("index") >= NOTICEABLE)
        return farthest.sort("index", "column", descending=[True, False])["column"].to_list()


def read_drift_figures(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, span: Span) -> DriftFigures | None:
    """Read the drift of a span; None where it was not measured."""
    pipeline, zone = spec.name, spec.partitions.calendar.zone
    declared = spec.monitoring.drift
    if not has_table(con, pipeline, COLUMNS):
        return None
    rows = _rows(con, pipeline, span)
    if not rows.height:
        return None
    every, periods = _periods(span, zone, spec.partitions.every)
    rows = rows.with_columns(period=pl.col("partition_key").replace_strict(periods))
    of_columns = rows.group_by("column_name").agg(
        pl.len().alias("partitions"),
        pl.col("alarm").sum().alias("alarms"),
        pl.col("unusual").filter("alarm").max().alias("highest"),
        pl.col("unusual").sum().alias("total"),
    )
    shown = of_columns.sort("alarms", "total", "column_name", descending=[True, True, False])["column_name"]
    cells = (
        rows.filter(pl.col("column_name").is_in(shown.head(MOST_COLUMNS).to_list()))
        .group_by(pl.col("column_name").alias("column"), "period")
        .agg(
            pl.col("unusual").max().alias("index"),
            pl.col("alarm").sum().cast(pl.Int64).alias("alarms"),
            pl.len().cast(pl.Int64).alias("partitions"),
        )
        .sort("column", "period")
        .select(*_CELLS)
    )
    alarming = of_columns.filter(pl.col("alarms") > 0).sort("highest", "column_name", descending=[True, False])
    worst = [
        _drifted(con, spec, rows.filter(column_name=name), span)
        for name in alarming.head(WORST)["column_name"].to_list()
    ]
    of_predictions = rows.filter(role="prediction")["partition_key"].n_unique()
    unjudged = rows["partition_key"].n_unique() - of_predictions
    judged = bool(rows["level"].count())
    early = 0
    if declared is not None:
        levels = rows.filter(~pl.col("column_name").is_in(declared.ignore)).group_by("partition_key")
        early = levels.agg(pl.col("level").count()).filter(pl.col("level") == 0).height
    return DriftFigures(every, cells, worst, of_columns.height, judged, early, alarming.height, unjudged)


def _rows(con: duckdb.DuckDBPyConnection, pipeline: str, span: Span) -> pl.DataFrame:
    """Read each column of each partition beside the training data, with its alarm; a column that was not judged has none."""
    query = f"""
        SELECT {selected(ColumnDrift)}, greatest(0, {UNUSUAL}) AS unusual, coalesce(level IN ('warn', 'fail'), false) AS alarm
        FROM {quoted(pipeline)}.{COLUMNS} WHERE baseline = $baseline AND partition_key IN $keys
        ORDER BY partition_key, column_name
    """
    return con.sql(query, params={"baseline": REFERENCE, "keys": span.keys}).pl()


def _periods(span: Span, zone: ZoneInfo, unit: str) -> tuple[str, dict[str, str]]:
    """Return the length of a period of the heat map, and the period of each partition."""
    if len(span.runs) <= MOST_PERIODS:
        return unit, {key: key for key in span.keys}
    weeks = span.periods("week", zone)
    if len(set(weeks.values())) <= MOST_PERIODS:
        return "week", weeks
    return "month", span.periods("month", zone)


def _drifted(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, rows: pl.DataFrame, span: Span) -> Drifted:
    """Describe a column by its rows, of which some raised an alarm."""
    worst = rows.filter("alarm").sort("unusual", "partition_key", descending=[True, False]).row(0, named=True)
    name, key = worst["column_name"], worst["partition_key"]
    alarms = rows.filter("alarm")["partition_key"].to_list()
    judged = rows["partition_key"].to_list()
    later = [other for other in judged if span.keys.index(other) > span.keys.index(alarms[-1])]
    profiles = read_profiles(con, spec.name, [*({*judged} - {*alarms}), key])
    columns = {other: column for other, of in profiles.items() for column in of if column.name == name}
    then, change = columns.pop(key, None), _change(worst)
    usual = [column for column in columns.values() if then is not None and column.is_comparable(then)]
    shares = [] if then is None or not usual else _shares(reduce(add, usual), then)
    distance = next(word for least, word in _STRENGTHS if worst["unusual"] >= least)
    sentence = f"{span.at([key])}, {change}: {distance} change (index {number(worst['unusual'], '.2f')}); an alarm in {len(alarms):,} of {rows.height:,} {spec.partitions.every}s."
    sentence = " ".join(filter(None, (sentence, spec.column_descriptions.get(name))))
    return Drifted(name, key, change, sentence, alarms, later[0] if later else None, shares)


def _shares(usual: Profile, then: Profile) -> list[tuple[str, float, float]]:
    """The share of the rows in each cell that both profiles have."""
    bins = usual.bins.common(then.bins)
    counts = [[*part.bins.coarsened(part.histogram, bins), part.nulls, part.unknown] for part in (usual, then)]
    if bins.categories is None:
        edges = [number(edge) for edge in bins.edges]
        names = (
            [f"below {edges[0]}", *map("{} to {}".format, edges, edges[1:]), f"from {edges[-1]}"] if edges else ["any"]
        )
    else:
        names = [*bins.categories, "others"]
    cells = zip([*names, "empty", "unknown"], *counts, strict=True)
    return [(name, of / max(1, usual.rows), now / max(1, then.rows)) for name, of, now in cells if of or now]


def _change(row: Mapping[str, Any]) -> str:
    """Describe how a column differs, by the number that changed most."""
    shares = {
        "empty": row["null_share"] - row["baseline_null_share"],
        "unknown": row["unknown_share"] - row["baseline_unknown_share"],
    }
    kind = max(shares, key=lambda name: abs(shares[name]))
    name = {"empty": "null_share", "unknown": "unknown_share"}[kind]
    now, then = row[name], row[f"baseline_{name}"]
    if abs(shares[kind]) >= _MATTERS and kind == "empty":
        what = f"{now:.1%} of its values are empty instead of {then:.1%}"
    elif abs(shares[kind]) >= _MATTERS:
        what = f"{now:.1%} of its values are categories that the model does not know instead of {then:.1%}"
    elif (
        row["mean"] is not None
        and row["baseline_mean"] is not None
        and f"{row['mean']:.2g}" != f"{row['baseline_mean']:.2g}"
    ):
        what = f"its mean is {number(row['mean'])} instead of {number(row['baseline_mean'])}"
    else:
        what = "other values are frequent than usual"
    if (row["outside_share"] or 0) >= (expected := row["baseline_outside_share"] or 0) + OUTSIDE_MATTERS:
        what += f", and {row['outside_share']:.1%} of the values lie outside the range seen in training, {expected:.1%} expected"
    return what
