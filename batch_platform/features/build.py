"""Build the features of a partition: run SQL or a Polars function over the sources and write a Parquet file.

A file is complete or absent: it is written aside, checked, and moved to its name. Rows are in the order of the key, so
equal rows give equal bytes. Labels are read here too.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    SourceError,
    WrongUseError,
    did_you_mean,
    listed,
)
from batch_platform.declaration.importing import import_function, parameters_of, source_code
from batch_platform.declaration.inputs import Driving
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.fingerprints import DatedSources, Fingerprint, Taken, fingerprint_of, instant
from batch_platform.features.lake import (
    BATCH_ROWS,
    FileWriter,
    left_aside,
    of_full_size,
    remove_unlocked,
    written_aside,
)
from batch_platform.features.origins import Lineage
from batch_platform.features.query import Query, SparkQuery
from batch_platform.features.row_checks import (
    OutOfOrderError,
    RepeatedKeysError,
    RowChecks,
    keys_repeated_in,
    require_every_row,
    require_unique,
    rows_outside,
    with_weights,
)
from batch_platform.features.windows import RowsAhead, how_many_first, how_many_next, rows_within
from batch_platform.sources.files import PARQUET
from batch_platform.sources.kind import SourceState
from batch_platform.sources.known import only_spark_reads
from batch_platform.sources.opening import SourceConnection, Sources
from batch_platform.warehouse.home import feature_file_name
from batch_platform.warehouse.sql import quoted

if TYPE_CHECKING:
    from batch_platform.spark.features import SparkFeatures

SPARK_FEATURES = "batch_platform.spark.features"  # imported by name: it stands above this room
# Leaves rows out of batches, and adds the number of each batch.
LeaveOut = Callable[[Iterator[pa.RecordBatch], list[int]], Iterator[pa.RecordBatch]]
# When to look, how long to wait, who writes it.
NO_INPUTS = {"__all__": {"time": True, "late": True, "wait": True, "asset": True, "sql": {"version"}}}
LARGE_BYTES = 1 << 26  # bytes of a file from which a look at its keys alone costs little beside sorting its rows


@dataclass(frozen=True)
class FeatureFile:
    """A written feature file."""

    path: Path
    rows: int
    sha256: str  # digest of the file's bytes
    xxh3: str  # second digest of the file's bytes: fifteen times faster, finds damage but not intent
    columns: dict[str, str]  # Arrow types by name, in order
    rows_left_out: int = 0  # rows of erased subjects, which the sources still hold


@dataclass(frozen=True)
class FeatureBuilder:
    """Builds the features and labels of one pipeline."""

    spec: PipelineSpec
    sources: Sources

    @cached_property
    def query(self) -> Query | SparkQuery | None:
        """The SQL of the features; None if a Polars function makes them."""
        spec, on_spark = self.spec, self.spec.features.spark_sql
        if on_spark is not None:
            return SparkQuery(
                spec.name, self.sources.folder, "features.spark_sql", on_spark, spec.sources, spec.features.longest
            )
        return None if spec.features.sql is None else self._query("features.sql", spec.features.sql)

    @cached_property
    def labels_query(self) -> Query | None:
        """The SQL of the labels; None for a pipeline without labels. Raises SourceError if it reads what DuckDB cannot read."""
        if self.spec.labels is None:
            return None
        query = self._query("labels.sql", self.spec.labels.sql)
        if on_spark := [name for name in query.reads(self.spec.sources) if name not in self.sources.in_duckdb]:
            raise only_spark_reads(self.sources.table(on_spark[0], self.sources.first_partition()))
        return query

    def _query(self, key: str, sql: str) -> Query:
        spec = self.spec
        return Query(spec.name, self.sources.folder, key, sql, spec.sources, spec.features.longest)

    @cached_property
    def own_feature_sources(self) -> list[str]:
        """The sources of the features that have a file for each partition."""
        return [name for name in self.feature_sources if self.spec.sources[name].by_partition]

    @cached_property
    def feature_sources(self) -> list[str]:
        """The sources that the features read."""
        if self.query is not None:
            return self.query.reads(self.spec.sources)
        function = import_function(self.spec.features.python or "", "features.python")
        return [name for name in parameters_of(function) if name in self.spec.sources]

    @cached_property
    def built_from(self) -> list[str]:
        """The same sources, and the one whose rows are counted."""
        driving = self.spec.features.driving
        counted = [] if driving is None or driving.source in self.feature_sources else [driving.source]
        return [*self.feature_sources, *counted]

    def query_of_large_file(self, partition: Partition) -> Query | None:
        """The query, if it passes on rows of a large Parquet file of the partition's own, which may be in order already."""
        if not isinstance(self.query, Query) or len(self.spec.features.key) > 1 or not self.query.keeps_order:
            return None
        tables = [self.sources.table(name, partition) for name in self.own_feature_sources]
        large = any(table.source.kind == "parquet" and PARQUET.size(table) > LARGE_BYTES for table in tables)
        return self.query if large else None

    @cached_property
    def dated(self) -> DatedSources:
        """The sources of the features, as far as their rows have a time."""
        return DatedSources(self.sources, "features", self.query, self.feature_sources)

    @cached_property
    def label_sources(self) -> list[str]:
        """The sources that the labels read."""
        return [] if self.labels_query is None else self.labels_query.reads(self.spec.sources)

    @cached_property
    def dated_labels(self) -> DatedSources:
        """The same sources, as far as their rows have a time."""
        return DatedSources(self.sources, "labels", self.labels_query, self.label_sources)

    @property
    def taken(self) -> Taken:
        """The fingerprints that this process took last, by reader and source."""
        dated = (self.dated, self.dated_labels)
        return {(sources.read_by, name): held for sources in dated for name, held in sources.newest.items()}

    @cached_property
    def own_label_sources(self) -> list[str]:
        """The sources of the labels that have a file for each partition."""
        return [name for name in self.label_sources if self.spec.sources[name].by_partition]

    def label_versions(self, partition: Partition) -> str:
        """The present versions of `own_label_sources` as JSON; raises SourceError if a file is missing. Reads no file."""
        return json.dumps(self.sources.versions(partition, self.own_label_sources), sort_keys=True)

    def awaited_label_sources(self, partition: Partition) -> list[str]:
        """Those of `own_label_sources` whose file of a partition is not there yet. Reads no file."""
        awaited = list[str]()
        for name in self.own_label_sources:
            try:
                self.sources.version(name, partition)
            except SourceError as error:
                if error.__cause__ is None:  # otherwise the folder cannot be looked into: reading the labels says so
                    awaited.append(name)
        return awaited

    def require_labels(self, partition: Partition, absent: Mapping[str, Collection[str]]) -> None:
        """Raise SourceError if an asset with labels lacks some partitions, by source."""
        for name, keys in absent.items():
            self.sources.require_stored(name, partition, keys, "If there are no labels, materialize it without rows.")

    @cached_property
    def lineage(self) -> Lineage:
        """The source columns that the features are made from, as far as the text of the SQL tells; opens nothing."""
        if self.query is None:
            reason = f"the features are made by {self.spec.features.python}"
            return Lineage(sources=tuple(self.spec.sources), reason=reason)
        return _lineage(self.query, dict.fromkeys(self.spec.sources, ()))

    @cached_property
    def labels_lineage(self) -> Lineage:
        """The source columns that the labels are made from, as far as the text of the SQL tells."""
        query = self.labels_query
        return Lineage() if query is None else _lineage(query, dict.fromkeys(self.spec.sources, ()))

    def asked_lineage(self, partition: Partition) -> Lineage:
        """The source columns that the features are made from, given the columns that the sources have for a partition."""
        if self.query is None or self.lineage.complete:
            return self.lineage
        with self.sources.connect(partition, names=self.opened(self.built_from)) as con:
            columns = dict.fromkeys(self.spec.sources, ()) | {
                name: con.duckdb.sql(f"FROM {quoted(name)}").columns for name in con.names
            }
            made = None  # Spark would have to be started to name them
            if isinstance(self.query, Query):
                made = self.query.run(con, partition, self.spec.features.key).columns
        return _lineage(self.query, columns, made)

    @cached_property
    def code_version(self) -> str:
        """A hash that changes when the same sources could give other features; not with comments and white space in the SQL."""
        if self.query is None:
            return self._hashed(source_code(self.spec.features.python or "", "features.python"))
        return self._hashed(f"{'' if isinstance(self.query, Query) else 'spark '}{self.query.statement}")

    def _hashed(self, code: str) -> str:
        read = {"partitions": {"every", "timezone"}, "sources": True, "features": {"key", "time", "python", "driving"}}
        # Without defaults, a key that this package learns later changes no version.
        declared = self.spec.model_dump_json(include=read, exclude={"sources": NO_INPUTS}, exclude_defaults=True)
        assets = ((name, source.asset) for name, source in self.spec.sources.items() if source.kind == "asset")
        declared += "".join(f"\0{name}: {asset}" for name, asset in assets)
        declared += "".join(f"\0{name}: {text}" for name, text in self.sources.statements().items())
        return hashlib.sha256(f"{code}\0{declared}".encode()).hexdigest()[:12]

    def source_state(self, name: str, partition: Partition | None) -> SourceState:
        """Read a source, on Spark if only Spark can, and describe what it holds for a partition, by default for the first one.

        Raises SourceError, and EngineError if the cluster fails.
        """
        if name in self.sources.in_duckdb:
            return self.sources.state(name, partition)
        with self.session(spill=self.sources.home.staging) as session:
            return session.source_state(name, partition or self.sources.first_partition())

    def rows(self, partition: Partition, only: Mapping[str, str]) -> pl.DataFrame:
        """Compute the features of one partition here and write nothing; not for SQL of Spark. For `only` see `Sources.connect`."""
        with self.sources.connect(partition, names=self.opened(self.built_from), only=only) as con:
            session = FeatureSession(self, lambda _: con)
            with session.batches(partition) as (batches, schema):
                return pl.DataFrame(pa.Table.from_batches(batches, schema))

    def opened(self, names: Collection[str]) -> list[str]:
        """Those of some sources that DuckDB can read; all where none is named, so that a misspelt name is told the nearest."""
        return [name for name in self.sources.in_duckdb if not names or name in names]

    @contextmanager
    def session(
        self,
        *,
        spill: Path | None = None,
        labels: bool = False,
        ahead: Sequence[Partition] = (),
        leave_out: LeaveOut | None = None,
    ) -> Generator["FeatureSession"]:
        """Build many partitions, or read their `labels`, from sources that are opened once: only those of the one or the other.

        `ahead` are the partitions that will be built, oldest first: one query reads many of them where `rows_within` can. For
        `spill` see `Sources.connect`; SQL of Spark is run only with it, and the cluster must see it.
        """
        with ExitStack() as stack:
            on_spark = None
            if isinstance(self.query, SparkQuery) and spill is not None:
                made_by = import_module(SPARK_FEATURES).SparkFeatures
                on_spark = stack.enter_context(made_by(self.spec, self.sources, self.query, spill))
            names = self.opened(self.label_sources if labels else self.built_from)
            yield FeatureSession(
                self,
                lambda first: stack.enter_context(self.sources.connect(first, names=names, spill=spill)),
                on_spark,
                ahead,
                leave_out,
            )


