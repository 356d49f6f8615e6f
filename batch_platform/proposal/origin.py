"""Locate the table that a user names: a file, a folder, a glob, a table of a DuckDB file, or a Delta table."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from glob import escape, has_magic
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import unquote

import duckdb

from batch_platform.declaration.databases import DRIVERS, DatabaseTable
from batch_platform.declaration.errors import SourceError, WrongUseError, did_you_mean, listed, named
from batch_platform.declaration.importing import installed
from batch_platform.declaration.inputs import STORES, Encoding, Source, require_object, scheme_of
from batch_platform.declaration.notation import rendered
from batch_platform.declaration.redaction import protect
from batch_platform.pipeline.declared import from_environment
from batch_platform.sources.adbc import is_sqlite
from batch_platform.sources.delta import is_delta_table
from batch_platform.sources.files import ARCHIVE, UNPACK, files_of
from batch_platform.sources.kind import SourceTable, failure_in
from batch_platform.sources.known import SOURCE_KINDS
from batch_platform.sources.objects import (
    FilePath,
    ObjectPath,
    StoreError,
    file_path,
    hint_for,
    store_failure_in,
)
from batch_platform.sources.text_files import with_any_line_break
from batch_platform.warehouse.sql import connect, literal

_MEANT = re.compile(r"\{[{%#]|\{partition_\w+\}")  # Dagster's templates and this project's own
_ESCAPED = re.compile(r"\[[\[?*]\]")  # how glob.escape writes a bracket, a question mark or a star
COMMA_NUMBER = r"[-+]?([0-9]+|[0-9]{1,3}([.][0-9]{3})+)(,[0-9]+)?"  # regular expression, with a point between thousands

_POINT_NUMBER = r"[-+]?[0-9]+([.][0-9]+)?"
_NO_GROUPS = r"[-+]?([0-9]+[.]([0-9]{1,2}|[0-9]{4,})|[0-9]{4,}[.][0-9]+)"  # the point is not between thousands


@dataclass(frozen=True)
class Origin:
    """The location of a table, and the notation of its files."""

    kind: str  # kind of the source that reads it
    path: FilePath  # absolute; may be a glob
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # further keys of its block, such as delimiter

    @property
    def block(self) -> Mapping[str, object]:
        """The source block as it is written in YAML."""
        if self.kind == "sql":
            return {"sql": {**self.options}}
        return {self.kind: str(self.path), **self.options}

    def read_with(self, **options: object) -> "Origin":
        """The same with further keys in its source block; those without a value are left out."""
        return replace(self, options={**self.options, **{key: value for key, value in options.items() if value}})

    def read_by(self, query: str) -> "Origin":
        """The same table of a database, read by a query in a file beside the declaration."""
        return replace(self, options={"uri": self.options["uri"], "query": query})

    @property
    def driver(self) -> str | None:
        """The driver of the database; None for a table elsewhere."""
        sql = self.as_table("").source.sql if self.kind == "sql" else None
        return None if sql is None else sql.driver

    def relative_to(self, root: Path, folder: Path) -> "Origin":
        """The same, with a path within a root relative to a folder."""
        inside = self.path.is_relative_to(root)
        return replace(self, path=Path(os.path.relpath(self.path, folder))) if inside else self

    @property
    def notation(self) -> str:
        """The unusual part of the notation of a CSV file, for people."""
        delimiter = self.options.get("delimiter")
        between = {None: "", "\t": "tabs between values"}.get(delimiter, f"{delimiter} between values")
        return ", ".join(filter(None, [between, "decimal commas" if "decimal" in self.options else ""]))

    @property
    def is_one_file(self) -> bool:
        """Return whether it is a single file whose rows have a place, or a table of one, not a glob and not a Delta table."""
        return self.kind not in ("delta", "sql") and not has_magic(_ESCAPED.sub("", str(self.path)))

    def as_table(self, name: str) -> SourceTable:
        """The source as a table with a name, for a reader that is no pipeline."""
        block = rendered({**self.block}, from_environment) if self.kind == "sql" else self.block
        return SourceTable("", name, Source.model_validate(block), Path(self.path.anchor))


def locate(file: str, table: str | None, encoding: Encoding | None = None) -> Origin:
    """Locate a table by its file, by a folder or a glob of files, by its name in a DuckDB file or a database, or by the folder of a Delta table.

    A file, a glob and a Delta table may lie in a store of objects.

    The encoding is that of CSV files.

    Raises:
        WrongUseError: There is no such file or table, or its kind is not known.
        SourceError: The file cannot be read.
    """
    if (scheme := scheme_of(file)) in DRIVERS:
        return _in_database(file, table)
    if scheme is not None and scheme not in STORES:
        msg = f"{file} is an address; a pipeline is proposed from files on this machine or in a store such as s3://, or from a database."
        hint = "download it first and name the file, or read it in a source of kind python."
        raise WrongUseError(msg, hint=hint)
    path = file_path(file)
    path = path.absolute() if isinstance(path, Path) else path
    if _MEANT.search(str(path)):
        msg = f"{path} contains brackets that have a meaning in a declaration."
        raise WrongUseError(msg, hint="rename the file without {{, {%, {# and names such as {partition_key}.")
    if isinstance(path, Path) and path.is_file() and is_sqlite(path):
        msg = f"{path} is a SQLite file, whose tables are read by the address of the database."
        install = "" if installed("adbc-driver-sqlite") else "; first pip install 'batch-platform[sql]'"
        named_table = "TABLE" if table is None else quote(table)
        raise WrongUseError(msg, hint=f"--from {quote(f'sqlite:///{file}')} --table {named_table}{install}.")
    kind, path = _in_store(path) if isinstance(path, ObjectPath) else _on_this_machine(path, file)
    if encoding is not None and kind != "csv":
        msg = f"{path} is not a CSV file."
        raise WrongUseError(msg, hint="give --encoding with CSV files, and only with them.")
    if kind == "duckdb" and isinstance(path, Path):
        return Origin(kind, path, {"table": _table_of(path, table)})
    if table is not None:
        msg = f"{path} is not a DuckDB file."
        raise WrongUseError(msg, hint="give --table with a DuckDB file, and only with one.")
    return _with_dialect(Origin(kind, path).read_with(encoding=encoding)) if kind == "csv" else Origin(kind, path)


def _in_store(path: ObjectPath) -> tuple[str, FilePath]:
    """The kind of a table in a store, and its address."""
    try:
        kind = "delta" if ending_of(path) is None else _kind_of(path)
        require_object(kind, str(path))
        return kind if kind != "delta" or is_delta_table(path) else _kind_of(path), path
    except ValueError as error:
        msg = f"--from: {error}."
        raise WrongUseError(msg, hint="download the table first, or correct the address.") from error
    except StoreError as error:
        msg = f"{error}."
        raise SourceError(msg, hint=hint_for(str(error))) from error


def _on_this_machine(path: Path, file: str) -> tuple[str, FilePath]:
    """The kind of a table, and the path or glob of its files."""
    if is_delta_table(path):
        return "delta", path
    if path.is_dir():
        return _in_folder(path)
    kind = _kind_of(path)
    if path.is_file():
        return kind, path if kind == "duckdb" else Path(escape(str(path)))
    matches = Path(path.anchor).glob(str(path.relative_to(path.anchor))) if has_magic(file) else []
    if not any(match.is_file() for match in matches):
        if path.exists():
            msg = f"{path} is neither a file nor a folder."
            raise WrongUseError(msg, hint="write what comes out of it to a file first.")
        near = did_you_mean(path.name, [neighbour.name for neighbour in path.parent.glob("*")])
        msg = f"There is no file {path}."
        raise WrongUseError(msg, hint=near or f"name a file ({listed(_endings())}), a folder or a quoted glob.")
    return kind, path


def unreadable(path: FilePath, error: duckdb.Error, hint: str | None = None) -> SourceError:
    """The error that says why DuckDB cannot read a file, without the settings that it lists and the SQL that reads it."""
    if (source_error := failure_in(error)) is not None:
        return source_error
    if (failure := store_failure_in(error)) is not None:
        return SourceError(f"{failure}.", hint=hint_for(failure))
    message = " ".join(str(error).partition("\nLINE ")[0].split())
    reason = message.partition(" Possible ")[0].partition(" The search space used was:")[0]
    if "sniffing file" in reason:
        reason = "its rows do not all have the same number of values"
        hint = hint or "look for quotes that are not closed, and line breaks or delimiters in values without quotes."
    if " encoded" in reason:  # an encoding of Windows has signs such as € where latin-1 has none
        name = "name its encoding, such as --encoding latin-1, or " if "not utf-8" in reason else ""
        hint = f"{name}convert it: iconv -f WINDOWS-1252 -t UTF-8 {quote(str(path))} > utf8.csv."
    msg = f"{path} cannot be read: {reason.rstrip('.')}."
    return SourceError(msg, hint=hint or "correct the file, or write the table as Parquet.")


def _in_database(uri: str, table: str | None) -> Origin:
    """A table of a database; an address with a password is written as the environment variable that holds it."""
    if uri.partition("://")[0].lower() not in DRIVERS:
        msg = f"{uri} is an address; a pipeline is proposed from files on this machine."
        hint = "download it first and name the file, or read it in a source of kind python."
        raise WrongUseError(msg, hint=hint)
    if table is None:
        msg = "A database has many tables."
        raise WrongUseError(msg, hint="name one, such as --table orders.")
    database = DatabaseTable(uri=uri, table=table)
    variables = [name for name, value in os.environ.items() if value.strip() == uri]
    if database.driver == "sqlite":
        uri = f"sqlite:///{Path.cwd() / unquote(uri.partition('://')[2].removeprefix('/'))}"
    elif variables:
        uri = f"{{{{ env.{variables[0]} }}}}"
        protect(uri)
    elif database.secrets:
        msg = f"The address of {database.address} holds a password, which no file should."
        hint = "put it into an environment variable: export DATABASE_URI='…', then --from \"$DATABASE_URI\"."
        raise WrongUseError(msg, hint=hint)
    return Origin("sql", Path(table), {"uri": uri, "table": table})


def _endings() -> dict[str, str]:
    """The kinds of sources by the endings of their files; others may be registered at any time."""
    return {ending: kind for kind, source_kind in SOURCE_KINDS.items() for ending in source_kind.endings}


def _kind_of(path: FilePath) -> str:
    if path.suffix.lower() == ARCHIVE:
        msg = f"{path} is a zip archive."
        raise WrongUseError(msg, hint=UNPACK)
    kind = _endings().get(ending_of(path) or "")
    if kind is None:
        msg = f"{path} has no known file ending; known endings are {', '.join(sorted(_endings()))}."
        raise WrongUseError(msg, hint="write the table as Parquet, for example with Polars or DuckDB.")
    return kind


def _in_folder(folder: Path) -> tuple[str, Path]:
    """The kind of the tables in a folder, and a glob of them."""
    for pattern in ("*", "**/*"):
        every = [file for file in folder.glob(pattern) if file.is_file()]
        names = {file: file.relative_to(folder).parts for file in every}
        visible = [file for file in every if not any(name.startswith((".", "_")) for name in names[file])]
        tables = {ending: file for file in visible if (ending := ending_of(file)) is not None}
        if len(tables) > 1:
            msg = f"{folder} holds files of several kinds: {listed(tables)}."
            raise WrongUseError(msg, hint=f"name those of one kind, such as {quote(f'{folder}/*{min(tables)}')}.")
        for ending, file in tables.items():
            start = pattern if len(visible) == len(every) else f"{pattern[:-1]}[!._]*"
            return _kind_of(file), Path(escape(str(folder))) / f"{start}{ending}"
    msg = f"{folder} holds no tables; known file endings are {', '.join(sorted(_endings()))}."
    raise WrongUseError(msg, hint="name another folder or a file.")


def ending_of(file: FilePath) -> str | None:
    """The known ending of a file name; None if it has none."""
    return max((ending for ending in _endings() if file.name.lower().endswith(ending)), key=len, default=None)


def _table_of(path: Path, table: str | None) -> str:
    """The name of a table or view of a DuckDB file: the one that is asked for, or the only one."""
    try:
        with connect() as con:
            con.execute(f"ATTACH {literal(str(path))} AS given (READ_ONLY)")
            query = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_catalog = 'given'"
            rows = con.execute(query).fetchall()
    except duckdb.Error as error:
        raise unreadable(path, error, SOURCE_KINDS["duckdb"].unreadable) from error
    tables = {name if schema == "main" else f"{schema}.{name}": f"{schema}.{name}" for schema, name in sorted(rows)}
    if table is not None:
        short = table.removeprefix("main.")
        named(short, tables, f"{path} has no table {table!r}; it has")
        return short
    if len(tables) == 1:
        return next(iter(tables))
    msg = f"{path} has {len(tables)} tables: {listed(tables) or 'none'}."
    hints = [f"name the table, such as --table {quote(name)}." for name in tables]
    raise WrongUseError(msg, hint=hints[0] if hints else "name another file.")


def _with_dialect(origin: Origin) -> Origin:
    """Find out what separates values and decimals in CSV files, where it is not a comma and a point."""
    table = origin.as_table("rows")
    files = [str(path) for path in files_of(table)]
    notation = [f"{option} = {literal(value)}" for option, value in origin.options.items()]
    try:
        with connect() as con:
            SOURCE_KINDS[origin.kind].admit(con, table)

            def sniffed(*options: str) -> tuple[str, bool, int, int]:
                """The delimiter, whether there is a header, how many lines above it are unlike the others, and the number of columns."""
                source = f"sniff_csv({', '.join([literal(files[0]), *notation, *filter(None, options)])})"
                return con.execute(f"SELECT Delimiter, HasHeader, SkipRows, len(Columns) FROM {source}").fetchall()[0]

            (delimiter, header, skipped, columns), line_breaks = with_any_line_break(sniffed)
            notation += [line_breaks] if line_breaks else []
            # Decimal commas between semicolons look like text between commas.
            if delimiter == "," and not header:
                other, has_header, _, width = sniffed("delim = ';', decimal_separator = ','")
                if has_header and width > 1:
                    delimiter = other
                elif skipped:
                    lines = "line is" if skipped == 1 else f"{skipped} lines are"
                    msg = f"{origin.path} has no header that fits its rows: its first {lines} not made of {columns} names."
                    hint = "write the header as one line; a name that holds a line break needs double quotes around it."
                    raise SourceError(msg, hint=hint)
            if delimiter == ",":
                return origin
            options = [f"delim = {literal(delimiter)}", "all_varchar = true", "hive_partitioning = false", *notation]
            read = f"read_csv([{', '.join(map(literal, files))}], {', '.join(options)})"

            def has_column(number: str, decimal: str) -> bool:
                """Return whether all values of a column are written like a number, and some of them with such decimals."""
                query = f"SELECT bool_and({_is(number)}) AND bool_or({decimal}) FROM {read}"
                return any(con.execute(query).fetchall()[0])

            with_comma = has_column(COMMA_NUMBER, "contains(COLUMNS(*), ',')")
            decimal = "," if with_comma and not has_column(_POINT_NUMBER, _is(_NO_GROUPS)) else None
    except duckdb.Error as error:
        raise unreadable(origin.path, error) from error
    return origin.read_with(delimiter=delimiter, decimal=decimal)


def _is(pattern: str) -> str:
    """SQL that says of a value of every column whether it is written like a pattern."""
    return f"regexp_full_match(trim(COLUMNS(*)), '{pattern}')"
