"""The source that drives a pipeline's features: each of its rows inside a partition gives one row of features.

A join that fans out or loses rows is found here, while a partition is built, by counting; keys are looked at only to
say which rows are too many or too few.
"""

from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import MOST_LISTED, DataError, SourceError, did_you_mean, listed, shortened
from batch_platform.declaration.inputs import Driving
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.row_checks import with_keys_of
from batch_platform.features.sources.opening import SourceConnection
from batch_platform.warehouse.sql import quoted

_DRIVING, _FEATURES = "__in_the_source", "__in_the_features"


def require_every_row(
    spec: PipelineSpec, partition: Partition, con: SourceConnection, features: Path, rows: int
) -> None:
    """Check that a partition has as many rows of features as its driving source has; nothing where none is declared.

    Args:
        spec: The pipeline.
        partition: The partition.
        con: Its sources, opened for the partition.
        features: The file of its features.
        rows: How many it holds.

    Raises:
        DataError: It has not; the message names keys that are missing or too many, where the source has key columns.
        SourceError: The source has no such time column, or cannot be read.
    """
    driving = spec.features.driving
    if driving is None:
        return
    where = f"{spec.name}, partition {partition.key}"
    columns = con.duckdb.sql(f"FROM {quoted(driving.source)}").columns
    if driving.time not in columns:
        msg = f"{where}: the source {driving.source!r} has no column {driving.time!r}; there are {listed(columns)}."
        raise SourceError(msg, hint=did_you_mean(driving.time, columns) or "correct features.driving.time.")
    try:
        ((expected,),) = con.duckdb.execute(f"SELECT count(*) {_inside(driving)}", _window(partition)).fetchall()
        if expected == rows:
            return
        shared = [name for name in spec.features.key if name in columns]
        differing = _differing(spec, partition, con, features, shared) if shared else ""
    except duckdb.Error as error:
        msg = f"{where}: the rows of {driving.source!r} cannot be counted by {driving.time!r}: {' '.join(str(error).split())}."
        raise SourceError(msg, hint="features.driving.time names a column with a date or a timestamp.") from error
    msg = f"{where}: {driving.source!r} has {expected} rows by {driving.time!r}, but {rows} rows of features came out"
    msg += f"{differing}."
    hint = "let no join in the features lose rows or multiply them: take LEFT JOIN, and join on what is unique."
    raise DataError(msg, hint=hint)


def _inside(driving: Driving) -> str:
    time = quoted(driving.time)
    return f"FROM {quoted(driving.source)} WHERE {time} >= $start AND {time} < $end"


def _window(partition: Partition) -> dict[str, object]:
    return {"start": partition.start, "end": partition.end}


def _differing(
    spec: PipelineSpec, partition: Partition, con: SourceConnection, features: Path, shared: list[str]
) -> str:
    """Which keys have fewer rows than in the source, and which have more."""
    driving = spec.features.driving
    assert driving is not None  # noqa: S101 - asked by the caller
    key = ", ".join(quoted(name) for name in shared)
    found = pl.read_parquet(features, columns=shared)
    source = con.duckdb.sql(f"SELECT {key} {_inside(driving)}", params=_window(partition)).pl()
    source = with_keys_of(found, spec, partition, source, what=f"source {driving.source!r}", key=shared)
    both = (
        source.group_by(shared)
        .len(_DRIVING)
        .join(found.group_by(shared).len(_FEATURES), on=shared, how="full", coalesce=True, nulls_equal=True)
        .with_columns(pl.col(_DRIVING, _FEATURES).fill_null(0))
    )
    said = ""
    for what, rows in (
        ("missing are", both.filter(pl.col(_FEATURES) < pl.col(_DRIVING))),
        ("too many are", both.filter(pl.col(_FEATURES) > pl.col(_DRIVING))),
    ):
        named = rows.select(shared).sort(shared)
        if named.height:
            shown = [
                " ".join(f"{name}={shortened(value)}" for name, value in row.items())
                for row in named.head(MOST_LISTED).to_dicts()
            ]
            more = f" and {named.height - MOST_LISTED} more" if named.height > MOST_LISTED else ""
            said += f"; {what} {', '.join(shown)}{more}"
    return said
