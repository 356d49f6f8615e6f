"""Staging folders: each run has its own, locked while the run lives.

A run removes the folders whose lock is free, which killed runs left behind. The lock is on the folder itself, so no
folder ever exists without telling whether its run lives.
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
    """Provide a new folder and remove it at the end; first remove the folders of dead runs."""
    home.create()
    for folder in home.staging.iterdir():
        sweep(folder)
    folder, descriptor = _claim(home, run_id)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _claim(home: Home, run_id: str) -> tuple[Path, int]:
    """Create and lock a folder; try again if another run removed it before it was locked."""
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
    """The folders of dead runs."""
    return [folder for folder in sorted(home.staging.iterdir()) if if_free(folder, lambda _: None)]


def sweep(folder: Path) -> None:
    """Remove a folder unless its run lives."""
    if_free(folder, lambda free: shutil.rmtree(free, ignore_errors=True))


def if_free(path: Path, do: Callable[[Path], None], *, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> bool:
    """Lock a folder that no run holds and act on it; return whether that was possible.

    Args:
        path: The folder; with other `flags`, a file.
        do: Called with the path while it is locked.
        flags: The flags that open the path.
    """
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return False  # another run is removing it, or it is no folder
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        do(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
