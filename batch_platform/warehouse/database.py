"""The live DuckDB file: replace partitions atomically together with their ledger rows.

One process at a time holds the file, for one short transaction, under a flock on a file beside it.
"""

import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    OvertakenError,
    WarehouseError,
    is_interruption,
    listed,
)
from batch_platform.declaration.explaining import LOST_FILE, is_want_of_memory
from batch_platform.warehouse.deletion import compact_file, read_erasures
from batch_platform.warehouse.descriptions import comment_columns
from batch_platform.warehouse.failures import FailedStep, Failure, forget_failures, replace_failures
from batch_platform.warehouse.files import WarehouseFile, published_changes, sync
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    EvaluationRun,
    FeatureBuild,
    Row,
    ScoreRun,
    StatusRow,
    append,
    as_record,
    bring_to_format,
    create_ledgers,
    read_latest,
    replace_statuses,
    statuses_of,
)
from batch_platform.warehouse.lock import Patience, lock_timeout, locked
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import Attached, attach, has_table, quoted, transaction
from batch_platform.warehouse.tables_in_files import PREDICTIONS, NewRows, StagedFile, find_files, replace_partitions

_STORAGE_ERRORS = (
    duckdb.IOException,
    duckdb.SerializationException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.OutOfMemoryException,
    duckdb.TransactionException,  # raised when the log cannot be written at a commit, for example
)
_CORRUPT = re.compile(r"\b[Cc]orrupt")
HELD_BY_ANOTHER = re.compile("Could not set lock on file")
_REJECTED = "rejected_rows"
# A commit of staged files this large bounds DuckDB's buffer; they hold about 5 million plain scores.
LARGE_BYTES = 100_000_000
WIDE_ROW_BYTES = 256  # of its staged file; three reasons take about 150
BUFFER_BYTES = 64 * 2**20  # bound for each of DuckDB's threads

_RESTORE = "restore the newest published copy: batch-platform restore --from-published; or a backup of the whole home."

InTransaction = Callable[[duckdb.DuckDBPyConnection, Sequence[ScoreRun]], None]


@dataclass(frozen=True)
class StagedScores:
    """Staged rows of one partition, its ledger row, and the state of the ledger when scoring began."""

    predictions: Sequence[Path]
    rejected: Sequence[Path]
    run: ScoreRun
    seen_seq: int  # number of the partition's newest ledger row when scoring began; 0 for none
    # Predictions that are published as files; None if they are copied into DuckDB. The same for every partition of a commit.
    files: Sequence[StagedFile] | None = None
    decided: Mapping[Path, str] = field(default_factory=dict[Path, str])  # SQL conditions, see `rows_of_files`


