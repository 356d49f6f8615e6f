"""Dagster's event log in SQLite, held open: an event costs a write, not a new database connection and a wait for the disk.

Dagster opens the databases of the log anew for each transaction of each event, and SQLite waits for the disk at each
commit, so that a run over a year of daily partitions would wait longer than it works. Held open, an event is written at
once and read by all; only a loss of power could take the last ones, which the next run tells again from the ledgers.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cache

import dagster as dg
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from sqlalchemy import Connection, NullPool, create_engine, text

BUSY_SECONDS = 60  # to wait for another process that writes to the log


@contextmanager
def quick_event_log(instance: dg.DagsterInstance) -> Generator[None]:
    """Hold each database of the log open from its first use on; other storages are used as they are.

    `_connect` is the one place through which Dagster's storage opens its databases; a test holds it to that.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage) or "_connect" in vars(storage):
        yield
        return
    opens = storage._connect  # noqa: SLF001 - see above
    held: dict[str, Connection] = {}
    with ExitStack() as stack:

        @contextmanager
        def connect(shard: str) -> Generator[Connection]:
            if shard not in held:
                with opens(shard):  # makes the tables of a new database
                    pass
                held[shard] = stack.enter_context(_held_open(storage.conn_string_for_shard(shard)))
            with storage._db_lock, held[shard].begin():  # noqa: SLF001 - as it does itself
                yield held[shard]

        held_open = {"_connect": connect, "has_table": cache(storage.has_table)}  # asked anew for each event, too
        vars(storage).update(held_open)
        try:
            yield
        finally:
            for name in held_open:
                del vars(storage)[name]


@contextmanager
def _held_open(address: str) -> Generator[Connection]:
    arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(address, poolclass=NullPool, connect_args=arguments)
    with engine.connect() as connection:
        connection.execute(text("PRAGMA synchronous = NORMAL"))
        connection.commit()
        yield connection
    engine.dispose()
