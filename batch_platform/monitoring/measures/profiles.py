"""The measure `profiles`: the profile of each column of a partition.

The profile of any window is the merge of rows of this table; no feature is read again for it.
"""

from collections import defaultdict
from collections.abc import Collection
from math import isfinite
from typing import get_args

import duckdb
import polars as pl

from batch_platform.monitoring.measure import Column, Measure, ScoredPart
from batch_platform.monitoring.profiles import Bins, Profile, Role
from batch_platform.warehouse.descriptions import MODEL_VERSION
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.sql import has_table, quoted

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
_COLUMNS = {
    "column_name": Column(pl.String, "a feature, or the column of the predictions; what estimates are made from"),
    "role": Column(pl.String, "feature, prediction or estimate"),
    "rows": Column(pl.Int64, "scored rows: nulls, unknown and the histogram add up to them"),
    "nulls": Column(pl.Int64, "scored rows without a value"),
    "unknown": Column(pl.Int64, "scored rows with a category that the model does not know"),
    "rejected": Column(
        pl.Int64, "further rows, not scored because of this column; of the prediction, for a score that is not finite"
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


def read_profiles(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[Profile, ...]]:
    """The profiles of some partitions, by partition key; a partition that was not profiled is left out."""
    if not partition_keys or not has_table(con, pipeline, PROFILES.name):
        return {}
    query = f"""
        SELECT partition_key, {", ".join(_COLUMNS)} FROM {quoted(pipeline)}.{PROFILES.name} WHERE partition_key IN $keys
        ORDER BY partition_key, role, column_name
    """
    profiles = defaultdict[str, list[Profile]](list)
    for key, *values in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        profiles[key].append(_profile(*values))
    return {key: tuple(columns) for key, columns in profiles.items()}


def _rows(_: ScoreRun, part: ScoredPart) -> pl.DataFrame:
    return pl.DataFrame([_row(profile) for profile in part.profiles], schema=PROFILES.types, orient="row")


def _row(profile: Profile) -> tuple[object, ...]:
    number = profile.bins.categories is None
    return (
        profile.name,
        profile.role,
        profile.rows,
        profile.nulls,
        profile.unknown,
        profile.rejected,
        profile.low,
        profile.high,
        profile.mean if profile.mean is None or isfinite(profile.mean) else None,
        profile.variance,
        list(profile.bins.edges) if number else None,
        None if number else list(profile.bins.categories or ()),
        list(profile.histogram),
    )


def _profile(  # noqa: PLR0913 - the columns of the table
    name: str,
    role: str,
    rows: int,
    nulls: int,
    unknown: int,
    rejected: int,
    low: float | None,
    high: float | None,
    mean: float | None,
    variance: float | None,
    edges: list[float] | None,
    categories: list[str] | None,
    histogram: list[int],
) -> Profile:
    values = rows - nulls - unknown
    squares = None if variance is None else variance * (values - 1)
    if values == 1 and mean is not None:
        squares = 0.0
    return Profile(
        name=name,
        role=_ROLES[role],
        bins=Bins(tuple(edges or ()), None if categories is None else tuple(categories)),
        rows=rows,
        nulls=nulls,
        unknown=unknown,
        rejected=rejected,
        low=low,
        high=high,
        mean=mean,
        squares=squares,
        histogram=tuple(histogram),
    )


PROFILES = Measure[pl.DataFrame](
    name="profiles",
    description="What each feature and the prediction held in a partition.",
    row="what a column held in a partition; the rows of several partitions can be added up",
    columns=_COLUMNS,
    shared={"model_version": f"{MODEL_VERSION}, whose training fixed the cells"},
    score=_rows,
)
