"""ADBC drivers of databases: how one is imported and connects, and what its errors say without secrets."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from batch_platform.declaration.databases import Database
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.redaction import redact

_SQLITE_START = b"SQLite format 3\0"  # the first bytes of every file of SQLite
_IN_EXTRA = ("postgresql", "sqlite")  # drivers that the extra `sql` brings
_PREFIX = re.compile(r"^[A-Z_]+: (\[\w+\] )?(Failed to [a-z ]+: )?(ERROR: +)?")
_PRIMARY = b"PG_DIAG_MESSAGE_PRIMARY"  # the error of PostgreSQL in a sentence
_LONGEST_WAIT = 10  # seconds for a server to answer, unless the address says otherwise
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Driver:
    """The driver of a database."""

    dbapi: Any  # its module in the manner of DB-API 2.0
    errors: tuple[type[Exception], ...]  # what it and Arrow raise


def driver_of(database: Database, key: str) -> Driver:
    """Import the driver of a database that a YAML key declares; raises WrongUseError if it is not installed."""
    package = f"adbc-driver-{database.driver}"
    try:
        import adbc_driver_manager

        dbapi = import_module(f"{package.replace('-', '_')}.dbapi")
    except ImportError as error:
        msg = f"{package} is needed for {key}, and cannot be imported ({error})."
        beside = "" if database.driver in _IN_EXTRA else f" {package}"
        raise WrongUseError(msg, hint=f"pip install 'batch-platform[sql]'{beside}") from error
    return Driver(dbapi, (adbc_driver_manager.Error, pa.ArrowException, OSError))


def postgresql_uri(database: Database) -> str:
    """The address of a PostgreSQL, which has to answer in time."""
    uri = database.uri
    limit = "" if "connect_timeout" in uri else f"{'&' if '?' in uri else '?'}connect_timeout={_LONGEST_WAIT}"
    return f"{uri}{limit}"


def sqlite_uri(file: Path, mode: str) -> str:
    """The address of a file of SQLite, to be opened to read (`ro`), or also to write and to create it (`rwc`)."""
    return f"file:{quote(str(file))}?mode={mode}"


def is_sqlite(file: Path) -> bool:
    """Return whether a file on this machine is a database of SQLite, whatever its name ends with."""
    try:
        with file.open("rb") as content:
            return content.read(len(_SQLITE_START)) == _SQLITE_START
    except OSError:
        return False  # whoever reads it says why it cannot be read


def reason_of(error: Exception, database: Database) -> str:
    """The error of a driver in one line without secrets; the error itself may hold the password."""
    details = dict(getattr(error, "details", None) or ())
    raw = details[_PRIMARY].decode() if _PRIMARY in details else str(error).partition("Query was: ")[0]
    text = _PREFIX.sub("", " ".join(raw.split())).replace(database.uri, database.address)
    return redact(text)[:_LONGEST_REASON].rstrip(". ")
