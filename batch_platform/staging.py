"""A run's own folder for files on their way, held by a lock as long as the run lives.

The next run sweeps the folders whose lock is free: what a killed run left behind, never what a live one uses.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch_platform.home import Home

_LOCK = ".lock"


@contextmanager
def staging_folder(home: Home, run_id: str) -> Iterator[Path]:
    """A fresh folder, removed at the end; sweeps those of dead runs first."""
    home.create()
    _sweep(home)
    folder = home.staging / f"{run_id}-{os.getpid()}"
    folder.mkdir()
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(home: Home) -> None:
    for folder in home.staging.iterdir():
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue  # just being made, or just being removed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
