"""The number of threads that the native libraries below NumPy and the estimators use, and the way these threads wait."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import Lock, local

from threadpoolctl import get_cached_controller, reset_cached_controller

from batch_platform.declaration.threads import SHORT_WAITS, container_cores, cores, most_threads


def let_waiting_threads_sleep() -> None:
    """Make the threads of OpenMP and OpenBLAS wait in a busy loop only briefly, then asleep, unless the environment says otherwise.

    By default they loop for long. Where more threads run than there are cores (another run beside this one, a container that may
    use fewer cores than it sees), the loop takes the core from the very thread it waits for. To sleep at once would be as wrong: on
    an idle machine waking up takes longer than most waits. Results do not change. Libraries read these variables when they are
    loaded: call this before, for this process and its child processes.

    Where a container has a share of the cores that it sees, the libraries start no more threads than that.
    """
    if (share := container_cores()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(min(share, cores())))  # OpenBLAS and Arrow heed it too
    for name, value in SHORT_WAITS.items():
        if not (name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ):
            os.environ.setdefault(name, value)


class _Process:
    """State that all threads share."""

    def __init__(self) -> None:
        self.lock = Lock()
        # A limit for each running `one_thread` block, in the order in which they began.
        self.limits: list[ExitStack] = []
        self.loads = 0  # how often libraries may have been loaded


class _Thread(local):
    loads = 0  # number of loads after which this thread set its limit


_process, _thread = _Process(), _Thread()


@contextmanager
def one_thread() -> Generator[None]:
    """Hold the numeric libraries of this process to one thread each, those loaded later included: for many short calls.

    Waking more threads costs more than a batch is worth, and sums come out the same on every machine. A library that is loaded inside
    the block is held once `libraries_loaded` says so. The loaded libraries are looked up again only after an import or after
    `libraries_loaded`: a look-up reads the memory map of the process, for 3 ms, which is longer than many a batch takes to score.
    """
    with ExitStack() as limits:
        limits.enter_context(get_cached_controller().limit(limits=1))
        with _process.lock:
            _process.limits.append(limits)
        _thread.loads = _process.loads
        try:
            yield
        finally:
            with _process.lock:
                _process.limits.remove(limits)


@contextmanager
def no_more_threads() -> Generator[None]:
    """Hold each numeric library of this process to the threads that may work at once, where the environment says how many."""
    with get_cached_controller().limit(limits=most_threads()):  # None changes nothing
        yield


def one_thread_here() -> None:
    """Hold OpenMP to one thread on a new thread that lives within `one_thread`: OpenMP has a limit per calling thread."""
    _thread.loads = _process.loads
    get_cached_controller().select(user_api="openmp").limit(limits=1)


def libraries_loaded() -> None:
    """Say that libraries may have been loaded; where `one_thread` holds, they are held too."""
    reset_cached_controller()
    with _process.lock:
        _process.loads += 1
    hold_loaded_libraries()


def hold_loaded_libraries() -> None:
    """Within `one_thread`, hold libraries that were loaded since this thread last looked; cheap if there are none."""
    if _thread.loads == _process.loads or not _process.limits:
        return
    with _process.lock:
        if _process.limits:  # the limit lasts until the first running block ends
            _process.limits[0].enter_context(get_cached_controller().limit(limits=1))
            _thread.loads = _process.loads
