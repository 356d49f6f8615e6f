"""The live DuckDB file: replace partitions atomically, keep the ledgers, read what is recorded.

One process at a time holds it, for the length of one short transaction, under a flock on a file beside it; its bytes
are never touched otherwise. Every change is noted in `batch_platform.changes` in the same transaction, so that the
readers' copy can be brought up to date in proportion to what changed. Knows nothing of models or of Dagster.
"""

import contextlib
import errno
import fcntl
import os
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import polars as pl

from batch_platform.errors import DataError, WarehouseBusyError, WarehouseError, listed
from batch_platform.home import Home
from batch_platform.sources import quoted

FORMAT = 1
LOCK_TIMEOUT_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1


@dataclass(frozen=True)
class FeatureBuild:
    """One built partition of features."""

    pipeline: str
    partition_key: str
    rows: int
    sha256: str
    file_bytes: int
    file_mtime_ns: int
    code_version: str
    sources: str  # versions by source, as JSON
    built_at: datetime
    run_id: str


@dataclass(frozen=True)
class ScoreRun:
    """One committed partition of predictions."""

    pipeline: str
    partition_key: str
    partition_start: datetime
    partition_end: datetime
    model_version: str
    model_sha256: str
    input_hash: str
    code_version: str
    engine: str
    rows_in: int
    rows_scored: int
    rows_rejected: int
    in_sample: bool
    started_at: datetime
    committed_at: datetime
    run_id: str
    seq: int = 0  # given by the warehouse when the row is committed


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluated partition."""

    pipeline: str
    partition_key: str
    score_seq: int  # the ledger row of the predictions that were measured
    rows_scored: int
    rows_labelled: int
    evaluated_at: datetime
    run_id: str


@dataclass(frozen=True)
class StagedScores:
    """What one partition's commit needs: files, its ledger row, and the ledger as it was when scoring began."""

    predictions: Path
    rejected: Path
    run: ScoreRun
    seen_seq: int  # seq of the partition's newest ledger row when scoring began; 0 for none


_SCHEMA = """
CREATE SCHEMA batch_platform;
CREATE SEQUENCE batch_platform.seq;
CREATE TABLE batch_platform.meta (format INTEGER NOT NULL, warehouse_id VARCHAR NOT NULL);
CREATE TABLE batch_platform.changes (seq BIGINT, schema_name VARCHAR, table_name VARCHAR, partition_key VARCHAR);
CREATE TABLE batch_platform.feature_builds (
    seq BIGINT, pipeline VARCHAR, partition_key VARCHAR, rows BIGINT, sha256 VARCHAR, file_bytes BIGINT,
    file_mtime_ns BIGINT, code_version VARCHAR, sources VARCHAR, built_at TIMESTAMPTZ, run_id VARCHAR);
CREATE TABLE batch_platform.score_runs (
    seq BIGINT, pipeline VARCHAR, partition_key VARCHAR, partition_start TIMESTAMPTZ, partition_end TIMESTAMPTZ,
    model_version VARCHAR, model_sha256 VARCHAR, input_hash VARCHAR, code_version VARCHAR, engine VARCHAR,
    rows_in BIGINT, rows_scored BIGINT, rows_rejected BIGINT, in_sample BOOLEAN, started_at TIMESTAMPTZ,
    committed_at TIMESTAMPTZ, run_id VARCHAR);
CREATE TABLE batch_platform.evaluations (
    seq BIGINT, pipeline VARCHAR, partition_key VARCHAR, score_seq BIGINT, rows_scored BIGINT, rows_labelled BIGINT,
    evaluated_at TIMESTAMPTZ, run_id VARCHAR);
CREATE TABLE batch_platform.model_versions (
    seq BIGINT, pipeline VARCHAR, version VARCHAR, serving_period VARCHAR, serving_start TIMESTAMPTZ, sha256 VARCHAR,
    flavour VARCHAR, task VARCHAR, estimator VARCHAR, params VARCHAR, trained_from TIMESTAMPTZ,
    trained_until TIMESTAMPTZ, rows_trained BIGINT, rows_evaluated BIGINT, metrics VARCHAR, features_code_version VARCHAR,
    created_at TIMESTAMPTZ, run_id VARCHAR);
CREATE TABLE batch_platform.promotions (
    seq BIGINT, pipeline VARCHAR, version VARCHAR, action VARCHAR, reason VARCHAR, evidence VARCHAR, actor VARCHAR,
    decided_at TIMESTAMPTZ, run_id VARCHAR);
"""
_PERFORMANCE = """
CREATE TABLE IF NOT EXISTS {schema}.performance (
    partition_key VARCHAR, metric VARCHAR, value DOUBLE, rows_labelled BIGINT, model_version VARCHAR,
    evaluated_at TIMESTAMPTZ, run_id VARCHAR)
"""

