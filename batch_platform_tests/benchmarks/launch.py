"""Runs a command as the only child of a small process, and says what it cost.

    python -I -S launch.py REPORT.json COMMAND…

A child's peak memory as the kernel tells it is never below what its parent held when it forked: so the parent is this
process, which imports next to nothing. Processes that the command leaves to themselves, such as a JVM or the workers of
a cluster, are looked at while they live.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

PAUSE_SECONDS = 0.2


def parents() -> dict[int, int]:
    """The parent of every process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it has just ended
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def peak_kib(pid: int) -> int:
    """The most that a living process has held so far; 0 where it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def watch(root: int, ended: threading.Event, peaks: dict[int, int]) -> None:
    """Note the peak of each descendant of a process until it has ended."""
    family: set[int] = set()
    while not ended.wait(PAUSE_SECONDS):
        parent = parents()
        family &= parent.keys()
        family.add(root)
        for pid in sorted(parent):  # parents mostly come before their children; who does not is found next time
            if parent[pid] in family:
                family.add(pid)
        for pid in family:
            peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))


def main(report: str, *command: str) -> None:
    """Run the command to its end and write the report."""
    ended, peaks = threading.Event(), dict[int, int]()
    began = time.perf_counter()
    process = subprocess.Popen(command)
    watcher = threading.Thread(target=watch, args=(process.pid, ended, peaks))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    peak = max([usage.ru_maxrss, *peaks.values()])
    cost = {"seconds": seconds, "peak_mib": peak / 1024, "code": os.waitstatus_to_exitcode(status)}
    Path(report).write_text(json.dumps(cost), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
