"""The place of backups: a folder, or objects of a store. Files lie there as pieces, each named after the SHA-256 of its bytes.

A manifest names the pieces of every file of one backup. It is written last, and wholly or not at all.
"""

import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, WrongUseError, named
from batch_platform.sources.objects import FilePath, ObjectPath, StoreError, file_path, hint_for, opened_store
from batch_platform.warehouse.files import write_whole
from batch_platform.warehouse.home import PRIVATE

PIECE = 8 * 2**20  # bytes of every piece of a file but the last
AT_ONCE = 8  # pieces that are read or written at the same time
_FORMAT = 1
_NAME_OF_PIECE = re.compile(r"pieces/[0-9a-f]{2}/([0-9a-f]{64})")
_NAME_OF_MANIFEST = re.compile(r"backups/(\d{8}T\d{6}Z)\.json")


@dataclass(frozen=True)
class KeptFile:
    """A file of a backup."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    pieces: Sequence[str]  # SHA-256 of each, in order


@dataclass(frozen=True)
class Backup:
    """A complete backup."""

    name: str
    made_at: datetime
    files: Mapping[str, KeptFile]  # by path below the home
    home: str | None = None  # what `Home.identity` holds; unknown in backups of earlier versions

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Archive:
    """A folder with backups of one home, on this machine or in a store. Every method raises BatchPlatformError if it cannot be used."""

    root: FilePath

    @classmethod
    def at(cls, location: str) -> "Archive":
        """The archive at a path or an address."""
        path = file_path(location)
        return cls(path.resolve() if isinstance(path, Path) else path)

    def names(self) -> list[str]:
        """The names of the complete backups, oldest first."""
        return sorted(self._sizes("backups", _NAME_OF_MANIFEST))

    def newest(self) -> Backup | None:
        """The newest backup; None if there is none."""
        names = self.names()
        return self.backup(names[-1]) if names else None

    def backup(self, name: str) -> Backup:
        """A backup by name; raises WrongUseError if there is none, or if a later version of this project made it."""
        named(name, dict.fromkeys(self.names()), f"{self.root} holds no backup {name!r}; it holds")
        (content,) = self._read([_manifest(name)])
        manifest = json.loads(content)
        if manifest["format"] != _FORMAT:
            msg = f"The backup {name} in {self.root} has format {manifest['format']}; this version of batch-platform reads {_FORMAT}."
            raise WrongUseError(msg, hint="use the version that made it.")
        files = {path: KeptFile(**file) for path, file in manifest["files"].items()}
        return Backup(name, datetime.fromisoformat(manifest["made_at"]), files, manifest.get("home"))

    def add(self, backup: Backup) -> None:
        """Write the manifest of a backup whose pieces are there."""
        files = {path: asdict(file) for path, file in backup.files.items()}
        manifest = {"format": _FORMAT, "home": backup.home, "made_at": backup.made_at.isoformat(), "files": files}
        content = json.dumps(manifest).encode()
        if isinstance(self.root, ObjectPath):
            self.write({_manifest(backup.name): content})
            return
        with self._store():
            os.sync()  # the pieces first
            (self.root / "backups").mkdir(exist_ok=True)
            write_whole(self.root / _manifest(backup.name), content)
            os.sync()

    def keep(self, count: int) -> list[str]:
        """Remove all backups but the newest, and the pieces that none of those needs; returns the names of the removed ones."""
        names = self.names()
        removed, kept = names[:-count], names[-count:]
        self._remove([_manifest(name) for name in removed])
        needed = {piece for name in kept for file in self.backup(name).files.values() for piece in file.pieces}
        self._remove([place_of(piece) for piece in self.pieces() if piece not in needed])
        return removed

    def pieces(self) -> dict[str, int]:
        """The size in bytes of each piece that is there."""
        return self._sizes("pieces", _NAME_OF_PIECE)

    def contents(self, files: Mapping[str, KeptFile]) -> Iterator[bytes]:
        """The bytes of each piece of files, in order; raises IntegrityError if they are not those that were backed up."""
        wanted = [(path, piece) for path, file in files.items() for piece in file.pieces]
        for start in range(0, len(wanted), AT_ONCE):
            together = wanted[start : start + AT_ONCE]
            read = self._read([place_of(piece) for _, piece in together])
            for (path, piece), content in zip(together, read, strict=True):
                if sha256(content).hexdigest() != piece:
                    msg = f"{self.root / place_of(piece)}, a piece of {path}, holds other bytes than were backed up."
                    hint = "remove it and back up again, which writes it anew as long as the home has it."
                    raise IntegrityError(msg, hint=hint)
                yield content

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files by path; one that is cut off by a kill in a folder on this machine is known by its size."""
        with self._store() as (system, place):
            if isinstance(self.root, Path):
                self.root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            system.pipe({f"{place}/{name}": content for name, content in contents.items()})

    def _read(self, names: Sequence[str]) -> list[bytes]:
        with self._store() as (system, place):
            whole = [None] * len(names)
            return system.cat_ranges([f"{place}/{name}" for name in names], whole, whole, on_error="raise")

    def _remove(self, names: Sequence[str]) -> None:
        with self._store() as (system, place):
            if names:
                system.rm([f"{place}/{name}" for name in names])

    def _sizes(self, below: str, pattern: re.Pattern[str]) -> dict[str, int]:
        """The size of each file below a folder of the archive, by what a pattern captures of its path."""
        with self._store() as (system, place):
            try:
                found = system.find(f"{place}/{below}", detail=True)
            except FileNotFoundError:
                return {}
        matches = ((pattern.fullmatch(path.removeprefix(f"{place}/")), details) for path, details in found.items())
        return {match[1]: int(details["size"]) for match, details in matches if match}

    @contextmanager
    def _store(self) -> Generator[tuple[Any, str]]:
        """The file system of fsspec, and the place of the archive there."""
        try:
            with opened_store(self.root) as opened:
                yield opened
        except StoreError as error:
            room = "see that the folder can be read and written, and has room."
            msg = f"{error}."
            raise BatchPlatformError(
                msg, hint=hint_for(str(error)) if isinstance(self.root, ObjectPath) else room
            ) from error


def _manifest(name: str) -> str:
    return f"backups/{name}.json"


def place_of(piece: str) -> str:
    """The path of a piece in its archive."""
    return f"pieces/{piece[:2]}/{piece}"


class PieceWriter:
    """Stores files as pieces, and writes none that is there."""

    def __init__(self, archive: Archive) -> None:
        """Look up the pieces that are there."""
        self._archive, self._held = archive, archive.pieces()
        self._waiting = dict[str, bytes]()
        self.written = 0  # bytes

    def holds(self, file: KeptFile) -> bool:
        """Return whether every piece of a file is there in its full size."""
        return sum(self._held.get(piece, -file.size) for piece in file.pieces) == file.size

    def store(self, blocks: Iterable[bytes]) -> tuple[int, list[str]]:
        """Store blocks of PIECE bytes each, but for the last; returns the number of bytes and the names of the pieces."""
        size, pieces = 0, list[str]()
        for block in blocks:
            piece = sha256(block).hexdigest()
            size += len(block)
            pieces.append(piece)
            if self._held.get(piece) != len(block):
                self._held[piece] = len(block)
                self._waiting[place_of(piece)] = block
                self.written += len(block)
            if len(self._waiting) >= AT_ONCE:
                self.flush()
        return size, pieces

    def flush(self) -> None:
        """Write the pieces that wait to be written together."""
        if self._waiting:
            self._archive.write(self._waiting)
            self._waiting.clear()