@dataclass(frozen=True)
class Warehouse:
    """The warehouse of a home. Every method raises WarehouseBusyError and WarehouseError as `open` does."""

    home: Home
    timeout: float = field(default_factory=lock_timeout)  # seconds to wait for another process to release the lock

    @contextmanager
    def open(self, *, compact: bool = False) -> Generator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse alone; keep it short.

        With `compact`, the file is written anew first, see `compact_file`.

        Raises:
            WarehouseBusyError: Another process held it for longer than the time-out.
            WarehouseError: The file cannot be opened, read or written, or another version of this project wrote it.
            KeyboardInterrupt: A signal interrupted a query.
        """
        patience = Patience(self.home.create(), self.timeout)
        with locked(patience):
            # A process that was killed while it wrote the file anew may have left one; it makes no folders of these names.
            for left_behind in self.home.root.glob(f"{self._aside.name}*"):
                if not left_behind.is_dir():
                    self.home.remove(left_behind)
            if compact:
                # A killed process may have spilled rows there.
                self.home.remove(self.home.warehouse.with_name(f"{self.home.warehouse.name}.tmp"))
                with self._opened(patience) as con:
                    aside = compact_file(con, self._aside)
                aside.rename(self.home.warehouse)
                sync(self.home.root)
            with self._opened(patience) as con:
                yield con

    @contextmanager
    def _opened(self, patience: Patience) -> Generator[duckdb.DuckDBPyConnection]:
        """Open the file, whose lock is held."""
        with closing(self._file()) as file, closing(self._attach(patience, file)) as database:
            con = database.con
            find_files(con, self.home)
            try:
                if has_table(con, LEDGERS_SCHEMA, "meta"):
                    _require_published(con, self.home)
                    bring_to_format(con, self.home.warehouse)
                else:
                    _require_nothing_held(self.home, "holds none of the tables of batch-platform")
                    create_ledgers(con)
                self._checkpoint(con, file)  # a killed process may have left entries in the log
                yield con
                self._checkpoint(con, file)
            except duckdb.Error as error:
                lost = LOST_FILE.search(str(error))  # a file of the lake is missing, and the warehouse is sound
                if lost is None and (isinstance(error, _STORAGE_ERRORS) or is_damage(error)):
                    raise self._failed(error, "read or written") from error
                raise
            except RuntimeError as error:
                if is_interruption(error):
                    raise KeyboardInterrupt from error
                raise

    @contextmanager
    def transaction(self) -> Generator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse for one transaction, committed at the end and undone by any error."""
        with self.open() as con, transaction(con):
            yield con

    def latest(self, ledger: type[Row], pipeline: str) -> dict[str, Row]:
        """The newest row of a ledger for each partition, by key."""
        with self.open() as con:
            return read_latest(con, ledger, pipeline)

    def record_features(self, builds: Sequence[FeatureBuild], since: int | None = None) -> None:
        """Add to the ledger of features.

        Raises OvertakenError if a subject was erased after the change `since`, which they may hold.
        """
        with self.transaction() as con:
            for pipeline in {build.pipeline for build in builds}:
                if since is not None:
                    require_none_erased(con, pipeline, [build.partition_key for build in builds], since)
            append(con, builds, "features")
            for pipeline in {build.pipeline for build in builds}:
                forget_failures(con, pipeline, "features", [build.partition_key for build in builds])

    def record_failures(
        self,
        pipeline: str,
        step: FailedStep,
        failures: Sequence[Failure],
        *,
        refused: Mapping[str, Sequence[Path]],
        mended: Collection[str],
    ) -> None:
        """Record the failures of a step, with the files of the rejected rows that were too many; forget those of others."""
        if failures or mended:
            with self.transaction() as con:
                forget_failures(con, pipeline, step, mended)
                replace_failures(con, pipeline, step, failures, refused)

    def commit_scores(  # noqa: PLR0913 - what a commit needs
        self,
        pipeline: str,
        staged: Sequence[StagedScores],
        *,
        may_empty: bool,
        clock: Callable[[], datetime],
        clear: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
        in_transaction: InTransaction | None = None,
        descriptions: Mapping[str, str] | None = None,
    ) -> list[ScoreRun]:
        """Replace partitions of predictions and rejected rows together with their ledger rows, in one transaction.

        Args:
            pipeline: The schema of the tables.
            staged: One for each partition.
            may_empty: Whether a partition that had rows may become empty.
            clock: Read once, after the rows are inserted, for `committed_at`.
            clear: Called first, to delete what cannot stay beside the new rows.
            in_transaction: Called with the ledger rows of the partitions that are replaced, before the commit.
            descriptions: What columns hold, by name.

        Returns:
            The ledger rows as committed; if another run committed the same rows meanwhile, the row of that run.

        Raises:
            WarehouseError: Another run committed other rows of a partition meanwhile; nothing is changed.
            DataError: A partition that had rows would become empty, or values do not fit a table; nothing is changed.
            IntegrityError: The staged files do not hold the rows that were counted; nothing is changed.
        """
        with self.transaction() as con:
            if clear is not None:
                clear(con)
            standing = read_latest(con, ScoreRun, pipeline, [scores.run.partition_key for scores in staged])
            settled = {scores.run.partition_key for scores in staged if _is_settled(scores, standing)}
            new = [scores for scores in staged if scores.run.partition_key not in settled]
            _require_not_erased(con, pipeline, new)
            for scores in new:
                _require_replaceable(scores, standing.get(scores.run.partition_key), may_empty=may_empty)
            forget_failures(con, pipeline, "predictions", [scores.run.partition_key for scores in staged])
            if new:
                keys = [scores.run.partition_key for scores in new]
                predictions = [file for scores in new for file in scores.predictions]
                files = [file for scores in new for file in scores.files or ()] if new[0].files is not None else None
                decided = {file: condition for scores in new for file, condition in scores.decided.items()}
                present = [key for key in keys if key in standing]
                rows = NewRows(keys, predictions, files, standing=present, decided=decided)
                with bounded_buffer(con, predictions, sum(scores.run.rows_scored for scores in new)):
                    scored = replace_partitions(con, self.home, pipeline, PREDICTIONS, rows)
                comment_columns(con, pipeline, PREDICTIONS.view, descriptions or {})
                rejected = _replace_rejected(con, pipeline, new)
                _require_balance(new, scored, rejected)
                now = clock()
                runs = [replace(scores.run, committed_at=now) for scores in new]
                replace_statuses(con, pipeline, [_status_at_commit(run) for run in runs], keys)
                seqs = append(con, runs, "predictions", _REJECTED, beside=[statuses_of(pipeline)])
                runs = [replace(run, seq=seq) for run, seq in zip(runs, seqs, strict=True)]
                if in_transaction is not None:
                    in_transaction(con, runs)
                standing |= {run.partition_key: run for run in runs}
            return [standing[scores.run.partition_key] for scores in staged]

    def commit_evaluations(
        self,
        pipeline: str,
        runs: Sequence[EvaluationRun],
        tables: Mapping[str, pl.DataFrame],
        in_transaction: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
    ) -> None:
        """Replace partitions of the measures' tables together with their ledger rows, in one transaction.

        There is one run for each partition; the rows of every table have the column `partition_key`. `in_transaction` is
        called once they are written.
        """
        with self.transaction() as con:
            for table, rows in tables.items():
                con.register("new_rows", rows)
                replace_rows(con, pipeline, table, [run.partition_key for run in runs], "new_rows")
                con.unregister("new_rows")
            append(con, runs, *tables)
            if in_transaction is not None:
                in_transaction(con)
            forget_failures(con, pipeline, "performance", [run.partition_key for run in runs])

    @property
    def _aside(self) -> Path:
        """The name under which a file is written, so that a file under its own name is complete."""
        return self.home.warehouse.with_name(f".{self.home.warehouse.name}")

    def _file(self) -> WarehouseFile:
        try:
            if not self.home.warehouse.exists():
                require_not_lost(self.home)
                attach(self._aside).close()
                self._aside.rename(self.home.warehouse)
            return WarehouseFile(self.home, os.open(self.home.warehouse, os.O_RDWR))
        except (duckdb.Error, OSError) as error:
            raise self._failed(error, "opened") from error

    def _checkpoint(self, con: duckdb.DuckDBPyConnection, file: WarehouseFile) -> None:
        try:
            file.checkpoint(con)
        except (duckdb.Error, OSError) as error:
            msg = f"The warehouse {self.home.warehouse} holds what was committed, but could not be tidied: {error}"
            raise WarehouseError(msg, hint="make room on the disk and run again; what is done is skipped.") from error

    def _attach(self, patience: Patience, file: WarehouseFile) -> Attached:
        """Open the file; a program that does not know of the lock beside it may have the file open."""
        while True:
            try:
                file.roll_back()
                return attach(self.home.warehouse)
            except BlockingIOError:
                patience.pause("unknown")
            except (OSError, ValueError) as error:
                raise self._failed(error, "opened") from error
            except duckdb.Error as error:
                if not HELD_BY_ANOTHER.search(str(error)):
                    raise self._failed(error, "opened") from error
                patience.pause(holder_of(error) or "unknown")

    def _failed(self, error: Exception, how: str) -> WarehouseError:
        if is_damage(error):
            msg = f"The warehouse {self.home.warehouse} is damaged: {error}"
            hint = f"nothing was changed or deleted; {_RESTORE} {self.home.published} can be read meanwhile."
            return WarehouseError(msg, hint=hint)
        full = isinstance(error, duckdb.IOException | duckdb.TransactionException | OSError)
        advice = "make room on the disk" if full else "see the message"
        advice = "give the process more memory" if is_want_of_memory(error) else advice
        msg = f"The warehouse {self.home.warehouse} cannot be {how}: {error}"
        return WarehouseError(msg, hint=f"nothing was changed; {advice}, or {_RESTORE}")


