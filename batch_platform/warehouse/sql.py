"""SQL text: quoted identifiers, string literals, and whether a table exists."""

import duckdb


def quoted(identifier: str) -> str:
    """An SQL identifier, whatever it holds."""
    return '"' + identifier.replace('"', '""') + '"'


def folded(identifier: str) -> str:
    """An identifier as DuckDB compares it: without the case of ASCII letters, and of no others."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in identifier)


def literal(text: str) -> str:
    """An SQL string, for the few statements that take no bound values."""
    return "'" + text.replace("'", "''") + "'"


def has_column(con: duckdb.DuckDBPyConnection, schema: str, table: str, column: str) -> bool:
    """Whether a table of the current database of a connection has such a column."""
    known = (
        "SELECT 1 FROM duckdb_columns() WHERE database_name = current_database() "
        "AND schema_name = $schema AND table_name = $table AND column_name = $column"
    )
    return bool(con.execute(known, {"schema": schema, "table": table, "column": column}).fetchall())


def has_table(con: duckdb.DuckDBPyConnection, schema: str, table: str) -> bool:
    """Whether the current database of a connection has such a table."""
    known = (
        "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database() "
        "AND schema_name = $schema AND table_name = $table"
    )
    return bool(con.execute(known, {"schema": schema, "table": table}).fetchall())
