"""The search for what an erasure leaves: texts of the erased rows that no other row has, in tables, bundles, reports and records.

Tables with rows lose those of the subject. Others are made from many rows, and may name a text that only the subject had, such as
a category that a model was trained on. Numbers, texts of a few characters and what lies in compressed files are not looked for.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import duckdb
import polars as pl
import pyarrow.parquet as pq

from batch_platform.operations.subjects import FoundRows, bound, read_file, same
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import in_memory, quoted, table_columns, tables

_SHORTEST = 4  # characters of a text that is looked for
_CHUNK = 8 * 2**20  # bytes of a file that are read at a time
_ROWS = 10_000  # of a table that are read at a time
_WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]+")  # in UTF-8, every byte of a letter beyond ASCII is of the word
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
    search = TextSearch.for_texts(texts)
    return [*_tables_with(pipeline, search), *_files_with(pipeline, search)]


@dataclass(frozen=True)
class TextSearch:
    """A search for any of many texts, as whole words; its time depends on what is searched, not on the number of texts."""

    forms: AbstractSet[bytes]  # each begins and ends with a word
    lengths: Mapping[bytes, AbstractSet[int]]  # lengths of the forms, by their first word
    longest: int

    @classmethod
    def for_texts(cls, texts: Iterable[str]) -> Self:
        """Prepare the search for texts, each as it is and as JSON writes it. Texts without a letter or digit are left out."""
        lengths, forms = defaultdict[bytes, set[int]](set), set[bytes]()
        for form in (form for text in texts for form in _forms(text)):
            if words := list(_WORD.finditer(form)):
                trimmed = form[words[0].start() : words[-1].end()]
                forms.add(trimmed)
                lengths[words[0].group()].add(len(trimmed))
        return cls(forms, dict(lengths), max(map(len, forms), default=0))

    def matches(self, content: bytes) -> bool:
        """Say whether some bytes hold a text."""
        if self.lengths.keys().isdisjoint(_WORD.findall(content)):
            return False
        for word in _WORD.finditer(content):
            for length in self.lengths.get(word.group(), ()):
                end = word.start() + length
                if content[word.start() : end] in self.forms and _WORD.match(content, end) is None:
                    return True
        return False

    def matches_file(self, path: Path) -> bool:
        """Say whether a file holds a text."""
        with path.open("rb") as file:
            before = b""
            while content := file.read(_CHUNK):
                if self.matches(before + content):
                    return True
                before = (before + content)[-self.longest - 1 :]
        return False


def _held_by_others(pipeline: Pipeline, texts: Collection[str]) -> set[str]:
    """The texts that rows of feature files have."""
    held = set[str]()
    with in_memory() as con:
        con.register("searched", pl.DataFrame({"text": sorted(texts)}, schema={"text": pl.String}))
        for path in sorted(pipeline.home.features(pipeline.spec.name).glob("[!.]*.parquet")):
            for column in _text_columns(path):
                query = f"SELECT text FROM searched WHERE text IN (SELECT {quoted(column)} FROM {read_file(path)})"
                held |= {text for (text,) in con.execute(query).fetchall()}
    return held


def _tables_with(pipeline: Pipeline, search: TextSearch) -> Iterator[str]:
    """The published tables that are made from many rows and hold a text."""
    name, key = pipeline.spec.name, {*pipeline.spec.features.key}
    with open_published(pipeline.home) as con:
        for schema, table in tables(con):
            columns = dict(table_columns(con, schema, table))
            if schema not in (name, LEDGERS_SCHEMA) or table in _RECORDS:
                continue
            if key <= columns.keys() or {"key", "row"} <= columns.keys():
                continue
            own = " WHERE pipeline = $pipeline" if schema == LEDGERS_SCHEMA and "pipeline" in columns else ""
            searched = [quoted(column) for column, type_ in columns.items() if "VARCHAR" in type_]
            if not searched:
                continue
            text = f"concat_ws(' ', {', '.join(f'CAST({column} AS VARCHAR)' for column in searched)})"
            rows = con.execute(
                f"SELECT {text} FROM {quoted(schema)}.{quoted(table)}{own}", {"pipeline": name} if own else {}
            )
            while some := rows.fetchmany(_ROWS):
                if search.matches("\n".join(text for (text,) in some).encode()):
                    yield f"{schema}.{table}"
                    break


def _files_with(pipeline: Pipeline, search: TextSearch) -> Iterator[str]:
    """The files of bundles, reports and Dagster's records that hold a text, as paths in the home."""
    home = pipeline.home
    for folder in (home.bundles(pipeline.spec.name), home.reports(pipeline.spec.name), home.dagster):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and search.matches_file(path):
                yield path.relative_to(home.root).as_posix()


def _forms(text: str) -> set[bytes]:
    """A text as it is and as JSON writes it."""
    return {form.encode() for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])}


def _text_columns(path: Path) -> list[str]:
    schema = pq.read_schema(path)
    return [field.name for field in schema if str(field.type) in ("string", "large_string")]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
