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

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, WrongUseError, named
from batch_platform.features.sources.objects import (
    FilePath,
    ObjectPath,
    StoreError,
    file_path,
    hint_for,
    objects_below,
    read_whole,
    remove_objects,
    write_objects,
)
from batch_platform.warehouse.checkpoint import sync

PIECE = 8 * 2**20  # bytes of every piece of a file but the last
AT_ONCE = 8  # pieces that are read at the same time
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

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Archive:
    """A folder with backups of one home, on this machine or in a store."""

    root: FilePath

    @classmethod
    def at(cls, location: str) -> "Archive":
        """The archive at a path or an address."""
        path = file_path(location)
        return cls(path.resolve() if isinstance(path, Path) else path)

    def names(self) -> list[str]:
        """The names of the complete backups, oldest first."""
        found = (_NAME_OF_MANIFEST.fullmatch(name) for name in self._sizes("backups"))
        return sorted(match[1] for match in found if match)

    def newest(self) -> Backup | None:
        """The newest backup; None if there is none."""
        names = self.names()
        return self.backup(names[-1]) if names else None

    def backup(self, name: str) -> Backup:
        """A backup by name.

        Raises:
            WrongUseError: There is no backup of this name, or a later version of this project made it.
        """
        named(name, dict.fromkeys(self.names()), f"{self.root} holds no backup {name!r}; it holds")
        (content,) = self.read([_manifest(name)])
        manifest = json.loads(content)
        if manifest["format"] != _FORMAT:
            msg = f"The backup {name} in {self.root} has format {manifest['format']}; this version of batch-platform reads {_FORMAT}."
            raise WrongUseError(msg, hint="use the version that made it.")
        files = {path: KeptFile(**file) for path, file in manifest["files"].items()}
        return Backup(name, datetime.fromisoformat(manifest["made_at"]), files)

    def add(self, backup: Backup) -> None:
        """Write the manifest of a backup whose pieces are there."""
        if isinstance(self.root, Path):
            os.sync()  # the pieces first
        files = {path: asdict(file) for path, file in backup.files.items()}
        manifest = {"format": _FORMAT, "made_at": backup.made_at.isoformat(), "files": files}
        self.write({_manifest(backup.name): json.dumps(manifest).encode()})
        if isinstance(self.root, Path):
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
        found = ((_NAME_OF_PIECE.fullmatch(name), size) for name, size in self._sizes("pieces").items())
        return {match[1]: size for match, size in found if match}

    def contents(self, files: Mapping[str, KeptFile]) -> Iterator[bytes]:
        """The bytes of each piece of files, in order.

        Raises:
            IntegrityError: The bytes of a piece are not those that were backed up.
            BatchPlatformError: A piece is missing or cannot be read.
        """
        wanted = [(path, piece) for path, file in files.items() for piece in file.pieces]
        for start in range(0, len(wanted), AT_ONCE):
            together = wanted[start : start + AT_ONCE]
            read = self.read([place_of(piece) for _, piece in together])
            for (path, piece), content in zip(together, read, strict=True):
                if sha256(content).hexdigest() != piece:
                    msg = f"{self.root / place_of(piece)}, a piece of {path}, holds other bytes than were backed up."
                    hint = "remove it and back up again, which writes it anew as long as the home has it."
                    raise IntegrityError(msg, hint=hint)
                yield content

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of files of the archive; raises BatchPlatformError if one cannot be read."""
        with self._explained():
            if isinstance(self.root, Path):
                return [(self.root / name).read_bytes() for name in names]
            return read_whole([self.root / name for name in names])

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files, each wholly or not at all; raises BatchPlatformError if one cannot be written."""
        with self._explained():
            if isinstance(self.root, ObjectPath):
                write_objects({self.root / name: content for name, content in contents.items()})
                return
            for name, content in contents.items():
                path = self.root / name
                make_folder(path.parent)
                aside = path.with_name(f".{path.name}")
                aside.write_bytes(content)
                if not name.startswith("pieces/"):
                    sync(aside)
                aside.replace(path)

    def _remove(self, names: Sequence[str]) -> None:
        with self._explained():
            if isinstance(self.root, Path):
                for name in names:
                    (self.root / name).unlink(missing_ok=True)
            elif names:
                remove_objects([self.root / name for name in names])

    def _sizes(self, below: str) -> dict[str, int]:
        """The size of each file below a folder of the archive, by path from its root."""
        with self._explained():
            if isinstance(self.root, ObjectPath):
                found = objects_below(self.root / below)
                return {path.relative_to(self.root).as_posix(): state.size for path, state in found.items()}
            folder = self.root / below
            return {
                path.relative_to(self.root).as_posix(): path.stat().st_size
                for path in folder.rglob("*")
                if not path.is_dir()
            }

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except StoreError as error:
            msg = f"{error}."
            raise BatchPlatformError(msg, hint=hint_for(str(error))) from error
        except OSError as error:
            msg = f"The backups in {self.root} cannot be used: {error}."
            raise BatchPlatformError(msg, hint="see that the folder can be read and written, and has room.") from error


def _manifest(name: str) -> str:
    return f"backups/{name}.json"


def place_of(piece: str) -> str:
    """The path of a piece in its archive."""
    return f"pieces/{piece[:2]}/{piece}"


def make_folder(folder: Path) -> None:
    """Make a folder that nobody but its owner and group may enter, and those above it."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o750, exist_ok=True)


class PieceWriter:
    """Stores files as pieces, and writes none that is there."""

    def __init__(self, archive: Archive) -> None:
        """Look up the pieces that are there."""
        self._archive, self._held = archive, archive.pieces()
        self._waiting = dict[str, bytes]()
        self.written = 0  # bytes

    def holds(self, file: KeptFile) -> bool:
        """Return whether every piece of a file is there in its full size."""
        sizes = [self._held.get(piece, -1) for piece in file.pieces]
        return sum(sizes) == file.size and all(size > 0 for size in sizes)

    def store(self, blocks: Iterable[bytes]) -> tuple[int, list[str]]:
        """Store blocks of PIECE bytes each, but for the last; returns the number of bytes and the names of the pieces."""
        size, pieces = 0, list[str]()
        for block in blocks:
            piece = sha256(block).hexdigest()
            size += len(block)
            pieces.append(piece)
            if self._held.get(piece) != len(block):
                self._held[piece] = len(block)
                self._waiting[piece] = block
                self.written += len(block)
            if len(self._waiting) >= AT_ONCE:
                self.flush()
        return size, pieces

    def flush(self) -> None:
        """Write the pieces that wait to be written together."""
        if self._waiting:
            self._archive.write({place_of(piece): content for piece, content in self._waiting.items()})
            self._waiting.clear()
