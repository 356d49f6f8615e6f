"""Run a command as the only child of a small process, and report its cost.

    python -I -S launch.py REPORT.json COMMAND…

The kernel never reports a peak below the memory that the parent held when it forked. So the parent is this process, which
imports next to nothing. Processes that the command does not wait for, such as a JVM or the workers of a cluster, are
sampled while they live.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.2


def parents() -> dict[int, int]:
    """The parent of every process."""
    parent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # the process has just ended
            parent[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parent


def peak_kib(pid: int) -> int:
    """Peak resident memory of a live process so far; 0 if it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def watch(root: int, ended: threading.Event, peaks: dict[int, int]) -> None:
    """Record the peak of each descendant of a process until that process has ended."""
    family: set[int] = set()
    while not ended.wait(SAMPLE_SECONDS):
        parent = parents()
        family &= parent.keys()
        family.add(root)
        for pid in sorted(parent):  # parents mostly come before their children; the others are found in the next sample
            if parent[pid] in family:
                family.add(pid)
        for pid in family:
            peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))


def main(report: str, *command: str) -> None:
    """Run the command and write the report."""
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
