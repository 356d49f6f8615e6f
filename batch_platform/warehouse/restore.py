"""Make a warehouse again from the published copy, which is one in full, after the file was lost or damaged."""

import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import WarehouseError, listed
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.database import lacked_copies
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.instance import attach
from batch_platform.warehouse.lock import Patience, lock_timeout, locked
from batch_platform.warehouse.marks import current_copy, published_copies

_SET_ASIDE = ".before-restore-"


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
    ending = f"{_SET_ASIDE}{now:%Y%m%dT%H%M%S}"
    # The warehouse goes first: if this process is killed, no process opens it without its log.
    files = [path for path in (home.warehouse, home.warehouse_log, home.warehouse_rollback) if path.exists()]
    aside = [path.rename(path.with_name(path.name + ending)) for path in files]
    return aside[0] if home.warehouse in files else None


def files_set_aside(home: Home) -> list[Path]:
    """The files of former warehouses, with what belonged to them."""
    return sorted(
        path
        for file in (home.warehouse, home.warehouse_log, home.warehouse_rollback)
        for path in home.root.glob(f"{file.name}{_SET_ASIDE}*")
    )