Row = TypeVar("Row", FeatureBuild, ScoreRun, EvaluationRun)
_LEDGERS: dict[type, str] = {
    FeatureBuild: "feature_builds",
    ScoreRun: "score_runs",
    EvaluationRun: "evaluations",
}


@dataclass(frozen=True)
class Warehouse:
    """The warehouse of a home.

    Args:
        home: Where the file and its lock lie.
        timeout: Seconds to wait for another process to let go of it.
    """

    home: Home
    timeout: float = LOCK_TIMEOUT_SECONDS

    @contextmanager
    def open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse alone; keep it short.

        Raises:
            WarehouseBusyError: Another process kept it for longer than the time-out.
            WarehouseError: The file cannot be opened, or another version of this project wrote it.
        """
        with self._locked():
            try:
                con = duckdb.connect(str(self.home.warehouse))
            except duckdb.IOException as error:
                raise self._not_opened(error) from error
            except duckdb.Error as error:
                msg = f"The warehouse {self.home.warehouse} cannot be opened: {error}"
                raise WarehouseError(msg, hint="nothing was changed; restore the file from a backup.") from error
            try:
                con.execute("SET TimeZone = 'UTC'")
                self._prepare(con)
                yield con
            finally:
                con.close()

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse for one transaction, committed at the end and undone by any error.

        Raises:
            WarehouseBusyError: See `open`.
            WarehouseError: See `open`; or the transaction does not fit on the disk.
        """
        with self.open() as con:
            con.execute("BEGIN")
            try:
                yield con
                con.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(duckdb.Error):
                    con.execute("ROLLBACK")
                if isinstance(error, duckdb.IOException):
                    msg = f"The warehouse {self.home.warehouse} could not be written to: {error}"
                    raise WarehouseError(msg, hint="make room on the disk; nothing was changed.") from error
                raise
            con.execute("CHECKPOINT")

    def latest(self, ledger: type[Row], pipeline: str) -> dict[str, Row]:
        """The newest row of a ledger for each partition, by key.

        Raises:
            WarehouseBusyError: See `open`.
        """
        with self.open() as con:
            return read_latest(con, ledger, pipeline)

    def record_features(self, builds: Sequence[FeatureBuild]) -> None:
        """Add to the ledger of features.

        Raises:
            WarehouseBusyError: See `open`.
        """
        with self.transaction() as con:
            for build in builds:
                _append(con, build, changed="features")

    def commit_scores(self, pipeline: str, staged: Sequence[StagedScores], *, may_empty: bool) -> list[ScoreRun]:
        """Replace partitions of predictions and rejected rows together with their ledger rows, in one transaction.

        Args:
            pipeline: The schema of the tables.
            staged: One for each partition.
            may_empty: Whether a partition that had rows may become empty.

        Returns:
            The ledger rows as committed.

        Raises:
            WarehouseError: A newer run committed one of the partitions meanwhile; nothing is changed.
            DataError: A partition that had rows would become empty; nothing is changed.
            WarehouseBusyError: See `open`.
        """
        with self.transaction() as con:
            standing = read_latest(con, ScoreRun, pipeline)
            for scores in staged:
                _require_newest(scores, standing.get(scores.run.partition_key))
                _require_rows(scores, standing.get(scores.run.partition_key), may_empty=may_empty)
            keys = [scores.run.partition_key for scores in staged]
            replace_rows(con, pipeline, "predictions", keys, [scores.predictions for scores in staged])
            replace_rows(con, pipeline, "rejected_rows", keys, [scores.rejected for scores in staged])
            return [
                replace(scores.run, seq=_append(con, scores.run, changed="predictions", also="rejected_rows"))
                for scores in staged
            ]

    def commit_evaluations(self, pipeline: str, runs: Sequence[EvaluationRun], metrics: pl.DataFrame) -> None:
        """Replace partitions of `performance` together with their ledger rows, in one transaction.

        Args:
            pipeline: The schema of the table.
            runs: One for each partition.
            metrics: The rows of those partitions, with the table's columns.

        Raises:
            WarehouseBusyError: See `open`.
        """
        with self.transaction() as con:
            _create_schema(con, pipeline)
            con.execute(_PERFORMANCE.format(schema=quoted(pipeline)))
            table = f"{quoted(pipeline)}.performance"
            con.execute(f"DELETE FROM {table} WHERE partition_key IN $keys", {"keys": [run.partition_key for run in runs]})
            con.register("new_metrics", metrics)
            con.execute(f"INSERT INTO {table} BY NAME FROM new_metrics")
            for run in runs:
                _append(con, run, changed="performance")

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        known = con.execute("SELECT 1 FROM duckdb_tables() WHERE schema_name = 'batch_platform' AND table_name = 'meta'")
        if not known.fetchall():
            con.execute(f"BEGIN; {_SCHEMA}")
            con.execute("INSERT INTO batch_platform.meta VALUES ($format, $id)", {"format": FORMAT, "id": uuid.uuid4().hex})
            con.execute("COMMIT")
            return
        ((found,),) = con.execute("SELECT format FROM batch_platform.meta").fetchall()
        if found != FORMAT:
            msg = f"The warehouse {self.home.warehouse} has format {found}; this version of batch-platform uses {FORMAT}."
            raise WarehouseError(msg, hint="use the version that wrote it, or another BATCH_PLATFORM_HOME.")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.create()
        descriptor = os.open(self.home.warehouse_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        waited, pause = 0.0, _FIRST_PAUSE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise
                if waited >= self.timeout:
                    holder = os.pread(descriptor, 20, 0).decode() or "unknown"
                    raise self._busy(holder) from error
                nap = pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                time.sleep(nap)
                waited, pause = waited + nap, min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                return

    def _not_opened(self, error: duckdb.IOException) -> WarehouseError:
        text = str(error)
        if "lock" in text.lower():
            holder = text.rsplit("PID ", 1)[-1].split(")")[0] if "PID " in text else "unknown"
            return self._busy(holder)
        msg = f"The warehouse {self.home.warehouse} cannot be opened: {text}"
        return WarehouseError(msg, hint="nothing was changed; restore the file from a backup.")

    def _busy(self, holder: str) -> WarehouseBusyError:
        msg = f"The warehouse {self.home.warehouse} is held by process {holder}; waited {self.timeout:g} s."
        return WarehouseBusyError(msg, hint=f"end that process, or read {self.home.published}, which is never locked.")


def read_latest(con: duckdb.DuckDBPyConnection, ledger: type[Row], pipeline: str) -> dict[str, Row]:
    """The newest row of a ledger for each partition of a pipeline, by key; the ledger is only ever added to."""
    names = [item.name for item in fields(ledger)]
    columns = ", ".join(quoted(name) for name in names)
    query = (
        f"SELECT {columns} FROM batch_platform.{_LEDGERS[ledger]} WHERE pipeline = $pipeline "  # noqa: S608 - our names
        "QUALIFY row_number() OVER (PARTITION BY partition_key ORDER BY seq DESC) = 1"
    )
    rows = con.execute(query, {"pipeline": pipeline}).fetchall()
    return {row[1]: ledger(*row) for row in rows}


def replace_rows(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, keys: Sequence[str], files: Sequence[Path]
) -> None:
    """Replace the rows of some partitions by those of Parquet files, by column name, within the caller's transaction.

    Raises:
        DataError: A column has another type than in the table, and does not fit it.
    """
    _create_schema(con, schema)
    name = f"{quoted(schema)}.{quoted(table)}"
    paths = [str(file) for file in files]
    con.execute(f"CREATE TABLE IF NOT EXISTS {name} AS FROM read_parquet($paths) LIMIT 0", {"paths": paths})
    have = {column: dtype for column, dtype, *_ in con.execute(f"DESCRIBE {name}").fetchall()}
    new = con.execute("DESCRIBE FROM read_parquet($paths)", {"paths": paths}).fetchall()
    for column, dtype, *_ in new:
        if column not in have:
            con.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(column)} {dtype}")
    con.execute(f"DELETE FROM {name} WHERE partition_key IN $keys", {"keys": list(keys)})
    try:
        con.execute(f"INSERT INTO {name} BY NAME FROM read_parquet($paths)", {"paths": paths})
    except duckdb.ConversionException as error:
        differing = [f"{column} ({have[column]}, now {dtype})" for column, dtype, *_ in new if have.get(column, dtype) != dtype]
        msg = f"{schema}.{table}: values do not fit the table: {listed(differing)}: {error}"
        raise DataError(msg, hint="cast the column in the features to the type that the table has.") from error


