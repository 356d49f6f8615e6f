"""A reader that never stops looking: every state of the published copy that it sees must be one that was complete.

Given a home and the contents that each partition may have; ends, and says how often it looked, when its standard input
is closed.
"""

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Self

from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.invariants import Held, published

PAUSE_SECONDS = 0.02


class Reader:
    """A reader in a process of its own."""

    def __init__(self, home: Home, contents: dict[str, set[str]]) -> None:
        known = json.dumps({key: sorted(found) for key, found in contents.items()})
        self._command = [sys.executable, "-m", "batch_platform_tests.faults.reader", str(home.root), known]
        self.looks, self.states = 0, 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        out, err = self._process.communicate()
        assert self._process.returncode == 0, err
        self.looks, self.states = map(int, out.split())


def read_until_told(home: Home, contents: dict[str, list[str]]) -> tuple[int, int]:
    """How often it looked, and how many different states it saw."""
    looks, states, last = 0, 0, dict[str, Held]()
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        found = published(home)
        strange = [key for key, one in found.items() if one.content not in contents.get(key, [one.content])]
        assert not strange, f"rows that no run ever wrote: {strange}"
        older = [key for key, one in last.items() if key not in found or found[key].seq < one.seq]
        assert not older, f"went back to an older state: {older}"
        looks, states, last = looks + 1, states + (found != last), found
    return looks, states


if __name__ == "__main__":
    print(*read_until_told(Home(Path(sys.argv[1])), json.loads(sys.argv[2])))
