"""A run's own folder for staged files, locked as long as the run lives.

The next run sweeps the folders whose lock is free: what a killed run left behind, never what a live run uses. The lock
is on the folder itself, so there is no moment in which a folder exists and nobody can tell whose it is.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from batch_platform.warehouse.home import Home


@contextmanager
def staging_folder(home: Home, run_id: str) -> Generator[Path]:
    """A fresh folder, removed at the end; sweeps those of dead runs first."""
    sweep_all(home.create())
    folder, descriptor = _claim(home, run_id)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _claim(home: Home, run_id: str) -> tuple[Path, int]:
    """Make a folder and lock it; try again if another run swept it before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{run_id}-", dir=home.staging))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def left_behind(home: Home) -> list[Path]:
    """The folders of runs that are gone."""
    return [folder for folder in _folders(home) if if_free(folder, lambda _: None)]


def sweep_all(home: Home) -> None:
    """Remove the folders of all runs that are gone."""
    for folder in _folders(home):
        sweep(folder)


def _folders(home: Home) -> list[Path]:
    """The folders that have the name of a run's folder; everything else is somebody else's."""
    return sorted(filter(home.knows, home.staging.iterdir())) if home.staging.is_dir() else []


def sweep(folder: Path) -> None:
    """Remove a folder whose run is gone; the folder of a live run stays."""
    if_free(folder, lambda free: shutil.rmtree(free, ignore_errors=True))


def if_free(path: Path, do: Callable[[Path], None], *, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> bool:
    """Lock a folder (with other `flags`, a file) that no run has locked and do something with it; False if it is locked."""
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False  # another run is removing it, or it is not a staging folder, or that of another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        do(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
