"""How the scores of a partition are distributed: counts, mean and quantiles, read from the committed predictions.

The database bins and counts, so that memory does not grow with the rows. Says what is there, judges nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum

import duckdb

from batch_platform.sources import quoted

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


def read_distributions(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Sequence[str]
) -> dict[str, ScoreDistribution]:
    """The distributions of some partitions, by key; a partition without predictions is left out.

    The scores of two classes lie between 0 and 1, which is where their ranges begin and end; the ranges of a regression
    are those of the partition. A prediction that is not a real number is a class.
    """
    types = dict(_columns(con, pipeline))
    column = "score" if "score" in types else "prediction"
    if not partition_keys or column not in types:
        return {}
    if types[column] in _REAL_TYPES:
        return _numeric(con, pipeline, partition_keys, column)
    return _classes(con, pipeline, partition_keys, column)


def _columns(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[tuple[str, str]]:
    query = (
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() "
        "AND schema_name = $schema AND table_name = 'predictions'"
    )
    return con.execute(query, {"schema": pipeline}).fetchall()


def _numeric(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Sequence[str], column: str
) -> dict[str, ScoreDistribution]:
    low, high = ("0::DOUBLE", "1::DOUBLE") if column == "score" else ("min(value)", "max(value)")
    query = f"""
        WITH scored AS (
            SELECT partition_key, {quoted(column)}::DOUBLE AS value
            FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys
        ), bounds AS (
            SELECT partition_key, {low} AS low, {high} AS high, min(value) = max(value) AND count(*) > 1 AS constant
            FROM scored GROUP BY partition_key
        )
        SELECT
            partition_key, low, high, constant,
            CASE WHEN high > low THEN least(floor((value - low) / (high - low) * {BINS}), {BINS - 1}) ELSE 0 END::INT,
            count(*), sum(value)
        FROM scored JOIN bounds USING (partition_key)
        GROUP BY ALL ORDER BY ALL
    """
    bins: dict[str, list[tuple[float, float, bool, int, int, float]]] = defaultdict(list)
    for key, *values in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        bins[key].append(tuple(values))
    return {key: _of_bins(column, found) for key, found in bins.items()}


def _of_bins(column: str, found: Sequence[tuple[float, float, bool, int, int, float]]) -> ScoreDistribution:
    low, high, constant = found[0][:3]
    counts = [0] * BINS
    for _, _, _, at, count, _ in found:
        counts[at] = count
    rows, wide = sum(counts), (high - low) / BINS
    reached = list(accumulate(counts))
    numbers = {"mean": fsum(total for *_, total in found) / rows}
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
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Sequence[str], column: str
) -> dict[str, ScoreDistribution]:
    query = f"""
        SELECT partition_key, {quoted(column)}::VARCHAR AS value, count(*) AS rows
        FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys
        GROUP BY ALL ORDER BY partition_key, rows DESC, value
    """
    counts: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key, value, rows in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        counts[key].append((value, rows))
    found: dict[str, ScoreDistribution] = {}
    for key, of in counts.items():
        rows, rest = sum(count for _, count in of), sum(count for _, count in of[CLASSES:])
        bars = (*of[:CLASSES], *([("others", rest)] if rest else []))
        shares = {f"share_{label}": count / rows for label, count in of[:CLASSES]}
        constant = len(of) == 1 and rows > 1
        found[key] = ScoreDistribution(column, tuple(bars), shares, None, None, constant)
    return found
