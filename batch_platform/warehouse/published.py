"""The published copy of the warehouse for readers: complete and consistent at every moment, never locked by a writer.

A copy is named after the newest change that it holds, and the link `published.duckdb` points to a complete one. Publishing
brings the other copy up to date from the warehouse's journal of changes, renames it and flips the link to it; a copy that
a reader still holds open is left alone. So publishing costs in proportion to what changed, the file that readers open is
never touched, and no reader can delay a write. Files of tables are removed once neither the warehouse nor a copy names them.

If the warehouse is small, there is no second copy, or much changed since, the bytes of the warehouse are copied instead,
under the lock; an open warehouse has no log that they would lack. Another process copies them: a process that opens a file
of its own database a second time loses its lock on it when it closes it.
"""

import fcntl
import logging
import stat
import subprocess
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import duckdb

from batch_platform.declaration.errors import NothingPublishedError, WarehouseBusyError, WarehouseError
from batch_platform.warehouse.database import HELD_BY_ANOTHER, Warehouse, holder_of, is_damage, require_not_lost
from batch_platform.warehouse.deletion import remove_marked
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.files import (
    NOTHING,
    copy_of,
    current_copy,
    files_set_aside,
    log_of,
    mark_of,
    published_copies,
    read_marks,
    sync,
    unfinished_copies,
    write_marks,
    written_by_others,
)
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, STATUS_TABLE, created_at, require_format
from batch_platform.warehouse.lock import sweep_all
from batch_platform.warehouse.sql import READABLE_FROM, attach, connect, literal, quoted, tables, transaction
from batch_platform.warehouse.tables_in_files import (
    files_in_lake,
    find_files,
    made_elsewhere,
    make_view,
    make_views_here,
    named_files,
    remove_files,
    views,
)

SMALL_BYTES = 16 * 2**20  # up to this size, copying all bytes is quicker than the statements for what changed
MUCH_ROWS, MUCH_OF_ALL = 100_000, 0.25
_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

Opened = TypeVar("Opened")

_log = logging.getLogger(__name__)


def open_published(home: Home) -> duckdb.DuckDBPyConnection:
    """Connect to the published copy, read-only and with time zone UTC; close the connection, or use it in `with`.

    A connection goes on reading the copy it opened, whatever is published meanwhile.

    Raises:
        NothingPublishedError: The home has no published copy yet.
        WarehouseError: The copy cannot be read, another version of this project wrote it, or a restore is not complete.
    """
    copy, con = _opened(home, lambda copy: connect(copy, read_only=True))
    con.execute("SET TimeZone = 'UTC'")
    find_files(con, home)
    require_format(con, copy)
    return con


@contextmanager
def reading_published(home: Home) -> Generator[duckdb.DuckDBPyConnection]:
    """Connect to the published copy as `open_published` does, for statements of this project's own.

    Takes a tenth of the time, since the instance of DuckDB lives on. Raises as `open_published` does.
    """
    copy, attached = _opened(home, lambda copy: attach(copy, read_only=True))
    with closing(attached):
        find_files(attached.con, home)
        require_format(attached.con, copy)
        yield attached.con


@contextmanager
def held_copy(home: Home) -> Generator[BinaryIO]:
    """The bytes of the published copy, which nobody changes until the block ends, whatever is published meanwhile.

    Raises as `open_published` does. The process must not open the copy in DuckDB meanwhile: closing it would release the lock.
    """
    while True:
        copy, connection = _opened(home, lambda copy: connect(copy, read_only=True))
        connection.close()
        with ExitStack() as stack:
            try:
                file = stack.enter_context(copy.open("rb"))
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (FileNotFoundError, BlockingIOError):  # two publishes since have taken it
                continue
            if current_copy(home) == copy:
                yield file
                return


