"""What the processes of a storm do: the work of writers, who may be killed, and of those who look."""

import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.explaining import LOST_FILE
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.promotion import Maker, promote, roll_back
from batch_platform.operations import cleanup
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.recovery import verify
from batch_platform_tests.faults.inspection import Inspection, Memory, Seen, Watermarks, inspect, inspect_files
from batch_platform_tests.faults.invariants import NOW, SCORED, assert_nothing_in_between, days, rewrite
from batch_platform_tests.faults.victim import die_at_step
from batch_platform_tests.harness.nursery import mark
from batch_platform_tests.harness.small_pipeline import carry_out, small_spec

PERIOD = "2024-02-01"
SECONDS_UNRECORDED = 120  # of files that `gc` may remove in a storm; no task takes longer
REJECTS = {"columns": {"amount": {"nullable": False}}, "max_rejected": "60%"}
LINEAR = {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}
TREE = {"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 3}}
DECLARED: dict[str, dict[str, Any]] = {
    "orders": {"features": REJECTS, "challengers": [TREE]},
    "returns": {"challengers": [LINEAR, TREE], "features": {"max_rejected": "5%"}},
    "abroad": {
        "partitions": {"timezone": "America/New_York"},
        "features": REJECTS,
        "challengers": [TREE],
        "predictions": {"store": "parquet"},
    },
}
WHO_READ = 2  # the reader, and who looks after a kill: the copy that somebody holds while it is replaced stays
WAREHOUSE = "the warehouse"
PROJECTS = ("first", "second")  # two states of the sources


@dataclass(frozen=True)
class Work:
    """What a task works on: a pipeline of a home, over one of the two states of its sources, for some partitions."""

    root: str
    pipeline: str
    project: str
    keys: list[str]
    run_id: str

    def declared(self) -> Pipeline:
        """The pipeline."""
        spec = small_spec(name=self.pipeline, **DECLARED[self.pipeline])
        return Pipeline(spec, Path(self.root).parent / self.project, Home(Path(self.root)))

    def stamp(self) -> Stamp:
        """A stamp with the time at which the sources end, and a real clock for what is recorded."""
        return Stamp(self.run_id, NOW, lambda: datetime.now(UTC))


def work(kind: str, of: dict[str, Any], seed: int, die_at: str | None = None) -> None:
    """Do the work of a kind.

    Args:
        kind: A key of `KINDS`.
        of: The fields of a `Work`.
        seed: Of what the work draws at random.
        die_at: As for `die_at_step`.
    """
    chance = random.Random(seed)
    if die_at:
        die_at_step(die_at)
    mark("working")
    try:
        KINDS[kind](Work(**of), chance)
    except BatchPlatformError as error:  # reported without a traceback: others beside it may be the reason
        mark(f"error {type(error).__name__} {' '.join(str(error).split())}")


def _write(of: Work, _: random.Random) -> None:
    pipeline, stamp = of.declared(), of.stamp()
    partitions = days(pipeline, *of.keys)
    list(pipeline.build_features(partitions, stamp, force=True))
    list(pipeline.score(partitions, stamp, force=True))
    pipeline.publish()


def _bring_up_to_date(of: Work, _: random.Random) -> None:
    carry_out(of.declared(), NOW, of.run_id)


def _train(of: Work, chance: random.Random) -> None:
    pipeline = of.declared()
    period = pipeline.spec.periods.serving.named(PERIOD)
    pipeline.train(period, of.stamp(), params={"max_iter": chance.randint(2, 9)})
    pipeline.publish()


def _promote(of: Work, chance: random.Random) -> None:
    pipeline = of.declared()
    state, maker = pipeline.state(), Maker("storm", datetime.now(UTC))
    if chance.random() < 0.3:
        decision = roll_back(state.registry, state.scores, maker)
    else:
        version = chance.choice(state.registry.versions)
        decision = promote(state.registry, state.scores, version.version, maker)
    pipeline.decide(decision.promotion, state)


def _score_with_a_version(of: Work, chance: random.Random) -> None:
    pipeline = of.declared()
    version = chance.choice(pipeline.state().registry.versions)
    list(pipeline.score(days(pipeline, *of.keys), of.stamp(), force=True, version=version.version))
    pipeline.publish()


def _evaluate(of: Work, _: random.Random) -> None:
    pipeline = of.declared()
    scored = pipeline.state().scores
    list(pipeline.evaluate(days(pipeline, *(key for key in of.keys if key in scored)), of.stamp()))
    pipeline.conclude(NOW)


def _collect_garbage(of: Work, _: random.Random) -> None:
    cleanup.UNRECORDED_FOR = timedelta(seconds=SECONDS_UNRECORDED)
    pipeline, now = of.declared(), datetime.now(UTC)
    garbage = cleanup.find_garbage([pipeline.spec], pipeline.home, now, trained_before=now)
    cleanup.remove_garbage(garbage, pipeline.home, replace(of.stamp(), at=now))


KINDS: dict[str, Callable[[Work, random.Random], None]] = {
    "write": _write,
    "bring up to date": _bring_up_to_date,
    "train": _train,
    "promote": _promote,
    "score with a version": _score_with_a_version,
    "evaluate": _evaluate,
    "gc": _collect_garbage,
}


def look(root: str, earlier: Watermarks, seed: int, report: str) -> None:
    """Inspect the warehouse, its files and the published copy, and write what was seen."""
    home = Home(Path(root))
    with Warehouse(home).open() as con:
        seen = inspect(con, WAREHOUSE, list(DECLARED), earlier)
        seen.add(inspect_files(con, home, list(DECLARED), random.Random(seed)), "files")
    with duckdb.connect(str(home.published), read_only=True) as con:
        copy = inspect(con, "the published copy", list(DECLARED), {})
    _write_report(report, seen, copy)


def calm(root: str, report: str) -> None:
    """With nothing else running: do what is due, and check that nothing is left to do, in between or different in the copy."""
    seen = Seen()
    home = Home(Path(root))
    for name in DECLARED:
        pipeline = Work(root, name, PROJECTS[0], [], "calm").declared()
        carry_out(pipeline, NOW, f"calm-{time.time_ns()}")
        rewrite(pipeline, SCORED[0], run_id=f"calm-{time.time_ns()}")  # what builds removes unfinished feature files
        carry_out(pipeline, NOW, f"calm-{time.time_ns()}")
        due = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items
        seen.check(
            "nothing due after a run", [f"{name}: {item.step} {item.partition.key}: {item.reason}" for item in due]
        )
        try:
            assert_nothing_in_between(pipeline)
        except AssertionError as error:
            seen.check("nothing left in between", [f"{name}: {error}"])
    odd = [
        path.name
        for path in home.root.iterdir()
        if path != home.gitignore and (path.name.startswith(".") or path.suffix in (".rollback", ".wal"))
    ]
    seen.check("nothing left in between", odd)
    copies = [path.name for path in home.root.glob("published-*.duckdb")]
    seen.check("two copies, and one for each who reads", copies if len(copies) > 2 + WHO_READ else [])
    verified = verify(home)
    seen.check("the copy as the warehouse", verified.differing, verified.tables)
    seen.check("the newest copy", [] if verified.is_newest else [verified.copy])
    with Warehouse(home).open() as con:
        seen.add(inspect_files(con, home, list(DECLARED), random.Random(0)), "files")
    _write_report(report, seen)


def read(root: str, report: str, stop: str) -> None:
    """Look at the published copy whenever it changes, and regularly, until a file appears."""
    home, memory, total = Home(Path(root)), Memory(), Inspection()
    watermarks, copy_seen, looked_at = Watermarks(), None, 0.0
    chance = random.Random(os.getpid())
    mark("reading")
    while not Path(stop).exists():
        copy = home.published.stat()
        copy_now = (copy.st_ino, copy.st_size, copy.st_mtime_ns)
        if copy_now == copy_seen and time.monotonic() < looked_at + 0.5:
            time.sleep(0.005)
            continue
        copy_seen, looked_at = copy_now, time.monotonic()
        opened = home.published.resolve()
        try:
            with duckdb.connect(str(home.published), read_only=True) as con:
                seen = inspect(con, "", list(DECLARED), watermarks)
                if chance.random() < 0.1:
                    time.sleep(0.3)
                    again = inspect(con, "", list(DECLARED), watermarks)
                    same = again.states == seen.states
                    seen.check("a reader that stays sees the same", [] if same else ["other rows"])
        except duckdb.IOException as error:
            # Where rows are deleted for good, files of former states go at once, and a reader opens the copy anew.
            if not LOST_FILE.search(str(error)) or home.published.resolve() == opened:
                raise
            continue
        memory.compare(seen)
        watermarks = seen.watermarks
        time.sleep(0.05)  # for the others to get on
        total.add(seen, "a reader")
    _write_report(report, Seen(total.checks, total.violations))


def _write_report(report: str, *looks: Seen) -> None:
    Path(report).write_bytes(pickle.dumps(looks))
