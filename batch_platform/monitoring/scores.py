"""How the scores of a partition are distributed: counts, mean and quantiles, of staged or of committed predictions.

The database bins and counts, so that memory does not grow with the rows. Says what is there, judges nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum
from pathlib import Path

import duckdb

from batch_platform.warehouse.sql import has_table, quoted

BINS, BARS = 200, 25  # quantiles are as fine as the bins
QUANTILES = (0.1, 0.5, 0.9)
CLASSES = 7  # at most so many are told apart by name
_REAL_TYPES = ("DOUBLE", "FLOAT")


@dataclass(frozen=True)
class ScoreDistribution:
    """The distribution of one partition's scores.

    Args:
        column: The column of the predictions.
        bars: Labels and counts, in order: of ranges of equal width, or of the most frequent classes.
        numbers: Mean and quantiles; of classes, the share of each.
        low: Where the first range begins; None for classes.
        high: Where the last range ends; None for classes.
        constant: Whether all rows, at least two, have the same value.
    """

    column: str
    bars: tuple[tuple[str, int], ...]
    numbers: dict[str, float]
    low: float | None
    high: float | None
    constant: bool

    @property
    def rows(self) -> int:
        """How many rows the bars count."""
        return sum(count for _, count in self.bars)


def staged_distributions(files: Sequence[Path]) -> dict[str, ScoreDistribution]:
    """The distributions of partitions that are staged in Parquet files, by key; one without predictions is left out.

    Holds no lock and opens no database file.
    """
    if not files:
        return {}
    with duckdb.connect() as con:
        return _distributions(
            con, "read_parquet($files, union_by_name := true)", {"files": [str(one) for one in files]}
        )


def committed_distributions(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Sequence[str]
) -> dict[str, ScoreDistribution]:
    """The distributions of partitions that are committed, by key; one without predictions is left out."""
    if not partition_keys or not has_table(con, pipeline, "predictions"):
        return {}
    rows = f"(FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys)"
    return _distributions(con, rows, {"keys": list(partition_keys)})


def _distributions(
    con: duckdb.DuckDBPyConnection, rows: str, values: Mapping[str, list[str]]
) -> dict[str, ScoreDistribution]:
    """The distributions of all partitions of a relation.

    Probabilities lie between 0 and 1, which is where their ranges begin and end; the ranges of all else are those of the
    partition. A prediction that is not a real number is a class.
    """
    types = {name: dtype for name, dtype, *_ in con.execute(f"DESCRIBE FROM {rows}", values).fetchall()}
    column = "score" if "score" in types else "prediction"
    if column not in types:
        return {}
    found = _numeric if types[column] in _REAL_TYPES else _classes
    return found(con, rows, values, column)


def _numeric(
    con: duckdb.DuckDBPyConnection, rows: str, values: Mapping[str, list[str]], column: str
) -> dict[str, ScoreDistribution]:
    scored = f"SELECT partition_key, {quoted(column)}::DOUBLE AS value FROM {rows}"
    probabilities = f"SELECT min(value) >= 0 AND max(value) <= 1 FROM ({scored})"
    if column == "score" and con.execute(probabilities, values).fetchall() == [(True,)]:
        ranged = f"SELECT *, 0::DOUBLE AS low, 1::DOUBLE AS high FROM ({scored})"
    else:
        ranges = f"SELECT partition_key, min(value) AS low, max(value) AS high FROM ({scored}) GROUP BY partition_key"
        ranged = f"FROM ({scored}) JOIN ({ranges}) USING (partition_key)"
    query = f"""
        SELECT
            partition_key, low, high,
            CASE WHEN high > low THEN least(floor((value - low) / (high - low) * {BINS}), {BINS - 1}) ELSE 0 END::INT,
            count(*), sum(value), min(value), max(value)
        FROM ({ranged}) GROUP BY ALL ORDER BY ALL
    """
    bins: dict[str, list[_Bin]] = defaultdict(list)
    ends: dict[str, tuple[float, float]] = {}
    for key, low, high, *of_bin in con.execute(query, values).fetchall():
        ends[key] = low, high
        bins[key].append(_Bin(*of_bin))
    return {key: _of_bins(column, *ends[key], found) for key, found in bins.items()}


@dataclass(frozen=True)
class _Bin:
    """The scores of one range, at least one."""

    at: int
    rows: int
    total: float
    lowest: float
    highest: float


def _of_bins(column: str, low: float, high: float, found: Sequence[_Bin]) -> ScoreDistribution:
    counts = [0] * BINS
    for one in found:
        counts[one.at] = one.rows
    rows, wide = sum(counts), (high - low) / BINS
    constant = rows > 1 and min(one.lowest for one in found) == max(one.highest for one in found)
    reached = list(accumulate(counts))
    numbers = {"mean": fsum(one.total for one in found) / rows}
    for share in QUANTILES:
        at = next(at for at, seen in enumerate(reached) if seen >= share * rows)
        numbers[f"p{share * 100:.0f}"] = low + (at + 0.5) * wide
    step = BINS // BARS
    bars = tuple(
        (f"{low + at * wide:.3g} to {low + (at + step) * wide:.3g}", sum(counts[at : at + step]))
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
    found: dict[str, ScoreDistribution] = {}
    for key, of in counts.items():
        total, rest = sum(count for _, count in of), sum(count for _, count in of[CLASSES:])
        bars = (*of[:CLASSES], *([("others", rest)] if rest else []))
        shares = {f"share_{label}": count / total for label, count in of[:CLASSES]}
        constant = len(of) == 1 and total > 1
        found[key] = ScoreDistribution(column, tuple(bars), shares, None, None, constant)
    return found