def reading_ledgers(home: Home) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Connect to the warehouse, or to the published copy in a home that may only be read; raises as their openers do."""
    return Warehouse(home).open() if home.is_writable else reading_published(home)


def _opened(home: Home, connect: Callable[[Path], Opened]) -> tuple[Path, Opened]:
    """The published copy and what connects to it; raises as `open_published` does."""
    home.require_restored()
    while True:
        try:
            copy = current_copy(home)
        except PermissionError as error:
            msg = f"The home {home.root} cannot be read by this user ({error.strerror})."
            raise WarehouseError(msg, hint="join the group of the folder, or let its owner admit you.") from error
        if copy is None:
            home.require_folder()
            if published_copies(home) or home.published_marks.exists():
                msg = f"The link {home.published} to the published copy is missing, or leads elsewhere."
                raise WarehouseError(msg, hint="batch-platform run NAME publishes again and makes the link.")
            require_not_lost(home)
            msg = f"Nothing is published in {home.root} yet."
            raise NothingPublishedError(msg, hint="run a pipeline first: batch-platform run NAME.")
        try:
            return copy, connect(copy)
        except duckdb.Error as error:
            if current_copy(home) != copy:  # two publishes since have removed the file
                continue
            if HELD_BY_ANOTHER.search(str(error)):
                holder = holder_of(error)
                named = f" (process {holder})" if holder else ""
                msg = f"The published copy {copy} is held by another program{named}, which opened it for writing."
                raise WarehouseError(msg, hint="end it, and let it open the copy with read_only=True.") from error
            msg = f"The published copy {copy} cannot be opened: {error}"
            raise WarehouseError(msg, hint=anew(copy)) from error


def publish(home: Home) -> Path:
    """Bring `published.duckdb` up to date and return the file that it points to; remove what killed runs left in staging.

    Raises:
        WarehouseBusyError: Another process held the warehouse for longer than the time-out.
        WarehouseError: The copy cannot be written.
    """
    sweep_all(home)
    wiped = _wiped(home) if home.wiping.exists() else None
    if wiped is not None:
        return wiped
    with Warehouse(home).open() as con:
        if not (moved := made_elsewhere(con, home)):
            return _published(con, home)
    with Warehouse(home).transaction() as con:
        make_views_here(con, moved)
    with Warehouse(home).open() as con:  # opening moves the views from the log into the file
        return _published(con, home)


def _wiped(home: Home) -> Path | None:
    """Write the warehouse and its copy anew after rows were deleted for good, and remove every other file that holds them.

    None if the disk has no room for that: the rows are published as deleted then, and the next publication tries again.
    """
    try:
        with Warehouse(home).open(compact=True) as con:
            if not home.wiping.exists():  # another process has done it while this one waited
                return _published(con, home)
            for path in files_set_aside(home):
                home.remove(path)
            for copy in {*published_copies(home)} - {current_copy(home)}:
                _remove(home, copy)
            wanted = _published(con, home)
            for copy in {*published_copies(home)} - {wanted}:
                _remove(home, copy)
            _remove_unnamed(con, home)
            remove_marked(con, home)
            return wanted
    except (WarehouseError, duckdb.Error, OSError) as error:
        if isinstance(error, WarehouseBusyError):
            raise
        _log.warning(
            "The bytes of deleted rows are still in %s, which cannot be written anew: %s", home.warehouse, error
        )
        return None


def _published(con: duckdb.DuckDBPyConnection, home: Home) -> Path:
    wanted = newest_copy(con, home)
    current, marks = current_copy(home), read_marks(home)
    unfinished = unfinished_copies(home)
    foreign = written_by_others([path for path in published_copies(home) if path not in unfinished], marks)
    for copy, changed_at in foreign.items():
        _log.warning(
            "%s was changed by another program at %s UTC; what is published is made anew from the warehouse. "
            "Hint: open it with read_only=True.",
            copy,
            f"{changed_at:%Y-%m-%d %H:%M:%S}",
        )
    if current == wanted and wanted.is_file() and wanted not in foreign:
        _remove_unnamed(con, home)
        return wanted
    if home.published.exists() and current is None:
        _log.warning("%s is no longer the link that was published; it is made anew.", home.published)
    excluded = {current, *unfinished, *foreign}
    spares = [path for path in published_copies(home) if path.name in marks and path not in excluded]
    try:
        spare, read = _from_spares(con, home, spares)
        copy = spare or copy_bytes(home, copy_of(home, uuid.uuid4().hex))
    except (duckdb.Error, OSError) as error:
        msg = f"{home.published} could not be brought up to date: {error}"
        raise WarehouseError(msg, hint="make room on the disk; the last complete copy is still there.") from error
    kept = {path.name: marks[path.name] for path in (*read, current) if path is not None and path.name in marks}
    write_marks(home, kept | {wanted.name: mark_of(copy)})
    home.remove(log_of(wanted))  # a foreign writer may have left it
    copy.rename(wanted)
    wanted.chmod(wanted.stat().st_mode & ~_WRITE)  # until it has its mark and its name, it counts as unfinished
    link = home.root / ".published"
    home.remove(link)
    link.symlink_to(wanted.name)
    link.replace(home.published)
    for copy in published_copies(home):
        if copy not in {wanted, current, *read} or (copy != wanted and copy in foreign):
            _remove(home, copy)
    _remove_unnamed(con, home)
    return wanted


def anew(copy: Path) -> str:
    """The hint where a copy cannot be used."""
    return f"remove {copy} if it is there, and run a pipeline: batch-platform run NAME publishes a new copy."


def newest_copy(con: duckdb.DuckDBPyConnection, home: Home) -> Path:
    """The file that a publish would make now."""
    query = f"SELECT change_id FROM {LEDGERS_SCHEMA}.changes ORDER BY seq DESC, change_id LIMIT 1"
    newest = con.execute(query).fetchall()
    return copy_of(home, newest[0][0] if newest else NOTHING)


def _remove(home: Home, copy: Path) -> None:
    for path in (copy, log_of(copy)):
        home.remove(path)


def _write_rows(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    _attach(con, path)
    with _attached(con):
        _copy_changes(con, since=0)


def copy_bytes(home: Home, path: Path) -> Path:
    """Copy the file of the warehouse, which is locked, to a path, under another name until it is complete; raises OSError."""
    for unfinished in home.root.glob(".published-*"):  # a killed process may have left some
        home.remove(unfinished)
    aside = home.root / f".{path.name}"
    command = ["cp", "--", str(home.warehouse), str(aside)]
    copied = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603 - no text of a user
    if copied.returncode:
        home.remove(aside)
        raise OSError(copied.stderr.strip() or f"cp ended with {copied.returncode}")
    sync(aside)
    return aside.rename(path)


def _from_spares(con: duckdb.DuckDBPyConnection, home: Home, spares: Iterable[Path]) -> tuple[Path | None, set[Path]]:
    """The first spare copy that could be made equal to the warehouse, if any, and those that a reader holds open.

    A copy that cannot be opened is removed. None is made equal to a small warehouse, whose bytes are copied.
    """
    equal, read = None, set[Path]()
    small = home.warehouse.stat().st_size <= SMALL_BYTES
    for path in spares:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
        try:
            _attach(con, path)
        except duckdb.Error as error:
            if isinstance(error, duckdb.ResourceInUseException) or HELD_BY_ANOTHER.search(str(error)):
                path.chmod(path.stat().st_mode & ~_WRITE)
                read.add(path)
            else:
                _remove(home, path)
            continue
        if small or equal is not None:
            con.execute("DETACH copy")
        elif _brought_up_to_date(con, home, path):
            equal = path
    return equal, read


def _brought_up_to_date(con: duckdb.DuckDBPyConnection, home: Home, path: Path) -> bool:
    """Make the attached copy equal to the warehouse and detach it; False if so much has changed that its bytes are copied.

    A copy with another history than the warehouse's is not used either. A damaged copy is written anew.
    """
    try:
        with _attached(con):
            since = _shared_past(con)
            if since is None or _much_changed(con, since):
                return False
            _copy_changes(con, since)
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        _remove(home, path)
        _write_rows(con, path)  # fails too if the warehouse is damaged, so its damage is not published
    return True


def _much_changed(con: duckdb.DuckDBPyConnection, since: int) -> bool:
    """Return whether so many rows were scored since a change that copying all bytes is quicker than writing the rows.

    Rows in files count too: without them the warehouse is small, and copying it is quick.
    """
    query = f"SELECT coalesce(sum(rows_scored + rows_rejected), 0) FROM {LEDGERS_SCHEMA}.score_runs WHERE seq > $since"
    ((changed,),) = con.execute(query, {"since": since}).fetchall()
    if changed <= MUCH_ROWS:
        return False
    query = "SELECT sum(estimated_size) FROM duckdb_tables() WHERE database_name = current_database()"
    ((rows,),) = con.execute(query).fetchall()
    return changed > MUCH_OF_ALL * rows


def _attach(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    con.execute(f"ATTACH {literal(str(path))} AS copy (STORAGE_VERSION '{READABLE_FROM}')")


@contextmanager
def _attached(con: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Hold the attached copy for one transaction."""
    try:
        with transaction(con):
            yield
        con.execute("CHECKPOINT copy")
    finally:
        con.execute("DETACH copy")


