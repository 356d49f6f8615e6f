"""Number of threads of this process that may work at once: those that score, those of DuckDB's queries and those that fit."""

import os
from contextlib import suppress
from functools import cache
from math import ceil
from pathlib import Path

from batch_platform.declaration.errors import WrongUseError

THREADS_VARIABLE = "BATCH_PLATFORM_THREADS"
# Environment of OpenMP and OpenBLAS: threads without work soon sleep.
SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "OPENBLAS_THREAD_TIMEOUT": "4"}


def most_threads() -> int | None:
    """Number of threads of this process that may work at once, as the environment says; None if it does not.

    Raises WrongUseError if the environment names no positive number.
    """
    named = os.environ.get(THREADS_VARIABLE, "")
    if not named:
        return None
    if not named.isdecimal() or int(named) < 1:
        msg = f"{THREADS_VARIABLE} is {named!r}, which is not a number of threads."
        raise WrongUseError(msg, hint="set it to 1 or more, or unset it: then each process uses all its cores.")
    return int(named)


def threads() -> int:
    """Number of threads of this process that work at once: as many as it may use cores, unless the environment says otherwise."""
    return most_threads() or cores()


def cores() -> int:
    """Number of cores that this process may use: those it is bound to, and no more than its container's share of time comes to."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, container_cores() or bound)


@cache
def container_cores(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Number of cores whose time the control groups of this process allow, rounded up; None without a limit.

    Each group that contains another limits it too. Version 2 names the quota and the period in one file, version 1 in two.
    """
    shares = list[float]()
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no Linux
        return None
    for number, controllers, group in (line.split(":", 2) for line in lines):
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        files = ("cpu.max",) if number == "0" else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        mount = root if number == "0" else root / "cpu"
        folder = mount / group.lstrip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # a group without a limit has no such file, or "max" or -1 in it
                quota, period = map(int, " ".join((each / file).read_text() for file in files).split())
                shares += [quota / period] if quota > 0 else []
    return max(1, ceil(min(shares))) if shares else None
