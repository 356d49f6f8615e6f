"""The search for a subject, such as a customer, and for what an erasure of it leaves.

A subject is named by columns of the key or kept columns, which every feature file has. Tables that lack them, such as that of
the outcomes, are searched for the keys of its rows.

Tables with rows lose those of the subject. Others are made from many rows, and may name a text that only the subject had, such as
a category that a model was trained on. So tables, bundles, reports and records are searched for texts of the erased rows that no other
row has. Numbers, texts of a few characters and what lies in compressed files are not looked for.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, did_you_mean, listed
from batch_platform.delivery.ledger import read_deliveries
from batch_platform.models.registry import has_seen, read_registry
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring.rejected_rows import rows_as_json
from batch_platform.warehouse.descriptions import tables_of_pipelines
from batch_platform.warehouse.failures import FAILURES
from batch_platform.warehouse.home import feature_file_name, partition_of
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, read_records
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import (
    has_table,
    in_memory,
    json_pointer,
    literal,
    quoted,
    read_file,
    table_columns,
    tables,
)
from batch_platform.warehouse.tables_in_files import PREDICTIONS, TABLES_IN_FILES, PublishedFile, TableInFiles

FEATURES = "features"


@dataclass(frozen=True)
class HeldSubject:
    """The rows of a subject in a home, and who has seen them."""

    rows: dict[str, int]  # number of rows by table; FEATURES are those of the newest feature files
    partitions: list[str]  # keys of the partitions with rows, in order
    versions: list[str]  # versions trained on some of these partitions
    receivers: list[str]  # deliveries that hold some of these partitions
    erased_at: datetime | None = None  # time of an earlier erasure, in UTC, if no row is left
    to_tell: dict[str, str] = field(default_factory=dict[str, str])  # receivers that may still hold rows, and why
    # Tables, and files by their path in the home, that hold texts of erased rows which no other row has.
    remains: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class FoundRows:
    """The rows of a subject in feature files."""

    values: Mapping[str, str]  # by column, in the order of the names; as DuckDB shows a value as text
    keys: pl.DataFrame  # columns partition_key, key_json and those of the key; all text
    rows: Mapping[str, int]  # number of rows in the newest build, by partition
    files: Sequence[str]  # names of the files with rows, those of earlier builds too
    builds: Mapping[str, FeatureBuild]  # newest builds of all partitions when they were searched


def find_rows(pipeline: Pipeline, values: Mapping[str, str]) -> FoundRows:
    """Look into every feature file for a subject, given by column with texts as DuckDB shows them; waits for no run.

    Raises:
        WrongUseError: A column is neither of the key nor kept.
        DamagedFeaturesError: A file is not as it was recorded.
    """
    spec, folder = pipeline.spec, pipeline.home.features(pipeline.spec.name)
    known = list(dict.fromkeys([*spec.features.key, *spec.predictions.keep]))
    if unknown := [name for name in values if name not in known]:
        msg = f"{spec.name} cannot erase rows by {listed(map(repr, unknown))}; it can by {listed(known)}."
        raise WrongUseError(msg, hint=did_you_mean(unknown[0], known) or "add the column to predictions.keep.")
    builds = pipeline.warehouse.latest(FeatureBuild, spec.name)
    newest = {feature_file_name(key, build.sha256): build for key, build in builds.items()}
    values = dict(sorted(values.items()))
    columns, rows, files = [*spec.features.key], dict[str, int](), list[str]()
    frames = [pl.DataFrame(schema=dict.fromkeys(["partition_key", "key_json", *columns], pl.String))]
    for path in sorted(folder.glob("[!.]*.parquet")):
        try:
            keys, as_texts = _keys_in(path, columns, values)
        except (duckdb.Error, pa.ArrowException, OSError):
            if path.name in newest:
                pipeline.history.require_unchanged(newest[path.name])
                raise
            files.append(path.name)  # damaged, needed by no build, and it may hold rows
            continue
        if keys.height:
            key = partition_of(path.name)
            files.append(path.name)
            frames.append(
                as_texts.select(pl.lit(key).alias("partition_key"), rows_as_json(keys).alias("key_json"), *columns)
            )
            if path.name in newest:
                rows[key] = keys.height
    return FoundRows(values, pl.concat(frames), rows, files, builds)


def _keys_in(path: Path, key: Sequence[str], values: Mapping[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The keys of the subject's rows in a feature file, and the same as text; none if the file lacks a column."""
    if not {*values, *key} <= {*pq.read_schema(path).names}:
        return pl.DataFrame(), pl.DataFrame()
    as_texts = ", ".join(f"CAST({quoted(name)} AS VARCHAR) AS {quoted(name)}" for name in key)
    where = f"FROM {read_file(path)} WHERE {same(values)}"
    with in_memory() as con:
        keys, keys_as_texts = (
            con.sql(f"SELECT {selected} {where}", params=bound(values)).pl()
            for selected in (", ".join(map(quoted, key)), as_texts)
        )
        return keys, keys_as_texts


