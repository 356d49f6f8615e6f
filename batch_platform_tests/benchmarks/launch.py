"""Run a command as the only child of a small process, and report its cost.

    python -I -S launch.py REPORT.json COMMAND…

The kernel never reports a peak below the memory that the parent held when it forked. So the parent is this process, which
imports next to nothing. Processes that the command does not wait for, such as a JVM or the workers of a cluster, are
sampled while they live. Where their parent ends first, this process becomes their parent, so that their core-seconds count.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.2
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")


def processes() -> dict[int, tuple[int, float]]:
    """The parent of every process, and its core-seconds with those of the children it has waited for."""
    found: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # the process has just ended
            fields = stat.rpartition(")")[2].split()
            found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICKS
    return found


def descendants(root: int) -> dict[int, float]:
    """The core-seconds of each live descendant of a process."""
    family, alive = {root}, processes()
    while more := {pid for pid, (parent, _) in alive.items() if parent in family} - family:
        family |= more
    return {pid: alive[pid][1] for pid in family - {root}}


def peak_kib(pid: int) -> int:
    """Peak resident memory of a live process so far; 0 if it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def watch(ended: threading.Event, peaks: dict[int, int]) -> None:
    """Record the peak of each descendant of this process until the command has ended."""
    while not ended.wait(SAMPLE_SECONDS):
        for pid in descendants(os.getpid()):
            peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))


def core_seconds() -> float:
    """User and system time of all processes that came from this one."""
    while reaped():
        pass
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(descendants(os.getpid()).values())


def reaped() -> bool:
    """Wait for one child that has ended; False if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def main(report: str, *command: str) -> None:
    """Run the command and write the report."""
    ended, peaks = threading.Event(), dict[int, int]()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    began = time.perf_counter()
    process = subprocess.Popen(command)
    watcher = threading.Thread(target=watch, args=(ended, peaks))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    peak = max([usage.ru_maxrss, *peaks.values()])
    cost = {
        "seconds": seconds,
        "core_seconds": core_seconds(),
        "peak_mib": peak / 1024,
        "code": os.waitstatus_to_exitcode(status),
    }
    Path(report).write_text(json.dumps(cost), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