class FeatureSession:
    """Sources from which one partition after another is built; a partition that fails leaves the others as they are."""

    def __init__(
        self,
        builder: FeatureBuilder,
        connect: Callable[[Partition], SourceConnection],
        on_spark: "SparkFeatures | None" = None,
        ahead: Sequence[Partition] = (),
        leave_out: LeaveOut | None = None,
    ) -> None:
        """Open nothing yet; `connect` opens the sources, whose views first show a partition. For the rest see `session`."""
        self._builder, self._connect, self._on_spark, self._leave_out = builder, connect, on_spark, leave_out
        self._con: SourceConnection | None = None
        self._at: Partition | None = None  # what the views show; None if they may show several partitions
        self._read_last: Partition | None = None
        self._swept = False
        self._ahead = RowsAhead(ahead)

    @property
    def engine_page(self) -> str:
        """The address at which the engine of the SQL shows its work; empty for an engine without one."""
        return "" if self._on_spark is None else self._on_spark.page

    def write(self, partition: Partition, folder: Path) -> FeatureFile:
        """Write the features of a partition to a complete file in a folder, named after its bytes.

        Raises SourceError if the SQL or the function fails, DataError if the rows break a rule, and BatchPlatformError if there is no room.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep(folder)
            with written_aside(folder) as aside:
                try:
                    written = self._write_aside(partition, aside)
                except RepeatedKeysError as error:
                    message = " ".join([error.message, *self._repeated_in_sources(partition)])
                    raise RepeatedKeysError(message, hint=error.hint) from error
                driving = (spec := self._builder.spec).features.driving
                if driving is not None:
                    with self._counted(driving, partition) as con:
                        require_every_row(spec, partition, con, written.path, written.rows + written.rows_left_out)
                return replace(written, path=aside.replace(folder / feature_file_name(partition.key, written.sha256)))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            msg = f"{self._builder.spec.name}, partition {partition.key}: its features cannot be written to {folder} ({reason})."
            hint = "make room on the disk or correct the permissions of the home, then run it again."
            if isinstance(error, IsADirectoryError):
                hint = f"move {error.filename2} away, which is a folder in the place of a file, then run it again."
            raise BatchPlatformError(msg, hint=hint) from error

    def labels(self, partition: Partition) -> pl.DataFrame:
        """Read the labels of a partition: key columns, WEIGHT if it is declared, and the label, which is never null or NaN.

        Raises:
            SourceError: The SQL fails.
            DataError: Keys are not unique, or a weight is null or negative, or all are 0.
        """
        spec, query = self._builder.spec, self._builder.labels_query
        if query is None or spec.labels is None:
            msg = f"{spec.name} declares no labels."
            raise DataError(msg, hint="add `labels` to its YAML.")
        con = self._moved(partition)
        columns = [*spec.features.key, *spec.labels.columns]
        with query.limited(con), query.explained(partition):
            return self._known(partition, query.run(con, partition, columns).pl().select(columns))

    def labels_of(
        self, partitions: Sequence[Partition], most_rows: int, alone: Callable[[Partition], pl.DataFrame]
    ) -> Iterator[Callable[[], pl.DataFrame]]:
        """The labels of partitions, oldest first, each as a function that gives or raises what `labels` does.

        One query reads many of them where `rows_within` can, given that none has more than `most_rows`; others are read by `alone`.
        """
        spec, query, at = self._builder.spec, self._builder.labels_query, 0
        several = how_many_first(most_rows)
        while query is not None and spec.labels is not None and at < len(partitions):
            some, tables, columns = partitions[at : at + several], None, [*spec.features.key, *spec.labels.columns]
            with suppress(BatchPlatformError):  # the query for one partition says what fails, and where
                tables = rows_within(query, self._moved(some[0]), some, columns)
            if tables is None:
                break
            yield from map(partial(partial, self._known), some, map(pl.DataFrame, tables))
            at, several = at + len(some), how_many_next(several, tables)
        yield from map(partial(partial, alone), partitions[at:])

    def _known(self, partition: Partition, frame: pl.DataFrame) -> pl.DataFrame:
        """The labels of a partition that are known; raises DataError if keys are not unique, or weights are none."""
        spec, label = self._builder.spec, frame.columns[-1]
        frame = frame.drop_nulls(label)
        if frame[label].dtype.is_float():
            frame = frame.drop_nans(label)
        require_unique(spec, partition, frame, what="labels")
        weight = None if spec.labels is None else spec.labels.weight
        return frame if weight is None else with_weights(frame, weight, f"{spec.name}, partition {partition.key}")

    def label_type(self, partition: Partition) -> str | None:
        """The type of the label in DuckDB, as the sources of a partition give it; None without labels. Reads no row."""
        spec, query = self._builder.spec, self._builder.labels_query
        if query is None or spec.labels is None:
            return None
        rows = query.run(self._moved(partition), partition, [*spec.features.key, spec.labels.column])
        return str(rows.select(quoted(spec.labels.column)).types[0])

    def rows_outside(self, partition: Partition) -> list[str]:
        """The rows in the files of a partition that are dated outside of them, counted in a sentence per source."""
        sentences = list[str]()
        for name in self._builder.own_feature_sources:
            with self._showing(name, partition) as con:
                time = self._builder.dated.rows_read(name).time
                sentences += rows_outside(self._builder.spec, con, name, time, partition)
        return sentences

    def _repeated_in_sources(self, partition: Partition) -> list[str]:
        """Say which source repeats the keys of a partition, or that none of the sources does."""
        builder, sentences = self._builder, list[str]()
        if not {*builder.feature_sources} <= {*builder.sources.in_duckdb}:
            return []  # the cluster would have to read them again
        for name in builder.feature_sources:
            time = builder.dated.rows_read(name).time
            inside = "true" if time is None else f"{instant(time)} >= $start AND {instant(time)} < $end"
            window: dict[str, object] = {} if time is None else {"start": partition.start, "end": partition.end}
            with self._showing(name, partition) as con:
                repeated = keys_repeated_in(con, name, builder.spec.features.key, inside, window)
            sentences += [] if repeated is None else [repeated]
        if sentences and not any(sentences):
            return ["No source holds a key more than once there: the features multiply rows, as a join may."]
        return [sentence for sentence in sentences if sentence]

    @contextmanager
    def _showing(self, name: str, partition: Partition) -> Generator[duckdb.DuckDBPyConnection]:
        """A connection with a view of a source that shows a partition."""
        if self._builder.query is not None:
            yield self._moved(partition).duckdb
        else:  # its views may call functions of the user's
            with self._builder.sources.connect(partition, names=[name]) as con:
                yield con.duckdb

    @contextmanager
    def _counted(self, driving: Driving, partition: Partition) -> Generator[duckdb.DuckDBPyConnection]:
        """A connection with a view of the driving source, which holds what the features were made from."""
        if driving.source in self._builder.sources.in_duckdb:
            yield self._moved(partition).duckdb
            return
        with self._spark.driving_rows(driving, partition) as con:
            yield con

    def _sweep(self, folder: Path) -> None:
        """Remove the unfinished files of killed processes, once per session."""
        for aside in () if self._swept else left_aside(folder):
            remove_unlocked(aside)
        self._swept = True

    def _write_aside(self, partition: Partition, aside: Path) -> FeatureFile:
        """Write the rows of a partition in the order of the key; those that come in it are not sorted.

        Their keys are looked at first, as rows that turn out to be in another order are computed again and sorted.
        """
        key = self._builder.spec.features.key
        query = self._builder.query_of_large_file(partition)
        if query is not None and query.comes_in_order(self._moved(partition), partition, key[0]):
            with suppress(OutOfOrderError):
                return self._write_rows(partition, aside, sort=False)
        return self._write_rows(partition, aside)

    def _write_rows(self, partition: Partition, aside: Path, *, sort: bool = True) -> FeatureFile:
        """Write the rows of a partition batch by batch; the next ones are computed while a full batch is written."""
        left_out = list[int]()
        with self.batches(partition, sort=sort) as (batches, schema), FileWriter(aside, schema) as writer:
            checks = RowChecks(self._builder.spec, partition, schema, sorted_by_key=sort)
            for batch in batches if self._leave_out is None else of_full_size(self._leave_out(batches, left_out)):
                checks.see(batch)
                writer.write(batch)
            sha256, xxh3 = writer.complete()
        columns = {name: str(dtype) for name, dtype in zip(schema.names, schema.types, strict=True)}
        return FeatureFile(aside, writer.rows, sha256, xxh3, columns, sum(left_out))

    @contextmanager
    def batches(
        self, partition: Partition, *, sort: bool = True
    ) -> Generator[tuple[Iterator[pa.RecordBatch], pa.Schema]]:
        """The rows of a partition in the order of the key, and their columns; without `sort`, as DuckDB computes them.

        However few rows are read, the result is closed at the end: DuckDB refuses further queries while one is open.
        """
        query = self._builder.query
        if query is None:
            table = self._call(partition)
            yield iter(table.to_batches(max_chunksize=BATCH_ROWS)), table.schema
            return
        if isinstance(query, SparkQuery):
            with self._spark.batches(partition, lambda: self._moved(partition)) as made:
                yield made
            return
        if sort and (held := self._read_together(query, partition)) is not None:
            yield of_full_size(iter(held.to_batches())), held.schema
            return
        con = self._moved(partition)
        with ExitStack() as stack:
            stack.enter_context(query.limited(con))
            with query.explained(partition):
                relation = query.run(con, partition, self._builder.spec.features.key, sort=sort)
                reader = stack.enter_context(closing(relation.to_arrow_reader(BATCH_ROWS)))
            rows = _explained(reader, query, partition)
            yield rows if sort else of_full_size(rows), reader.schema

    def _read_together(self, query: Query, partition: Partition) -> pa.Table | None:
        """The rows of a partition by a query for many of those ahead; None if they have to be read alone."""
        if partition.key not in self._ahead:
            return None
        with suppress(BatchPlatformError):  # the query for one partition says what fails, and where
            # The versions are read before the rows, which may be newer than their version and never older.
            read_from = self.versions(partition), self._opened(partition)
            if (rows := self._ahead.kept(partition, read_from)) is not None:
                return rows
            some, order = self._ahead.next_from(partition), self._builder.spec.features.key
            if tables := rows_within(query, self._moved(partition), some, order, self._ahead.most_rows):
                return self._ahead.keep(some, tables, read_from)
        self._ahead = RowsAhead(())
        return None

    def require_valid(self, partition: Partition, columns: Sequence[str]) -> None:
        """Let Spark try its SQL for a partition without reading a row; it must give these columns. Raises SourceError and EngineError."""
        self._spark.require_valid(partition, lambda: self._moved(partition), columns)

    def source_state(self, name: str, partition: Partition) -> SourceState:
        """Let Spark describe what a source holds that only Spark can read. Raises as `require_valid` does."""
        return self._spark.state(name, partition)

    @property
    def _spark(self) -> "SparkFeatures":
        if self._on_spark is None:
            msg = f"{self._builder.spec.name}: its features are made on Spark, which this does not start."
            raise WrongUseError(msg, hint="build them with batch-platform run.")
        return self._on_spark

    def _call(self, partition: Partition) -> pa.Table:
        """Call the declared function with the sources that its parameters name; rows are in the order of the key."""
        builder = self._builder
        dotted, key = builder.spec.features.python or "", builder.spec.features.key
        function = import_function(dotted, "features.python")
        names, allowed = parameters_of(function), [*builder.spec.sources, "partition"]
        if unknown := [name for name in names if name not in allowed]:
            msg = f"{builder.spec.name}: {dotted} takes {listed(unknown)}; it can take {listed(allowed)}."
            raise WrongUseError(msg, hint=did_you_mean(unknown[0], allowed))
        frames = self._opened(partition).frames(partition, [name for name in names if name != "partition"])
        arguments = {**frames, "partition": partition} if "partition" in names else frames
        try:
            result = function(**arguments)
            frame = result.collect() if isinstance(result, pl.LazyFrame) else result
        except MemoryError:  # is not about one partition
            raise
        except Exception as error:  # a user's own code may raise anything
            msg = (
                f"{builder.spec.name}, partition {partition.key}: {dotted} failed with {type(error).__name__}: {error}."
            )
            raise SourceError(msg, hint="correct the function, or name another one in features.python.") from error
        if not isinstance(frame, pl.DataFrame):
            msg = f"{builder.spec.name}: {dotted} returned {type(frame).__name__}, which is not a table."
            raise SourceError(msg, hint="return a Polars LazyFrame or DataFrame.")
        return frame.sort([name for name in key if name in frame.columns]).to_arrow()

    def versions(self, partition: Partition) -> dict[str, str]:
        """The versions of the sources of a partition, whose rows may be newer and never older; may raise SourceError."""
        sources, names = self._builder.sources, self._builder.built_from
        held = [name for name in names if sources.kind(name).keeps_session]
        versions = sources.versions(partition, [name for name in names if name not in held])
        return versions | (self._opened(partition).versions(partition, held) if held else {})

    def selected(self, partition: Partition) -> dict[str, Fingerprint]:
        """The fingerprints of the sources of which a query selects the rows of a partition, as the session reads them."""
        return {name: fingerprint_of(self._moved(partition), name, partition) for name in self._builder.dated.selected}

    def _opened(self, partition: Partition) -> SourceConnection:
        """The connection, whose views show whichever partition they show; opened anew where it would show a source as it was before.

        Within a partition it stays the same, so that what is counted is what was read.
        """
        if self._con is None or (partition != self._read_last and not self._con.is_current(partition)):
            self._con, self._at = self._connect(partition), partition
        self._read_last = partition
        return self._con

    def _moved(self, partition: Partition) -> SourceConnection:
        """The connection with views that show a partition."""
        con = self._opened(partition)
        if partition != self._at:
            self._at = None
            con.move(partition)
            self._at = partition
        return con


def _explained(reader: pa.RecordBatchReader, query: Query, partition: Partition) -> Iterator[pa.RecordBatch]:
    """Pass on the batches of a reader; an error of the reader names the SQL file."""
    with query.explained(partition):
        yield from reader


def _lineage(
    query: Query | SparkQuery, sources: Mapping[str, Sequence[str]], columns: Sequence[str] | None = None
) -> Lineage:
    from batch_platform.features.lineage import column_lineage  # imports sqlglot, which takes its time

    return column_lineage(query.text, sources, columns, query.dialect)
