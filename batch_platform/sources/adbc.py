"""Sessions with databases through ADBC: one state of a database, read in streams of Arrow batches, and never written to.

A session with PostgreSQL or SQLite is a read-only transaction that goes on seeing the state that it found. PostgreSQL streams
one result per connection, so every other result comes through a further connection, which shares the snapshot of the first one.
Other databases answer each statement from their state at that time.

The driver of PostgreSQL moves times from its epoch, 2000, to that of Arrow, 1970, also infinite ones, which are the largest and the smallest
number: they overflow to times long past, and are restored here. An array of arrays arrives as one list, and is refused.
"""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
from pyarrow.compute import call_function

from batch_platform.declaration.databases import Database, DatabaseTable
from batch_platform.declaration.errors import INTERRUPTED_QUERY, SourceError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import SourceTable, failure_of_stream
from batch_platform.warehouse.sql import literal, quoted

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection, Cursor

PARAMETERS = ("partition_start", "partition_end", "partition_key")
_FIRST_WORDS = (b"select", b"with", b"values")
_SETTINGS = {  # hold the values in PostgreSQL, which streams no statement that has parameters
    "partition_start": "current_setting('batch_platform.partition_start')::timestamptz",
    "partition_end": "current_setting('batch_platform.partition_end')::timestamptz",
    "partition_key": "current_setting('batch_platform.partition_key')",
}
_ALL_TIMES = {
    "partition_start": "0001-01-01 00:00:00",
    "partition_end": "9999-12-31 23:59:59",
}  # as SQLite writes times
_SQLITE_BATCH = {"adbc.sqlite.query.batch_rows": 1 << 16}  # rows whose values tell the types of columns
_NO_COPY = {"adbc.postgresql.use_copy": False}
_LOST = (
    "server closed the connection",
    "no connection to the server",
    "could not receive data",
    "terminating connection",
)
_WRITES = ("read-only transaction", "readonly database")
_NO_TABLE = re.compile(r'relation "([^"]+)" does not exist|no such table: (\S+)')
_WRONG_TYPE = re.compile(r"Type mismatch in column (\d+)")
_TABLES = {
    "postgresql": "SELECT table_schema || '.' || table_name FROM information_schema.tables",
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')",
}
_SQLITE_START = b"SQLite format 3\0"  # the first bytes of every file of SQLite
_IN_EXTRA = ("postgresql", "sqlite")  # drivers that the extra `sql` brings
_PREFIX = re.compile(r"^[A-Z_]+: (\[\w+\] )?(Failed to [a-z ]+: )?(ERROR: +)?")
_PRIMARY = b"PG_DIAG_MESSAGE_PRIMARY"  # the error of PostgreSQL in a sentence
_LONGEST_WAIT = 10  # seconds for a server to answer, unless the address says otherwise
_LONGEST_REASON = 300  # characters
_MOST_DIGITS = 38  # a DECIMAL of DuckDB has no more


@dataclass(frozen=True)
class Statement:
    """One SELECT in the dialect of a database, divided at its parameters."""

    key: str  # YAML key that declares it
    parts: tuple[str, ...]
    parameters: tuple[str, ...]  # names, one between two parts

    @classmethod
    def of(cls, table: SourceTable, key: str, text: str, what: str) -> "Statement":
        """Divide a text; raises SourceError unless it is one SELECT with known parameters."""
        encoded, yaml_key = text.encode(), f"sources.{table.name}.sql.{key}"
        tokens = [token for token in duckdb.tokenize(text) if token[1] != duckdb.token_type.comment]
        ends = [at for at, _ in tokens if encoded[at : at + 1] == b";"]
        body = encoded[: ends[0]] if ends else encoded
        first = re.match(rb"[(\s]*(\w+)", body[tokens[0][0] :]) if tokens else None
        more = [at for at, _ in tokens if ends and at > ends[0] and at not in ends]
        if first is None or first[1].lower() not in _FIRST_WORDS or more:
            problem = f": {what} must be one SELECT that writes nothing."
            raise table.error(problem, f"write a single SELECT, with or without WITH in front of it, in {yaml_key}.")
        parts, names, done = list[str](), list[str](), 0
        for at, kind in tokens:
            if kind == duckdb.token_type.string_const or body[at : at + 1] != b"$":
                continue
            named = re.match(rb"\$(\w*)", body[at:])
            name = named[1].decode() if named else ""
            if name not in PARAMETERS:
                problem = f": {what} uses the parameter ${name}."
                raise table.error(problem, f"use only {listed(f'${known}' for known in PARAMETERS)} in {yaml_key}.")
            parts.append(body[done:at].decode())
            names.append(name)
            done = at + 1 + len(name)
        return cls(yaml_key, (*parts, f"{body[done:].decode()}\n"), tuple(names))

    def written(self, placeholder: Callable[[str], str]) -> str:
        """The text with a placeholder for each parameter."""
        inserted = [*map(placeholder, self.parameters), ""]
        return "".join(text for pair in zip(self.parts, inserted, strict=True) for text in pair)


