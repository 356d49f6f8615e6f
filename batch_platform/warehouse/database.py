"""The live DuckDB file: replace partitions atomically together with their ledger rows.

One process at a time holds it, for the length of one short transaction, under a flock on a file beside it; its bytes
are never touched otherwise. Knows nothing of models or of Dagster.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WarehouseError, listed
from batch_platform.warehouse.checkpoint import WarehouseFile
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    EvaluationRun,
    FeatureBuild,
    Row,
    ScoreRun,
    append,
    create_ledgers,
    read_latest,
    require_format,
)
from batch_platform.warehouse.lock import Patience, lock_timeout, locked
from batch_platform.warehouse.partition_writes import create_schema, replace_rows
from batch_platform.warehouse.sql import has_table, quoted

_STORAGE_ERRORS = (
    duckdb.IOException,
    duckdb.SerializationException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.OutOfMemoryException,
    duckdb.TransactionException,  # among others, a log that cannot be written when committing
)
READABLE_FROM = "v1.5.0"  # of DuckDB: a file that readers open is written for these and newer versions
_CORRUPT = re.compile(r"\b[Cc]orrupt")
HELD_BY_ANOTHER = re.compile("Could not set lock on file")


InTransaction = Callable[[duckdb.DuckDBPyConnection, Sequence[ScoreRun]], None]


@dataclass(frozen=True)
class StagedScores:
    """What committing one partition needs: Parquet files, the ledger row, and the ledger as it was when scoring began."""

    predictions: Sequence[Path]
    rejected: Sequence[Path]
    run: ScoreRun
    seen_seq: int  # seq of the partition's newest ledger row when scoring began; 0 for none


@dataclass(frozen=True)
class Warehouse:
    """The warehouse of a home.

    Args:
        home: Where the file and its lock lie.
        timeout: Seconds to wait for another process to let go of it; left out, as the environment says.
    """

    home: Home
    timeout: float = field(default_factory=lock_timeout)

    @contextmanager
    def open(self) -> Generator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse alone; keep it short.

        Raises:
            WarehouseBusyError: Another process kept it for longer than the time-out.
            WarehouseError: The file cannot be opened or read, or another version of this project wrote it.
        """
        patience = Patience(self.home.create(), self.timeout)
        with locked(patience), closing(self._file()) as file, closing(self._connect(patience, file)) as con:
            try:
                self._prepare(con)
                self._checkpoint(con, file)  # of what a process that was killed has left in the log, among others
                yield con
                self._checkpoint(con, file)
            except duckdb.Error as error:
                if isinstance(error, _STORAGE_ERRORS) or is_damage(error):
                    raise self._failed(error, "read or written") from error
                raise

    @contextmanager
    def transaction(self) -> Generator[duckdb.DuckDBPyConnection]:
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
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    con.execute("ROLLBACK")
                raise

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
            append(con, builds, "features")

    def commit_scores(
        self,
        pipeline: str,
        staged: Sequence[StagedScores],
        *,
        may_empty: bool,
        clock: Callable[[], datetime],
        in_transaction: InTransaction | None = None,
    ) -> list[ScoreRun]:
        """Replace partitions of predictions and rejected rows together with their ledger rows, in one transaction.

        Args:
            pipeline: The schema of the tables.
            staged: One for each partition.
            may_empty: Whether a partition that had rows may become empty.
            clock: Read once, when the rows are in, for `committed_at`.
            in_transaction: Called with the ledger rows of the partitions that are replaced, before the commit.

        Returns:
            The ledger rows as committed; that of another run where it committed the very same meanwhile.

        Raises:
            WarehouseError: A newer run committed something else of a partition meanwhile; nothing is changed.
            DataError: A partition that had rows would become empty, or values do not fit a table; nothing is changed.
            IntegrityError: The staged files do not hold the rows that were counted; nothing is changed.
            WarehouseBusyError: See `open`.
        """
        with self.transaction() as con:
            standing = read_latest(con, ScoreRun, pipeline)
            settled = {scores.run.partition_key for scores in staged if _is_settled(scores, standing)}
            new = [scores for scores in staged if scores.run.partition_key not in settled]
            for scores in new:
                _require_newest(scores, standing.get(scores.run.partition_key))
                _require_rows(scores, standing.get(scores.run.partition_key), may_empty=may_empty)
            if new:
                keys = [scores.run.partition_key for scores in new]
                predictions = [file for scores in new for file in scores.predictions]
                scored = replace_rows(con, pipeline, "predictions", keys, predictions)
                rejections = [file for scores in new for file in scores.rejected]
                rejected = replace_rows(con, pipeline, "rejected_rows", keys, rejections)
                _require_balance(new, scored, rejected)
                now = clock()
                runs = [replace(scores.run, committed_at=now) for scores in new]
                seqs = append(con, runs, "predictions", "rejected_rows")
                runs = [replace(run, seq=seq) for run, seq in zip(runs, seqs, strict=True)]
                if in_transaction is not None:
                    in_transaction(con, runs)
                standing |= {run.partition_key: run for run in runs}
            return [standing[scores.run.partition_key] for scores in staged]

    def commit_evaluations(
        self, pipeline: str, runs: Sequence[EvaluationRun], tables: Mapping[str, pl.DataFrame]
    ) -> None:
        """Replace partitions of the measures' tables together with their ledger rows, in one transaction.

        Args:
            pipeline: The schema of the tables.
            runs: One for each partition.
            tables: The rows of those partitions by table; each has the column `partition_key`. A column that a table
                lacks is added to it.

        Raises:
            WarehouseBusyError: See `open`.
        """
        with self.transaction() as con:
            create_schema(con, pipeline)
            for name, rows in tables.items():
                table = f"{quoted(pipeline)}.{quoted(name)}"
                con.register("new_rows", rows)
                con.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM new_rows LIMIT 0")
                for column, dtype, *_ in con.execute("DESCRIBE FROM new_rows").fetchall():
                    con.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {quoted(column)} {dtype}")
                keys = [run.partition_key for run in runs]
                con.execute(f"DELETE FROM {table} WHERE partition_key IN $keys", {"keys": keys})
                con.execute(f"INSERT INTO {table} BY NAME FROM new_rows")
                con.unregister("new_rows")
            append(con, runs, *tables)

    def _file(self) -> WarehouseFile:
        """The file; where there is none, an empty one is made under another name, and has its own when it is whole."""
        aside = self.home.warehouse.with_name(f".{self.home.warehouse.name}")
        try:
            if not self.home.warehouse.exists():
                aside.unlink(missing_ok=True)  # left by a process that was killed
                _connected(aside).close()
                aside.rename(self.home.warehouse)
            return WarehouseFile.of(self.home)
        except (duckdb.Error, OSError) as error:
            raise self._failed(error, "opened") from error

    def _checkpoint(self, con: duckdb.DuckDBPyConnection, file: WarehouseFile) -> None:
        try:
            file.checkpoint(con)
        except (duckdb.Error, OSError) as error:
            msg = f"The warehouse {self.home.warehouse} holds what was committed, but could not be tidied: {error}"
            raise WarehouseError(msg, hint="make room on the disk and run again; what is done is skipped.") from error

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        if not has_table(con, LEDGERS_SCHEMA, "meta"):
            create_ledgers(con)
            return
        require_format(con, self.home.warehouse)

    def _connect(self, patience: Patience, file: WarehouseFile) -> duckdb.DuckDBPyConnection:
        """Open the file, which somebody who does not know of the lock beside it may have open."""
        while True:
            try:
                file.roll_back()
                return _connected(self.home.warehouse)
            except BlockingIOError:
                patience.pause("unknown")
            except (OSError, ValueError) as error:
                raise self._failed(error, "opened") from error
            except duckdb.Error as error:
                if not HELD_BY_ANOTHER.search(str(error)):
                    raise self._failed(error, "opened") from error
                holder = re.search(r"PID (\d+)", str(error))
                patience.pause(holder[1] if holder else "unknown")

    def _failed(self, error: Exception, how: str) -> WarehouseError:
        if is_damage(error):
            msg = f"The warehouse {self.home.warehouse} is damaged: {error}"
            hint = f"nothing was changed or deleted; restore it from a backup. {self.home.published} can be read meanwhile."
            return WarehouseError(msg, hint=hint)
        full = isinstance(error, duckdb.IOException | duckdb.TransactionException | OSError)
        advice = "make room on the disk" if full else "see the message"
        msg = f"The warehouse {self.home.warehouse} cannot be {how}: {error}"
        return WarehouseError(msg, hint=f"nothing was changed; {advice}, or restore the file from a backup.")


