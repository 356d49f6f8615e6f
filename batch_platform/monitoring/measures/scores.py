"""The measure `scores`: counts, mean and quantiles of a partition's scores, staged or committed; kept in no table.

The database bins and counts, so that memory does not grow with the number of rows.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, fsum
from pathlib import Path
from typing import Any

import duckdb

from batch_platform.declaration.errors import listed, number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.markdown import Markdown, listing
from batch_platform.monitoring.measure import DIGITS, Check, Commits, Finding, Measure, ScoredPart
from batch_platform.warehouse.replacing import rows_of_files
from batch_platform.warehouse.sql import has_table, in_memory, quoted

BINS, BARS = 200, 25  # quantiles are as fine as the bins
HEIGHTS = "\u00a0▁▂▃▄▅▆▇█"  # bars by height; no bar for an empty range
QUANTILES = (0.1, 0.5, 0.9)
CLASSES = 7  # the most frequent classes are shown by name, the others together
_REAL_TYPES = ("DOUBLE", "FLOAT")


@dataclass(frozen=True)
class ScoreDistribution:
    """The distribution of one partition's scores."""

    column: str  # column of the predictions
    bars: tuple[tuple[str, int], ...]  # labels and counts: ranges of equal width in order, or the most frequent classes
    numbers: dict[str, float]  # mean and quantiles; for classes, the share of each class
    low: float | None  # start of the first range; None for classes
    high: float | None  # end of the last range; None for classes
    constant: bool  # whether there are at least two rows and all have the same value


def staged_distributions(files: Sequence[Path]) -> dict[str, ScoreDistribution]:
    """The distributions of partitions staged in Parquet files, by key; a partition without predictions is left out."""
    if not files:
        return {}
    with in_memory() as con:
        return _distributions(con, *rows_of_files(files))


def committed_distributions(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Sequence[str]
) -> dict[str, ScoreDistribution]:
    """The distributions of committed partitions, by key; a partition without predictions is left out."""
    if not partition_keys or not has_table(con, pipeline, "predictions"):
        return {}
    rows = f"(FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys)"
    return _distributions(con, rows, {"keys": list(partition_keys)})


def _distributions(
    con: duckdb.DuckDBPyConnection, rows: str, values: Mapping[str, list[str]]
) -> dict[str, ScoreDistribution]:
    """The distributions of all partitions of a relation.

    The ranges of probabilities span 0 to 1, those of other numbers span the partition's own minimum to maximum. A
    prediction that is not a real number is a class.
    """
    types = {name: dtype for name, dtype, *_ in con.execute(f"DESCRIBE FROM {rows}", values).fetchall()}
    column = "score" if "score" in types else "prediction"
    if column not in types:
        return {}
    distributions = _numeric if types[column] in _REAL_TYPES else _classes
    return distributions(con, rows, values, column)


def _numeric(
    con: duckdb.DuckDBPyConnection, rows: str, values: Mapping[str, list[str]], column: str
) -> dict[str, ScoreDistribution]:
    scored = f"SELECT partition_key, {quoted(column)}::DOUBLE AS value FROM {rows}"
    if column == "score":
        bins = _binned(con, scored, "value", values)
        if all(of_bin.lowest >= 0 and of_bin.highest <= 1 for filled in bins.values() for of_bin in filled):
            return {key: _of_bins(column, filled, 0.0, 1.0) for key, filled in bins.items()}
    ranges = f"SELECT partition_key, min(value) AS low, max(value) AS high FROM ({scored}) GROUP BY partition_key"
    place = "CASE WHEN high > low THEN (value - low) / (high - low) ELSE 0 END"
    bins = _binned(con, f"FROM ({scored}) JOIN ({ranges}) USING (partition_key)", place, values)
    return {
        key: _of_bins(column, filled, min(scores.lowest for scores in filled), max(scores.highest for scores in filled))
        for key, filled in bins.items()
    }


def _binned(
    con: duckdb.DuckDBPyConnection, scored: str, place: str, values: Mapping[str, list[str]]
) -> dict[str, list["_Bin"]]:
    """The ranges that are not empty, by partition key; `place` is where a value lies, from 0 to 1 in all ranges together."""
    query = f"""
        SELECT
            partition_key, greatest(0, least(floor({place} * {BINS}), {BINS - 1}))::UTINYINT,
            count(*), sum(value), min(value), max(value)
        FROM ({scored}) GROUP BY ALL ORDER BY ALL
    """
    bins: dict[str, list[_Bin]] = defaultdict(list)
    for key, *of_bin in con.execute(query, values).fetchall():
        bins[key].append(_Bin(*of_bin))
    return bins


