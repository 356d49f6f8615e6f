"""Make a warehouse again from the published copy, after the file was lost or damaged.

A copy of the file is not enough: the numbers of new rows come from a sequence, which a published copy does not carry on.
"""

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.instance import attach
from batch_platform.warehouse.ledger import bring_to_format, continue_numbers
from batch_platform.warehouse.lock import Patience, lock_timeout, locked
from batch_platform.warehouse.published import current_copy


@dataclass(frozen=True)
class Restored:
    """What was restored."""

    warehouse: Path
    copy: Path  # the published copy that it was made from
    set_aside: Path | None  # where the former file lies now; None if there was none


def restore_from_published(home: Home, now: datetime) -> Restored:
    """Make the warehouse from the published copy; a file that is there is set aside, never removed.

    What was committed and never published is not in the copy: the next run does it again.

    Raises:
        WarehouseBusyError: Another process held the warehouse for longer than the time-out.
        WarehouseError: There is no published copy, or it cannot be read.
    """
    with locked(Patience(home.create(), lock_timeout())):
        copy = _published_copy(home)
        fresh = home.warehouse.with_name(f".{home.warehouse.name}")
        try:
            shutil.copyfile(copy, fresh)
            with closing(attach(fresh)) as database:
                bring_to_format(database.con, copy)
                continue_numbers(database.con)
                database.con.execute("CHECKPOINT")
            sync(fresh)
            aside = _set_aside(home, now)
            fresh.rename(home.warehouse)
            sync(home.root)
        except (duckdb.Error, OSError) as error:
            msg = f"{home.warehouse} cannot be restored from {copy}: {error}"
            raise WarehouseError(msg, hint="restore the file from a backup.") from error
    return Restored(home.warehouse, copy, aside)


def _published_copy(home: Home) -> Path:
    """The copy that the link names; without the link, the copy that was changed last. Raises WarehouseError if there is none."""
    named = [] if (current := current_copy(home)) is None else [current]
    left = sorted(home.root.glob("published-*.duckdb"), key=os.path.getmtime, reverse=True)
    for copy in (*named, *left):
        if copy.is_file():
            return copy
    msg = f"{home.root} holds no published copy."
    raise WarehouseError(msg, hint="restore the warehouse from a backup.")


def _set_aside(home: Home, now: datetime) -> Path | None:
    """Rename the file of the warehouse and what belongs to it; returns the file's new path."""
    ending = f".before-restore-{now:%Y%m%dT%H%M%S}"
    for path in (home.warehouse_log, home.warehouse_rollback):
        if path.exists():
            path.rename(path.with_name(path.name + ending))
    if not home.warehouse.exists():
        return None
    return home.warehouse.rename(home.warehouse.with_name(home.warehouse.name + ending))
