"""Back a home up while runs go on, read a backup as a whole, and restore it into an empty home.

The warehouse is taken from the published copy, which is one in full and which nobody changes while it is read. The files that
it names never change. Dagster's SQLite databases are read through SQLite's own backup, and before the warehouse, so that
what Dagster holds done is in the ledger; what the ledger holds beyond that, the next run tells Dagster.

The files that a pipeline's ledgers refer to, feature files and bundles, can also be read and compared with what was recorded.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from uuid import uuid4

import duckdb

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, WrongUseError, listed
from batch_platform.models.bundle import require_unchanged
from batch_platform.operations.archive import PIECE, Archive, Backup, KeptFile, PieceWriter
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.state import State
from batch_platform.warehouse.database import require_not_lost
from batch_platform.warehouse.files import sync, write_whole
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.published import held_copy, publish
from batch_platform.warehouse.sql import attach, quoted, tables
from batch_platform.warehouse.tables_in_files import named_files

_WAREHOUSE = "warehouse.duckdb"
_OTHER_BACKUP = "back up again, or use another backup."
_BUSY_SECONDS = 60
_SETTLED = timedelta(seconds=2)  # age from which the time of a file tells whether it has changed since


@dataclass(frozen=True)
class BackedUp:
    """A backup that was made."""

    backup: str
    files: int
    size: int  # bytes of all files
    written: int  # bytes that earlier backups did not hold
    removed: list[str]  # names of earlier backups


@dataclass(frozen=True)
class BackupRead:
    """A backup that was read as a whole: every byte is as it was backed up, and every database can be opened."""

    backup: str
    files: int
    size: int  # bytes
    tables: int  # tables of the warehouse
    rows: int  # rows in them, and in the files that they name
    databases: int  # databases of Dagster
    records: int  # rows in them


def back_up(home: Home, archive: Archive, now: datetime, *, keep: int | None = None) -> BackedUp:
    """Add a backup of a home to an archive; without an error it is complete, and until then the earlier ones are untouched.

    Publishes first, as runs do. A file that is as it was in the newest backup, by size and time, is not read again.

    With `keep`, only so many of the newest backups stay.

    Raises:
        WrongUseError: There is nothing to back up, the archive lies in the home or holds backups of another one, or another
            backup of the home is being made.
        BatchPlatformError: A file cannot be read or written, or was removed while the backup was made.
    """
    if isinstance(archive.root, Path) and archive.root.resolve().is_relative_to(home.root.resolve()):
        msg = f"{archive.root} lies in the home {home.root}, with which it would be lost."
        raise WrongUseError(msg, hint="name a folder on another disk, or an address such as s3://bucket/folder.")
    require_not_lost(home)
    if not home.warehouse.exists():
        msg = f"{home.root} holds nothing to back up."
        raise WrongUseError(msg, hint="run a pipeline first: batch-platform run NAME.")
    with _alone(home), staging_folder(home, "backup") as staging:
        name, former = f"{now:%Y%m%dT%H%M%SZ}", archive.newest()
        if former is not None and name <= former.name:
            msg = f"{archive.root} holds a backup of {former.name} already, which is not before this one, {name}."
            raise WrongUseError(msg, hint="wait a second, or set the clock of this machine right.")
        identity = _identity_of(home)
        if former is not None and former.home not in (None, identity):
            msg = f"{archive.root} holds backups of another home than {home.root}."
            raise WrongUseError(msg, hint="name another folder or address: each home needs a place of its own.")
        kept = _Kept(PieceWriter(archive), former)
        for path, file in _files_of_dagster(home):
            with suppress(FileNotFoundError):  # Dagster removes records of old runs at any time
                if file.suffix == ".db":
                    kept.add_database(path, file, staging / "database")
                else:
                    kept.add_file(path, file)
        publish(home)
        with held_copy(home) as copy:
            kept.add(_WAREHOUSE, copy)
            for path, file in _files(home):
                try:
                    kept.add_file(path, file)
                except FileNotFoundError as error:
                    msg = f"{file} was removed while the backup was made, which is not complete."
                    raise BatchPlatformError(msg, hint="run it again; what is copied is not copied again.") from error
        kept.writer.flush()
        backup = Backup(name, now, kept.files, identity)
        archive.add(backup)
        removed = [] if keep is None else archive.keep(keep)
    return BackedUp(name, len(backup.files), backup.size, kept.writer.written, removed)


def read_backup(archive: Archive, backup: Backup, folder: Path) -> BackupRead:
    """Read every byte of a backup, and open its databases, which are laid one after the other into a folder.

    Raises:
        IntegrityError: A piece has changed, a database cannot be opened, or a file that the warehouse names is missing.
        BatchPlatformError: A piece is missing or cannot be read.
    """
    counts = dict[str, tuple[int, int]]()  # tables and rows of each database
    aside = folder / "database"
    databases = {path for path in backup.files if path == _WAREHOUSE or re.fullmatch(r"dagster/.*\.db", path)}
    for path, database in _laid_out(archive, backup.files, lambda path: aside if path in databases else None):
        try:
            if path == _WAREHOUSE:
                counts[path], named = _count_rows(aside, Home(folder))
                if lacking := {file.relative_to(folder).as_posix() for file in named} - backup.files.keys():
                    msg = f"The backup {backup.name} in {archive.root} lacks {listed(sorted(lacking))}."
                    raise IntegrityError(msg, hint=_OTHER_BACKUP)
            elif database:
                counts[path] = _count_records(database)
        except (duckdb.Error, sqlite3.Error) as error:
            msg = f"{path} of the backup {backup.name} in {archive.root} cannot be read: {error}."
            raise IntegrityError(msg, hint=_OTHER_BACKUP) from error
    tables, rows = counts.pop(_WAREHOUSE)
    records = sum(rows for _, rows in counts.values())
    return BackupRead(backup.name, len(backup.files), backup.size, tables, rows, len(counts), records)


def restore_backup(archive: Archive, backup: Backup, home: Home) -> None:
    """Lay a backup out in an empty home, and publish it.

    Killed in the middle, it begins anew when it is called again, and until then no other process uses the home.

    Raises:
        WrongUseError: The home holds something, part of another backup for example, or another process restores into it.
        IntegrityError: A piece has changed, or a path of the backup leads out of the home.
        BatchPlatformError: A piece is missing or cannot be read.
    """
    home = replace(home, restores=True)
    part = _part_restored(home)
    ignored = (home.restoring, home.gitignore)
    if part != backup.name and any(not path.is_dir() for path in home.root.rglob("*") if path not in ignored):
        if not part:
            msg = f"The home {home.root} is not empty, and a backup is restored into an empty one only."
            raise WrongUseError(msg, hint="move what is there out of it, or set BATCH_PLATFORM_HOME to another folder.")
        msg = f"The home {home.root} holds part of the backup {part}, whose restore was interrupted, and not of {backup.name}."
        hint = f"complete it: batch-platform restore DEST --backup {part}; or remove everything in {home.root} and restore again."
        raise WrongUseError(msg, hint=hint)
    with _alone(home.create()):
        # The mark is on the disk before anything else, and it counts whatever it holds: a kill here leaves an empty one.
        home.restoring.write_text(backup.name, encoding="utf-8")
        sync(home.restoring)
        sync(home.root)
        for path, aside in _laid_out(archive, backup.files, lambda path: _aside(home, path)):
            if aside is not None:
                os.utime(aside, ns=(backup.files[path].modified, backup.files[path].modified))
                aside.replace(home.root / path)
        os.sync()
        publish(home)
        home.restoring.unlink()
        sync(home.root)


def backup_to_restore(archive: Archive, home: Home) -> Backup | None:
    """The backup whose restore into a home was interrupted, if the archive holds it, else the newest one; None without any."""
    names = archive.names()
    part = _part_restored(home)
    return archive.backup(part if part in names else names[-1]) if names else None


def _part_restored(home: Home) -> str | None:
    """The name of the backup whose restore into a home was interrupted, which may be cut off; None without such a restore."""
    return home.restoring.read_text(encoding="utf-8", errors="replace") if home.restoring.is_file() else None


def _identity_of(home: Home) -> str:
    """The random name of a home, made where it is missing."""
    if not home.identity.exists():
        write_whole(home.identity, uuid4().hex.encode())
    return home.identity.read_text(encoding="utf-8")


@dataclass
class _Kept:
    """The files of a backup so far."""

    writer: PieceWriter
    former: Backup | None
    files: dict[str, KeptFile] = field(default_factory=dict[str, KeptFile])

    def add_file(self, path: str, file: Path) -> None:
        with file.open("rb") as opened:
            self.add(path, opened)

    def add(self, path: str, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        if not self._is_unchanged(path, state.st_size, state.st_mtime_ns):
            self._store(path, file, state.st_mtime_ns)

    def add_database(self, path: str, file: Path, aside: Path) -> None:
        """Add a database of SQLite, copied aside as it is at one moment."""
        state, log = file.stat(), file.with_name(f"{file.name}-wal")
        modified = max(state.st_mtime_ns, log.stat().st_mtime_ns if log.exists() else 0)
        if self._is_unchanged(path, state.st_size, modified):
            return
        try:
            aside.unlink(missing_ok=True)
            with (
                closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as source,
                closing(sqlite3.connect(aside)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            file.stat()  # one that Dagster has removed meanwhile is not backed up
            msg = f"{file} cannot be read: {error}."
            raise BatchPlatformError(msg, hint="end what uses it, and back up again.") from error
        with aside.open("rb") as copied:
            self._store(path, copied, modified)

    def _is_unchanged(self, path: str, size: int, modified: int) -> bool:
        """Take over a file of the former backup that has neither changed nor been lost there."""
        former = None if self.former is None else self.former.files.get(path)
        if self.former is None or former is None or (former.size, former.modified) != (size, modified):
            return False
        if modified >= (self.former.made_at - _SETTLED).timestamp() * 1e9 or not self.writer.holds(former):
            return False
        self.files[path] = former
        return True

    def _store(self, path: str, file: BinaryIO, modified: int) -> None:
        size, pieces = self.writer.store(iter(lambda: file.read(PIECE), b""))
        self.files[path] = KeptFile(size, modified, pieces)


@contextmanager
def _alone(home: Home) -> Generator[None]:
    """Be the only process that backs a home up or restores into it: another one might remove what this one counts on."""
    descriptor = os.open(home.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"Another backup or restore of {home.root} is in progress."
            raise WrongUseError(msg, hint="wait until it is complete.") from error
        yield
    finally:
        os.close(descriptor)


def _files(home: Home) -> Iterator[tuple[str, Path]]:
    """Everything in a home that is backed up as it is, without links: what no run makes anew."""
    made_anew = (home.staging, home.dagster, home.spark_logs)
    for entry in sorted(home.root.iterdir()):
        if entry.is_symlink() and entry not in (home.lake, home.models):
            continue
        if entry not in made_anew and not entry.name.startswith((".", "warehouse.", "published")):
            yield from ((path, file) for path, file in _below(home, entry) if "/." not in path)


def _files_of_dagster(home: Home) -> list[tuple[str, Path]]:
    """Dagster's records, without what belongs to a process; first the databases of the runs and of all events, whose details others hold."""
    first = ("runs.db", "index.db")
    files = [
        (path, file)
        for path, file in _below(home, home.dagster)
        if not file.name.startswith("workspace") and not file.name.endswith((".lock", "-wal", "-shm", "-journal"))
    ]
    return sorted(files, key=lambda item: (first.index(item[1].name) if item[1].name in first else len(first), item))


