"""Expensive starting points of tests: each is made once per test session, whatever the number of workers, and copied."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

WORKER_PREFIX = "popen-"  # of the folder that pytest-xdist gives to a worker, below that of the session


def session_folder(folder: Path) -> Path:
    """The folder that all workers of a session share, for the temporary folder of a test or of a worker."""
    for worker in (folder, *folder.parents):
        if worker.name.startswith(WORKER_PREFIX):
            return worker.parent
    return folder.parent


def made_once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A starting point of the session, made by the first test that asks for it while the others wait.

    Args:
        folder: The temporary folder of the test that asks.
        name: Of the starting point within the session.
        make: Makes the starting point in an absent folder; it is called again if it failed before.

    Returns:
        The folder of the starting point, to be copied and never to be changed.
    """
    starting_points = session_folder(folder) / "starting_points"
    starting_points.mkdir(exist_ok=True)
    made, finished = starting_points / name, starting_points / f"{name}.finished"
    with (starting_points / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            rmtree(made, ignore_errors=True)
            make(made)
            finished.touch()
    return made