def _append(con: duckdb.DuckDBPyConnection, row: Row, *, changed: str, also: str | None = None) -> int:
    """Add a row to its ledger and note the change; gives its number in the one sequence."""
    found = con.execute("SELECT nextval('batch_platform.seq')").fetchall()
    seq = int(found[0][0])
    values = {item.name: getattr(row, item.name) for item in fields(row)} | {"seq": seq}
    insert_row(con, _LEDGERS[type(row)], values)
    for table in filter(None, (changed, also)):
        note_change(con, seq, row.pipeline, table, row.partition_key)
    return seq


def insert_row(con: duckdb.DuckDBPyConnection, table: str, values: dict[str, Any]) -> None:
    """Insert one row into a table of schema `batch_platform`, by name, within the caller's transaction."""
    columns = ", ".join(quoted(name) for name in values)
    bound = ", ".join(f"${name}" for name in values)
    con.execute(f"INSERT INTO batch_platform.{table} ({columns}) VALUES ({bound})", values)


def note_change(con: duckdb.DuckDBPyConnection, seq: int, schema: str, table: str, partition_key: str) -> None:
    """Note that rows of a table changed, within the caller's transaction."""
    values = {"seq": seq, "schema_name": schema, "table_name": table, "partition_key": partition_key}
    insert_row(con, "changes", values)


def _create_schema(con: duckdb.DuckDBPyConnection, schema: str) -> None:
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")


def _require_newest(scores: StagedScores, standing: ScoreRun | None) -> None:
    if standing is not None and standing.seq > scores.seen_seq:
        run = scores.run
        msg = (
            f"{run.pipeline}, partition {run.partition_key}: run {standing.run_id} committed it at "
            f"{standing.committed_at:%Y-%m-%d %H:%M:%S} UTC, after this run had begun with it; this run changes nothing."
        )
        raise WarehouseError(msg, hint="run it again if it should be scored once more.")


def _require_rows(scores: StagedScores, standing: ScoreRun | None, *, may_empty: bool) -> None:
    if standing is not None and standing.rows_in and not scores.run.rows_in and not may_empty:
        run = scores.run
        msg = f"{run.pipeline}, partition {run.partition_key}: it had {standing.rows_in} rows and would become empty."
        raise DataError(msg, hint="see the sources; --force replaces it all the same.")