def _connected(file: Path) -> duckdb.DuckDBPyConnection:
    """A connection that makes no checkpoint of its own accord: they are all made safe first."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "storage_compatibility_version": READABLE_FROM,
        "checkpoint_threshold": "1TB",
    }
    con = duckdb.connect(str(file), config=config)
    con.execute("PRAGMA disable_checkpoint_on_shutdown; SET TimeZone = 'UTC'")
    return con


def is_damage(error: Exception) -> bool:
    """Whether a block, an entry of the log or what was saved of a block has another checksum than it was written with.

    DuckDB checks each as it reads it, and has no error type of its own for what does not fit.
    """
    of_storage = type(error) is duckdb.Error or isinstance(error, _STORAGE_ERRORS)
    return isinstance(error, ValueError) or (of_storage and _CORRUPT.search(str(error)) is not None)


def _require_balance(staged: Sequence[StagedScores], scored: int, rejected: int) -> None:
    """Law 2, once more, where the rows go in."""
    runs = [scores.run for scores in staged]
    counted = [run for run in runs if run.rows_in != run.rows_scored + run.rows_rejected]
    if counted or scored != sum(run.rows_scored for run in runs) or rejected != sum(run.rows_rejected for run in runs):
        raise _not_as_counted(counted or runs)


def _not_as_counted(runs: Sequence[ScoreRun]) -> IntegrityError:
    keys = listed(run.partition_key for run in runs)
    msg = f"{runs[0].pipeline}, partition {keys}: the staged rows are not those that were counted; nothing is changed."
    return IntegrityError(msg, hint="run it again; if it stays so, report it as a defect.")


def _is_settled(scores: StagedScores, standing: Mapping[str, ScoreRun]) -> bool:
    """Whether another run committed, since scoring began, just what was staged: the same rows, by law 3."""
    found = standing.get(scores.run.partition_key)
    return found is not None and found.seq > scores.seen_seq and _outcome(found) == _outcome(scores.run)


def _outcome(run: ScoreRun) -> tuple[object, ...]:
    return (run.model_sha256, run.input_hash, run.code_version, run.rows_in, run.rows_scored, run.rows_rejected)


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