def _below(home: Home, entry: Path) -> Iterator[tuple[str, Path]]:
    """The files below an entry of a home, with their paths from the home; the entry itself may be a link to a folder."""
    if entry.is_file() and not entry.is_symlink():
        yield entry.name, entry
    for folder, _, names in os.walk(entry):
        for file in map(Path(folder).joinpath, sorted(names)):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(home.root).as_posix(), file


def _laid_out(
    archive: Archive, files: Mapping[str, KeptFile], place: Callable[[str], Path | None]
) -> Iterator[tuple[str, Path | None]]:
    """Read files of an archive one after the other, and write each where it has a place."""
    contents = archive.contents(files)
    for path, file in files.items():
        with (place(path) or Path(os.devnull)).open("wb") as target:
            for content in islice(contents, len(file.pieces)):
                target.write(content)
        yield path, place(path)


def _aside(home: Home, path: str) -> Path:
    """The place of a file of a home until it is complete."""
    target = home.root / path
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not home.owns(target):
        msg = f"The backup holds a file {path!r}, which would lie outside of the home; nothing more is restored."
        raise IntegrityError(msg, hint="use another backup, and remove what links lie in the home.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.restored")


def _count_rows(database: Path, home: Home) -> tuple[tuple[int, int], Collection[Path]]:
    """Tables and rows of a copy of the warehouse, rows in files too, and the files of a home that it names."""
    with closing(attach(database, read_only=True)) as opened:
        present, named = tables(opened.con), named_files(opened.con, home)
        counts = [f"SELECT count(*) FROM {quoted(schema)}.{quoted(table)}" for schema, table in present]
        rows = sum(opened.con.execute(count).fetchall()[0][0] for count in counts)
    return (len(present), rows + sum(file.rows for file in named.values())), named.keys()