def _shared_past(con: duckdb.DuckDBPyConnection) -> int | None:
    """The newest change of the attached copy; None if it has none, or if the warehouse does not have that change.

    A warehouse that was restored from a backup may have another history than the copy.
    """
    known = con.execute("SELECT 1 FROM duckdb_tables() WHERE database_name = 'copy' AND table_name = 'changes'")
    if not known.fetchall():
        return None
    newest = f"(SELECT max(seq) FROM copy.{LEDGERS_SCHEMA}.changes)"
    theirs = f"SELECT seq, change_id FROM copy.{LEDGERS_SCHEMA}.changes WHERE seq = {newest}"
    ours = f"SELECT seq, change_id FROM {LEDGERS_SCHEMA}.changes"
    ((seq, foreign),) = con.execute(f"SELECT {newest}, (SELECT count(*) FROM ({theirs} EXCEPT {ours}))").fetchall()
    return None if foreign or seq is None else int(seq)


def _copy_changes(con: duckdb.DuckDBPyConnection, since: int) -> None:
    """Bring every table of the attached copy from change `since` to now, and drop the tables that are gone."""
    query = f"SELECT DISTINCT schema_name, table_name, partition_key FROM {LEDGERS_SCHEMA}.changes WHERE seq > $since"
    journaled: dict[tuple[str, str], set[str | None]] = {}  # keys of the partitions to copy; with None: all
    for schema, table, key in con.execute(query, {"since": since}).fetchall():
        journaled.setdefault((schema, table), set()).add(key)
    wanted, copied_views = views(con), views(con, "copy")
    for pipeline, table in copied_views.keys() - wanted.keys():
        con.execute(f"DROP VIEW copy.{quoted(pipeline)}.{table.view}")
    columns, copied = _columns_by_table(con, "current_database()"), _columns_by_table(con, "'copy'")
    present = tables(con)
    for schema, table in set(tables(con, "copy")) - set(present):
        con.execute(f"DROP TABLE copy.{quoted(schema)}.{quoted(table)}")
    _copy_schemas(con)
    grown = _grown_ledgers(con, present, since)
    for schema, table in present:
        live, copy = f"{quoted(schema)}.{quoted(table)}", f"copy.{quoted(schema)}.{quoted(table)}"
        differs = copied.get((schema, table)) != columns[schema, table]
        keys = journaled.get((schema, table), set())
        if differs or None in keys or (schema, table) == (LEDGERS_SCHEMA, "meta"):
            con.execute(f"CREATE OR REPLACE TABLE {copy} AS FROM {live}")
            write_comments(con, schema, table, "copy")
        elif table in grown and schema == LEDGERS_SCHEMA:
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE seq > $since", {"since": since})
        elif keys:
            column = (
                "pipeline" if schema == LEDGERS_SCHEMA else "partition_key"
            )  # column whose values the journal names
            changed, values = f"{column} IN $keys", {"keys": [*keys]}
            con.execute(f"DELETE FROM {copy} WHERE {changed}", values)
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE {changed}", values)
    for (pipeline, table), sql in wanted.items():
        if copied_views.get((pipeline, table)) != sql:
            make_view(con, pipeline, table, "copy")


