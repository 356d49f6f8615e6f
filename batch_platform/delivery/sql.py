"""Sinks of kind `sql`: a table of PostgreSQL or SQLite, in which one transaction deletes and inserts the rows of a partition.

The table is created if it does not exist. Values are never converted there: PostgreSQL would take the bytes of an integer for
those of a float, and SQLite any value for any column.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from batch_platform.declaration.databases import DeliveredTable
from batch_platform.declaration.errors import listed
from batch_platform.declaration.predictions import Delivery
from batch_platform.delivery.sink import BATCH_ROWS, NESTED, Sink, Target
from batch_platform.sources.adbc import Driver, driver_of, postgresql_uri, reason_of, sqlite_uri
from batch_platform.warehouse.sql import connect, literal, quoted

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Cursor
    from duckdb.sqltypes import DuckDBPyType

_INTEGERS = {
    **dict.fromkeys(("tinyint", "utinyint", "smallint"), "smallint"),
    **dict.fromkeys(("usmallint", "integer"), "integer"),
    **dict.fromkeys(("uinteger", "bigint"), "bigint"),
}
_WIDE = {"ubigint": "numeric(20,0)", "hugeint": "numeric(38,0)", "uhugeint": "numeric(38,0)"}
_POSTGRESQL = {
    **_INTEGERS,
    **_WIDE,
    **dict.fromkeys(NESTED, "json"),
    "boolean": "boolean",
    "float": "real",
    "double": "double precision",
    "blob": "bytea",
    "date": "date",
    "time": "time without time zone",
    "timestamp with time zone": "timestamp with time zone",
    **{f"timestamp{unit}": "timestamp without time zone" for unit in ("", "_s", "_ms", "_ns")},
}
_SQLITE = {
    **dict.fromkeys((*_INTEGERS, "boolean"), "INTEGER"),
    "float": "REAL",
    "double": "REAL",
    "blob": "BLOB",
}
_CAST = ("jsonb", "uuid")  # types of PostgreSQL whose values come as text, and which the driver does not write
_STAGED = "batch_platform_rows"  # temporary table of such values
_EXACT_DIGITS = 15  # a number of SQLite holds no more
_FROM_DUCKDB = {"INTEGER": "BIGINT", "REAL": "DOUBLE", "NUMERIC": "VARCHAR", "TEXT": "VARCHAR", "json": "VARCHAR"}
_AFFINITIES = (("INT", "INTEGER"), ("CHAR", "TEXT"), ("CLOB", "TEXT"), ("TEXT", "TEXT"), ("BLOB", "BLOB"))
_REAL = ("REAL", "FLOA", "DOUB")
_COLUMNS_IN_POSTGRESQL = """
    SELECT nspname, attname, format_type(atttypid, atttypmod) FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""
# The index that `_create` makes shows that the table is ours.
_IS_OURS = {
    "postgresql": """
        SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = to_regclass($1) AND relname = $2::name
    """,
    "sqlite": "SELECT count(*) FROM pragma_index_list($1) WHERE name = $2",
}
_LOCK = "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(hashtextextended($1, 0))) AS lock"


def _type_in_postgresql(type_: "DuckDBPyType") -> str:
    if type_.id == "decimal":
        (_, digits), (_, scale) = type_.children
        return f"numeric({digits},{scale})"
    return _POSTGRESQL.get(type_.id, "text")


def _type_in_sqlite(type_: "DuckDBPyType") -> str:
    """The type, which is also the affinity; times and numbers of more digits than SQLite holds are text."""
    exact = type_.id == "decimal" and int(str(type_.children[0][1])) <= _EXACT_DIGITS
    return "NUMERIC" if exact else _SQLITE.get(type_.id, "TEXT")


def _is_as_in_postgresql(there: str, here: str) -> bool:
    return (
        there == here
        or (here in ("text", "json") and (there in ("text", "json", *_CAST) or there.startswith("character varying")))
        or (here.startswith("numeric") and there == "numeric")
    )


def _is_as_in_sqlite(there: str, here: str) -> bool:
    declared = there.upper()
    affinity = next((affinity for part, affinity in _AFFINITIES if part in declared), None)
    affinity = affinity or ("REAL" if any(part in declared for part in _REAL) else "NUMERIC")
    return not declared or affinity == here


def _begin_in_postgresql(cursor: "Cursor", target: Target) -> None:
    """Wait until no transaction is left that delivers the partition, such as one of a process that was killed at its commit."""
    _ask(cursor, _LOCK, f"batch_platform {_table(target)} {target.partition_key}")


