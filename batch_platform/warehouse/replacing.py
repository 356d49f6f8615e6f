"""Replace the rows of partitions in a table, by column name: the table takes new columns, and refuses values that do not fit."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.predictions import DECISION
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.sql import folded, has_table, quoted

NO_TYPE = '"NULL"'  # type of a column without any value, which fits every type


def replace_rows(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, keys: Sequence[str], new: Sequence[Path] | str
) -> int:
    """Replace the rows of some partitions by new rows, by column name, within the caller's transaction.

    The new rows are Parquet files or the name of a registered frame; their number is returned. See `fit_columns` for what
    becomes of columns, and what it raises.
    """
    rows, values = (new, {}) if isinstance(new, str) else rows_of_files(new)
    fit_columns(con, schema, table, rows, values)
    name = f"{quoted(schema)}.{quoted(table)}"
    con.execute(f"DELETE FROM {name} WHERE partition_key IN $keys", {"keys": list(keys)})
    return insert_rows(con, schema, table, rows, values)


def insert_rows(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, rows: str, values: Mapping[str, list[str]]
) -> int:
    """Insert rows, as SQL after FROM that binds values, into a table whose columns fit, by name; returns their number."""
    name = f"{quoted(schema)}.{quoted(table)}"
    ((count,),) = con.execute(f"INSERT INTO {name} BY NAME FROM {rows}", values).fetchall()
    return int(count)


def rows_of_files(
    files: Sequence[Path], decided: Mapping[Path, str] | None = None, *, name: str = "paths"
) -> tuple[str, dict[str, list[str]]]:
    """The rows of Parquet files as SQL after FROM, and the values that it binds, whose names begin with `name`.

    No folder of their path is taken for a column. `decided` holds the SQL conditions of files that were staged before their rows
    could be decided: they take the place of the column `decision`.
    """
    conditions, rows, values = decided or {}, list[str](), dict[str, list[str]]()
    for condition, alike in groupby(files, key=conditions.get):
        bound = f"{name}{len(rows)}"
        values[bound] = [str(file) for file in alike]
        columns = "*" if condition is None else f"* REPLACE ({condition} AS {DECISION})"
        rows.append(f"SELECT {columns} FROM read_parquet(${bound}, union_by_name := true, hive_partitioning := false)")
    return f"({' UNION ALL BY NAME '.join(rows)})", values


def fit_columns(  # noqa: PLR0913 - a table, what is to fit it, and where the rows of all partitions are read
    con: duckdb.DuckDBPyConnection,
    schema: str,
    table: str,
    rows: str,
    values: Mapping[str, list[str]],
    *,
    read_in: str | None = None,
) -> None:
    """Give a table all columns of new rows; a missing table is made.

    Missing columns are added. A column without values takes the new type. A column whose name differs only by case is the
    same column, as in SQL, and takes the new spelling, by which the project reads it.

    The new rows are SQL after FROM that binds values. `read_in` is the view in which the rows of all partitions are read, by
    default the table itself. Raises DataError if values do not fit the type of the table's column without loss.
    """
    name, everywhere = (f"{quoted(schema)}.{quoted(named)}" for named in (table, read_in or table))
    changed = not has_table(con, schema, table)
    if changed:
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
        con.execute(f"CREATE TABLE {name} AS FROM {rows} LIMIT 0", values)
    present = {folded(column): (column, dtype) for column, dtype, *_ in con.execute(f"DESCRIBE {name}").fetchall()}
    lossy: dict[str, str] = {}  # columns whose values do not fit, and a partition with such a value
    for column, dtype, *_ in con.execute(f"DESCRIBE FROM {rows}", values).fetchall():
        if folded(column) not in present:
            con.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(column)} {dtype}")
            changed = True
            continue
        spelling, table_dtype = present[folded(column)]
        if spelling != column:
            con.execute(f"ALTER TABLE {name} RENAME COLUMN {quoted(spelling)} TO {quoted(column)}")
            changed = True
        if dtype in (table_dtype, NO_TYPE):
            continue
        if not con.execute(f"SELECT 1 FROM {everywhere} WHERE {quoted(column)} IS NOT NULL LIMIT 1").fetchall():
            con.execute(f"ALTER TABLE {name} ALTER COLUMN {quoted(column)} TYPE {dtype}")
        elif offending := con.execute(
            f"SELECT partition_key FROM {rows} WHERE {_changes(column, table_dtype, dtype)} LIMIT 1", values
        ).fetchall():
            lossy[f"{column} is {table_dtype}, now {dtype}"] = offending[0][0]
    if lossy:
        msg = f"{schema}, partition {min(lossy.values())}: values do not fit {schema}.{read_in or table}: {listed(lossy)}; nothing is changed."
        raise DataError(msg, hint=_how_to_fit(schema, lossy))
    if changed:
        write_comments(con, schema, table)


def _how_to_fit(pipeline: str, lossy: Iterable[str]) -> str:
    if any(column.startswith("prediction is ") for column in lossy):
        return f"if the label has another type than before, batch-platform run {pipeline} starts its predictions anew."
    return "cast the column in the features to the type that the table has."


def _changes(column: str, old: str, new: str) -> str:
    """The SQL condition that a value does not survive the cast to the table's type, which an INSERT would round."""
    name = quoted(column)
    return f"TRY_CAST(TRY_CAST({name} AS {old}) AS {new}) IS DISTINCT FROM {name}"
