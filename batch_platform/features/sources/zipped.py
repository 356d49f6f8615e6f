"""Zip archives of one table: DuckDB reads the file in an archive through Python, which unpacks while it reads."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import BadZipFile, ZipFile, ZipInfo

import duckdb

from batch_platform.declaration.errors import SourceError, listed
from batch_platform.features.sources.objects import FilePath

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ENDING = ".zip"
_PROTOCOL = "zipped"


class ArchiveError(SourceError):
    """An archive is broken, or does not hold one table."""


def member_of(archive: Path) -> ZipInfo:
    """The only file in an archive; raises ArchiveError if there are several or none."""
    try:
        with ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if _is_table(member)]
    except (BadZipFile, OSError) as error:
        msg = f"{archive} cannot be unpacked ({error})."
        raise ArchiveError(msg, hint="replace it by an archive that is whole.") from error
    if len(members) == 1:
        return members[0]
    msg = f"{archive} holds {listed(member.filename for member in members) or 'no files'}; it must hold one table."
    raise ArchiveError(msg, hint="unpack it, and name the file that holds the table.")


def _is_table(member: ZipInfo) -> bool:
    parts = Path(member.filename).parts
    return not member.is_dir() and "__MACOSX" not in parts and not parts[-1].startswith(".")


def duckdb_path(file: FilePath) -> str:
    """The name by which DuckDB reads a file: the file in it if it is an archive; raises ArchiveError."""
    if file.suffix.lower() != ENDING:
        return str(file)
    if isinstance(file, Path):
        return f"{folder_in(file)}{Path(member_of(file).filename).name}"
    msg = f"{file} is an archive in a store, and only archives on this machine are unpacked."
    raise ArchiveError(msg, hint="store the table as .csv.gz or .csv.zst.")


def folder_in(place: Path) -> str:
    """The name by which DuckDB knows the content of an archive, or of the archives in a folder.

    DuckDB compares it with what is allowed letter by letter, so that it must not lead over a parent folder.
    """
    return f"{_PROTOCOL}://{place.resolve()}/"


def admit_archives(con: duckdb.DuckDBPyConnection) -> None:
    """Let a connection read the files in archives."""
    if not con.filesystem_is_registered(_PROTOCOL):
        con.register_filesystem(_archives())


@cache
def _archives() -> "AbstractFileSystem":
    """The files in archives, as DuckDB asks for them."""
    from fsspec import AbstractFileSystem  # imported late: it takes its time

    class Archives(AbstractFileSystem):
        protocol = _PROTOCOL

        def info(self, path: str, **_: object) -> dict[str, object]:
            return {"name": path, "size": member_of(_archive(path)).file_size, "type": "file"}

        def modified(self, path: str) -> datetime:
            return datetime.fromtimestamp(_archive(path).stat().st_mtime, UTC)

        def glob(self, path: str, maxdepth: int | None = None, **_: object) -> list[str]:  # noqa: ARG002 - its signature
            return [path]

        def _open(  # pyright: ignore[reportIncompatibleMethodOverride] - any file of bytes will do
            self, path: str, *_: object, **__: object
        ) -> IO[bytes]:
            return ZipFile(_archive(path)).open(member_of(_archive(path)))

    return Archives()


def _archive(path: str) -> Path:
    return Path(path.removeprefix(f"{_PROTOCOL}://")).parent
