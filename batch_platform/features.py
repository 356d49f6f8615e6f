"""Features of one partition: run `features.sql` or a Polars function over the sources and write one Parquet file.

The file is complete or absent: it is written aside, checked (unique keys, times inside the window) and moved into
place. Rows are in the order of the key, so the same rows give the same bytes. Labels come from here too, as a frame.
Knows nothing of models or of the warehouse.
"""

import hashlib
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.errors import DataError, SourceError, did_you_mean, listed
from batch_platform.partitions import Partition
from batch_platform.sources import SourceConnection, Sources, import_function, quoted
from batch_platform.spec import PipelineSpec

BATCH_ROWS = 131_072
_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class FeatureFile:
    """One written partition of features."""

    path: Path
    rows: int
    sha256: str
    columns: dict[str, str]  # Arrow types by name, in order


class Query:
    """One SELECT of the user's, checked once and run for many partitions."""

    def __init__(self, pipeline: str, path: Path) -> None:
        """Read the file.

        Raises:
            SourceError: It cannot be read or is not one SELECT.
        """
        self.pipeline, self.path = pipeline, path
        try:
            self.text = path.read_text(encoding="utf-8")
        except OSError as error:
            msg = f"{pipeline}: {path} cannot be read ({error.strerror})."
            raise SourceError(msg, hint="create the file or correct its name in the YAML.") from error
        try:
            statements = duckdb.extract_statements(self.text)
        except duckdb.Error as error:
            raise self._failed(error) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            msg = f"{pipeline}: {path} must be one SELECT; it holds {len(statements)} statements."
            raise SourceError(msg, hint="write helper tables as WITH … AS (…) in front of the SELECT.")
        self.parameters = frozenset(statements[0].named_parameters)
        if unknown := self.parameters - _PARAMETERS:
            msg = f"{pipeline}: {path} uses the parameters {listed('$' + name for name in unknown)}."
            raise SourceError(msg, hint=f"there are {listed('$' + name for name in _PARAMETERS)}.")
        self._body = self.text.rstrip().rstrip(";")
        self._checked: list[list[str]] = []

    def run(self, con: SourceConnection, partition: Partition, order_by: list[str]) -> duckdb.DuckDBPyRelation:
        """The result for one partition, lazily, in the order of some of its columns.

        Raises:
            SourceError: The SQL fails or lacks one of those columns; the message has file and line.
        """
        values = {"partition_start": partition.start, "partition_end": partition.end, "partition_key": partition.key}
        bound = {name: values[name] for name in self.parameters}
        try:
            if order_by not in self._checked:
                self._require(con.duckdb.sql(f"FROM ({self._body}\n)", params=bound).columns, order_by)
                self._checked.append(order_by)
            ordered = f"FROM ({self._body}\n) ORDER BY {', '.join(quoted(column) for column in order_by)}"
            return con.duckdb.sql(ordered, params=bound)
        except duckdb.Error as error:
            raise self._failed(error, partition) from error

    def failed(self, error: Exception, partition: Partition) -> SourceError:
        """The error to raise when fetching from a result fails."""
        return self._failed(error, partition)

    def _require(self, present: list[str], wanted: list[str]) -> None:
        if missing := [column for column in wanted if column not in present]:
            guesses = [f"{name!r}: {guess}" for name in missing if (guess := did_you_mean(name, present))]
            msg = f"{self.pipeline}: {self.path} gives no column {listed(missing)}; it gives {listed(present)}."
            raise SourceError(msg, hint=" ".join(guesses) or "add it to the SELECT or correct the YAML.")

    def _failed(self, error: Exception, partition: Partition | None = None) -> SourceError:
        message = " ".join(str(error).split())
        line = _line_of(message, self.text)
        where = f"{self.path}:{line}" if line else str(self.path)
        at = f", partition {partition.key}" if partition else ""
        return SourceError(f"{self.pipeline}{at}: the SQL of {where} fails: {message}.")


def _line_of(message: str, text: str) -> str | None:
    """The line that DuckDB names, else the first one with the identifier that it complains of."""
    if named := re.search(r"LINE (\d+):", message):
        return named[1]
    complained = re.search(r'"([^"]+)"', message)
    lines = enumerate(text.splitlines(), start=1)
    return next((str(number) for number, line in lines if complained and complained[1] in line), None)


_PARAMETERS = frozenset({"partition_start", "partition_end", "partition_key"})


