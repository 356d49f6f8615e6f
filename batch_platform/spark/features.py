"""Features by Spark: the cluster runs the SQL and writes rows into the home, and DuckDB here puts them into the order of the key.

So all that follows is the same as for DuckDB's SQL: the same checks see the rows, and equal rows give equal bytes.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import EngineError, SourceError, listed
from batch_platform.declaration.inputs import Driving
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.lake import BATCH_ROWS, parquet_writer
from batch_platform.features.query import SparkQuery
from batch_platform.sources.kind import ParquetFiles, SourceState, SourceTable, unused_name
from batch_platform.sources.opening import SourceConnection, Sources, bounded
from batch_platform.spark.jobs import SparkJob, SparkJobs, raised_by_us, spark_errors, spark_jobs
from batch_platform.spark.session import shortest
from batch_platform.spark.staging import SAME_ENVIRONMENT, WRITTEN, WrittenRows, require_here, write_rows
from batch_platform.warehouse.sql import connect, literal, quoted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession
    from pyspark.sql.types import StructType

_ATOMIC = frozenset(  # names of the types that a feature file keeps, as Spark's schemas write them
    {
        *("boolean", "byte", "short", "integer", "long", "float", "double", "decimal"),
        *("string", "binary", "date", "timestamp", "timestamp_ntz"),
    }
)
_TIMES = frozenset({"date", "timestamp", "timestamp_ntz"})
_PRINTING = ("SQLQueryContextLogger", "DataFrameQueryContextLogger")  # loggers that print what is raised, in many lines
_IN_PYTHON = "PYTHON_EXCEPTION"  # the condition of what a task of ours raises
_AGAIN = "nothing of the partition was built; run again once the cluster is well."
Connect = Callable[[], SourceConnection]
_SCHEME = re.compile("^file:/+")
_DEFECT = "this is a defect of this package; please report it."


class SparkFeatures:
    """Runs the SQL of a pipeline on Spark for one partition after another. Use it in a `with` statement."""

    def __init__(self, spec: PipelineSpec, sources: Sources, query: SparkQuery, folder: Path) -> None:
        """Start nothing yet; all files are written below `folder`, which the machines of the cluster must see."""
        self._spec, self._sources, self._query, self._folder = spec, sources, query, folder
        self._open = ExitStack()
        self._started: SparkJobs | None = None
        self._alike = set[tuple[str, str]]()  # sources and versions whose files are known to have the same columns
        self._copies = dict[str, tuple[SourceConnection, Path]]()  # key: name of the source

    def __enter__(self) -> Self:
        """Return the features."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the session, which ends with its last user."""
        self._open.close()

    @property
    def page(self) -> str:
        """The address at which Spark shows its jobs; empty before the first."""
        return "" if self._started is None else self._started.page

    @contextmanager
    def batches(self, partition: Partition, connect: Connect) -> Generator[tuple[Iterator[pa.RecordBatch], pa.Schema]]:
        """The rows of a partition in the order of the key, and their columns; `connect` opens what DuckDB has to copy for Spark.

        Raises SourceError if the SQL fails or a source cannot be read, and EngineError if the cluster cannot be reached, or failed.
        """
        with self._staged(partition) as folder:
            frame = self._analysed(partition, folder, connect, self._spec.features.key, rows=True)
            files, rows = self._written(frame, partition, folder, "features")
            with bounded(self._folder / "spill", self._spec.partitions.timezone) as con:
                order = ", ".join(map(quoted, self._spec.features.key))
                with ExitStack() as stack:
                    with self._query.explained(partition):
                        relation = con.sql(f"FROM {_relation(files)} ORDER BY {order}")
                        reader = stack.enter_context(closing(relation.to_arrow_reader(BATCH_ROWS)))
                    yield self._counted(reader, rows, partition), reader.schema

    def require_valid(self, partition: Partition, connect: Connect, columns: Sequence[str]) -> None:
        """Let Spark check the SQL without reading a row; it must give these columns. Raises as `batches` does."""
        with self._staged(partition) as folder:
            self._analysed(partition, folder, connect, columns, rows=False)

    @contextmanager
    def driving_rows(self, driving: Driving, partition: Partition) -> Generator[duckdb.DuckDBPyConnection]:
        """A connection to DuckDB with a view of the driving source, a table of Spark's catalog: its rows in a partition that was built.

        If the table has no such time, the view has all its columns and no rows. Raises as `batches` does.
        """
        if not self._query.reads([driving.source]):
            self._show_table(self._sources.table(driving.source, partition), partition)
        with self._asking(partition):
            table = self._jobs.session.table(identifier(driving.source))
            types = {field.name: field.dataType.typeName() for field in table.schema}
            frame = table.limit(0)
            if types.get(driving.time) in _TIMES:
                time = table[identifier(driving.time)]
                names = [identifier(name) for name in types if name in {driving.time, *self._spec.features.key}]
                frame = table.select(*names).where(time >= partition.start).where(time < partition.end)
        with self._staged(partition) as folder:
            files, _ = self._written(frame, partition, folder, f"rows of {driving.source}")
            with bounded(self._folder / "spill", self._spec.partitions.timezone) as con:
                con.execute(f"CREATE TEMP VIEW {quoted(driving.source)} AS FROM {_relation(files)}")
                yield con

    def state(self, name: str, partition: Partition) -> SourceState:
        """Count the rows of a source that only Spark can read, and describe it. Raises as `batches` does."""
        table = self._sources.table(name, partition)
        self._show_table(table, partition)
        with self._asking(partition):
            frame = self._jobs.session.table(identifier(name))
            none, counted = frame.limit(0).toArrow(), frame.groupBy().count()
        job = SparkJob(uuid4().hex, f"{self._spec.name}, source {name}", self._cancel_if_late)
        ((rows,),) = self._ran(partition, job, counted.collect)
        with connect() as con:
            view = con.from_arrow(none)
            columns = dict(zip(view.columns, map(str, view.types), strict=True))
        return self._sources.kind(name).state(table, rows, columns)

    @contextmanager
    def _staged(self, partition: Partition) -> Generator[Path]:
        folder = self._folder / f"{partition.key}.{uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _jobs(self) -> SparkJobs:
        """The jobs on a session of their own, whose settings and views nobody else sees."""
        if self._started is None:
            jobs = self._open.enter_context(
                spark_jobs(self._spec.engine.on_spark, self._spec.name, self._folder, runs_sql=True)
            )
            own = jobs.apart()
            for name, value in {
                "spark.sql.session.timeZone": self._spec.partitions.timezone,  # times without a zone are read as in DuckDB
                "spark.sql.variable.substitute": "false",  # ${…} in the SQL
                "spark.sql.runSQLOnFiles": "false",
                "spark.sql.files.ignoreMissingFiles": "false",
                "spark.sql.files.ignoreCorruptFiles": "false",
            }.items():
                own.session.conf.set(name, value)
            self._started = own
        return self._started

    def _written(self, frame: "DataFrame", partition: Partition, folder: Path, shown: str) -> tuple[list[Path], int]:
        """Let Spark write the rows; returns the files, the first of which has only the columns, and the number of rows."""
        where = self._where(partition)
        mark = folder / "columns.parquet"
        with self._asking(partition):
            columns = frame.limit(0).toArrow()
            written = frame.mapInArrow(partial(write_rows, WrittenRows(where, folder, mark)), WRITTEN)
        pq.write_table(columns, mark)
        job = SparkJob(folder.name, f"{self._spec.name}, {shown} of {partition.key}", self._cancel_if_late)
        files, rows = [mark], 0
        for row in self._ran(partition, job, written.collect):
            files.append(Path(row.path))
            require_here(where, files[-1], row.bytes)
            rows += row.rows
        return files, rows

    def _ran(self, partition: Partition, job: SparkJob, collect: "Callable[[], list[Row]]") -> "list[Row]":
        """Let Spark run a job on another thread, so that this one can be interrupted."""
        jobs, limit = self._jobs, self._query.limit
        with ThreadPoolExecutor(1, "spark") as pool, limit.over(lambda: None), _quiet():
            running = pool.submit(jobs.run, job, collect)
            try:
                return jobs.awaited(running)
            except spark_errors() as error:
                raise self._explained(partition, error, job) from error
            except BaseException:
                jobs.end(running)
                raise

    @contextmanager
    def _asking(self, partition: Partition) -> Generator[None]:
        """Ask Spark for something; what it raises becomes an error that says why, and is not printed."""
        try:
            with _quiet():
                yield
        except spark_errors() as error:
            raise self._explained(partition, error) from error

    def _cancel_if_late(self, _done: int, _tasks: int) -> None:
        if self._query.limit.passed:
            self._jobs.cancel()

    def _analysed(
        self, partition: Partition, folder: Path, connect: Connect, columns: Sequence[str], *, rows: bool
    ) -> "DataFrame":
        """The result of the SQL, of which Spark knows only the columns yet; without `rows`, copied sources are empty."""
        query = self._query
        for name in query.reads(self._spec.sources):
            self._show(name, partition, folder, connect, rows=rows)
        with self._asking(partition):
            frame = self._jobs.session.sql(query.text, args=query.bound(partition) or None)
            schema = frame.schema
        query.require_columns(schema.names, columns)
        self._require_types(partition, schema)
        return frame

    def _require_types(self, partition: Partition, schema: "StructType") -> None:
        if wrong := [
            f"{field.name} ({field.dataType.simpleString()})"
            for field in schema
            if field.dataType.typeName() not in _ATOMIC
        ]:
            msg = f"{self._where(partition)}: {self._query.place} gives columns of types that features cannot hold: {listed(wrong)}."
            hint = "cast them in the SQL to a number, text or time, take single values out of them, or leave them out."
            raise SourceError(msg, hint=hint)

    def _show(self, name: str, partition: Partition, folder: Path, connect: Connect, *, rows: bool) -> None:
        """Make a source a view of Spark: of a table in its catalog, of Parquet files, or else of a copy that DuckDB makes."""
        kind, table = self._sources.kind(name), self._sources.table(name, partition)
        if kind.stands_still:  # what DuckDB counts in it is what Spark reads
            table = connect().table(name, partition)
        if kind.only_on_spark:
            self._show_table(table, partition)
            return
        files = kind.parquet_files(table)
        if files is None:
            files = ParquetFiles([self._copied(table, partition, folder, connect, rows=rows)])
        else:
            self._require_readable(table, files)
        self._create_view(table, partition, partial(rows_of, files))

    def _show_table(self, table: SourceTable, partition: Partition) -> None:
        self._create_view(table, partition, partial(rows_in_catalog, table.source.location))

    def _create_view(
        self, table: SourceTable, partition: Partition, rows: "Callable[[SparkSession], DataFrame]"
    ) -> None:
        try:
            with _quiet():
                rows(self._jobs.session).createOrReplaceTempView(identifier(table.name))
        except spark_errors() as error:
            if _condition(error) is None:
                raise self._explained(partition, error) from error
            problem = f" cannot be read by Spark: {shortest(error)}"
            raise table.error(problem) from error

    def _require_readable(self, table: SourceTable, files: ParquetFiles) -> None:
        """Refuse files of a source that Spark would read as nothing or as nulls; raises SourceError."""
        if hidden := [file for file in files.paths if file.name.startswith(("_", "."))]:
            problem = f": Spark does not read files whose name begins with a dot or an underscore, such as {hidden[0]}."
            raise table.error(problem, "rename the file.")
        state = (table.name, self._sources.kind(table.name).version(table))
        if files.schema is None and len(files.paths) > 1 and state not in self._alike:
            columns = {file: {name.lower() for name in pq.read_schema(file).names} for file in files.paths}
            every = set[str]().union(*columns.values())
            for file, present in columns.items():
                if lacking := every - present:
                    problem = f": {file} lacks {listed(map(repr, lacking))}, which other files of the source have."
                    raise table.error(problem, "give all files of a source the same columns.")
            self._alike.add(state)

    def _copied(self, table: SourceTable, partition: Partition, folder: Path, connect: Connect, *, rows: bool) -> Path:
        """Copy a source to a Parquet file for Spark; one that all partitions read alike is copied once."""
        con, lasting = connect(), rows and not self._sources.kind(table.name).takes_partition(table)
        copied_from, path = self._copies.get(table.name, (None, Path()))
        if lasting and copied_from is con:
            return path
        path = (self._folder if lasting else folder) / f"{table.name}.{uuid4().hex}.parquet"
        with con.explained(table.name, partition):
            relation = con.duckdb.sql(f"FROM {quoted(table.name)}{'' if rows else ' LIMIT 0'}")
            with closing(relation.to_arrow_reader(BATCH_ROWS)) as reader, parquet_writer(path, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        if lasting:
            self._copies[table.name] = con, path
        return path

    def _counted(self, reader: pa.RecordBatchReader, rows: int, partition: Partition) -> Generator[pa.RecordBatch]:
        """Pass on batches; raises EngineError at the end unless they are all that the tasks wrote."""
        read = 0
        with self._query.explained(partition):
            for batch in reader:
                read += batch.num_rows
                yield batch
        if read != rows:
            msg = f"{self._where(partition)}: the tasks wrote {rows:,} rows, and {read:,} were read; nothing is built."
            raise EngineError(msg, hint="this is a defect of this package; please report it.")

    def _where(self, partition: Partition) -> str:
        return f"{self._spec.name}, partition {partition.key}"

    def _explained(
        self, partition: Partition, error: Exception, job: SparkJob | None = None
    ) -> SourceError | EngineError:
        """Explain in one sentence why Spark failed, and what to do."""
        where, condition = self._where(partition), _condition(error)
        if job is not None and self._query.limit.passed:
            return self._query.takes_too_long(where)
        if condition == _IN_PYTHON:
            return raised_in_task(where, error)
        if condition is not None and not (job is not None and self._jobs.is_abandoned(job)):
            return self._query.error(where, error)
        return self._jobs.failure(where, error, _AGAIN, job)


def _relation(files: Iterable[Path]) -> str:
    """The SQL for the rows of Parquet files."""
    return f"read_parquet([{', '.join(literal(str(file)) for file in files)}], hive_partitioning = false)"


def raised_in_task(where: str, error: Exception) -> EngineError:
    """The error that `write_rows` raised on an executor, or what kept it from being called."""
    last = str(error).strip().rpartition("\n")[2]
    message, hint = raised_by_us(last)
    if message != last:
        return EngineError(message, hint=hint)
    hint = SAME_ENVIRONMENT if "ModuleNotFoundError" in last else _AGAIN
    return EngineError(f"{where}: a task failed: {last.rstrip('.')}.", hint=hint)


def _condition(error: Exception) -> str | None:
    """Spark's name for what is wrong with SQL, with values or in a function; None for a failure of the cluster."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    with suppress(Py4JError, OSError):  # Spark's own process has died
        return error.getCondition() if isinstance(error, PySparkException) else None
    return None


@contextmanager
def _quiet() -> Generator[None]:
    """Let Spark not print the errors that it raises."""
    loggers = [logging.getLogger(name) for name in _PRINTING]
    former = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, former, strict=True):
            logger.disabled = disabled


def identifier(name: str) -> str:
    """A name as Spark's SQL quotes it."""
    return f"`{name.replace('`', '``')}`"


def rows_of(files: ParquetFiles, session: "SparkSession") -> "DataFrame":
    """The rows of the files, with the columns that are not in them; Spark opens no more than the files' ends yet.

    Spark looks for columns in the names of folders only below a base path, of which none is given here.
    """
    reader = session.read.options(mergeSchema=False, __globPaths__=False)
    names = [f"file://{path}" for path in files.paths]
    if files.schema is None:
        return reader.parquet(*names)
    from pyspark.sql.types import StructType

    schema = StructType.fromJson(json.loads(files.schema))
    if not names:
        return session.createDataFrame([], schema)
    if files.partitions is None:
        return reader.schema(schema).parquet(*names)
    lacking = files.partitions.column_names
    frame = reader.schema(StructType([field for field in schema if field.name not in lacking])).parquet(*names)
    return _with_partitions(frame, files, files.partitions, schema, session)


def rows_in_catalog(table: str, session: "SparkSession") -> "DataFrame":
    """The rows of a table as the catalog has them now; a name without a database is one of the session's present database."""
    parts = table.split(".")
    if len(parts) == 1:  # Spark would take a view of that name, which may be of another source
        parts = [session.catalog.currentDatabase(), *parts]
    name = ".".join(map(identifier, parts))
    session.catalog.refreshTable(name)  # Spark goes on reading the files that it found once
    return session.table(name)


def _with_partitions(
    frame: "DataFrame", files: ParquetFiles, partitions: pa.Table, schema: "StructType", session: "SparkSession"
) -> "DataFrame":
    """Join the columns that the files lack by the name that Spark has for the file of a row."""
    from pyspark.sql.functions import broadcast, col, concat, lit, raise_error, regexp_replace, when
    from pyspark.sql.types import StringType, StructField, StructType

    # Spark writes file:/a or file:///a, and encodes some characters.
    spelled = {Path(unquote(urlsplit(name).path)): _SCHEME.sub("/", name) for name in frame.inputFiles()}
    if spelled.keys() != {*files.paths}:
        msg = f"Spark reads other files than it was given, such as {min(spelled.keys() ^ {*files.paths})}."
        raise EngineError(msg, hint=_DEFECT)
    file = unused_name("file", schema.names)
    values = partitions.append_column(file, pa.array([spelled[path] for path in files.paths]))
    fields = [schema[name] for name in partitions.column_names]
    lookup = session.createDataFrame(values, StructType([*fields, StructField(file, StringType())]))
    lookup = lookup.withColumnRenamed(file, f"{file} listed")
    path = regexp_replace(frame.metadataColumn("_metadata")["file_path"], _SCHEME.pattern, "/")
    named = frame.withColumn(file, path)
    joined = named.join(broadcast(lookup), col(f"`{file}`") == col(f"`{file} listed`"), "left")
    unlisted = raise_error(
        concat(lit(f"Spark has another name for a listed file; {_DEFECT} It is: "), col(f"`{file}`"))
    )
    columns = {name: col(identifier(name)) for name in schema.names}
    for name in partitions.column_names:
        columns[name] = when(col(f"`{file} listed`").isNull(), unlisted).otherwise(columns[name]).alias(name)
    return joined.select(*columns.values())
