"""DuckDB instances that live on between uses: attaching a file to one takes a tenth of the time of making a new one.

An instance serves one use at a time and has no file attached between uses, so nothing of a use reaches the next.
"""

import contextlib
import os
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.warehouse.sql import connect, literal

READABLE_FROM = "v1.5.0"  # the oldest version of DuckDB that can read the files
_DATABASE = "warehouse"

_idle: deque[duckdb.DuckDBPyConnection] = deque()


@dataclass(frozen=True)
class Attached:
    """A database file and the connection to it, which reads and writes nothing else by default."""

    con: duckdb.DuckDBPyConnection
    instance: duckdb.DuckDBPyConnection
    spilled: Path

    def close(self) -> None:
        """Release the file, and its lock."""
        self.con.close()
        with contextlib.suppress(duckdb.Error):
            self.instance.execute(f"DETACH {_DATABASE}")
            if not self.spilled.exists():
                _idle.append(self.instance)
                return
        self.instance.close()


def attach(file: Path, *, read_only: bool = False) -> Attached:
    """Open a database file, which is made if it is missing; it never checkpoints by itself: every checkpoint is made safe first.

    Args:
        file: The file.
        read_only: Open an existing file for reading only.

    Raises:
        duckdb.Error: The file cannot be opened, or another process has it open.
    """
    instance = _taken()
    spilled = file.with_name(f"{file.name}.tmp")
    try:
        instance.execute(f"SET temp_directory = {literal(str(spilled))}")
        instance.execute(f"ATTACH {literal(str(file))} AS {_DATABASE}{' (READ_ONLY)' if read_only else ''}")
        con = instance.cursor()
        con.execute(f"USE {_DATABASE}")
    except BaseException:
        instance.close()
        raise
    return Attached(con, instance, spilled)


@contextmanager
def in_memory() -> Generator[duckdb.DuckDBPyConnection]:
    """A connection for statements of this project's own that leave nothing behind."""
    instance = _taken()
    with instance.cursor() as con:
        yield con
    _idle.append(instance)


def _taken() -> duckdb.DuckDBPyConnection:
    """An idle instance, or a new one; another thread may take the last idle one at any moment."""
    try:
        return _idle.pop()
    except IndexError:
        return _instance()


def _instance() -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "storage_compatibility_version": READABLE_FROM,
        "checkpoint_threshold": "1TB",
    }
    instance = connect(config=config)
    instance.execute("PRAGMA disable_checkpoint_on_shutdown; SET GLOBAL TimeZone = 'UTC'")
    return instance


def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


os.register_at_fork(before=_close_idle)  # a forked child lacks the threads that an instance waits for when it ends
