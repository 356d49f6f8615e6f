"""Replace partitions of a table by the rows of Parquet files, within the caller's transaction.

A table gains the columns that the files have, and refuses values that its types would change.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import DataError, listed
from batch_platform.warehouse.sql import folded, quoted

_NOTHING = '"NULL"'  # type of a column without any value, which fits every type


def replace_rows(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, keys: Sequence[str], files: Sequence[Path]
) -> int:
    """Replace the rows of some partitions by those of Parquet files, by column name, within the caller's transaction.

    Missing columns are added to the table. A column without values takes the files' type. A column whose name differs
    only by case is the same column, as in SQL, and takes the files' spelling, by which the project reads it.

    Returns:
        How many rows the files held.

    Raises:
        DataError: Values do not fit the type of the table's column without loss.
    """
    create_schema(con, schema)
    name = f"{quoted(schema)}.{quoted(table)}"
    rows, values = "read_parquet($paths, union_by_name := true)", {"paths": [str(file) for file in files]}
    con.execute(f"CREATE TABLE IF NOT EXISTS {name} AS FROM {rows} LIMIT 0", values)
    present = {folded(column): (column, dtype) for column, dtype, *_ in con.execute(f"DESCRIBE {name}").fetchall()}
    lossy: dict[str, str] = {}  # columns whose values do not fit, and a partition with such a value
    for column, dtype, *_ in con.execute(f"DESCRIBE FROM {rows}", values).fetchall():
        if folded(column) not in present:
            con.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(column)} {dtype}")
            continue
        spelling, table_dtype = present[folded(column)]
        if spelling != column:
            con.execute(f"ALTER TABLE {name} RENAME COLUMN {quoted(spelling)} TO {quoted(column)}")
        if dtype in (table_dtype, _NOTHING):
            continue
        if not con.execute(f"SELECT 1 FROM {name} WHERE {quoted(column)} IS NOT NULL LIMIT 1").fetchall():
            con.execute(f"ALTER TABLE {name} ALTER COLUMN {quoted(column)} TYPE {dtype}")
        elif offending := con.execute(
            f"SELECT partition_key FROM {rows} WHERE {_changes(column, table_dtype, dtype)} LIMIT 1", values
        ).fetchall():
            lossy[f"{column} is {table_dtype}, now {dtype}"] = offending[0][0]
    if lossy:
        msg = f"{schema}, partition {min(lossy.values())}: values do not fit {schema}.{table}: {listed(lossy)}; nothing is changed."
        raise DataError(msg, hint="cast the column in the features to the type that the table has.")
    con.execute(f"DELETE FROM {name} WHERE partition_key IN $keys", {"keys": list(keys)})
    ((count,),) = con.execute(f"INSERT INTO {name} BY NAME FROM {rows}", values).fetchall()
    return int(count)


def _changes(column: str, old: str, new: str) -> str:
    """The SQL condition that a value does not survive the cast to the table's type, which an INSERT would round."""
    name = quoted(column)
    return f"TRY_CAST(TRY_CAST({name} AS {old}) AS {new}) IS DISTINCT FROM {name}"


def create_schema(con: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Create a schema if it is missing."""
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
