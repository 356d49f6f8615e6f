"""A reader that never stops looking: every state of the published copy that it sees must be a complete one.

It takes a home and the contents that each partition may have. When its standard input is closed it ends and prints how
often it looked.
"""

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.invariants import Held, published

PAUSE_SECONDS = 0.02  # between two checks whether the copy is another one
PATIENCE_SECONDS = 0.5  # after which it looks at a copy that is still the same


class Reader:
    """A reader in a process of its own."""

    def __init__(self, home: Home, contents: dict[str, set[str]]) -> None:
        known = json.dumps({key: sorted(states) for key, states in contents.items()})
        self._command = [sys.executable, "-m", "batch_platform_tests.faults.reader", str(home.root), known]
        self.looks, self.states = 0, 0

    def __enter__(self) -> Self:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(self._command, text=True, **pipes)
        self._process.stdout.readline()  # it has imported what it needs, and looks
        return self

    def __exit__(self, *_: object) -> None:
        out, err = self._process.communicate()
        assert self._process.returncode == 0, err
        self.looks, self.states = map(int, out.split())


def read_until_told(home: Home, contents: dict[str, list[str]]) -> tuple[int, int]:
    """Look whenever the copy changes, and regularly; returns the numbers of looks and of different states seen."""
    looks, states, last = 0, 0, dict[str, Held]()
    copy_seen, looked_at = None, 0.0
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        copy = home.published.stat()
        copy_now = (copy.st_ino, copy.st_size, copy.st_mtime_ns)
        if copy_now == copy_seen and time.monotonic() < looked_at + PATIENCE_SECONDS:
            continue
        copy_seen, looked_at = copy_now, time.monotonic()
        state = published(home)
        strange = [key for key, held in state.items() if held.content not in contents.get(key, [held.content])]
        assert not strange, f"rows that no run ever wrote: {strange}"
        older = [key for key, held in last.items() if key not in state or state[key].seq < held.seq]
        assert not older, f"went back to an older state: {older}"
        looks, states, last = looks + 1, states + (state != last), state
    return looks, states


if __name__ == "__main__":
    print("looks", flush=True)
    print(*read_until_told(Home(Path(sys.argv[1])), json.loads(sys.argv[2])))
