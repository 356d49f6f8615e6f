"""A storm: processes that compete for one home and are killed, while others read it, and every check there is.

    python -m batch_platform_tests.faults.stress --minutes 10 --seed 7

Three pipelines with challengers and rejected rows are written, trained, promoted, rolled back, evaluated and cleaned up, by
several processes at once. Most are killed by SIGKILL: at a random time, or right before a commit, a checkpoint or the flip of
the published link. Ends with a summary as JSON; its exit code is 1 if anything did not hold.
"""

import argparse
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from batch_platform.kernels.native_threads import let_waiting_threads_sleep
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.inspection import Inspection, Memory, Seen, Watermarks
from batch_platform_tests.faults.invariants import SCORED, changed_events
from batch_platform_tests.faults.storm_tasks import DECLARED, PROJECTS, SECONDS_UNRECORDED, WAREHOUSE, Work
from batch_platform_tests.harness.nursery import Child, Nursery
from batch_platform_tests.harness.small_pipeline import write_small_project

WORK = {"write": 30, "bring up to date": 8, "train": 6, "promote": 8, "score with a version": 6, "evaluate": 6, "gc": 6}
KILLED = 0.8  # share of the work that is meant to be killed
AIMED = 0.4  # share of those kills that wait for a step
STEPS = {
    "link": r"^(symlink|replace) \.published",
    "copy": r"^rename published-",
    "commit": r"^COMMIT",
    "checkpoint": r"^CHECKPOINT",
}
# What work may rightly refuse when others work beside it.
REFUSALS = (
    "after this run started; nothing is changed",  # overtaken
    "already serves from",
    "has no champion to withdraw",
    "no approved version but",
    "was removed by",
    "no model serves it",
)
LOOKS = AFTER_KILLS, BY_READERS, WHEN_CALM = "after kills", "by readers", "when calm"
SECONDS_CALM = 45.0  # between two times at which nothing runs and all must be done


