"""The processor time of each tier beside its budget: printed after a run in CI, so that creeping is seen. No test fails by it.

Machines differ, so times are given in loops too: one loop is what `loop_seconds` measures before the tests begin. The budgets are
those of a machine on which it takes LOOP_SECONDS.
"""

import os
from collections import Counter
from collections.abc import Generator
from time import process_time

import pytest

LOOP_SECONDS = 0.11  # of an AMD EPYC, for which the budgets were set
BUDGETS = {"unit": 90, "everyday": 960, "full": 3000}  # processor seconds of a tier there, with the tiers before it
_SPENT = "processor_seconds"
_STARTING = "starting"  # imports and collection, which count for each tier


def used() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def loop_seconds() -> float:
    """The shortest of three loops in pure Python, in processor seconds."""
    spent = list[float]()
    for _ in range(3):
        began = process_time()
        sum(number * number % 7 for number in range(3_000_000))
        spent.append(process_time() - began)
    return min(spent)


class ProcessorTime:
    """A plugin of pytest that adds up what the tests of each tier take, in all workers."""

    def __init__(self, loop: float) -> None:
        self.loop = loop  # seconds; only the process that prints needs it
        self.spent = Counter[str]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test with its fixtures."""
        began = used()
        result = yield
        tier = next((mark for mark in ("release", "full", "unit") if item.get_closest_marker(mark)), "everyday")
        self.spent[tier] += used() - began
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand the sums of a worker to the process that started it."""
        self.spent[_STARTING] += used() - self.spent.total()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_SPENT] = dict(self.spent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Add the sums of a worker that has ended."""
        self.spent.update(getattr(node, "workeroutput", {}).get(_SPENT, {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each tier that ran."""
        terminalreporter.section(f"processor time; a loop takes {self.loop:.3f} s here")
        total = self.spent[_STARTING]
        for tier, budget in BUDGETS.items():
            total += self.spent[tier]
            if self.spent[tier]:
                loops, most = total / self.loop, budget / LOOP_SECONDS
                terminalreporter.write_line(f"{tier}: {total:,.0f} s, {loops:,.0f} loops; budget {most:,.0f} loops")
