"""The measures of what a scored partition holds: `rejections`, `scores`, `profiles` and `importance`."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, fsum, isfinite
from pathlib import Path
from typing import Any, ClassVar, get_args

import duckdb
import polars as pl

from batch_platform.declaration.errors import listed, number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import (
    DIGITS,
    Check,
    Column,
    Commits,
    Finding,
    Markdown,
    ScoredMeasure,
    ScoredPart,
    listing,
)
from batch_platform.monitoring.profiles import Bins, Profile, Role
from batch_platform.warehouse.descriptions import MODEL_VERSION
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.replacing import rows_of_files
from batch_platform.warehouse.sql import has_table, in_memory, quoted

REJECTED = "rejected_rows"
BINS, BARS = 200, 25  # quantiles are as fine as the bins
HEIGHTS = "\u00a0▁▂▃▄▅▆▇█"  # bars by height; no bar for an empty range
QUANTILES = (0.1, 0.5, 0.9)
CLASSES = 7  # the most frequent classes are shown by name, the others together
_REAL_TYPES = ("DOUBLE", "FLOAT")
_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
# Two plain scans: one query that counts the rows too would first put all reasons aside in memory.
_EXPLAINED = "SELECT count(reasons) FROM {rows}"
_REASONS = """
    SELECT
        reason.feature AS feature,
        sum(abs(reason.contribution)) / $explained AS mean_contribution,
        count(*) / $explained AS share
    FROM (SELECT unnest(reasons) AS reason FROM {rows})
    GROUP BY ALL ORDER BY mean_contribution DESC, feature
"""


def reasons_by_partition(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """The number of rejected rows of partitions by column and reason, by partition key."""
    if not has_table(con, pipeline, REJECTED):
        return {}
    chosen = f"FROM {quoted(pipeline)}.{REJECTED} WHERE partition_key IN $keys"
    query = f"SELECT partition_key, column_name, reason, count(*) AS n {chosen} GROUP BY ALL ORDER BY ALL"
    reasons = defaultdict[str, dict[str, int]](dict)
    for key, column, reason, count in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        reasons[key][rejected_because(column, reason)] = int(count)
    return reasons


def rejected_because(column: str | None, reason: str) -> str:
    """The reason of a rejected row, with its column; None if the row was rejected for its score."""
    return f"{column}: {reason}" if column else reason


class Rejections(ScoredMeasure[dict[str, int]]):
    """The rejected rows of a partition by column and reason; the rows themselves are written with the predictions."""

    name = "rejections"
    description = "How many rows of each partition were rejected, by reason."

    def stage(self, parts: Mapping[str, ScoredPart]) -> dict[str, dict[str, int]]:
        """The reasons of partitions with rejected rows."""
        return {key: dict(part.reasons) for key, part in parts.items() if part.reasons}

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, dict[str, int]]:
        """The reasons of committed partitions with rejected rows."""
        return reasons_by_partition(con, commits.pipeline, commits.keys)

    def shown(self, value: dict[str, int]) -> dict[str, Any]:
        """A table of the reasons."""
        return {"rejected": listing(("reason", "rows"), value)}


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


class Scores(ScoredMeasure[ScoreDistribution | None]):
    """Counts, mean and quantiles of a partition's scores, staged or committed; kept in no table."""

    name = "scores"
    description = "How the scores of each partition are distributed."

    def stage(self, parts: Mapping[str, ScoredPart]) -> dict[str, ScoreDistribution | None]:
        """The distributions of staged partitions."""
        distributions = staged_distributions([file for part in parts.values() for file in part.predictions])
        return {key: distributions.get(key) for key in parts}

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, ScoreDistribution | None]:
        """The distributions of committed partitions."""
        distributions = committed_distributions(con, commits.pipeline, commits.keys)
        return {key: distributions.get(key) for key in commits.keys}

    def shown(self, value: ScoreDistribution | None) -> dict[str, Any]:
        """The distribution as text, and its numbers."""
        return {} if value is None else {"scores": distribution(value), **score_numbers(value)}

    def check(self, spec: PipelineSpec) -> Check[ScoreDistribution | None]:  # noqa: ARG002 - of every pipeline
        """Warn of the same score for all rows."""
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


def read_profiles(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[Profile, ...]]:
    """The profiles of some partitions, by partition key; a partition that was not profiled is left out."""
    if not partition_keys or not has_table(con, pipeline, PROFILES.name):
        return {}
    query = f"""
        SELECT partition_key, {", ".join(PROFILES.columns)} FROM {quoted(pipeline)}.{PROFILES.name} WHERE partition_key IN $keys
        ORDER BY partition_key, role, column_name
    """
    profiles = defaultdict[str, list[Profile]](list)
    for key, *values in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        profiles[key].append(_profile(dict(zip(PROFILES.columns, values, strict=True))))
    return {key: tuple(columns) for key, columns in profiles.items()}