@contextmanager
def bounded_buffer(con: duckdb.DuckDBPyConnection, staged: Sequence[Path], rows: int) -> Generator[None]:
    """Bound the blocks that DuckDB keeps in memory once it has written them, which would grow with the partition.

    Small files need no bound, and wide rows need the memory while they are written.
    """
    if not LARGE_BYTES <= sum(file.stat().st_size for file in staged) <= rows * WIDE_ROW_BYTES:
        yield
        return
    with con.cursor() as settings:  # outside the transaction, which an error may have ended
        ((threads,),) = settings.execute("SELECT current_setting('threads')").fetchall()
        settings.execute(f"SET GLOBAL memory_limit = '{threads * BUFFER_BYTES}B'")
        try:
            yield
        finally:
            settings.execute("RESET GLOBAL memory_limit")


def require_not_lost(home: Home) -> None:
    """Raise WarehouseError if the warehouse is missing where one has been, or if a backup is not wholly restored."""
    home.require_restored()
    if not home.warehouse.exists():
        _require_nothing_held(home, "is missing")


def lacked_copies(con: duckdb.DuckDBPyConnection, home: Home) -> list[Path]:
    """The published copies that hold a change which a database with ledgers lacks."""
    lacked, journal = published_changes(home), f"{LEDGERS_SCHEMA}.changes"
    anywhere = f"SELECT change_id FROM {journal} WHERE change_id IN $ids"
    recent = f"{anywhere} AND seq > (SELECT max(seq) - 10000 FROM {journal})"  # reads equally fast however long the journal is
    for query in (recent, anywhere):
        if lacked:
            held = con.execute(query, {"ids": list(lacked)}).fetchall()
            lacked = {change: copy for change, copy in lacked.items() if (change,) not in held}
    return sorted(lacked.values())


