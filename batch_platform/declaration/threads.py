"""Number of threads of this process that may work at once: those that score, those of DuckDB's queries and those that fit."""

import os

from batch_platform.declaration.errors import WrongUseError

THREADS_VARIABLE = "BATCH_PLATFORM_THREADS"
# Environment of OpenMP and OpenBLAS: threads without work soon sleep.
SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "OPENBLAS_THREAD_TIMEOUT": "4"}


def most_threads() -> int | None:
    """Number of threads of this process that may work at once, as the environment says; None if it does not.

    Raises:
        WrongUseError: The environment names no positive number.
    """
    named = os.environ.get(THREADS_VARIABLE, "")
    if not named:
        return None
    if not named.isdecimal() or int(named) < 1:
        msg = f"{THREADS_VARIABLE} is {named!r}, which is not a number of threads."
        raise WrongUseError(msg, hint="set it to 1 or more, or unset it: then each process uses all its cores.")
    return int(named)


def threads() -> int:
    """Number of threads of this process that work at once: as many as it has cores, unless the environment says otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return most_threads() or cores