def _profile(row: Mapping[str, Any]) -> Profile:
    values, squares = row["rows"] - row["nulls"] - row["unknown"], None
    if row["variance"] is not None:
        squares = row["variance"] * (values - 1)
    if values == 1 and row["mean"] is not None:
        squares = 0.0
    categories = None if row["categories"] is None else tuple(row["categories"])
    return Profile(
        name=row["column_name"],
        role=_ROLES[row["role"]],
        bins=Bins(tuple(row["edges"] or ()), categories),
        **{name: row[name] for name in ("rows", "nulls", "unknown", "rejected", "mean")},
        low=row["lowest"],
        high=row["highest"],
        squares=squares,
        histogram=tuple(row["histogram"]),
    )


class Profiles(ScoredMeasure[pl.DataFrame]):
    """The profile of each column of a partition. The profile of any window is the merge of its rows; no feature is read again for it."""

    name = "profiles"
    description = "What each feature and the prediction held in a partition."
    row = "what a column held in a partition; the rows of several partitions can be added up"
    shared: ClassVar = {**ScoredMeasure.shared, "model_version": f"{MODEL_VERSION}, whose training fixed the cells"}
    columns: ClassVar = {
        "column_name": Column(pl.String, "a feature, or the column of the predictions; what estimates are made from"),
        "role": Column(pl.String, "feature, prediction or estimate"),
        "rows": Column(pl.Int64, "scored rows: nulls, unknown and the histogram add up to them"),
        "nulls": Column(pl.Int64, "scored rows without a value"),
        "unknown": Column(pl.Int64, "scored rows with a category that the model does not know"),
        "rejected": Column(
            pl.Int64,
            "further rows, not scored because of this column; of the prediction, for a score that is not finite",
        ),
        "lowest": Column(pl.Float64, "least value; null for text"),
        "highest": Column(pl.Float64, "greatest value; null for text"),
        "mean": Column(pl.Float64, "mean of the values; null for text"),
        "variance": Column(pl.Float64, "variance of the values, with n - 1; null for text"),
        "edges": Column(pl.List(pl.Float64), "where the cells of a number begin, ascending; null for text"),
        "categories": Column(pl.List(pl.String), "categories that are counted by name; null for a number"),
        "histogram": Column(
            pl.List(pl.Int64),
            "rows by cell: of a number below the first edge, from each edge up to the next, and from the last one upwards; of a text each category, then the others that the model knows",
        ),
    }
    is_read = False
    has_section = True

    def score(self, run: ScoreRun, part: ScoredPart) -> pl.DataFrame:  # noqa: ARG002 - see `ScoredMeasure`
        """A row for each profile."""
        rows = [
            (
                *(profile.name, profile.role, profile.rows, profile.nulls, profile.unknown, profile.rejected),
                *(profile.low, profile.high),
                profile.mean if profile.mean is None or isfinite(profile.mean) else None,
                profile.variance,
                list(profile.bins.edges) if profile.bins.categories is None else None,
                None if profile.bins.categories is None else list(profile.bins.categories),
                list(profile.histogram),
            )
            for profile in part.profiles
        ]
        return pl.DataFrame(rows, schema=self.types, orient="row")


class Importance(ScoredMeasure[pl.DataFrame]):
    """How much each column moved the scores of a partition, summed up from the reasons that are stored with them."""

    name = "importance"
    description = "How much each column moved the scores of a partition, by the reasons of its rows."
    row = "a column that is among the reasons of a partition"
    columns: ClassVar = {
        "feature": Column(pl.String, "the column"),
        "mean_contribution": Column(
            pl.Float64, "mean absolute contribution over the rows with reasons, 0 where the column is not among them"
        ),
        "share": Column(pl.Float64, "share of the rows with reasons that have the column among them"),
    }

    def declared(self, spec: PipelineSpec) -> bool:
        """Return whether rows have reasons."""
        return spec.predictions.reasons is not None

    def score(self, run: ScoreRun, part: ScoredPart) -> pl.DataFrame:  # noqa: ARG002 - see `ScoredMeasure`
        """Sum up the reasons of the staged rows."""
        rows, values = rows_of_files(part.predictions)
        with in_memory() as con:
            ((explained,),) = con.execute(_EXPLAINED.format(rows=rows), values).fetchall()
            return con.sql(_REASONS.format(rows=rows), params={**values, "explained": explained}).pl()

    def numbers(self, value: pl.DataFrame) -> dict[str, float]:
        """The mean contribution of each column."""
        return {f"importance_{name}": mean for name, mean, _ in value.iter_rows()}


REJECTIONS, SCORES, PROFILES, IMPORTANCE = Rejections(), Scores(), Profiles(), Importance()
