"""Sources of kind `csv` and `json`, which DuckDB reads also for Python features, so that both see the same values.

Every value decides about the type of its column: by default DuckDB looks at the first 20,480 rows, and rounds 1.5 further
down if they hold integers. Of the times only those in ISO notation are recognised, and in JSON none: the order of day and
month in others would be guessed file by file.

DuckDB's strict reader expects one kind of line break in a file. Spreadsheets write another kind inside of a value, and a last
line added by another program often ends in LF below lines that end in CRLF. The lenient reader takes every kind, but also drops
values for which the header has no column, so that rows are counted against the header where it is used.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import duckdb
import polars as pl

from batch_platform.declaration.errors import MOST_LISTED, SourceError
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.sources.files import Files, files_of, numbered
from batch_platform.sources.kind import SourceTable, create_view, digest
from batch_platform.warehouse.sql import folded, literal, quoted

_Answer = TypeVar("_Answer")
# DuckDB's options for files with several kinds of line breaks; its lenient reader does not find out how quotes are escaped.
_ANY_LINE_BREAK = """strict_mode = false, quote = '"', escape = '"'"""
_DELIMITERS = ",;\t|"
_NONE = "(empty)"  # DuckDB's word for a character that a CSV file does not use
_MOST_KNOWN = 1_000
_PACKED = ("", ".gz", ".zst")  # endings of compressed files
# The arguments that read files, by their version and declaration, since all values are looked at for them.
_known = dict[str, str]()


@dataclass(frozen=True)
class _Reader:
    """A table function of DuckDB, and what it calls its options."""

    function: str
    options: tuple[str, ...]
    of_all_values: str  # options by which all values of all files decide about types
    types: str  # option that sets the types of columns


_READERS = {
    "csv": _Reader(
        "read_csv",
        ("dateformat = '%Y-%m-%d'", "timestampformat = 'iso'"),  # times become TIMESTAMPTZ, in the zone of the pipeline
        "sample_size = -1, files_to_sniff = -1",
        "types",
    ),
    "json": _Reader(
        "read_json",
        ("dateformat = 'never'", "timestampformat = 'never'"),
        "sample_size = -1, maximum_sample_files = 1000000",
        "columns",
    ),
}


def with_any_line_break(ask: Callable[[str], _Answer]) -> tuple[_Answer, str]:
    """Ask DuckDB about CSV files, with options that allow several kinds of line breaks if its strict reader refuses them.

    Returns the answer and the options; empty for most files. Raises DuckDB's first error if the options do not help.
    """
    try:
        return ask(""), ""
    except duckdb.InvalidInputException as error:
        if "sniffing file" not in str(error):
            raise
        with suppress(duckdb.InvalidInputException):
            return ask(_ANY_LINE_BREAK), _ANY_LINE_BREAK
        raise


def _relation(con: duckdb.DuckDBPyConnection, table: SourceTable) -> str:
    paths = [literal(str(path)) for path in files_of(table)]
    relation = _READERS[table.source.kind].function
    version = digest(table.source.model_dump_json(), *paths, CSV.version(table))
    if version not in _known:
        typed = _typed(con, table, paths)
        _require_numbers(con, table, f"{relation}({typed})")
        if len(_known) == _MOST_KNOWN:
            _known.clear()
        _known[version] = typed
    typed = _known[version]
    if not table.source.number_rows:
        return f"{relation}({typed})"
    return numbered(con, table, f"{relation}({typed}, filename = '__file')")


def _typed(con: duckdb.DuckDBPyConnection, table: SourceTable, paths: Sequence[str]) -> str:
    """The arguments that read files by the notation and the types that fit all values."""
    try:
        is_one = table.source.kind == "csv" and len(paths) == 1
        return (_one_csv_file(con, table, *paths) if is_one else None) or _files(con, table, paths)
    except duckdb.InvalidInputException as error:
        if "not utf-8 encoded" not in str(error):
            raise
        raise _of_another_encoding(table, str(error)) from error


def _one_csv_file(con: duckdb.DuckDBPyConnection, table: SourceTable, path: str) -> str | None:
    """The arguments that read a CSV file by the notation that fits all of it; None if columns are declared that it lacks.

    Without them, DuckDB would look for the notation in the first rows again, several times in each query.
    """
    seen, lenient = _sniffed(con, table, path)
    types = {column["name"]: column["type"] for column in seen["Columns"]}
    names = {folded(name): name for name in types}
    declared = {names.get(folded(name), name): dtype for name, dtype in (table.source.types or {}).items()}
    if not declared.keys() <= types.keys():
        return None
    characters = {
        "delim": seen["Delimiter"],
        "quote": seen["Quote"],
        "escape": seen["Escape"],
        "comment": seen["Comment"],
        "new_line": seen["NewLineDelimiter"],
    }
    used = {option: "" if text == _NONE else text for option, text in characters.items()}
    arguments = [
        f"[{path}], hive_partitioning = false, auto_detect = false",
        *_READERS["csv"].options,
        *_written(_notation(table.source) | used),
        *(["strict_mode = false"] if lenient else []),
        f"skip = {seen['SkipRows']}, header = {seen['HasHeader']}",
        f"columns = {{{_listed(types | declared)}}}",
    ]
    return ", ".join(arguments)


def _sniffed(con: duckdb.DuckDBPyConnection, table: SourceTable, path: str) -> tuple[dict[str, Any], str]:
    """The notation and types of a CSV file, and the options its line breaks need."""
    reader, notation = _READERS["csv"], _notation(table.source)

    def see(option: str) -> dict[str, Any]:
        arguments = [path, *reader.options, *_written(notation), option, reader.of_all_values]
        return con.sql(f"FROM sniff_csv({', '.join(filter(None, arguments))})").pl().row(0, named=True)

    seen, lenient = with_any_line_break(see)
    if seen["SkipRows"] and not seen["HasHeader"]:  # as for a last line with a value too many, all that is then read
        width, line = len(seen["Columns"]), seen["SkipRows"] + 1
        problem = f" cannot be read: line {line:,} has {width} values, and no line before it has as many."
        hint = "give each line as many values as the header; a value that holds a delimiter needs quotes."
        raise table.error(problem, hint)
    if lenient or len(seen["Columns"]) == 1:
        _require_even_lines(con, table, path, seen, lenient)
    return seen, lenient


def _require_even_lines(
    con: duckdb.DuckDBPyConnection, table: SourceTable, path: str, seen: Mapping[str, Any], lenient: str
) -> None:
    """Refuse a file with a line that has more or fewer values than the header; raises SourceError.

    DuckDB takes such a file for one column, or its lenient reader drops the values that are too many.
    """
    names = [column["name"] for column in seen["Columns"]]
    delimiter = seen["Delimiter"] if len(names) > 1 else max(_DELIMITERS, key=names[0].count)
    width = len(names) if len(names) > 1 else names[0].count(delimiter) + 1
    if width == 1:
        return
    notation = ["auto_detect = false, header = true", f"skip = {seen['SkipRows']}"]
    notation += [*_written(_notation(table.source) | {"delim": delimiter}), *filter(None, [lenient])]

    def read(width: int, *options: str) -> str:
        columns = _listed({f"c{place}": "VARCHAR" for place in range(width)})
        return f"read_csv([{path}], {', '.join([*notation, *options])}, columns = {{{columns}}})"

    where = "not every line has" if lenient and len(names) == 1 else ""
    try:
        con.execute(f"SELECT count(*) FROM {read(width)}").fetchall()
        if lenient:
            padded = read(width + 1, "null_padding = true, parallel = false")
            rows = f"SELECT row_number() OVER () AS row, c{width} AS extra FROM {padded}"
            ((row,),) = con.execute(f"SELECT min(row) FROM ({rows}) WHERE extra IS NOT NULL").fetchall()
            where = f"row {row:,} after the header does not have" if row else where
    except duckdb.InvalidInputException as error:
        line = re.search(r"CSV Error on Line: (\d+)", str(error))
        if line and int(line[1]) > 2:  # noqa: PLR2004 - the first line after the header fits it
            where = f"line {line[1]} does not have"
    if where:
        problem = f" cannot be read: {where} {width} values as its header has."
        raise table.error(problem, "correct the line; a value that holds a delimiter needs quotes.")


def _files(con: duckdb.DuckDBPyConnection, table: SourceTable, paths: Sequence[str]) -> str:
    """The arguments that read files by the types that all of their values have."""
    reader = _READERS[table.source.kind]
    arguments = [f"[{', '.join(paths)}], hive_partitioning = false", *reader.options]
    arguments += _written(_notation(table.source))

    def see(option: str) -> duckdb.DuckDBPyRelation:
        return con.sql(f"FROM {reader.function}({', '.join(filter(None, [*arguments, option, reader.of_all_values]))})")

    seen, lenient = with_any_line_break(see)
    if lenient:
        for path in paths:
            _sniffed(con, table, path)
    types = dict(zip(seen.columns, map(_type_of, seen.types), strict=True)) | (table.source.types or {})
    options = ", ".join(filter(None, [*arguments, lenient]))
    return f"{options}, {reader.types} = {{{_listed(types)}}}"


def _require_numbers(con: duckdb.DuckDBPyConnection, table: SourceTable, relation: str) -> None:
    """Refuse a column of which most values, but not all, are numbers with a declared decimal comma; raises SourceError.

    As text every one of them would break the contract, though only few are wrong.
    """
    decimal, declared = table.source.decimal, {folded(name) for name in table.source.types or {}}
    if decimal in (None, ".") or not table.pipeline:
        return
    pattern = rf"[+-]?(\d+|\d*{re.escape(decimal)}\d+)([eE][+-]?\d+)?"
    rows = con.sql(f"FROM {relation}")
    for name, dtype in zip(rows.columns, rows.types, strict=True):
        if str(dtype) != "VARCHAR" or folded(name) in declared:
            continue
        column, other = quoted(name), f"NOT regexp_full_match(trim({quoted(name)}), {literal(pattern)})"
        ((values, others, decimals),) = con.execute(
            f"SELECT count({column}), count({column}) FILTER ({other}), "
            f"count({column}) FILTER (NOT {other} AND contains({column}, {literal(decimal)})) FROM {relation}"
        ).fetchall()
        if decimals and 0 < others < values / 2:
            numbered_rows = f"SELECT row_number() OVER () AS at, {column} FROM {relation}"
            wrong = con.execute(f"FROM ({numbered_rows}) WHERE {other} LIMIT {MOST_LISTED}").fetchall()
            cells = ", ".join(f"{text!r} in row {at:,}" for at, text in wrong)
            cells += f" and {others - len(wrong):,} more" if others > len(wrong) else ""
            problem = (
                f": column {name!r} holds numbers with decimal {decimal!r}, but {others:,} of {values:,} values "
                f"{'is' if others == 1 else 'are'} none: {cells}."
            )
            raise table.error(problem, f"correct them, or declare sources.{table.name}.types: {{{name}: VARCHAR}}.")


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{literal(name)}: {literal(dtype)}" for name, dtype in types.items())


def _of_another_encoding(table: SourceTable, message: str) -> SourceError:
    named = re.search(r"^\s*file = (.+)$", message, re.MULTILINE)
    problem = f" cannot be read: {named[1] if named else table.source.location} is not encoded as UTF-8."
    convert = "write it as UTF-8, for example with: iconv -f latin1 -t utf-8"
    hint = f"declare sources.{table.name}.encoding: latin-1 if it is that, or {convert}" if table.pipeline else convert
    return table.error(problem, hint)


def _type_of(dtype: object) -> str:
    return "VARCHAR" if str(dtype) == '"NULL"' else str(dtype)  # the type of a column of JSON without values


def _notation(source: Source) -> dict[str, str]:
    """The declared notation of CSV files, by DuckDB's options."""
    declared = {"delim": source.delimiter, "decimal_separator": source.decimal, "encoding": source.encoding}
    return {option: text for option, text in declared.items() if text is not None}


def _written(notation: Mapping[str, str]) -> list[str]:
    return [f"{option} = {literal(text)}" for option, text in notation.items()]


class _Csv(Files):
    counts_quickly = False
    endings = tuple(ending + packed for ending in (".csv", ".tsv", ".txt") for packed in _PACKED)

    def description(self, source: Source) -> str:
        return f"the CSV files `{redact(source.location)}`"

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        create_view(con, table.name, _relation(con, table))

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        relation = (
            _relation(con, table) if table.source.by_partition else quoted(table.name)
        )  # the view knows the types
        return con.sql(f"FROM {relation}").pl().lazy()


class _Json(_Csv):
    endings = tuple(ending + packed for ending in (".json", ".jsonl", ".ndjson") for packed in _PACKED)

    def description(self, source: Source) -> str:
        return f"the JSON files `{redact(source.location)}`"


CSV, JSON = _Csv(), _Json()
