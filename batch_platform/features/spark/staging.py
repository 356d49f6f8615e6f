"""A run's folder in an object store, for clusters that share no file system with the machine of the run.

The driver puts there what tasks read, each under its hash, and tasks put there what they have written, under names of their own.
The driver takes what belongs to the attempts that Spark returned, and removes the folder at the end. A killed run leaves a note in
the home, by which the next run removes its folder.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from batch_platform.declaration.errors import EngineError
from batch_platform.sources.objects import ObjectPath, StoreError, hint_for, opened_store
from batch_platform.warehouse.home import Home

MARK = "driver"  # object by which a task sees that it reaches the store
_NOTES = "staged-"  # start of the names of notes


@dataclass(frozen=True)
class ObjectStaging:
    """The folder; plain data, which tasks get too. Its methods raise StoreError."""

    folder: ObjectPath

    def put(self, files: Mapping[str, Path]) -> None:
        """Make objects of files, by name."""
        with opened_store(self.folder) as (store, at):
            store.put([str(file) for file in files.values()], [f"{at}/{name}" for name in files])

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Make files of objects, by name."""
        with opened_store(self.folder) as (store, at):
            store.get([f"{at}/{name}" for name in files], [str(file) for file in files.values()])

    def put_folder(self, folder: Path, name: str) -> ObjectPath:
        """Put all files of a folder below a name."""
        files = [file for file in folder.rglob("*") if file.is_file()]
        self.put({f"{name}/{file.relative_to(folder).as_posix()}": file for file in files})
        return self.folder / name

    def fetch_folder(self, name: str, folder: Path) -> None:
        """Fetch all objects below a name into a folder that is not there yet."""
        with opened_store(self.folder / name) as (store, at):
            names = [str(path).removeprefix(f"{at}/") for path in store.find(at)]
        for parent in {(folder / below).parent for below in names}:
            parent.mkdir(parents=True, exist_ok=True)
        self.fetch({f"{name}/{below}": folder / below for below in names})

    def require_reached(self) -> None:
        """Look for what the driver has put there first."""
        with opened_store(self.folder / MARK) as (store, at):
            store.info(at)

    def remove(self) -> None:
        """Remove all objects of the folder."""
        with opened_store(self.folder) as (store, at), suppress(FileNotFoundError):
            store.rm(at, recursive=True)


@contextmanager
def object_staging(address: str, pipeline: str, folder: Path) -> Generator[ObjectStaging]:
    """The folder for a run that stages at an address, named after the run's folder on this machine; removed at the end.

    Removes those of killed runs first. Raises EngineError if the store cannot be written to.
    """
    staging, home = ObjectStaging(ObjectPath(address) / pipeline / folder.name), Home.of_staged(folder)
    note, mark = folder / f"{_NOTES}{folder.name}", folder / MARK
    with store_errors(pipeline):
        if home is not None:
            home.spark_logs.mkdir(exist_ok=True)
            note = home.spark_logs / note.name
            _remove(note for note in home.spark_logs.glob(f"{_NOTES}*") if not _is_alive(note, home))
        note.write_text(str(staging.folder), encoding="utf-8")
        mark.touch()
        staging.put({MARK: mark})
        mark.unlink()
    try:
        yield staging
    finally:
        _remove([note])


@contextmanager
def store_errors(where: str) -> Generator[None]:
    """Turn the failure of a store into an error that says where and what to do."""
    try:
        yield
    except StoreError as error:
        msg = f"{where}: {error}, where engine.spark.staging is; nothing of the unfinished partitions is published."
        raise EngineError(msg, hint=hint_for(str(error))) from error


def _is_alive(note: Path, home: Home) -> bool:
    return (home.staging / note.name.removeprefix(_NOTES)).exists()


def _remove(notes: Iterable[Path]) -> None:
    """Remove the folders that notes name; where the store does not answer, the next run tries again."""
    for note in notes:
        with suppress(StoreError, FileNotFoundError):  # another run was quicker
            ObjectStaging(ObjectPath(note.read_text(encoding="utf-8"))).remove()
            note.unlink()
