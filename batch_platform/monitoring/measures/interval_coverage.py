"""The measure `interval_coverage`: the share of the true values that intervals hold, of a partition and of its segments, and their width."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import TRUTH, Check, Column, Finding, Measure, ScoredPartition, rounded
from batch_platform.monitoring.outcomes import HIGH, LOW
from batch_platform.monitoring.segments import named_texts
from batch_platform.warehouse.descriptions import IN_SAMPLE, SEGMENT

CONFIDENCE = 0.999  # one of a thousand partitions gives a warning by chance


def binomial_interval(
    covered: NDArray[np.integer], rows: NDArray[np.integer], correlation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the exact interval of each share `covered / rows` at CONFIDENCE (Clopper and Pearson, 1934).

    Rows that are correlated count as fewer independent ones (the design effect: Kish, Survey Sampling, 1965).
    """
    from scipy.special import betaincinv

    independent = rows / (1 + (rows - 1) * correlation)
    inside, tail = covered / rows * independent, (1 - CONFIDENCE) / 2
    outside = independent - inside
    with np.errstate(invalid="ignore"):
        low = np.where(covered > 0, betaincinv(inside, outside + 1, tail), 0.0)
        return low, np.where(covered < rows, betaincinv(inside + 1, outside, 1 - tail), 1.0)


def _compute(partition: ScoredPartition) -> pl.DataFrame:
    version, labelled = partition.intervals, partition.labelled
    rows = labelled.drop_nulls(LOW) if version is not None and LOW in labelled.columns else labelled.clear()
    if version is None or not rows.height:
        return pl.DataFrame(schema=INTERVAL_COVERAGE.types)
    measured = pl.concat(_counted(partition, rows))
    low, high = binomial_interval(measured["covered"].to_numpy(), measured["rows"].to_numpy(), version.correlation)
    return measured.with_columns(
        coverage=pl.col("covered") / pl.col("rows"),
        low=low,
        high=high,
        expected=version.level,
        in_sample=partition.in_sample,
    ).select(*INTERVAL_COVERAGE.columns)


def _counted(partition: ScoredPartition, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Count the rows and those whose interval holds the true value, and measure widths: of all rows, then of each segment."""
    key, truth = list(partition.key), pl.col(TRUTH).cast(pl.Float64)
    numbers = (
        pl.len().cast(pl.Int64).alias("rows"),
        pl.col("inside").sum().cast(pl.Int64).alias("covered"),
        pl.col("width").mean().alias("mean_width"),
        pl.col("width").median().alias("median_width"),
    )
    rows = rows.select(*key, inside=truth.is_between(LOW, HIGH), width=pl.col(HIGH) - pl.col(LOW))
    yield rows.select(
        pl.lit(None, pl.String).alias("segment_column"), pl.lit(None, pl.String).alias("segment"), *numbers
    )
    stored = partition.read_segments() if partition.segments else None
    for column in partition.segments:
        if stored is not None and column in stored.columns:
            segments = stored.select(*key, segment=named_texts(stored[column]))
            beside = rows.join(segments, on=key, how="left")
            of_segments = beside.group_by("segment").agg(*numbers).sort("segment")
            yield of_segments.select(pl.lit(column).alias("segment_column"), pl.all())


def _whole(rows: pl.DataFrame) -> dict[str, Any] | None:
    """The row of all rows together; None if nothing was measured."""
    whole = rows.filter(pl.col("segment_column").is_null())
    return whole.row(0, named=True) if whole.height else None


def _numbers(rows: pl.DataFrame) -> dict[str, float]:
    """The coverage of all rows, what it should be, and the width where it is finite."""
    whole = _whole(rows) or {}
    names = {
        "coverage": "interval_coverage",
        "expected": "expected_interval_coverage",
        "mean_width": "mean_interval_width",
        "median_width": "median_interval_width",
    }
    return {shown: whole[name] for name, shown in names.items() if name in whole and isfinite(whole[name])}


def in_words(row: Mapping[str, Any]) -> str:
    """A row of the table as a sentence, and what to make of it if chance does not explain it."""
    low, high, expected = row["low"], row["high"], row["expected"]
    text = f"{row['coverage']:.1%} of {row['rows']:,} true values lie within their intervals, and {_percent(expected)} should"
    if high < expected:
        text += f": fewer than chance explains (it explains up to {high:.1%}). Look at drift, and train the model again"
    elif low > expected:
        text += (
            f": more than chance explains (it explains down to {low:.1%}). The intervals are wider than they need to be"
        )
    if not isfinite(row["median_width"]):
        text += ". Most intervals are infinite: training held out too few rows"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _check(spec: PipelineSpec) -> Check[pl.DataFrame] | None:
    if (level := spec.predictions.interval) is None:
        return None

    def judge(rows: pl.DataFrame, _: str) -> Finding | None:
        whole = _whole(rows)
        if whole is None or whole["in_sample"]:
            return None
        passed = whole["low"] <= whole["expected"] <= whole["high"]
        return Finding("none" if passed else "warn", {**rounded(_numbers(rows)), "what": in_words(whole)})

    return Check(
        description=f"The intervals hold {_percent(level)} of the true values (predictions.interval), but for chance: a partition "
        f"gives a warning if the exact {_percent(CONFIDENCE)} interval of its share leaves that out. Partitions may differ by as much as "
        "they did in training. A partition that its model has learned from is not judged.",
        judge=judge,
        summary=lambda judged, failed: {"partitions": f"{len(judged):,}", "outside": listed(failed) or "none"},
    )


INTERVAL_COVERAGE = Measure[pl.DataFrame](
    name="interval_coverage",
    description="How many of the true values the intervals of each partition hold, and how wide they are.",
    row="the coverage and the width of the intervals of a partition, or of a segment of it",
    columns={
        "segment_column": Column(pl.String, f"{SEGMENT['segment_column']}; null for all rows"),
        "segment": Column(pl.String, SEGMENT["segment"]),
        "rows": Column(pl.Int64, "rows with an interval and a label"),
        "covered": Column(pl.Int64, "how many of the true values lie within their intervals, ends included"),
        "coverage": Column(pl.Float64, "the share of them"),
        "low": Column(pl.Float64, f"start of the exact {_percent(CONFIDENCE)} interval of that share"),
        "high": Column(pl.Float64, "end of that interval"),
        "expected": Column(pl.Float64, "share that the intervals were made for"),
        "mean_width": Column(pl.Float64, "mean width of the intervals; infinite if one is"),
        "median_width": Column(pl.Float64, "median width of the intervals"),
        "in_sample": Column(pl.Boolean, IN_SAMPLE),
    },
    declared=lambda spec: spec.predictions.interval is not None,
    compute=_compute,
    numbers=_numbers,
    check=_check,
)
