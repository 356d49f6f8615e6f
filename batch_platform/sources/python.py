"""Sources of kind `python`: a user's function that returns a table."""

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.importing import import_function, parameters_of, source_code
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import SourceKind, SourceTable, digest


def _takes_partition(table: SourceTable) -> bool:
    return "partition" in parameters_of(import_function(table.source.location, table.key))


def _call(table: SourceTable) -> pl.LazyFrame | pl.DataFrame:
    """Call the function, with `partition=` if it has such a parameter."""
    dotted = table.source.location
    function, by_partition = import_function(dotted, table.key), _takes_partition(table)
    try:
        result = function(partition=table.partition) if by_partition else function()
        result = pl.DataFrame(result) if isinstance(result, pa.Table) else result
    except Exception as error:  # a user's own code may raise anything
        problem = f": {dotted} failed with {type(error).__name__}: {error}."
        hint = f"correct the function, or name another one in {table.key}."
        raise table.error(problem, hint, shared=not by_partition) from error
    if not isinstance(result, pl.LazyFrame | pl.DataFrame):
        problem = f": {dotted} returned {type(result).__name__}, which is not a table."
        raise table.error(problem, "return a Polars LazyFrame or DataFrame, or a pyarrow Table.")
    return result


def _view(con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
    con.register(table.name, _call(table).lazy().collect())


PYTHON = SourceKind(
    version=lambda table: digest(source_code(table.source.location, table.key), table.source.location),
    location=lambda table: table.source.location,
    description=lambda source: f"the Python function `{redact(source.location)}`",
    admit=lambda _con, _table: (),
    view=_view,
    frame=lambda _con, table: _call(table).lazy(),
    takes_partition=_takes_partition,
    function=lambda source: source.location,
    version_fixes_rows=False,  # the code has a version, its rows have none
)