class Session:
    """Connections that show a source one state of its database, whichever partition it reads."""

    def __init__(self, table: SourceTable, database: DatabaseTable) -> None:
        """Connect; raises SourceError, and WrongUseError if the driver is not installed."""
        self._table, self._database, self._driver = table, database, database.driver
        driver = driver_of(database, self._key("uri"))
        self._dbapi, self._errors = driver.dbapi, driver.errors
        self._running, self._idle = set["Cursor"](), list["Connection"]()
        self._schemas = dict[Statement, pa.Schema]()
        self._snapshot = ""  # name by which further connections to PostgreSQL share it
        self.state = ""  # differs from that of another session if the database may have changed; empty if nothing tells
        self._first = self._connected(self._new)
        with self._explained(self._key("uri")):
            if self._driver == "postgresql":
                query = "SELECT pg_export_snapshot(), pg_current_snapshot()::text"
                ((self._snapshot, self.state),) = self._fetched(query)
            elif self._driver == "sqlite":
                self.state = str([(path.name, *_size_and_time(path)) for path in self._files()])
                self._fetched("SELECT count(*) FROM sqlite_master")  # the transaction sees one state from here on

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._idle, self._first):
            with suppress(Exception):  # the server may have ended it
                connection.close()

    def interrupt(self) -> None:
        """Let the database end what it executes; may be called from another thread."""
        for cursor in [*self._running]:
            with suppress(Exception):  # it may have ended
                cursor.adbc_cancel()

    def schema(self, statement: Statement, table: SourceTable) -> pa.Schema:
        """The columns of a statement, for all partitions; reads no row, but SQLite a batch of all times."""
        if statement not in self._schemas:
            self._schemas[statement] = self._schema(statement, table)
        return self._schemas[statement]

    def _schema(self, statement: Statement, table: SourceTable) -> pa.Schema:
        with self._explained(statement.key), closing(self._first.cursor()) as cursor:
            all_times = _ALL_TIMES if self._driver == "sqlite" else {}
            text, values = self._bound(self._first, statement, {**_values(table, self._driver), **all_times})
            if self._driver != "sqlite":
                return cursor.adbc_execute_schema(text, values)
            cursor.adbc_statement.set_options(**_SQLITE_BATCH)
            cursor.execute(text, values)
            with cursor.fetch_record_batch() as reader:
                return reader.schema

    def require(self, statement: Statement, table: SourceTable) -> None:
        """Raise SourceError if the database refuses a statement; reads no row."""
        if statement in self._schemas:
            return
        with self._explained(statement.key), closing(self._first.cursor()) as cursor:
            cursor.adbc_prepare(self._bound(self._first, statement, _values(table, self._driver))[0])

    def rows(self, statement: Statement, table: SourceTable, schema: pa.Schema) -> pa.RecordBatchReader:
        """The rows of a statement for the partition of a table, as a stream for DuckDB or Arrow."""
        return pa.RecordBatchReader.from_batches(schema, self._batches(statement, table, schema))

    def answer(self, statement: Statement, table: SourceTable, *, explained: bool = False) -> str:
        """The result of a small statement as a text, or how PostgreSQL would execute a large one, as JSON."""
        with self._explained(statement.key), closing(self._first.cursor()) as cursor:
            text, values = self._bound(self._first, statement, _values(table, self._driver))
            if explained:
                cursor.adbc_statement.set_options(**_NO_COPY)
            cursor.execute(f"{'EXPLAIN (FORMAT JSON) ' if explained else ''}{text}", values)
            rows = cursor.fetchall()
        return str(rows[0][0] if explained else rows)

    def _batches(self, statement: Statement, table: SourceTable, schema: pa.Schema) -> Generator[pa.RecordBatch]:
        """Yield the rows; raises what `failure_of_stream` gives, since DuckDB stands between."""
        with ExitStack() as unless_complete:
            try:
                connection = self._first
                if self._driver == "postgresql":
                    connection = self._idle.pop() if self._idle else self._connected(self._first.adbc_clone)
                    unless_complete.callback(connection.close)
                explained = self._explained(statement.key, schema, shared=not statement.parameters)
                with explained, closing(connection.cursor()) as cursor, self._interruptible(cursor):
                    if self._driver == "sqlite":
                        cursor.adbc_statement.set_options(**_SQLITE_BATCH)
                    text, values = self._bound(connection, statement, _values(table, self._driver))
                    if self._driver == "postgresql":
                        cursor.execute(with_dimensions(text, schema), values)
                        for batch in cursor.fetch_record_batch():
                            yield self._meant(batch, statement, schema)
                    else:
                        cursor.execute(text, values)
                        for batch in cursor.fetch_record_batch():
                            yield _cast(batch, schema)
            except SourceError as error:
                raise failure_of_stream(error) from None
            unless_complete.pop_all()
        if connection is not self._first:
            self._idle.append(connection)

    def _meant(self, batch: pa.RecordBatch, statement: Statement, schema: pa.Schema) -> pa.RecordBatch:
        """The rows of PostgreSQL as they are meant; raises SourceError for values that cannot be taken over."""
        if (wrong := refused(batch, schema)) is not None:
            query = self._key("query") + ("" if statement.key == self._key("query") else " instead of the table")
            problem = f": its column {wrong.column!r} {wrong.problem}."
            hint = f"write {wrong.instead} in {query}."
            raise self._table.error(problem, hint, shared=not statement.parameters)
        return meant(batch, schema)

    @contextmanager
    def _interruptible(self, cursor: "Cursor") -> Generator[None]:
        self._running.add(cursor)
        try:
            yield
        finally:
            self._running.discard(cursor)

    def _bound(
        self, connection: "Connection", statement: Statement, values: Mapping[str, object]
    ) -> tuple[str, list[object]]:
        """The text of a statement with the driver's own parameters, and their values in order."""
        names = [*dict.fromkeys(statement.parameters)]
        if self._driver == "postgresql":
            if names:
                settings = (f"set_config('batch_platform.{name}', ${at}, false)" for at, name in enumerate(names, 1))
                self._fetched(f"SELECT {', '.join(settings)}", [str(values[name]) for name in names], connection)
            return statement.written(_SETTINGS.__getitem__), []
        if self._driver == "sqlite":
            return statement.written(lambda name: f"${name}"), [values[name] for name in names]
        return statement.written(lambda _: "?"), [values[name] for name in statement.parameters]

    def _fetched(
        self, text: str, values: list[str] | None = None, connection: "Connection | None" = None
    ) -> list[tuple[Any, ...]]:
        with closing((connection or self._first).cursor()) as cursor:
            cursor.execute(text, values)
            return cursor.fetchall()

    def _connected(self, connect: Callable[[], "Connection"]) -> "Connection":
        """A further connection, in a transaction of PostgreSQL that sees what the first one sees."""
        with self._explained(self._key("uri")), ExitStack() as unless_complete:
            connection = connect()
            unless_complete.callback(connection.close)
            if self._driver == "postgresql":
                with closing(connection.cursor()) as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                    if self._snapshot:
                        cursor.execute(f"SET TRANSACTION SNAPSHOT {literal(self._snapshot)}")
                query = "SELECT set_config('TimeZone', $1, false), set_config('idle_in_transaction_session_timeout', '0', false)"
                self._fetched(query, [self._table.timezone], connection)
            unless_complete.pop_all()
        return connection

    def _new(self) -> "Connection":
        """Connect through the driver that the URI names."""
        uri, driver, connect = self._database.uri, self._driver, self._dbapi.connect
        if driver == "postgresql":
            return connect(postgresql_uri(self._database))
        if driver == "sqlite":
            return connect(sqlite_uri(self._files()[0], "ro"))
        if driver == "snowflake":
            return connect(uri.partition("://")[2], autocommit=True)
        url = urlsplit(uri)
        if driver == "bigquery":
            names = {"adbc.bigquery.sql.project_id": url.netloc, "adbc.bigquery.sql.dataset_id": url.path.strip("/")}
            return connect({name: value for name, value in names.items() if value}, autocommit=True)
        login = {"username": url.username, "password": url.password}
        options = {name: unquote(value) for name, value in login.items() if value}
        return connect(f"{url.scheme}://{url.netloc.rpartition('@')[2]}", options, autocommit=True)

    def _files(self) -> list[Path]:
        """The file of an SQLite database, and the log of changes beside it; raises SourceError if there is none."""
        path = self._database.file_in(self._table.folder)
        if not path.is_file():
            names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = f"correct {self._key('uri')}: {did_you_mean(path.name, names) or 'add the file.'}"
            problem = f": there is no file {path}."
            raise self._table.error(problem, hint)
        return [path, *filter(Path.is_file, [path.with_name(f"{path.name}-wal")])]

    def _key(self, key: str) -> str:
        return f"sources.{self._table.name}.sql.{key}"

    @contextmanager
    def _explained(self, key: str, columns: pa.Schema | None = None, *, shared: bool = True) -> Generator[None]:
        """Turn what the driver or Arrow raises into an error that names a YAML key; the original may hold the password."""
        try:
            yield
        except self._errors as error:
            raise self._failure(error, key, columns, shared=shared) from None

    def _failure(self, error: Exception, key: str, columns: pa.Schema | None, *, shared: bool) -> Exception:
        """The error for what the driver raised while it did what a YAML key declares."""
        reason = reason_of(error, self._database)
        if "due to user request" in reason:  # `interrupt` was called
            return RuntimeError(INTERRUPTED_QUERY)
        if any(sign in reason for sign in _LOST):
            again = "run it again once the database is there; what is done stays."
            return self._table.error(f": the database ended the connection: {reason}.", again, shared=True)
        if key == self._key("uri"):
            problem = f": {self._database.address} cannot be opened: {reason}."
            return self._table.error(problem, f"correct {key}, or start the database.", shared=True)
        hint, reason = f"correct {key}.", reason.rpartition("ERROR: ")[2]
        if any(sign in reason for sign in _WRITES):
            reason = f"it writes, and may only read ({reason})"
        if (table := _NO_TABLE.search(reason)) is not None:
            nearest = did_you_mean(table[1] or table[2], self._tables())
            hint = f"correct {key}: {nearest}" if nearest else hint
        if (wrong := _WRONG_TYPE.search(reason)) is not None and columns is not None:
            column = columns.names[int(wrong[1])]
            reason = f"column {column!r} holds values of several types ({reason.rpartition(': ')[2]})"
            cast = f"CAST({column} AS TEXT) AS {column}"
            hint = f"name one type in sources.{self._table.name}.sql.query, such as {cast}."
            if not self._table.pipeline:
                hint = f"create a view that selects {cast}, or NULL for other values, and read it with --table."
        return self._table.error(f" cannot be read: {reason}.", hint, shared=shared)

    def _tables(self) -> list[str]:
        """The tables of the database, with and without their schemas, as far as it tells."""
        with suppress(Exception), closing(self._new()) as connection:
            names = [str(name) for (name,) in self._fetched(_TABLES[self._driver], connection=connection)]
            return [*names, *(name.rpartition(".")[2] for name in names)]
        return []


