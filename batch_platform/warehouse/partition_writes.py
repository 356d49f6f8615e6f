"""Partitions of a table replaced by the rows of Parquet files, within a transaction that somebody else began.

A table takes the columns that come, and refuses values that it would change. Knows nothing of what they mean.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import DataError, listed
from batch_platform.warehouse.sql import quoted

_NOTHING = '"NULL"'  # the type of a column without a single value, which fits any


def replace_rows(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, keys: Sequence[str], files: Sequence[Path]
) -> int:
    """Replace the rows of some partitions by those of Parquet files, by column name, within the caller's transaction.

    A column that the table lacks is added to it; one that holds nothing yet takes the files' type.

    Returns:
        How many rows the files held.

    Raises:
        DataError: A column has another type than in the table, and its values do not fit that one without loss.
    """
    create_schema(con, schema)
    name = f"{quoted(schema)}.{quoted(table)}"
    rows, values = "read_parquet($paths, union_by_name := true)", {"paths": [str(file) for file in files]}
    con.execute(f"CREATE TABLE IF NOT EXISTS {name} AS FROM {rows} LIMIT 0", values)
    have = {column: dtype for column, dtype, *_ in con.execute(f"DESCRIBE {name}").fetchall()}
    new = {column: dtype for column, dtype, *_ in con.execute(f"DESCRIBE FROM {rows}", values).fetchall()}
    for column, dtype in new.items():
        if column not in have:
            con.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(column)} {dtype}")
    lossy: dict[str, str] = {}  # what does not fit, and a partition with it
    other = [one for one in new if have.get(one, new[one]) != new[one] and new[one] != _NOTHING]
    for column, old, dtype in [(one, have[one], new[one]) for one in other]:
        if not con.execute(f"SELECT 1 FROM {name} WHERE {quoted(column)} IS NOT NULL LIMIT 1").fetchall():
            con.execute(f"ALTER TABLE {name} ALTER COLUMN {quoted(column)} TYPE {dtype}")
        elif found := con.execute(
            f"SELECT partition_key FROM {rows} WHERE {_changes(column, old, dtype)} LIMIT 1", values
        ).fetchall():
            lossy[f"{column} is {old}, now {dtype}"] = found[0][0]
    if lossy:
        msg = f"{schema}, partition {min(lossy.values())}: values do not fit {schema}.{table}: {listed(lossy)}; nothing is changed."
        raise DataError(msg, hint="cast the column in the features to the type that the table has.")
    con.execute(f"DELETE FROM {name} WHERE partition_key IN $keys", {"keys": list(keys)})
    ((count,),) = con.execute(f"INSERT INTO {name} BY NAME FROM {rows}", values).fetchall()
    return int(count)


def _changes(column: str, old: str, new: str) -> str:
    """Whether a value would not come back as it was from the table's type; an INSERT would round it in silence."""
    name = quoted(column)
    return f"TRY_CAST(TRY_CAST({name} AS {old}) AS {new}) IS DISTINCT FROM {name}"


def create_schema(con: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Make a schema where it is missing."""
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
