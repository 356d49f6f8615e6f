"""Sources of kind `sql`: a table or a query of a database, in batches that come as DuckDB asks for them."""

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.databases import DatabaseTable
from batch_platform.declaration.errors import listed
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.notation import is_select
from batch_platform.declaration.redaction import redact
from batch_platform.sources.adbc import Session, Statement, decimal_of
from batch_platform.sources.kind import SourceKind, SourceTable, create_view, digest
from batch_platform.warehouse.sql import quoted

_REFUSED = ("money",)  # types that come as other numbers than they hold


def _database(table: SourceTable) -> DatabaseTable:
    if table.source.sql is None:
        raise TypeError(table.name)
    return table.source.sql


def _text(table: SourceTable) -> str:
    """The text of the declared query, or of a query for the whole table; raises SourceError if there is no such file."""
    database = _database(table)
    if database.query is None:
        names = (database.table or "").split(".")
        mark = "`" if database.driver == "bigquery" else '"'
        return f"SELECT * FROM {'.'.join(mark + name.replace(mark, mark * 2) + mark for name in names)}"
    if is_select(database.query):
        return database.query
    path = table.folder / database.query
    try:
        if path.resolve().is_relative_to(table.folder.resolve()):
            return path.read_text(encoding="utf-8")
        reason = "it is a link that leads out of its folder"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    problem = f": {path} cannot be read ({reason})."
    raise table.error(problem, f"create the file or correct sources.{table.name}.sql.query.", shared=True)


def _statement(table: SourceTable) -> Statement:
    database = _database(table)
    return Statement.of(table, "table" if database.query is None else "query", _text(table), database.query or "")


@contextmanager
def _session(table: SourceTable) -> Generator[Session]:
    """The session of the connection that reads the source, or one of its own for the length of the block."""
    if table.session is not None:
        yield table.session
        return
    session = Session(table, _database(table))
    try:
        yield session
    finally:
        session.close()


@dataclass
class _Rows:
    """The rows of a statement, which DuckDB may read any number of times."""

    session: Session
    statement: Statement
    table: SourceTable
    schema: pa.Schema

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, schema: object = None) -> object:
        return self.session.rows(self.statement, self.table, self.schema).__arrow_c_stream__(schema)


def _streamed(con: duckdb.DuckDBPyConnection, table: SourceTable, name: str) -> str:
    """Register the rows under a name, and give SQL of them in the types that the database declares."""
    statement, session = _statement(table), table.session
    schema = session.schema(statement, table)
    if twice := {column for column in schema.names if [*map(str.lower, schema.names)].count(column.lower()) > 1}:
        problem = f" gives more than one column {listed(map(repr, twice))}."
        raise table.error(
            problem, f"name each column with AS in {statement.key}; SQL ignores case in names.", shared=True
        )
    columns = [_typed(table, field) for field in schema]
    con.register(name, _Rows(session, statement, table, schema))
    return f"(SELECT {', '.join(columns)} FROM {quoted(name)})"


def _typed(table: SourceTable, field: pa.Field) -> str:
    """SQL of a column; raises SourceError for a type that DuckDB cannot take."""
    column, dtype, of_many = quoted(field.name), field.type, ""
    while isinstance(dtype, pa.ListType):
        dtype, of_many = dtype.value_type, f"{of_many}[]"
    known = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    declared = dtype.type_name if isinstance(dtype, pa.OpaqueType) else known.get("POSTGRESQL:type")
    if declared == "numeric":
        exact = None if of_many else decimal_of(field)
        return f"CAST({column} AS {f'DECIMAL{exact}' if exact else 'DOUBLE'}{of_many}) AS {column}"
    if isinstance(dtype, pa.OpaqueType) or declared in _REFUSED:
        problem = f": its column {field.name!r} has the type {declared}, which DuckDB cannot take."
        key = f"sources.{table.name}.sql.query"
        instead = "" if _database(table).query else " instead of the table"
        raise table.error(problem, f"write CAST({field.name} AS text) AS {field.name} in {key}{instead}.", shared=True)
    return column


class _Sql(SourceKind):
    counts_quickly = False
    keeps_session = True

    def version(self, table: SourceTable) -> str:
        """Hash the statement, and the answer to the declared version or else the state of the whole database."""
        database, text = _database(table), _text(table)
        with _session(table) as session:
            state = session.state
            session.require(_statement(table), table)
            if database.version is not None:
                state = session.answer(Statement.of(table, "version", database.version, "its version"), table)
        return digest(database.address, text, state)

    def location(self, table: SourceTable) -> str:
        database = _database(table)
        if database.driver != "sqlite":
            return str(database)
        return f"{database.table or database.query} in {database.file_in(table.folder)}"

    def description(self, source: Source) -> str:
        if (database := source.sql) is None:
            raise TypeError(source.kind)
        what = f"table `{database.table}`" if database.table else f"query `{database.query}`"
        return f"the {what} in `{redact(database.address)}`"

    def session(self, table: SourceTable) -> AbstractContextManager[Session]:
        return _session(table)

    def statement(self, table: SourceTable) -> str:
        return _text(table)

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        create_view(con, table.name, _streamed(con, table, f"{table.name} as it is streamed"))

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        return con.sql(f"FROM {_streamed(con, table, f'{table.name} as it is streamed once')}").pl().lazy()

    def takes_partition(self, table: SourceTable) -> bool:
        return bool(_statement(table).parameters)

    def size(self, table: SourceTable) -> int:
        """The bytes of the result as PostgreSQL estimates it, or of the file of SQLite; 0 if nothing tells."""
        database = _database(table)
        if database.driver == "sqlite":
            file = database.file_in(table.folder)
            return file.stat().st_size if file.exists() else 0  # reading it says that it is gone
        if database.driver != "postgresql":
            return 0
        with _session(table) as session:
            plan = json.loads(session.answer(_statement(table), table, explained=True))[0]["Plan"]
        return int(plan["Plan Rows"]) * int(plan["Plan Width"])


SQL = _Sql()