@dataclass
class Storm:
    """A home, and the processes that work on it.

    Args:
        folder: An empty folder for the home and the sources.
        seed: Of all random choices; which process gets where first is the machine's choice.
        workers: Number of processes that work at once, beside one that reads.
    """

    folder: Path
    seed: int = 0
    workers: int = 3
    kills: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])  # work that came to its end, or was rightly refused
    inspections: dict[str, Inspection] = field(default_factory=lambda: {name: Inspection() for name in LOOKS})

    def rage(self, seconds: float, *, kills: int = 0) -> dict[str, Any]:
        """Go on for so long, and until so many processes were killed, and return the summary."""
        let_waiting_threads_sleep()
        self._lock, self._memory, self._count = Lock(), Memory(), 0
        self._watermarks = Watermarks()
        self._spans = defaultdict[str, float](lambda: 1.0)
        self._home = Home(self.folder / "home").create()
        write_small_project(self.folder / PROJECTS[0])
        write_small_project(self.folder / PROJECTS[1], events=changed_events(*SCORED))
        began = time.monotonic()
        with ExitStack() as stack:
            nurseries = [stack.enter_context(Nursery()) for _ in range(self.workers + 1)]
            self._ask(nurseries[0], "calm", WHEN_CALM, root=str(self._home.root))
            stack.enter_context(self._reader(nurseries.pop()))
            chances = [random.Random(f"{self.seed} {number}") for number in range(self.workers)]
            ends = time.monotonic() + seconds
            while time.monotonic() < ends or self.kills.total() < kills:
                least = 0 if time.monotonic() + SECONDS_CALM < ends else kills
                until = min(ends, time.monotonic() + SECONDS_CALM)
                with ThreadPoolExecutor(self.workers) as threads:
                    for nursery, chance in zip(nurseries, chances, strict=True):
                        threads.submit(self._work_until, until, least, nursery, chance)
                self._ask(nurseries[0], "calm", WHEN_CALM, root=str(self._home.root))
                print(self._in_short(began), file=sys.stderr, flush=True)
        return self._summary(seconds)

    def _work_until(self, until: float, kills: int, nursery: Nursery, chance: random.Random) -> None:
        try:
            while time.monotonic() < until or (self.kills.total() < kills and not self.violations):
                (kind,) = chance.choices(list(WORK), list(WORK.values()))
                if self._work(kind, nursery, chance):
                    self._ask(nursery, "look", AFTER_KILLS, root=str(self._home.root), seed=chance.random())
        except Exception:  # noqa: BLE001 - a defect of the storm itself must not look like calm
            with self._lock:
                self.inspections[AFTER_KILLS].violations.append(f"the storm failed: {traceback.format_exc()}")

    def _work(self, kind: str, nursery: Nursery, chance: random.Random) -> bool:
        """Let a process work, and kill it or not; returns whether it was killed."""
        number = self._next()
        first = chance.randrange(len(SCORED) - 2)
        keys = SCORED[first : first + chance.randint(1, 3)]
        run_id = f"{kind.replace(' ', '-')}-{number}"
        of = Work(str(self._home.root), chance.choice(list(DECLARED)), chance.choice(PROJECTS), keys, run_id)
        killed = chance.random() < KILLED
        aim = chance.choice([*STEPS]) if chance.random() < AIMED else "a random time"
        arguments = {"kind": kind, "of": asdict(of), "seed": chance.randrange(2**32)}
        if killed and aim in STEPS:
            arguments["die_at"] = STEPS[aim]
        child, began = nursery.fork("batch_platform_tests.faults.storm_tasks.work", **arguments), time.monotonic()
        with self._not_hung(child, run_id):
            child.wait_for("working")
            if killed and aim not in STEPS:
                time.sleep(chance.uniform(0, self._spans[kind] * 1.1))
                os.kill(child.pid, signal.SIGKILL)
            marks, status = child.end()
        with self._lock:
            if status == -signal.SIGKILL:
                self.kills[f"{kind}, {aim}"] += 1
                return True
            errors = [mark.removeprefix("error ") for mark in marks if mark.startswith("error ")]
            self._spans[kind] = 0.7 * self._spans[kind] + 0.3 * (time.monotonic() - began)
            expected = next((text for text in REFUSALS if errors and text in errors[0]), "done")
            if not errors or expected in REFUSALS:
                self.ended[f"{kind}, {expected}"] += 1
            else:
                self.inspections[AFTER_KILLS].violations.append(f"{run_id} of {of.pipeline} failed: {errors[0]}")
        return False

    def _ask(self, nursery: Nursery, task: str, look: str, **arguments: Any) -> None:
        """Let a process look, and take in what it saw."""
        report, into = self.folder / f"report-{self._next()}", self.inspections[look]
        with self._lock:
            earlier = {} if task == "calm" else {"earlier": dict(self._watermarks)}
        child = nursery.fork(
            f"batch_platform_tests.faults.storm_tasks.{task}", report=str(report), **arguments, **earlier
        )
        with self._not_hung(child, task):
            marks, _ = child.end()
        with self._lock:
            into.violations += [f"{task} failed: {mark}" for mark in marks if mark.startswith("error ")]
            for seen in _read_report(report):
                self._memory.compare(seen, may_be_older=True)
                into.add(seen, f"{task}, {seen.where}")
                if task == "look" and seen.where == WAREHOUSE:
                    self._watermarks = {
                        table: max(mark, self._watermarks.get(table, mark)) for table, mark in seen.watermarks.items()
                    }
            report.unlink(missing_ok=True)

    @contextmanager
    def _reader(self, nursery: Nursery) -> Iterator[None]:
        into, report, stop = self.inspections[BY_READERS], self.folder / "reader", self.folder / "stop"
        arguments = {"root": str(self._home.root), "report": str(report), "stop": str(stop)}
        child = nursery.fork("batch_platform_tests.faults.storm_tasks.read", **arguments)
        yield
        stop.touch()
        marks, _ = child.end()
        into.violations += [f"the reader failed: {mark}" for mark in marks if mark.startswith("error ")]
        for seen in _read_report(report):
            into.add(seen, "reader")

    @contextmanager
    def _not_hung(self, child: Child, name: str) -> Iterator[None]:
        """End a process that takes longer than any work may, and count that as a violation."""

        def end() -> None:
            self.inspections[AFTER_KILLS].violations.append(f"{name} hung")
            os.kill(child.pid, signal.SIGKILL)

        timer = Timer(SECONDS_UNRECORDED, end)
        timer.start()
        yield
        timer.cancel()

    def _next(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    @property
    def violations(self) -> list[str]:
        """What did not hold, with who saw it."""
        return [f"{name}: {it}" for name, inspection in self.inspections.items() for it in inspection.violations]

    def _in_short(self, began: float) -> str:
        checks = sum(inspection.checks.total() for inspection in self.inspections.values())
        counts = f"{self.kills.total()} kills, {checks} checks, {len(self.violations)} violations"
        return "\n  ".join([f"{time.monotonic() - began:.0f} s: {counts}", *self.violations])

    def _summary(self, seconds: float) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": seconds,
            "kills": {"all": self.kills.total(), **dict(sorted(self.kills.items()))},
            "ended": dict(sorted(self.ended.items())),
            "checks": {name: inspection.checks.total() for name, inspection in self.inspections.items()},
            "violations": self.violations,
        }


def _read_report(report: Path) -> tuple[Seen, ...]:
    """What a process saw; nothing if it failed before it wrote that."""
    return pickle.loads(report.read_bytes()) if report.exists() else ()


def main() -> int:
    """Run a storm, print its summary and tell by the exit code whether everything held."""
    options = argparse.ArgumentParser(
        description="Let processes compete, kill them, and look whether anything is torn."
    )
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=3)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = Storm(Path(folder), arguments.seed, arguments.workers).rage(arguments.minutes * 60)
    print(json.dumps(summary, indent=2))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