@dataclass(frozen=True)
class _Bin:
    """The scores of one range that is not empty."""

    at: int
    rows: int
    total: float
    lowest: float
    highest: float


def _of_bins(column: str, filled: Sequence[_Bin], low: float, high: float) -> ScoreDistribution:
    """The distribution of a partition's scores over ranges that span two numbers."""
    counts = [0] * BINS
    for scores in filled:
        counts[scores.at] = scores.rows
    rows, wide = sum(counts), (high - low) / BINS
    constant = rows > 1 and min(scores.lowest for scores in filled) == max(scores.highest for scores in filled)
    reached = list(accumulate(counts))
    numbers = {"mean": fsum(scores.total for scores in filled) / rows}
    for share in QUANTILES:
        at = next(at for at, seen in enumerate(reached) if seen >= share * rows)
        numbers[f"p{share * 100:.0f}"] = low + (at + 0.5) * wide
    step = BINS // BARS
    bars = tuple(
        (f"{number(low + at * wide, '.3g')} to {number(low + (at + step) * wide, '.3g')}", sum(counts[at : at + step]))
        for at in range(0, BINS, step)
    )
    return ScoreDistribution(column, bars, numbers, low, high, constant)


def _classes(
    con: duckdb.DuckDBPyConnection, rows: str, values: Mapping[str, list[str]], column: str
) -> dict[str, ScoreDistribution]:
    query = f"""
        SELECT partition_key, {quoted(column)}::VARCHAR AS value, count(*) AS rows
        FROM {rows} GROUP BY ALL ORDER BY partition_key, rows DESC, value
    """
    counts: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key, value, count in con.execute(query, values).fetchall():
        counts[key].append((value, count))
    distributions: dict[str, ScoreDistribution] = {}
    for key, classes in counts.items():
        total, rest = sum(count for _, count in classes), sum(count for _, count in classes[CLASSES:])
        bars = (*classes[:CLASSES], *([("others", rest)] if rest else []))
        shares = {f"share_{label}": count / total for label, count in classes[:CLASSES]}
        constant = len(classes) == 1 and total > 1
        distributions[key] = ScoreDistribution(column, bars, shares, None, None, constant)
    return distributions


def score_numbers(scores: ScoreDistribution | None) -> dict[str, float]:
    """Mean and quantiles of the scores, or the share of each class, as numbers to plot."""
    if scores is None:
        return {}
    return {f"{scores.column}_{name}": round(number, DIGITS) for name, number in scores.numbers.items()}


def distribution(scores: ScoreDistribution) -> Markdown:
    """The scores of one partition as text: a bar for each range of equal width, or the rows of each class."""
    if scores.low is None or scores.high is None:
        return listing(("class", "rows"), {label: f"{count:,}" for label, count in scores.bars})
    most = max(count for _, count in scores.bars)
    bars = "".join(HEIGHTS[ceil(count / most * (len(HEIGHTS) - 1))] for _, count in scores.bars)
    return Markdown(f"{number(scores.low, '.3g')} `{bars}` {number(scores.high, '.3g')}")


def _stage(parts: Mapping[str, ScoredPart]) -> dict[str, ScoreDistribution | None]:
    distributions = staged_distributions([file for part in parts.values() for file in part.predictions])
    return {key: distributions.get(key) for key in parts}


def _read(con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, ScoreDistribution | None]:
    distributions = committed_distributions(con, commits.pipeline, commits.keys)
    return {key: distributions.get(key) for key in commits.keys}


def _shown(scores: ScoreDistribution | None) -> dict[str, Any]:
    return {} if scores is None else {"scores": distribution(scores), **score_numbers(scores)}


def _check(_: PipelineSpec) -> Check[ScoreDistribution | None]:
    return Check(
        name="score_distribution",
        description=(
            "The predictions of a partition differ from row to row. The same score for all rows suggests that all features "
            "are missing. Mean and quantiles are plotted, so that a shift can be seen."
        ),
        judge=lambda scores, _: Finding("warn" if scores and scores.constant else "none", score_numbers(scores)),
        summary=lambda scores, failed: {
            "partitions": f"{len(scores):,}",
            "one_score_for_all_rows": listed(failed) or "none",
        },
    )


SCORES = Measure[ScoreDistribution | None](
    name="scores",
    description="How the scores of each partition are distributed.",
    stage=_stage,
    read=_read,
    shown=_shown,
    check=_check,
)