@dataclass(frozen=True)
class FeatureBuilder:
    """Builds the features and labels of one pipeline."""

    spec: PipelineSpec
    sources: Sources

    @cached_property
    def query(self) -> Query | None:
        """`features.sql`; None where a Polars function makes the features."""
        sql = self.spec.features.sql
        return None if sql is None else Query(self.spec.name, self.sources.folder / sql)

    @cached_property
    def labels_query(self) -> Query | None:
        """`labels.sql`; None for a pipeline without labels."""
        labels = self.spec.labels
        return None if labels is None else Query(self.spec.name, self.sources.folder / labels.sql)

    @cached_property
    def code_version(self) -> str:
        """Changes when the same sources could give other features."""
        features = self.spec.features
        if self.query is not None:
            code = self.query.text
        else:
            function = import_function(features.python or "", "features.python")
            code = Path(inspect.getfile(function)).read_text(encoding="utf-8")
        declared = self.spec.model_dump_json(include={"sources": True, "features": {"key", "time", "python"}})
        return hashlib.sha256(f"{code}\0{declared}".encode()).hexdigest()[:12]

    @contextmanager
    def session(self, first: Partition) -> Iterator["FeatureSession"]:
        """Open the sources once, to build many partitions.

        Raises:
            SourceError: A source cannot be read.
        """
        with self.sources.connect() as con:
            con.open(first)
            yield FeatureSession(self, con, first)