def _grown_ledgers(con: duckdb.DuckDBPyConnection, present: Sequence[tuple[str, str]], since: int) -> set[str]:
    """The ledgers among the tables of the warehouse that have rows of later changes."""
    ledgers = [table for schema, table in present if schema == LEDGERS_SCHEMA and table not in {STATUS_TABLE, "meta"}]
    newest = " UNION ALL ".join(f"SELECT '{table}', max(seq) FROM {LEDGERS_SCHEMA}.{table}" for table in ledgers)
    return {table for table, seq in con.execute(newest).fetchall() if seq is not None and seq > since}


def _copy_schemas(con: duckdb.DuckDBPyConnection) -> None:
    """Give the attached copy the schemas of the warehouse, and drop those that are gone, which have no table any more."""
    query = "SELECT schema_name FROM duckdb_schemas() WHERE database_name = {} AND NOT internal"
    live, copied = (set(con.execute(query.format(name)).fetchall()) for name in ("current_database()", "'copy'"))
    for (schema,) in copied - live:
        con.execute(f"DROP SCHEMA copy.{quoted(schema)}")
    for (schema,) in live - copied:
        con.execute(f"CREATE SCHEMA copy.{quoted(schema)}")


def _remove_unnamed(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Remove the files of tables that neither the warehouse nor a copy names.

    A file that is older than the warehouse belongs to another one, and stays. So does every file if a copy cannot be read.
    """
    unnamed = files_in_lake(home)
    if unnamed:
        unnamed -= named_files(con, home).keys()
    if not unnamed:
        return
    try:
        for copy in published_copies(home):
            con.execute(f"ATTACH {literal(str(copy))} AS copy (READ_ONLY)")
            try:
                unnamed -= named_files(con, home, "copy").keys()
            finally:
                con.execute("DETACH copy")
    except duckdb.Error as error:
        _log.warning("No file in the lake is removed, since a published copy cannot be read: %s", error)
        return
    began = created_at(con)
    remove_files(home, {path for path in unnamed if path.lstat().st_mtime >= began.timestamp()})


def _columns_by_table(con: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Names and types of the columns of every table, in order, by schema and table; the database is an SQL expression."""
    query = (
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() "
        f"WHERE database_name = {database} ORDER BY schema_name, table_name, column_index"
    )
    columns: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for schema, table, *column in con.execute(query).fetchall():
        columns.setdefault((schema, table), []).append(tuple(column))
    return columns