def _values(table: SourceTable, driver: str) -> dict[str, Any]:
    """The values of the parameters for the partition of a table; SQLite has times as text, on the clocks of the partitions."""
    partition = table.partition
    if partition is None:
        return {}
    start, end = partition.start, partition.end
    if driver == "sqlite":
        zone = ZoneInfo(table.timezone)
        start, end = (f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S}" for at in (start, end))
    return dict(zip(PARAMETERS, (start, end, partition.key), strict=True))


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The values in the types of a schema; raises ArrowInvalid with the number of a column that holds others, such as bytes."""
    columns = list[pa.Array]()
    for at, (column, field) in enumerate(zip(batch.columns, schema, strict=True)):
        try:
            columns.append(column.cast(field.type))
            columns[-1].validate(full=pa.types.is_string(field.type))
        except pa.ArrowInvalid as error:
            msg = f"Type mismatch in column {at}: {error}"
            raise pa.ArrowInvalid(msg) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class Driver:
    """The driver of a database."""

    dbapi: Any  # its module in the manner of DB-API 2.0
    errors: tuple[type[Exception], ...]  # what it and Arrow raise


def driver_of(database: Database, key: str) -> Driver:
    """Import the driver of a database that a YAML key declares; raises WrongUseError if it is not installed."""
    package = f"adbc-driver-{database.driver}"
    try:
        import adbc_driver_manager

        dbapi = import_module(f"{package.replace('-', '_')}.dbapi")
    except ImportError as error:
        msg = f"{package} is needed for {key}, and cannot be imported ({error})."
        beside = "" if database.driver in _IN_EXTRA else f" {package}"
        raise WrongUseError(msg, hint=f"pip install 'batch-platform[sql]'{beside}") from error
    return Driver(dbapi, (adbc_driver_manager.Error, pa.ArrowException, OSError))


def postgresql_uri(database: Database) -> str:
    """The address of a PostgreSQL, which has to answer in time."""
    uri = database.uri
    limit = "" if "connect_timeout" in uri else f"{'&' if '?' in uri else '?'}connect_timeout={_LONGEST_WAIT}"
    return f"{uri}{limit}"


def sqlite_uri(file: Path, mode: str) -> str:
    """The address of a file of SQLite, to be opened to read (`ro`), or also to write and to create it (`rwc`)."""
    return f"file:{quote(str(file))}?mode={mode}"


def is_sqlite(file: Path) -> bool:
    """Return whether a file on this machine is a database of SQLite, whatever its name ends with."""
    try:
        with file.open("rb") as content:
            return content.read(len(_SQLITE_START)) == _SQLITE_START
    except OSError:
        return False  # whoever reads it says why it cannot be read


def reason_of(error: Exception, database: Database) -> str:
    """The error of a driver in one line without secrets; the error itself may hold the password."""
    details = dict(getattr(error, "details", None) or ())
    raw = details[_PRIMARY].decode() if _PRIMARY in details else str(error).partition("Query was: ")[0]
    text = _PREFIX.sub("", " ".join(raw.split())).replace(database.uri, database.address)
    return redact(text)[:_LONGEST_REASON].rstrip(". ")


@dataclass(frozen=True)
class _Infinite:
    """Infinite times of one type, as numbers: as they arrive, and as DuckDB has them."""

    number: pa.DataType
    past: int  # what PostgreSQL's smallest number became; its largest number became one less
    largest: int


_SECONDS = _Infinite(pa.int64(), -(2**63) + 946_684_800_000_000, 2**63 - 1)  # times in microseconds
_DAYS = _Infinite(pa.int32(), -(2**31) + 10_957, 2**31 - 1)


@dataclass(frozen=True)
class Refusal:
    """A column with values that cannot be taken over."""

    column: str
    problem: str
    instead: str  # SQL to read in its place


def decimal_of(field: pa.Field) -> tuple[int, int] | None:
    """The digits and the scale that a column `numeric` declares; None if DuckDB has no such DECIMAL."""
    modifier = int((field.metadata or {}).get(b"POSTGRESQL:typmod", -1)) - 4  # 16 bits for each
    digits, scale = modifier >> 16, modifier & 0x7FF
    return (digits, scale) if 0 < digits <= _MOST_DIGITS and scale <= digits else None


def with_dimensions(text: str, schema: pa.Schema) -> str:
    """A SELECT that also gives the dimensions of its arrays, in further columns in their order."""
    dimensions = [f", array_ndims({quoted(field.name)})" for field in schema if pa.types.is_list(field.type)]
    return f"SELECT *{''.join(dimensions)} FROM ({text}) AS declared" if dimensions else text


def refused(batch: pa.RecordBatch, schema: pa.Schema) -> Refusal | None:
    """The first column of what `with_dimensions` gives that cannot be taken over."""
    arrays = [field.name for field in schema if pa.types.is_list(field.type)]
    for at, name in enumerate(arrays, start=len(schema)):
        if (call_function("max", [batch.column(at)]).as_py() or 1) > 1:
            return Refusal(name, "holds arrays of arrays", f"to_json({name}) AS {name}")
    for at, field in enumerate(schema):
        exact = isinstance(field.type, pa.OpaqueType) and field.type.type_name == "numeric" and decimal_of(field)
        if (
            exact
            and call_function("any", [call_function("equal", [batch.column(at).storage, pa.scalar("nan")])]).as_py()
        ):
            digits, scale = exact
            problem = f"holds NaN, which a DECIMAL({digits}, {scale}) cannot"
            return Refusal(field.name, problem, f"CAST({field.name} AS double precision) AS {field.name}")
    return None


def meant(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of a schema with their infinite times."""
    columns = [_with_infinity(batch.column(at)) for at in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _with_infinity(column: pa.Array) -> pa.Array:
    dtype = column.type
    if pa.types.is_list(dtype):
        values = _with_infinity(column.values)
        return pa.ListArray.from_arrays(column.offsets, values, type=dtype, mask=column.is_null())
    infinite = _SECONDS if pa.types.is_timestamp(dtype) else _DAYS if pa.types.is_date32(dtype) else None
    if infinite is None:
        return column
    numbers = column.view(infinite.number)
    if (call_function("min", [numbers]).as_py() or 0) > infinite.past:
        return column
    for arrived, number in ((infinite.past - 1, infinite.largest), (infinite.past, -infinite.largest)):
        same = call_function("equal", [numbers, pa.scalar(arrived, infinite.number)])
        numbers = call_function("if_else", [same, pa.scalar(number, infinite.number), numbers])
    return numbers.view(dtype)
