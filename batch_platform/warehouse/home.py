"""The paths of everything under BATCH_PLATFORM_HOME, which no other module knows.

It creates folders, removes what it is told to, and knows nothing of what the files hold. No name of a pipeline, partition
or version leads out of the home, and nothing is written or removed behind a link that somebody placed in it. The home itself
and the folders right below it may be links to other disks.
"""

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from batch_platform.declaration.errors import BatchPlatformError, WarehouseError, WrongUseError, require_local

HOME_VARIABLE = "BATCH_PLATFORM_HOME"
DEFAULT_HOME = ".batch_platform"
PRIVATE = 0o750  # mode of the home's folders: nobody but their owner and group may enter
LONGEST_NAME = 200  # bytes; file systems take 255, and unfinished files have longer names than finished ones
_MISREAD = re.compile(r"[\\?]|%[0-9A-Fa-f]{2}|[\ud800-\udfff]")  # surrogates stand for bytes that are not UTF-8
_ONE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")
_SPILLED = "warehouse.duckdb.tmp"  # folder of DuckDB
_WRITTEN_IN_PLACE = (
    "warehouse.lock",
    "warehouse.duckdb.wal",
    ".warehouse.duckdb",
    ".warehouse.rollback",
    ".published.json",
    ".restoring",
    "wiping",
    "dagster/.prepare.lock",
    "dagster/.prepared",
    "dagster/.service.lock",
)
_FILES = (
    *_WRITTEN_IN_PLACE,
    "warehouse.duckdb",
    "warehouse.rollback",
    ".published",
    "published.duckdb",
    "published.json",
    "dagster/dagster.yaml",
)
_MADE_WHERE_MISSING = ("warehouse.duckdb", "dagster/dagster.yaml")  # may be links to files that are there
_OWN = re.compile(
    r"""
    \.?(warehouse\.(duckdb|rollback)|published-([0-9a-f]{32}|empty)\.duckdb)(\..*)?
    | \.published
    | staging/.+-[a-z0-9_]{8}
    | lake/[^/]+/features/(.+\.[0-9a-f]{12}|\.[0-9a-f]{32})\.parquet
    | lake/[^/]+/[^/]+/[^/]+/([0-9a-f]{32}\.parquet|\.[0-9a-f]{32})
    | models/[^/]+/.+-[0-9a-f]{8}
    | spark/(did-not-start-.+\.log|staged-.+)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Names that this project gives to what it removes again; whatever has another name belongs to somebody else."""


class _Entry:
    """A file or folder right below the root of a home."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, home: "Home", _: object = None) -> Path:
        return home.root / self._name


@dataclass(frozen=True)
class Home:
    """The root of one installation's data."""

    root: Path  # absolute
    restores: bool = field(default=False, compare=False)  # this process restores a backup into it

    warehouse = _Entry("warehouse.duckdb")
    """The live DuckDB file; only `database.py` opens it."""
    warehouse_log = _Entry("warehouse.duckdb.wal")
    """DuckDB's log of what was committed since the last checkpoint; DuckDB removes it when it is no longer needed."""
    warehouse_rollback = _Entry("warehouse.rollback")
    """Copy of what a checkpoint may write over, kept until the checkpoint is complete."""
    warehouse_lock = _Entry("warehouse.lock")
    """The file whose flock serialises all use of the warehouse."""
    published = _Entry("published.duckdb")
    """The link that readers open."""
    published_marks = _Entry("published.json")
    """Marks of the published copies, by which a foreign change is noticed."""
    restoring = _Entry(".restoring")
    """The mark of a home into which a backup is being restored, with the name of the backup."""
    wiping = _Entry("wiping")
    """Mark that rows were deleted for good, whose bytes may still be in the warehouse and in its copies."""
    erasures_key = _Entry("erasures.key")
    """The key of the hashes that prove erasures."""
    identity = _Entry("identity")
    """A random name, made by the first backup and restored with the home, by which a place of backups tells homes apart."""
    gitignore = _Entry(".gitignore")
    """The file by which git ignores the whole home, itself included."""
    lake = _Entry("lake")
    """Parquet files of features, and of the tables that are stored so."""
    models = _Entry("models")
    """Bundles by pipeline and version."""
    staging = _Entry("staging")
    """Staged files of runs, one folder per run."""
    spark_logs = _Entry("spark")
    """The folder of the logs of Spark that did not start."""
    dagster = _Entry("dagster")
    """DAGSTER_HOME."""

    def __post_init__(self) -> None:
        """Raise WrongUseError for a path that DuckDB, or SQLite as Dagster uses it, would take for another one."""
        if odd := _MISREAD.search(str(self.root)):
            msg = f"The path {str(self.root)!r} cannot be a home: DuckDB or SQLite would misread {odd[0]!r} and use another path."
            hint = f"set {HOME_VARIABLE} to a path in UTF-8 without backslashes, question marks, and codes such as %20."
            raise WrongUseError(msg, hint=hint)

    @classmethod
    def from_environment(cls, folder: Path | None = None) -> "Home":
        """The home that BATCH_PLATFORM_HOME names, else `.batch_platform` in a folder (default: the current one)."""
        named = os.environ.get(HOME_VARIABLE)
        if named:
            require_local(Path(named), f"set {HOME_VARIABLE} to a folder on a local disk.")
        return cls(Path(named).expanduser().absolute() if named else (folder or Path.cwd()).absolute() / DEFAULT_HOME)

    @classmethod
    def of_staged(cls, path: Path) -> "Home | None":
        """The home of a file or folder that a run has staged; None for any other."""
        return next((cls(above.parent) for above in path.absolute().parents if above.name == "staging"), None)

    def create(self) -> "Home":
        """Make the folders that are missing, and keep git from adding what lies in a new home.

        Raises BatchPlatformError if one of them cannot be written to, if a file that is written in place is a link, if
        something else than a file has the name of a file, or if a restore is not complete.
        """
        self.require_restored()
        is_new = self._is_new()
        for folder in (self.root, self.lake, self.models, self.staging, self.dagster):
            try:
                folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            except OSError as error:
                raise self._unwritable(folder, error.strerror) from error
            if not os.access(folder, os.W_OK):
                raise self._unwritable(folder, "permission denied")
        if is_new:
            self.gitignore.write_text("*\n", encoding="utf-8")
        in_place, made = (map(self.root.joinpath, names) for names in (_WRITTEN_IN_PLACE, _MADE_WHERE_MISSING))
        written = [*in_place, self.root / _SPILLED, *(path for path in made if not path.exists())]
        if link := next(filter(Path.is_symlink, written), None):
            msg = f"{link} is a link, and what it leads to would be written over; nothing was changed."
            raise BatchPlatformError(msg, hint="remove the link.")
        if odd := next(
            (path for path in map(self.root.joinpath, _FILES) if path.exists() and not path.is_file()), None
        ):
            msg = f"{odd} is not a file, as it should be; nothing was changed."
            raise BatchPlatformError(msg, hint=f"move it out of {self.root}.")
        return self

    def _is_new(self) -> bool:
        """True if nothing lies in the root but the folder of Dagster, which has to be made before Dagster starts."""
        try:
            return not self.root.exists() or not {*self.root.iterdir()} - {self.dagster}
        except OSError as error:
            raise self._unwritable(self.root, error.strerror) from error

    @property
    def is_writable(self) -> bool:
        """True if this process may write into the home."""
        return os.access(self.root, os.W_OK)

    def owns(self, path: Path) -> bool:
        """Return whether no link leads to a path of the home, apart from the root and the folders right below it."""
        folders = [*path.relative_to(self.root).parents][:-2]
        return not any((self.root / folder).is_symlink() for folder in folders)

    def knows(self, path: Path) -> bool:
        """Return whether this project gives such a name to what it makes at such a place, and removes again."""
        return _OWN.fullmatch(path.relative_to(self.root).as_posix()) is not None

    def remove(self, path: Path) -> None:
        """Remove a file, a folder or a link of the home.

        What lies behind a link stays, and what has a name that this project does not give; it may be gone already.
        """
        if not (self.owns(path) and self.knows(path)):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def clear(self, folder: Path) -> None:
        """Remove what is this project's in a folder of the home, and the folder if nothing is left in it."""
        if not folder.is_symlink():
            for path in folder.iterdir() if folder.is_dir() else ():
                self.remove(path)
            with suppress(OSError):
                folder.rmdir()

    def require_restored(self) -> None:
        """Raise WarehouseError if a backup is being restored into the home, or if its restore was interrupted.

        Whoever opens the home calls this first. The mark counts whatever it holds: it is made before everything else.
        """
        if not self.restores and os.path.exists(self.restoring):  # noqa: PTH110 - False where the home may not be entered
            msg = f"A backup is being restored into {self.root}, or its restore was interrupted; nothing else uses the home until it is complete."
            hint = f"batch-platform restore DEST completes it; to give it up, remove everything in {self.root}."
            raise WarehouseError(msg, hint=hint)

    def require_folder(self) -> None:
        """Raise BatchPlatformError if the root is not a folder and cannot be made one since a file is in the way."""
        if not next(path for path in (self.root, *self.root.parents) if path.exists()).is_dir():
            raise self._unwritable(self.root, "Not a directory")

    def _unwritable(self, folder: Path, reason: str | None) -> BatchPlatformError:
        msg = f"The {'home' if folder == self.root else 'folder'} {folder} cannot be written to ({reason})."
        return BatchPlatformError(msg, hint=f"set {HOME_VARIABLE} to a folder of yours.")

    def reports(self, pipeline: str) -> Path:
        """The folder of a pipeline's reports; raises WrongUseError if the name leads out of it."""
        return _below(self.root / "reports", pipeline)

    def features(self, pipeline: str) -> Path:
        """The folder of a pipeline's feature files; raises WrongUseError if the name leads out of the lake."""
        return _below(self.lake, pipeline, "features")

    def feature_file(self, pipeline: str, partition_key: str, sha256: str) -> Path:
        """The feature file of a partition, named after its content: another build of the partition is another file."""
        return _below(self.lake, pipeline, "features", feature_file_name(partition_key, sha256))

    def table_folder(self, pipeline: str, table: str) -> Path:
        """The folder with the files of a pipeline's table; raises WrongUseError if a name leads out of the lake."""
        return _below(self.lake, pipeline, table)

    def table_file(self, pipeline: str, table: str, partition_key: str, name: str) -> Path:
        """A file of a pipeline's table; raises WrongUseError if a name leads out of the lake."""
        return _below(self.lake, pipeline, table, partition_key, name)

    def bundles(self, pipeline: str) -> Path:
        """The folder of a pipeline's versions; raises WrongUseError if the name leads out of the folder of models."""
        return _below(self.models, pipeline)

    def bundle(self, pipeline: str, version: str) -> Path:
        """The folder of one trained version; raises WrongUseError if a name leads out of the folder of models."""
        return _below(self.models, pipeline, version)


def feature_file_name(partition_key: str, sha256: str) -> str:
    """The name of a feature file, from its partition and the SHA-256 of its bytes."""
    return f"{partition_key}.{sha256[:12]}.parquet"


def partition_of(feature_file: str) -> str:
    """The partition key in the name of a feature file."""
    return feature_file.rsplit(".", 2)[0]


def _below(folder: Path, *names: str) -> Path:
    """A path below a folder. The folder itself may be a link to another disk; no link below it may lead out of it."""
    for name in names:
        if name in ("", ".", "..") or not _ONE_NAME.fullmatch(name) or len(os.fsencode(name)) > LONGEST_NAME:
            msg = f"{name[:80]!r} cannot be the name of a file or a folder in {folder}."
            raise WrongUseError(msg, hint="names hold letters, digits and _ - + : . and at most 200 bytes.")
    path = folder.joinpath(*names)
    inner = (*reversed(path.parents[: len(names) - 1]), path)
    link = next(filter(os.path.islink, inner), None)
    if link is not None and not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        msg = f"{link} leads out of {folder} by a link; nothing is read or written there."
        raise WrongUseError(msg, hint=f"remove the link, or move {folder} as a whole and make a link of it.")
    return path
