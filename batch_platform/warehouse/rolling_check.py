"""The rolling check: each publication reads a share of what it is about to publish, so that damage without a trace is noticed.

What is read is drawn at random, and takes about a hundredth of the publication's time; `verify` reads everything.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

import duckdb

from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import read_records
from batch_platform.warehouse.sql import literal, quoted
from batch_platform.warehouse.tables_in_files import PublishedFile, damage_of, tables_in_files

SHARE = 0.01  # share of a publication's time
_ROWS = 122_880  # a row group of DuckDB
_EACH, _CELLS, _BYTES = 0.001, 50e6, 2e9  # estimates: seconds per query, values per second, bytes of files per second
_LEAST = 0.01  # seconds of a check, with its look-ups
_FILES = 64  # files drawn in each publication, at most

_log = logging.getLogger(__name__)


def read_share(con: duckdb.DuckDBPyConnection, home: Home, began: float, database: str = "warehouse") -> None:
    """Read rows of a database, whose blocks DuckDB checks, and files of its tables, in a publication that `began` then.

    A damaged file is logged: who reads its rows is refused until its partition is scored again. Raises duckdb.Error.
    """
    chance, seconds = Random(), SHARE * (perf_counter() - began)  # noqa: S311 - no secret
    if chance.random() * _LEAST >= seconds:  # looking up what there is takes longer than that, so it is done rarely
        return
    for pieces in ([*_row_groups(con, database)], [*_files(con, home, database)]):
        chance.shuffle(pieces)
        left = max(seconds, _LEAST) / 2
        for cost, read in pieces:
            if chance.random() * cost >= left:  # a piece that takes longer than what is left is read as rarely
                break
            left -= cost
            read()


def _row_groups(con: duckdb.DuckDBPyConnection, database: str) -> Iterator[tuple[float, Callable[[], object]]]:
    """Yield the estimated seconds to read each part of a table, and the function that reads it."""
    query = f"SELECT schema_name, table_name, estimated_size, column_count FROM duckdb_tables() WHERE database_name = {literal(database)}"
    for schema, table, rows, columns in con.execute(query).fetchall():
        for first in range(0, rows, _ROWS):
            part = f"FROM {database}.{quoted(schema)}.{quoted(table)} AS t WHERE rowid >= {first} AND rowid < {first + _ROWS}"
            cost = _EACH + min(rows - first, _ROWS) * columns / _CELLS
            yield cost, partial(_read, con, f"SELECT sum(hash(t)) {part}")


def _read(con: duckdb.DuckDBPyConnection, query: str) -> None:
    con.execute(query).fetchall()


def _files(con: duckdb.DuckDBPyConnection, home: Home, database: str) -> Iterator[tuple[float, Callable[[], object]]]:
    """Yield the estimated seconds to read each of some files, and the function that reads it."""
    for pipeline, table in tables_in_files(con, database):
        drawn = f"{database}.{quoted(pipeline)}.{table.files} USING SAMPLE {_FILES}"
        for row in read_records(con, PublishedFile, drawn, {}):
            path = home.table_file(pipeline, table.view, row.partition_key, row.file)
            yield row.file_bytes / _BYTES, partial(_log_damage, pipeline, path, row)


def _log_damage(pipeline: str, path: Path, row: PublishedFile) -> None:
    if damage := damage_of(path, row):
        again = f"batch-platform run {pipeline} --partition {row.partition_key} --force"
        message = "%s, partition %s: %s %s. Hint: score it again: %s"
        _log.warning(message, pipeline, row.partition_key, path, damage, again)