def _begin_in_sqlite(cursor: "Cursor", _target: Target) -> None:
    """Begin by waiting for other writers, which the driver's own transaction would not; in a new file, readers never wait."""
    cursor.execute("ROLLBACK")
    cursor.execute("PRAGMA busy_timeout = 60000")
    if _ask(cursor, "SELECT count(*) FROM sqlite_master") == [(0,)]:
        _ask(cursor, "PRAGMA journal_mode = WAL")
    cursor.execute("BEGIN IMMEDIATE")


def _columns_in_postgresql(cursor: "Cursor", target: Target) -> tuple[str | None, dict[str, str]]:
    rows = _ask(cursor, _COLUMNS_IN_POSTGRESQL, _table(target))
    return (rows[0][0] if rows else None), {name: type_ for _, name, type_ in rows}


def _columns_in_sqlite(cursor: "Cursor", target: Target) -> tuple[None, dict[str, str]]:
    return None, dict(_ask(cursor, "SELECT name, type FROM pragma_table_info($1)", _database(target.delivery).table))


def _create_in_postgresql(cursor: "Cursor", target: Target, columns: Mapping[str, str]) -> None:
    """Create the table with its comments, or add columns, unless another delivery does so at the same time."""
    table = _table(target)
    _ask(cursor, _LOCK, f"batch_platform {table}")
    present = _columns_in_postgresql(cursor, target)[1]
    added = _create(cursor, target, columns, present)
    if not present:
        meaning = f"{target.meaning.row}; delivered by {target.pipeline}"
        cursor.execute(f"COMMENT ON TABLE {table} IS {literal(meaning)}")
    for name, meaning in target.meaning.columns.items():
        if name in added:
            cursor.execute(f"COMMENT ON COLUMN {table}.{quoted(name)} IS {literal(meaning)}")


def _create_in_sqlite(cursor: "Cursor", target: Target, columns: Mapping[str, str]) -> None:
    _create(cursor, target, columns, _columns_in_sqlite(cursor, target)[1])


