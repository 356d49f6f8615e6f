"""The table of profiles in the warehouse: a row for each partition and column, written in the transaction of its predictions.

The profile of any window is the merge of rows of this table; no feature is read again for it.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import get_args

import duckdb
import polars as pl

from batch_platform.monitoring.profiles import Bins, Profile, Role
from batch_platform.warehouse.ledger import Change, ScoreRun, note
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import has_table, quoted

PROFILES = "profiles"
_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "partition_key": pl.String,
    "column_name": pl.String,
    "role": pl.String,
    "rows": pl.Int64,
    "nulls": pl.Int64,
    "unknown": pl.Int64,
    "rejected": pl.Int64,
    "lowest": pl.Float64,
    "highest": pl.Float64,
    "mean": pl.Float64,
    "variance": pl.Float64,
    "edges": pl.List(pl.Float64),
    "categories": pl.List(pl.String),
    "histogram": pl.List(pl.Int64),
    "model_version": pl.String,
    "run_id": pl.String,
}


def replace_profiles(
    con: duckdb.DuckDBPyConnection, committed: Sequence[ScoreRun], profiles: Mapping[str, Sequence[Profile]]
) -> None:
    """Replace the profiles of the committed partitions; `profiles` has them by partition key, none where they are not known."""
    pipeline, table = committed[0].pipeline, has_table(con, committed[0].pipeline, PROFILES)
    if not table and not any(profiles.values()):
        return
    rows = [_row(profile, run) for run in committed for profile in profiles.get(run.partition_key, ())]
    con.register("new_profiles", pl.DataFrame(rows, schema=_COLUMNS, orient="row"))
    replace_rows(con, pipeline, PROFILES, [run.partition_key for run in committed], "new_profiles")
    con.unregister("new_profiles")
    note(con, [Change(run.seq, pipeline, PROFILES, run.partition_key) for run in committed])


def read_profiles(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[Profile, ...]]:
    """The profiles of some partitions, by partition key; a partition that was not profiled is left out."""
    if not partition_keys or not has_table(con, pipeline, PROFILES):
        return {}
    query = f"""
        SELECT {", ".join(list(_COLUMNS)[:-2])} FROM {quoted(pipeline)}.{PROFILES} WHERE partition_key IN $keys
        ORDER BY partition_key, role, column_name
    """
    profiles = defaultdict[str, list[Profile]](list)
    for key, *values in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        profiles[key].append(_profile(*values))
    return {key: tuple(columns) for key, columns in profiles.items()}


def window_profiles(parts: Collection[Sequence[Profile]]) -> list[Profile]:
    """The profiles of a window from those of its partitions, one for each column, ordered by role and name.

    Where the bins of a column differ, because a version made new ones, the merged profile has the edges and categories that
    they share. A column that was a number in some partitions and a text in others has a profile for each.
    """
    merged: dict[tuple[str, str, bool], Profile] = {}
    for profile in (profile for part in parts for profile in part):
        of = (profile.role, profile.name, profile.bins.categories is not None)
        merged[of] = merged[of] + profile if of in merged else profile
    return [merged[of] for of in sorted(merged)]


def _row(profile: Profile, run: ScoreRun) -> tuple[object, ...]:
    number = profile.bins.categories is None
    return (
        run.partition_key,
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
        run.model_version,
        run.run_id,
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