def _require_published(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Law 20: the next publish would remove the copies."""
    if ahead := lacked_copies(con, home):
        msg = (
            f"The warehouse {home.warehouse} is an older one, or that of another home: it lacks changes that are published "
            f"in {listed(path.name for path in ahead)}; nothing was changed."
        )
        gone = "" if any(copy.exists() for copy in ahead) else f" To go on with it, remove {home.published_marks}."
        raise WarehouseError(msg, hint=f"{_RESTORE}{gone}")


def _require_nothing_held(home: Home, state: str) -> None:
    """Refuse to begin a new warehouse in a home that holds something: it would be published, and the rest be lost."""
    kept = {
        "published copies": any(home.root.glob("published*.duckdb")),
        "models": any(home.models.glob("*/*")),
        "features": any(home.lake.glob("*/*/*")),
    }
    if held := [name for name, present in kept.items() if present]:
        msg = (
            f"The warehouse {home.warehouse} {state}, but {home.root} holds {' and '.join(held)}; nothing was changed."
        )
        raise WarehouseError(msg, hint=_RESTORE)


def holder_of(error: duckdb.Error) -> str | None:
    """The id of the process that holds a file, if DuckDB's refusal to open it names one."""
    holder = re.search(r"PID (\d+)", str(error))
    return holder[1] if holder else None


def is_damage(error: Exception) -> bool:
    """Tell damage, a wrong checksum of a block, of an entry of the log or of the rollback journal, from other errors.

    DuckDB checks each when it reads it, and has no error type of its own for a mismatch.
    """
    of_storage = type(error) is duckdb.Error or isinstance(error, _STORAGE_ERRORS)
    return isinstance(error, ValueError) or (of_storage and _CORRUPT.search(str(error)) is not None)


def _replace_rejected(con: duckdb.DuckDBPyConnection, pipeline: str, staged: Sequence[StagedScores]) -> int:
    """Replace the rejected rows of partitions; returns how many were inserted."""
    keys = [scores.run.partition_key for scores in staged]
    files = [file for scores in staged for file in scores.rejected]
    if has_table(con, pipeline, _REJECTED):
        counted = "SELECT coalesce(sum(num_rows), 0) FROM parquet_file_metadata($paths)"
        if con.execute(counted, {"paths": [str(file) for file in files]}).fetchall() == [(0,)]:
            con.execute(f"DELETE FROM {quoted(pipeline)}.{_REJECTED} WHERE partition_key IN $keys", {"keys": keys})
            return 0
    return replace_rows(con, pipeline, _REJECTED, keys, files)


def _require_balance(staged: Sequence[StagedScores], scored: int, rejected: int) -> None:
    """Law 2, once more, where the rows are inserted."""
    runs = [scores.run for scores in staged]
    counted = [run for run in runs if run.rows_in != run.rows_scored + run.rows_rejected]
    if counted or scored != sum(run.rows_scored for run in runs) or rejected != sum(run.rows_rejected for run in runs):
        pipeline, keys = runs[0].pipeline, listed(run.partition_key for run in counted or runs)
        msg = f"{pipeline}, partition {keys}: the staged rows are not those that were counted; nothing is changed."
        raise IntegrityError(msg, hint="run it again; if it fails again, report it as a defect.")


def _status_at_commit(run: ScoreRun) -> StatusRow:
    """The status of a partition as it is committed; `StateKeeper.conclude` renews it, unless the run is killed before."""
    champion = None if run.decision_seq is None else run.model_version  # another version was named for the run
    return as_record(StatusRow, run, condition="scored", reason=None, champion=champion, computed_at=run.committed_at)


def _is_settled(scores: StagedScores, standing: Mapping[str, ScoreRun]) -> bool:
    """Return whether another run committed the staged rows since scoring began: by law 3, equal inputs give equal rows."""
    newest = standing.get(scores.run.partition_key)
    return newest is not None and newest.seq > scores.seen_seq and _outcome(newest) == _outcome(scores.run)


def _outcome(run: ScoreRun) -> tuple[object, ...]:
    inputs = (run.model_sha256, run.input_hash, run.code_version, run.decision_rule)
    return (*inputs, run.rows_in, run.rows_scored, run.rows_rejected)


def _require_not_erased(con: duckdb.DuckDBPyConnection, pipeline: str, staged: Sequence[StagedScores]) -> None:
    """Refuse rows that may hold a subject which was erased since their features were read."""
    if read_erasures(con, pipeline):
        runs = [scores.run for scores in staged]
        builds = read_latest(con, FeatureBuild, pipeline, [run.partition_key for run in runs])
        read = {run.partition_key: run.input_hash for run in runs}
        if other := [key for key, build in builds.items() if build.sha256 != read[key]]:
            raise _overtaken_by_erasure(pipeline, other)


def require_none_erased(con: duckdb.DuckDBPyConnection, pipeline: str, keys: Collection[str], since: int) -> None:
    """Refuse rows of partitions that were read at the change `since`, if a subject was erased later, which they may hold."""
    if any(erasure.seq > since for erasure in read_erasures(con, pipeline)):
        raise _overtaken_by_erasure(pipeline, keys)


def _overtaken_by_erasure(pipeline: str, keys: Collection[str]) -> OvertakenError:
    msg = f"{pipeline}, partition {listed(keys)}: rows of its features were erased after this run started; nothing is changed."
    return OvertakenError(msg, hint="run it again.")


def _require_replaceable(scores: StagedScores, standing: ScoreRun | None, *, may_empty: bool) -> None:
    """Refuse to replace rows that another run committed meanwhile, and to empty a partition that had rows."""
    if standing is None:
        return
    where = f"{scores.run.pipeline}, partition {scores.run.partition_key}"
    if standing.seq > scores.seen_seq:
        committed = f"{standing.committed_at:%Y-%m-%d %H:%M:%S} UTC"
        msg = f"{where}: run {standing.run_id} committed it at {committed}, after this run started; nothing is changed."
        raise OvertakenError(msg, hint="run it again if it should be scored once more.")
    if standing.rows_in and not scores.run.rows_in and not may_empty:
        msg = f"{where}: it had {standing.rows_in} rows and would become empty."
        raise DataError(msg, hint="check the sources, or use --force to replace it anyway.")