def _create(cursor: "Cursor", target: Target, columns: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """Create the table, with an index by partition, of which the rows of one are deleted, or add what it lacks; returns the new columns."""
    table = _table(target)
    added = {name: f"{quoted(name)} {type_}" for name, type_ in columns.items() if name not in present}
    if present:
        for column in added.values():
            cursor.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    else:
        cursor.execute(f"CREATE TABLE {table} ({', '.join(added.values())})")
        cursor.execute(f"CREATE INDEX {quoted(_index(target))} ON {table} ({quoted(target.column)})")
    return [*added]


def _is_ours(cursor: "Cursor", target: Target) -> bool:
    """Tell whether a delivery created the table."""
    database = _database(target.delivery)
    table = database.table if database.driver == "sqlite" else _table(target)
    return _ask(cursor, _IS_OURS[database.driver], table, _index(target)) == [(1,)]


def _index(target: Target) -> str:
    return f"{_database(target.delivery).name}_by_partition"


@dataclass(frozen=True)
class _Dialect:
    """A database, as far as it differs from others."""

    uri: Callable[[DeliveredTable, Path], str]
    type_of: Callable[["DuckDBPyType"], str]  # type of a column that is created
    is_as: Callable[[str, str], bool]  # True if a column of one type holds values of another as they are
    begin: Callable[["Cursor", Target], None]  # after it, nobody else replaces the partition
    # The schema of the table, and the types of its columns, none if there is no table.
    columns: Callable[["Cursor", Target], tuple[str | None, dict[str, str]]]
    create: Callable[["Cursor", Target, Mapping[str, str]], None]  # makes the table, or adds the columns that it lacks
    lock: Callable[["Cursor", Target], object]  # after it, the columns stay as they are


_DIALECTS = {
    "postgresql": _Dialect(
        uri=lambda database, _: postgresql_uri(database),
        type_of=_type_in_postgresql,
        is_as=_is_as_in_postgresql,
        begin=_begin_in_postgresql,
        columns=_columns_in_postgresql,
        create=_create_in_postgresql,
        lock=lambda cursor, target: cursor.execute(f"LOCK TABLE {_table(target)} IN ROW EXCLUSIVE MODE"),
    ),
    "sqlite": _Dialect(
        uri=lambda _, file: sqlite_uri(file, "rwc"),
        type_of=_type_in_sqlite,
        is_as=_is_as_in_sqlite,
        begin=_begin_in_sqlite,
        columns=_columns_in_sqlite,
        create=_create_in_sqlite,
        lock=lambda *_: None,  # the transaction is the only one that writes
    ),
}


def _replace(target: Target, rows: pa.RecordBatchReader) -> None:
    database, file = _database(target.delivery), _file(target)
    driver = _driver(target.delivery)
    dialect = _DIALECTS[database.driver]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("delivered", rows)
        relation = con.sql("FROM delivered")
        types = {
            name: dialect.type_of(type_)
            for name, type_ in zip(relation.columns, relation.types, strict=True)
            if type_.id != "null"  # has no type because it has no value
        }
        with _explained(target, driver.errors, f"{database.address} cannot be opened", down=True):
            connection = driver.dbapi.connect(dialect.uri(database, file or target.folder))
        with _explained(target, driver.errors, f"{database} refuses it"), closing(connection):
            with closing(connection.cursor()) as cursor:
                dialect.begin(cursor, target)
                present = dialect.columns(cursor, target)[1]
                if not present:
                    dialect.create(cursor, target, types)
                elif types.keys() - present.keys() and _is_ours(cursor, target):
                    dialect.create(cursor, target, types)
                    connection.commit()  # a table that is altered cannot be read until then
                    dialect.begin(cursor, target)
                dialect.lock(cursor, target)
                schema, present = dialect.columns(cursor, target)
                _require_alike(target, present, types, dialect)
                its_rows = f"FROM {_table(target)} WHERE {quoted(target.column)} = $1"
                cursor.execute(f"DELETE {its_rows}", [target.partition_key])
                values = con.sql(f"SELECT {_values(relation, types)} FROM delivered").to_arrow_reader(BATCH_ROWS)
                if any(present[name] in _CAST for name in types):
                    cursor.adbc_ingest(_STAGED, values, mode="create", temporary=True)
                    names = ", ".join(map(quoted, types))
                    # Other columns are not cast: a text that is too long would lose its end.
                    cast = {name: f"::{present[name]}" for name in types if present[name] in ("json", *_CAST)}
                    staged = ", ".join(f"{quoted(name)}{cast.get(name, '')}" for name in types)
                    cursor.execute(f"INSERT INTO {_table(target)} ({names}) SELECT {staged} FROM pg_temp.{_STAGED}")
                else:
                    cursor.adbc_ingest(database.name, values, mode="append", db_schema_name=schema)
                ((there,),) = _ask(cursor, f"SELECT count(*) {its_rows}", target.partition_key)
                target.require_whole(there)
            connection.commit()


def _values(relation: duckdb.DuckDBPyRelation, types: Mapping[str, str]) -> str:
    """SQL of the columns as the driver takes them; lists and structs are JSON, and times in SQLite are text in UTC."""
    selected = list[str]()
    for name, type_ in zip(relation.columns, relation.types, strict=True):
        if name in types:
            value, cast = quoted(name), _FROM_DUCKDB.get(types[name], types[name])
            value = f"to_json({value})" if type_.id in NESTED else value
            value = f"{value}::TIMESTAMP" if type_.id == "timestamp with time zone" and cast == "VARCHAR" else value
            selected.append(f"CAST({value} AS {cast}) AS {quoted(name)}")
    return ", ".join(selected)


def _require_alike(target: Target, present: Mapping[str, str], types: Mapping[str, str], dialect: _Dialect) -> None:
    """Raise DeliveryError unless the table has the columns, each of a type that holds the values as they are."""
    wrong = [
        f"{name} is {present[name]} there and {type_} here" if name in present else f"{name} ({type_}) is not there"
        for name, type_ in types.items()
        if name not in present or not dialect.is_as(present[name], type_)
    ]
    if wrong:
        problem = f"the table {target.delivery.to} has other columns: {listed(wrong)}."
        hint = "change the table, choose others with `columns`, or deliver to another table, which is created."
        raise target.error(problem, hint)


@contextmanager
def _explained(
    target: Target, errors: tuple[type[Exception], ...], problem: str, *, down: bool = False
) -> Generator[None]:
    """Turn what the driver or Arrow raises into an error without secrets."""
    try:
        yield
    except errors as error:
        problem += f": {reason_of(error, _database(target.delivery))}."
        raise target.error(problem, SQL.hint, down=down) from None


def _ask(cursor: "Cursor", query: str, *values: str) -> list[tuple[Any, ...]]:
    cursor.execute(query, list(values) or None)
    return cursor.fetchall()


def _table(target: Target) -> str:
    """The table in SQL."""
    return ".".join(map(quoted, _database(target.delivery).table.split(".")))


def _database(delivery: Delivery) -> DeliveredTable:
    if delivery.sql is None:
        raise TypeError(delivery.name)
    return delivery.sql


def _driver(delivery: Delivery) -> Driver:
    return driver_of(_database(delivery), f"predictions.deliver ({delivery.name}).sql.uri")


def _file(target: Target) -> Path | None:
    database = _database(target.delivery)
    return database.file_in(target.folder).resolve() if database.driver == "sqlite" else None


SQL = Sink(
    replace=_replace,
    path=_file,
    hint="check the address, the table, and the rights of its user there; the next run delivers it.",
    require=_driver,
)
