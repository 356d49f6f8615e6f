"""Read the warehouse and its published copy as a whole, and make the warehouse again from the copy after it was lost or damaged.

DuckDB checks the sum of every block that it reads.
"""

import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import WarehouseError, listed
from batch_platform.warehouse.database import Warehouse, is_damage, lacked_copies, require_not_lost
from batch_platform.warehouse.files import SET_ASIDE, current_copy, published_copies, sync
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import Patience, lock_timeout, locked
from batch_platform.warehouse.published import anew, newest_copy
from batch_platform.warehouse.sql import attach, digest, literal, quoted, table_columns, tables
from batch_platform.warehouse.tables_in_files import require_undamaged


@dataclass(frozen=True)
class Verified:
    """Result of reading the warehouse and its copy as a whole."""

    tables: int
    rows: int
    copy: Path | None  # the published copy; None if nothing is published yet
    is_newest: bool  # the copy holds the newest change; only then are both compared
    differing: tuple[str, ...]  # tables whose rows differ between the copy and the warehouse


def verify(home: Home) -> Verified:
    """Read every row of both and compare them, table by table, and every byte of the files of tables.

    It takes about 0.2 s per million rows, and holds the warehouse meanwhile.

    Raises:
        WarehouseBusyError: Another process held the warehouse for longer than the time-out.
        WarehouseError: One of them is missing or damaged.
        DamagedRowsError: A file of a table is.
    """
    require_not_lost(home)
    copy = current_copy(home)
    with Warehouse(home).open() as con:
        ours = _digests(con, "warehouse")
        rows_in_files = require_undamaged(con)
        theirs = {} if copy is None else _digests_of_copy(con, copy)
        is_newest = copy == newest_copy(con, home)
    differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} if is_newest else set()
    rows = sum(count for count, _ in ours.values()) + rows_in_files
    return Verified(len(ours), rows, copy, is_newest, tuple(sorted(map(".".join, differing))))


def behind_since(home: Home) -> datetime | None:
    """The time of publishing, in UTC, if the warehouse was written since: by a run that goes on or was killed. None otherwise."""
    copy = current_copy(home)
    if copy is None or not (copy.exists() and home.warehouse.exists()):
        return None
    published = copy.stat().st_mtime
    return datetime.fromtimestamp(published, UTC) if home.warehouse.stat().st_mtime > published else None


def cut_short(home: Home) -> list[str]:
    """The commands of several steps that a process has announced in the home and not completed: it goes on, or was killed."""
    return ["The removal of deleted rows from every file"] if home.wiping.exists() else []


def _digests_of_copy(con: duckdb.DuckDBPyConnection, copy: Path) -> dict[tuple[str, str], tuple[int, int | None]]:
    try:
        con.execute(f"ATTACH {literal(str(copy))} AS copy (READ_ONLY)")
        try:
            return _digests(con, "copy")
        finally:
            con.execute("DETACH copy")
    except duckdb.Error as error:
        kind = "is damaged" if is_damage(error) else "cannot be read"
        msg = f"The published copy {copy} {kind}: {error}"
        raise WarehouseError(msg, hint=anew(copy)) from error


def _digests(con: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], tuple[int, int | None]]:
    """Number of rows, and the sum of their hashes, of each table by schema and name."""
    digests: dict[tuple[str, str], tuple[int, int | None]] = {}
    for schema, table in tables(con, database):
        columns = sorted(column for column, _ in table_columns(con, schema, table, database))
        rows = f"SELECT {digest(columns)} FROM {database}.{quoted(schema)}.{quoted(table)}"
        (digests[schema, table],) = con.execute(rows).fetchall()
    return digests


@dataclass(frozen=True)
class Restored:
    """A restored warehouse."""

    warehouse: Path
    copy: Path  # source of the restored file
    set_aside: Path | None  # new place of the former file; None if there was none


def restore_from_published(home: Home, now: datetime) -> Restored:
    """Make the warehouse from the newest published copy; a file that is there is set aside, never removed.

    What was committed and never published is not in the copy: the next run does it again.

    Raises:
        WarehouseBusyError: Another process held the warehouse for longer than the time-out.
        WarehouseError: There is no published copy, or none that can be read and holds all that was published.
    """
    with locked(Patience(home.create(), lock_timeout())):
        copy = _newest_copy(home)
        fresh = home.warehouse.with_name(f".{home.warehouse.name}")
        try:
            shutil.copyfile(copy, fresh)
            sync(fresh)
            aside = _set_aside(home, now)
            fresh.rename(home.warehouse)
            sync(home.root)
        except OSError as error:
            msg = f"{home.warehouse} cannot be restored from {copy}: {error}"
            raise WarehouseError(msg, hint="restore a backup of the whole home.") from error
    return Restored(home.warehouse, copy, aside)


def _newest_copy(home: Home) -> Path:
    """The copy that lacks no change of another one, preferably the one that the link names; raises WarehouseError if there is none."""
    copies = [copy for copy in (current_copy(home), *published_copies(home)) if copy is not None and copy.is_file()]
    problems: dict[str, str] = {}
    for copy in copies:
        try:
            with closing(attach(copy, read_only=True)) as database:
                if not (ahead := lacked_copies(database.con, home)):
                    return copy
                problems[copy.name] = f"lacks changes of {listed(path.name for path in ahead)}"
        except duckdb.Error as error:
            problems[copy.name] = f"cannot be read: {error}"
    states = "; ".join(f"{name} {problem}" for name, problem in problems.items())
    msg = f"{home.root} holds no published copy that can be restored{f': {states}' if states else ''}."
    otherwise = "; or move the copies that cannot be read out of it, and restore again" if states else ""
    raise WarehouseError(msg, hint=f"restore a backup of the whole home{otherwise}.")


def _set_aside(home: Home, now: datetime) -> Path | None:
    """Rename the file of the warehouse and what belongs to it; returns the file's new path."""
    ending = f"{SET_ASIDE}{now:%Y%m%dT%H%M%S}"
    # The warehouse goes first: if this process is killed, no process opens it without its log.
    files = [path for path in (home.warehouse, home.warehouse_log, home.warehouse_rollback) if path.exists()]
    aside = [path.rename(path.with_name(path.name + ending)) for path in files]
    return aside[0] if home.warehouse in files else None