def _count_records(database: Path) -> tuple[int, int]:
    """Tables and rows of a database of SQLite, whose pages are checked."""
    with closing(sqlite3.connect(database)) as con:
        problems = [problem for (problem,) in con.execute("PRAGMA quick_check(1)") if problem != "ok"]
        if problems:
            raise sqlite3.DatabaseError(problems[0])
        names = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return len(names), sum(con.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0] for name in names)


def damaged_files(pipeline: Pipeline, state: State) -> Iterator[IntegrityError]:
    """Read every feature file and every bundle that serves; gives an error for each that is not as recorded.

    A file may be missing of a partition that is not scored, which builds it again, or no longer declared, whose file `gc` removes.
    """
    for key, build in {**state.features, **state.seen.lost}.items():
        is_needed = key in state.scores and _is_declared(pipeline, key)
        if is_needed or pipeline.history.file(build).exists():
            try:
                pipeline.history.require_unchanged(build)
            except IntegrityError as error:
                yield error
    registry = state.registry
    challengers = ((name, registry.named(version)) for version, name in registry.challengers.items())
    serving = [stretch.version for stretch in registry.timeline.stretches]
    serving += filter(None, (registry.challenger_at(name, version.serving_start) for name, version in challengers))
    for name, sha256 in {version.version: version.sha256 for version in serving}.items():
        try:
            require_unchanged(pipeline.home.bundle(registry.pipeline, name), sha256)
        except IntegrityError as error:
            yield error


def _is_declared(pipeline: Pipeline, key: str) -> bool:
    try:
        pipeline.spec.partitions.calendar.named(key)
    except WrongUseError:
        return False
    return True
