"""The search for what an erasure leaves: texts of the erased rows that no other row has, in tables, bundles, reports and records.

Tables with rows lose those of the subject. Others are made from many rows, and may name a text that only the subject had, such as
a category that a model was trained on. Numbers, texts of a few characters and what lies in compressed files are not looked for.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.subjects import FoundRows, bound, read_file, same
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import literal, quoted, table_columns, tables

_SHORTEST = 4  # characters of a text that is looked for
_CHUNK = 8 * 2**20  # bytes of a file that are read at a time
_RECORDS = ("erasures", "changes")  # tables that hold no value of a row


def texts_of(pipeline: Pipeline, matches: FoundRows) -> set[str]:
    """The texts in the rows of a subject, and the values that name it, unless these are numbers."""
    texts = {value for value in matches.values.values() if not _is_number(value)}
    for name in matches.files:
        path = pipeline.home.features(pipeline.spec.name) / name
        with in_memory() as con:
            try:
                selected = ", ".join(map(quoted, _text_columns(path)))
                query = f"SELECT {selected} FROM {read_file(path)} WHERE {same(matches.values)}"
                rows = con.sql(query, params=bound(matches.values)).pl() if selected else pl.DataFrame()
            except (duckdb.Error, OSError):  # a damaged file that no build needs
                continue
        texts |= {text for column in rows.get_columns() for text in column.drop_nulls().to_list()}
    return {text for text in texts if len(text) >= _SHORTEST}


def remains_of(pipeline: Pipeline, texts: Collection[str]) -> list[str]:
    """The tables and files of a pipeline that still hold some texts which no row of its features has any more, by name."""
    if not (texts := set(texts) - _held_by_others(pipeline, texts)):
        return []
    alone = r"(?:^|\W)(?:{})(?:\W|$)"
    pattern = alone.format("|".join(sorted(re.escape(form) for text in texts for form in _forms(text))))
    return [*_tables_with(pipeline, pattern), *_files_with(pipeline, re.compile(pattern.encode()), texts)]


def _held_by_others(pipeline: Pipeline, texts: Collection[str]) -> set[str]:
    """The texts that rows of feature files have."""
    held, wanted = set[str](), {"texts": sorted(texts)}
    for path in sorted(pipeline.home.features(pipeline.spec.name).glob("[!.]*.parquet")):
        columns = _text_columns(path)
        with in_memory() as con:
            for column in columns:
                query = f"SELECT DISTINCT {quoted(column)} FROM {read_file(path)} WHERE {quoted(column)} IN $texts"
                held |= {text for (text,) in con.execute(query, wanted).fetchall()}
    return held


def _tables_with(pipeline: Pipeline, pattern: str) -> Iterator[str]:
    """The published tables that are made from many rows and hold a text."""
    name, key = pipeline.spec.name, {*pipeline.spec.features.key}
    with open_published(pipeline.home) as con:
        for schema, table in tables(con):
            columns = dict(table_columns(con, schema, table))
            if schema not in (name, LEDGERS_SCHEMA) or table in _RECORDS:
                continue
            if key <= columns.keys() or {"key", "row"} <= columns.keys():
                continue
            own = "pipeline = $pipeline AND " if schema == LEDGERS_SCHEMA and "pipeline" in columns else ""
            searched = [quoted(column) for column, type_ in columns.items() if "VARCHAR" in type_]
            if not searched:
                continue
            text = f"concat_ws(' ', {', '.join(f'CAST({column} AS VARCHAR)' for column in searched)})"
            query = f"SELECT 1 FROM {quoted(schema)}.{quoted(table)} WHERE {own}regexp_matches({text}, {literal(pattern)}) LIMIT 1"
            if con.execute(query, {"pipeline": name} if own else {}).fetchall():
                yield f"{schema}.{table}"


def _files_with(pipeline: Pipeline, pattern: re.Pattern[bytes], texts: Collection[str]) -> Iterator[str]:
    """The files of bundles, reports and Dagster's records that hold a text, as paths in the home."""
    home, longest = pipeline.home, max(len(form.encode()) for text in texts for form in _forms(text)) + 2
    for folder in (home.bundles(pipeline.spec.name), home.reports(pipeline.spec.name), home.dagster):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and _holds(path, pattern, longest):
                yield path.relative_to(home.root).as_posix()


def _holds(path: Path, pattern: re.Pattern[bytes], longest: int) -> bool:
    with path.open("rb") as file:
        before = b""
        while content := file.read(_CHUNK):
            if pattern.search(before + content):
                return True
            before = content[-longest:]
    return False


def _forms(text: str) -> set[str]:
    """A text as it is and as JSON writes it."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


def _text_columns(path: Path) -> list[str]:
    schema = pq.read_schema(path)
    return [field.name for field in schema if str(field.type) in ("string", "large_string")]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
