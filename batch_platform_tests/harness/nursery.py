"""Processes that begin with everything imported, so that hundreds of them can be killed in a few minutes.

The nursery imports, parses and compiles what every child needs, and never starts a thread. Each line on its standard input
is the task of a child that it forks. A child reports its progress one line at a time. The nursery reaps a child only on
request, so that its id stays its own.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import numpy as np
from threadpoolctl import get_cached_controller

from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, LABELS_SQL

VICTIMS = "batch_platform_tests.faults.victim"
STORM = "batch_platform_tests.faults.storm_tasks"
IMPORTED = (
    "batch_platform.pipeline.pipeline",
    "skops.io",
    "sklearn.ensemble",
    "sklearn.metrics",
    "batch_platform.features.lineage",
    "encodings.cp437",  # in which a bundle's archive names its files
    "batch_platform.cli.running",
    "batch_platform.cli.status",
    VICTIMS,
    STORM,
)
ENDS = ("done", "failed")
_idle: list[subprocess.Popen[str]] = []


@dataclass(frozen=True)
class Child:
    """A forked process, and the marks that it passes."""

    pid: int
    nursery: "Nursery"

    def next_mark(self) -> str:
        """Wait for the next mark and return it; the last mark is `done` or `failed`."""
        return self.nursery.heard(self.pid)

    def wait_for(self, mark: str) -> None:
        """Wait until the child passes a mark; fails if the child ends before."""
        while (passed := self.next_mark()) != mark:
            assert passed not in ENDS, f"{passed} before {mark}"

    def rest(self) -> list[str]:
        """All marks from here to the end."""
        marks = [self.next_mark()]
        while marks[-1] not in ENDS:
            marks.append(self.next_mark())
        return marks

    def bury(self) -> int:
        """Wait for the end; returns the exit status, negative for a signal."""
        return self.end()[1]

    def end(self) -> tuple[list[str], int]:
        """Wait for the end; returns the marks from here on, and the exit status as `bury` does."""
        self.nursery.say(f"bury {self.pid}")
        marks = list[str]()
        while not (passed := self.next_mark()).startswith("buried "):
            marks.append(passed)
        self.nursery.forget(self.pid)
        return marks, int(passed.removeprefix("buried "))


class Nursery:
    """A nursery in a process of its own, which lives on for the next test."""

    def __init__(self, *before: str) -> None:
        """With `before`, it is started by that command, and ends with the block."""
        self._before = before

    def __enter__(self) -> Self:
        self._heard = defaultdict[int, deque[str]](deque)
        self._alive = set[int]()
        if _idle and not self._before:
            self._process = _idle.pop()
        else:
            command = [*self._before, sys.executable, "-m", "batch_platform_tests.harness.nursery"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.heard(self._process.pid)
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        for pid in self._alive:  # not buried yet, so that the id is still theirs
            os.kill(pid, signal.SIGKILL)
        if failure is not None:
            self._process.communicate()
            return
        for pid in list(self._alive):
            Child(pid, self).bury()
        if self._before:
            self._process.communicate()
        else:
            _idle.append(self._process)

    def fork(self, task: str, **arguments: Any) -> Child:
        """Start a task in a new child, with arguments that JSON can hold: a function of `victim.py`, or of a module before a dot."""
        self.say(json.dumps({"task": task, "arguments": arguments}))
        child = Child(int(self.heard(self._process.pid)), self)
        self._alive.add(child.pid)
        return child

    def heard(self, pid: int) -> str:
        """Wait for the next line of a process and return it."""
        while not self._heard[pid]:
            line = self._process.stdout.readline()
            assert line, "the nursery has ended"
            process, _, heard = line.strip().partition(" ")
            self._heard[int(process)].append(heard)
        return self._heard[pid].popleft()

    def forget(self, pid: int) -> None:
        """Stop counting a child as alive."""
        self._alive.remove(pid)

    def say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().communicate()


def mark(name: str) -> None:
    """Report a point that this process has reached."""
    os.write(1, f"{os.getpid()} {name}\n".encode())


def _live(task: Callable[..., None], arguments: dict[str, Any]) -> None:
    try:
        task(**arguments)
    except Exception as error:  # noqa: BLE001 - the child reports any error and ends
        mark(f"error {' '.join(str(error).split())}")
        traceback.print_exc()
        mark("failed")
        os._exit(1)
    mark("done")
    os._exit(0)


def compile_trees() -> None:
    """Load the compiled code that evaluates the trees of the small pipeline's model, here by means of a single leaf."""
    from batch_platform.kernels.forest.arrays import flatten
    from batch_platform.kernels.forest.ensembles import Constant, Ensemble, Tree
    from batch_platform.kernels.forest.kernels import exponentials

    none, leaf = np.zeros(1, np.int64), np.full(1, -1)
    sets = np.zeros((0, 256), np.bool_)
    tree = Tree(none, np.zeros(1), leaf, leaf, np.zeros(1, np.bool_), np.zeros((1, 1)), leaf, sets, np.ones(1))
    refused = np.zeros(1, np.bool_)
    flatten(Ensemble(1, [tree], Constant(np.zeros(1)), lambda sums: sums, False, False, refused)).prepare()
    exponentials(np.zeros((1, 1)))  # of its probabilities


def parse_queries() -> None:
    """Let the parser build its tables, which it does with the first query."""
    from batch_platform.features.lineage import rows_read

    for sql in (FEATURES_SQL, LABELS_SQL):
        rows_read(sql, "events")


def main() -> None:
    for module in IMPORTED:
        import_module(module)
    compile_trees()
    parse_queries()
    get_cached_controller()  # looks for the numeric libraries in all that is loaded, once for every child
    mark("ready")
    for line in iter(sys.stdin.readline, ""):
        if line.startswith("bury "):
            pid = int(line.removeprefix("bury "))
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(1, f"{pid} buried {status}\n".encode())
            continue
        task = json.loads(line)
        pid = os.fork()
        if not pid:
            module, _, name = task["task"].rpartition(".")
            _live(getattr(import_module(module or VICTIMS), name), task["arguments"])
        mark(str(pid))


if __name__ == "__main__":
    main()