class FeatureSession:
    """Sources held open while partition after partition is built from them."""

    def __init__(self, builder: FeatureBuilder, con: SourceConnection, at: Partition) -> None:
        """Take an opened connection."""
        self._builder, self._con, self._at = builder, con, at

    def write(self, partition: Partition, path: Path) -> FeatureFile:
        """Write the features of a partition to `path`, wholly or not at all.

        Raises:
            SourceError: The SQL or the function fails.
            DataError: Keys are not unique, or a time is null or outside the partition.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            written = self._write_aside(partition, aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return FeatureFile(path=path, rows=written.rows, sha256=written.sha256, columns=written.columns)

    def labels(self, partition: Partition) -> pl.DataFrame:
        """The labels known now for a partition: key columns and the label; rows without a label are left out.

        Raises:
            SourceError: The SQL fails.
            DataError: Keys are not unique.
        """
        spec, query = self._builder.spec, self._builder.labels_query
        if query is None or spec.labels is None:
            msg = f"{spec.name} declares no labels."
            raise DataError(msg, hint="add `labels` to its YAML.")
        self._move(partition)
        columns = [*spec.features.key, spec.labels.column]
        relation = query.run(self._con, partition, columns)
        try:
            frame = relation.select(*(duckdb.ColumnExpression(column) for column in columns)).pl()
        except duckdb.Error as error:
            raise query.failed(error, partition) from error
        frame = frame.drop_nulls(spec.labels.column)
        _require_unique(spec, partition, frame, what="labels")
        return frame

    def _write_aside(self, partition: Partition, aside: Path) -> FeatureFile:
        spec = self._builder.spec
        checks = _RowChecks(spec, partition)
        rows = 0
        batches, schema = self._batches(partition)
        with pq.ParquetWriter(aside, schema, compression="zstd", compression_level=1) as writer:
            for batch in batches:
                checks.see(batch)
                writer.write_batch(batch)
                rows += batch.num_rows
        columns = {name: str(dtype) for name, dtype in zip(schema.names, schema.types, strict=True)}
        return FeatureFile(path=aside, rows=rows, sha256=file_sha256(aside), columns=columns)

    def _batches(self, partition: Partition) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
        builder = self._builder
        key = builder.spec.features.key
        if builder.query is None:
            table = self._call(partition).sort(key).to_arrow()
            return iter(table.to_batches(max_chunksize=BATCH_ROWS)), table.schema
        self._move(partition)
        reader = builder.query.run(self._con, partition, key).to_arrow_reader(BATCH_ROWS)
        return _reraised(reader, builder.query, partition), reader.schema

    def _call(self, partition: Partition) -> pl.DataFrame:
        builder = self._builder
        dotted = builder.spec.features.python or ""
        function = import_function(dotted, "features.python")
        frames: dict[str, Any] = {**builder.sources.frames(partition), "partition": partition}
        wanted = {name: frames[name] for name in inspect.signature(function).parameters if name in frames}
        try:
            result = function(**wanted)
            return result.collect() if isinstance(result, pl.LazyFrame) else result
        except Exception as error:
            msg = f"{builder.spec.name}, partition {partition.key}: {dotted} fails: {type(error).__name__}: {error}."
            raise SourceError(msg) from error

    def _move(self, partition: Partition) -> None:
        if partition != self._at:
            self._con.move(partition)
            self._at = partition


class _RowChecks:
    """Checks the rows of a partition as they pass, in the order of their key."""

    def __init__(self, spec: PipelineSpec, partition: Partition) -> None:
        self._spec, self._partition = spec, partition
        self._zone = ZoneInfo(spec.partitions.timezone)
        self._last: tuple[object, ...] | None = None

    def see(self, batch: pa.RecordBatch) -> None:
        """Check one batch.

        Raises:
            DataError: A key occurs twice or is null, or a time is null or outside the partition.
        """
        spec = self._spec
        named = [*spec.features.key, *([spec.features.time] if spec.features.time else [])]
        present = batch.schema.names
        if missing := [name for name in named if name not in present]:
            msg = f"{spec.name}, partition {self._partition.key}: the features lack {listed(missing)}."
            raise DataError(msg, hint=did_you_mean(missing[0], present))
        if spec.labels is not None and spec.labels.column in present:
            msg = f"{spec.name}: the label {spec.labels.column!r} is among the features."
            raise DataError(msg, hint="leave it out: it is not known when a row is scored.")
        frame = pl.DataFrame(pa.Table.from_batches([batch.select(named)]))
        self._check_keys(frame)
        if spec.features.time is not None:
            self._check_times(frame, spec.features.time)

    def _check_keys(self, frame: pl.DataFrame) -> None:
        key = self._spec.features.key
        if nulls := [name for name in key if frame[name].null_count()]:
            msg = f"{self._spec.name}, partition {self._partition.key}: the key has nulls in {listed(nulls)}."
            raise DataError(msg, hint="leave such rows out in the features or choose another key.")
        if not frame.height:
            return
        if self._last is not None and frame.select(key).row(0) == self._last:
            raise _not_unique(self._spec, self._partition, [self._last], "features")
        self._last = frame.select(key).row(-1)
        _require_unique(self._spec, self._partition, frame, what="features")

    def _check_times(self, frame: pl.DataFrame, column: str) -> None:
        where = f"{self._spec.name}, partition {self._partition.key}: "
        times = frame[column]
        if times.null_count():
            msg = f"{where}{times.null_count()} rows have no {column!r}."
            raise DataError(msg, hint="a row without a time belongs to no partition; leave it out in the features.")
        if times.dtype == pl.Date:
            times = times.cast(pl.Datetime("us"))
        if not isinstance(times.dtype, pl.Datetime):
            msg = f"{where}{column!r} is of type {times.dtype}, not a date or a timestamp."
            raise DataError(msg, hint="features.time names a column with the row's time; cast it or leave it out.")
        if times.dtype.time_zone is None:
            times = times.dt.replace_time_zone(self._zone.key, ambiguous="earliest", non_existent="null")
        instants = times.dt.convert_time_zone("UTC")
        outside = frame.filter(((instants < self._partition.start) | (instants >= self._partition.end)).fill_null(value=True))
        if outside.height:
            sample = outside.select(self._spec.features.key).row(0)
            window = f"{self._partition.start.astimezone(self._zone)} to {self._partition.end.astimezone(self._zone)}"
            msg = (
                f"{where}{outside.height} rows lie outside the partition ({window}) by {column!r}, "
                f"for example {_named(self._spec, sample)} at {outside[column][0]}."
            )
            raise DataError(msg, hint="filter on $partition_start and $partition_end in the features.")


def file_sha256(path: Path) -> str:
    """Hash a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _reraised(reader: pa.RecordBatchReader, query: Query, partition: Partition) -> Iterator[pa.RecordBatch]:
    batches = iter(reader)
    while True:
        try:
            batch = next(batches, None)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise query.failed(error, partition) from error
        if batch is None:
            return
        yield batch


def _require_unique(spec: PipelineSpec, partition: Partition, frame: pl.DataFrame, *, what: str) -> None:
    key = spec.features.key
    if frame.select(key).n_unique() == frame.height:
        return
    twice = frame.filter(frame.select(key).is_duplicated()).select(key).unique(maintain_order=True)
    raise _not_unique(spec, partition, twice.rows(), what)


def _not_unique(spec: PipelineSpec, partition: Partition, keys: list[tuple[object, ...]], what: str) -> DataError:
    msg = f"{spec.name}, partition {partition.key}: keys occur more than once in the {what}: "
    msg += listed(_named(spec, key) for key in keys) + "."
    return DataError(msg, hint="features.key must be unique within a partition; mend the SQL or extend the key.")


def _named(spec: PipelineSpec, key: tuple[object, ...]) -> str:
    return " ".join(f"{name}={value}" for name, value in zip(spec.features.key, key, strict=True))