@dataclass(frozen=True)
class SubjectRows:
    """The rows of a subject in the tables of a pipeline, in a warehouse that is held."""

    pipeline: Pipeline
    con: duckdb.DuckDBPyConnection
    matches: FoundRows

    @cached_property
    def wheres(self) -> dict[str, str]:
        """The tables of DuckDB that may hold rows, as SQL after FROM that selects them and binds what `bound` gives."""
        values, descriptions, wheres = self.matches.values, tables_of_pipelines(), dict[str, str]()
        name, key = self.pipeline.spec.name, self.pipeline.spec.features.key
        for table in (table for schema, table in tables(self.con) if schema == name and table in descriptions):
            columns, own = {column for column, _ in table_columns(self.con, name, table)}, descriptions[table].columns
            conditions = list[str]()
            if table == FAILURES:
                mentions = "regexp_matches(concat(reason, ' ', hint), concat('\\b', regexp_escape($value{}), '\\b'))"
                conditions += [mentions.format(at) for at in range(len(values))]
            elif {"key", "row"} <= columns & own.keys():
                texts = [
                    f"json_extract_string(row, {literal(json_pointer(column))}) = $value{at}"
                    for at, column in enumerate(values)
                ]
                conditions += [
                    f"(partition_key, key) IN (SELECT (partition_key, key_json) FROM {self._keys})",
                    " AND ".join(texts),
                ]
            elif {"segment_column", "segment"} <= columns and len(values) == 1:
                conditions.append(f"segment_column = {literal(*values)} AND segment = $value0")
            elif "partition_key" in columns:
                conditions += [self.has_key("partition_key")] if {*key} <= columns - own.keys() else []
                conditions += [same(values)] if values.keys() <= columns - own.keys() else []
            if conditions:
                wheres[table] = f"{quoted(name)}.{quoted(table)} WHERE ({') OR ('.join(conditions)})"
        return wheres

    def has_key(self, partition: str) -> str:
        """The SQL condition that a row has the key of one of the subject's rows in a partition, given as SQL."""
        key = self.pipeline.spec.features.key
        texts = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in key)
        return f"({partition}, {texts}) IN (SELECT (partition_key, {', '.join(map(quoted, key))}) FROM {self._keys})"

    def bound(self, sql: str) -> dict[str, str]:
        """The values that the SQL binds."""
        return {name: text for name, text in bound(self.matches.values).items() if f"${name}" in sql}

    @cached_property
    def _keys(self) -> str:
        """The registered frame with the keys in the feature files, and those of predictions, whose features may be gone."""
        keys = self.matches.keys
        name, key, view = self.pipeline.spec.name, self.pipeline.spec.features.key, PREDICTIONS.view
        if {*key, *self.matches.values} <= {column for column, _ in table_columns(self.con, name, view)}:
            texts = ", ".join(f"CAST({quoted(column)} AS VARCHAR) AS {quoted(column)}" for column in key)
            query = f"SELECT partition_key, NULL::VARCHAR AS key_json, {texts} FROM {quoted(name)}.{view} WHERE {same(self.matches.values)}"
            keys = pl.concat([keys, self.con.sql(query, params=bound(self.matches.values)).pl()])
        self.con.register("keys_of_subject", keys)
        return "keys_of_subject"

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of rows in DuckDB, by table and partition; tables without partitions have an empty key."""
        counts = dict[str, dict[str, int]]()
        for table, where in self.wheres.items():
            columns = {column for column, _ in table_columns(self.con, self.pipeline.spec.name, table)}
            key = "partition_key" if "partition_key" in columns else "''"
            query = f"SELECT {key}, count(*) FROM {where} GROUP BY ALL ORDER BY ALL"
            if rows := dict(self.con.execute(query, self.bound(query)).fetchall()):
                counts[table] = rows
        return counts

    @cached_property
    def files(self) -> list[tuple[TableInFiles, PublishedFile, str | None, int]]:
        """The files of tables that hold rows, each with its table, its challenger and the number of these rows."""
        name, files, home = (
            self.pipeline.spec.name,
            list[tuple[TableInFiles, PublishedFile, str | None, int]](),
            self.pipeline.home,
        )
        for table in (table for table in TABLES_IN_FILES if has_table(self.con, name, table.files)):
            rows = f"{quoted(name)}.{table.files} WHERE partition_key IN (SELECT partition_key FROM {self._keys}) ORDER BY partition_key, part, file"
            column = "challenger" if table.by_challenger else "NULL"
            challengers = self.con.execute(f"SELECT {column} FROM {rows}").fetchall()
            for row, (challenger,) in zip(read_records(self.con, PublishedFile, rows, {}), challengers, strict=True):
                path = home.table_file(name, table.view, row.partition_key, row.file)
                query = f"SELECT count(*) FROM {read_file(path)} WHERE {self.has_key(literal(row.partition_key))}"
                ((count,),) = self.con.execute(query).fetchall()
                files += [(table, row, challenger, count)] if count else []
        return files

    def held(self) -> HeldSubject:
        """Count the rows by table, and name the versions and the receivers that have seen them."""
        name, calendar = self.pipeline.spec.name, self.pipeline.spec.partitions.calendar
        rows = {FEATURES: sum(self.matches.rows.values())} | {
            table: sum(by.values()) for table, by in self.counts.items()
        }
        for table, _, _, count in self.files:
            rows[table.view] = rows.get(table.view, 0) + count
        keys = {*self.matches.rows, *(row.partition_key for _, row, *_ in self.files)}
        keys |= {key for counts in self.counts.values() for key in counts if key}
        partitions = list[Partition]()
        for key in self.matches.rows:
            with suppress(WrongUseError):  # it is no longer declared
                partitions.append(calendar.named(key))
        versions = read_registry(self.con, name).versions
        seen = [
            version.version for version in versions if any(has_seen(version, partition) for partition in partitions)
        ]
        receivers = sorted({receiver for receiver, _ in read_deliveries(self.con, name, keys)})
        return HeldSubject({table: count for table, count in rows.items() if count}, sorted(keys), seen, receivers)


def same(columns: Iterable[str]) -> str:
    """The SQL condition that columns have the values that `bound` gives, as text."""
    return " AND ".join(f"CAST({quoted(name)} AS VARCHAR) = $value{at}" for at, name in enumerate(columns))


def bound(values: Mapping[str, str]) -> dict[str, str]:
    """The values of a subject as SQL binds them."""
    return {f"value{at}": text for at, text in enumerate(values.values())}


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
