"""Measure a fixed set of lines at several commits, in turn on this machine, and name the lines that became slower.

The package of each commit runs in this environment, driven by its command, its YAML and its own `warehouse_work`; what is measured
and how is that of the present benchmarks. Core-seconds are compared, and only those of the same call. `history.jsonl` keeps one line
for each commit that was kept; those of the same call have the same `measured`.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from batch_platform.warehouse.home import Home
from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, Days, days_of, spread, write_days
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import ROOT, Cost, Result, in_turn, medians, run
from batch_platform_tests.benchmarks.project import Project
from batch_platform_tests.benchmarks.reporting import machine

TITLE = "The same lines at several commits"
TODAY = datetime.now(UTC).date()  # one day for all lines, also of a measurement that passes midnight
FILE = Path(__file__).with_name("history.jsonl")
HERE = "."  # the working tree, as it is
TOLERATED = 1.05
SHARE, DAYS = 5, 10  # a fifth of the rows is enough, so that the start of the process does not hide the rest
ONE_PARTITION_ROWS, SMALL_ROWS = 1000, 10
SMALL_DAYS = 300
COMMITS = 100
Lines = dict[str, Callable[[], Result]]


@dataclass(frozen=True)
class State:
    """The package at one commit.

    Args:
        commit: Short name of the commit; with a plus for a working tree that differs from it, or is measured beside it.
        root: Folder of its files.
        folder: Folder for its projects.
    """

    commit: str
    root: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Environment in which Python imports this package before the installed one."""
        return {"PYTHONPATH": str(self.root)}

    @property
    def command(self) -> tuple[str, ...]:
        """Start of its command line."""
        declared = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        module, function = declared["project"]["scripts"]["batch-platform"].split(":")
        return sys.executable, "-P", "-c", f"from {module} import {function}; {function}()"

    def project(self, name: str, kind: str, data: Path, days: Days) -> Project:
        """Write a project that this package serves. Runs nothing."""
        return project.generated_project(
            self.folder / name, kind, data, days, command=self.command, variables=self.variables
        )

    def warehouse_work(self, home: Path, task: str, *arguments: int) -> Cost:
        """Run a task of the commit's own `warehouse_work`."""
        home.mkdir(parents=True, exist_ok=True)
        module = "batch_platform_tests.benchmarks.warehouse_work"
        return run([sys.executable, "-P", "-m", module, task, str(home), *map(str, arguments)], home, **self.variables)


@dataclass(frozen=True)
class Group:
    """Lines that are prepared together.

    Args:
        lines: Names of its lines.
        prepare: Prepares a state, with a warm-up that is not counted; gives what to measure by line.
    """

    lines: tuple[str, ...]
    prepare: Callable[[State, Options], Lines]


def measure(options: Options) -> Iterator[Result]:
    """Measure each line at all commits in turn. A commit that cannot be prepared for a line has none of it."""
    chosen = options.chosen(list(LINES))
    states = _states(options.at or default_commits(), options.folder)
    _write_data(options)
    for group in GROUPS:
        if not set(group.lines) & set(chosen):
            continue
        prepared = {state.commit: _prepared(group, state, options) for state in states}
        for line in group.lines:
            turns = {commit: lines[line] for commit, lines in prepared.items() if line in lines}
            if line in chosen:
                yield from in_turn(turns, options.repeat)
        for state in states:
            shutil.rmtree(state.folder, ignore_errors=True)


def conclude(results: Sequence[Result]) -> str:
    """Core-seconds by line and commit, each beside its ratio to the commit before it, and what became slower."""
    middle = medians(results)
    commits = list(dict.fromkeys(result.contender for result in results))
    rows = []
    for line, count in dict.fromkeys((result.workload, result.rows) for result in results):
        cells, before = [], None
        for commit in commits:
            median = middle.get((line, count, commit))
            if median is None:
                cells.append("not measured")
                continue
            ratio = "" if before is None else f" ({median.core_seconds / before.core_seconds:.2f})"
            cells.append(f"{median.core_seconds:.2f}{ratio}")
            before = median
        rows.append(f"| {line} | {' | '.join(cells)} |")
    head = [f"| core-seconds | {' | '.join(commits)} |", f"| --- |{' ---: |' * len(commits)}"]
    named = ", ".join(slower(results)) or "none"
    return "\n".join([*head, *rows, "", f"Lines slower than before by more than {TOLERATED - 1:.0%}: {named}."])


def slower(results: Sequence[Result]) -> list[str]:
    """Lines that take the last commit more core-seconds than the one before it, beyond what is tolerated."""
    commits = list(dict.fromkeys(result.contender for result in results))
    before, last = commits[-2:] if len(commits) > 1 else (None, None)
    middle = {(line, commit): median.core_seconds for (line, _, commit), median in medians(results).items()}
    return [
        f"{line} ({taken / middle[line, before]:.2f})"
        for (line, commit), taken in middle.items()
        if commit == last and before and taken > TOLERATED * middle.get((line, before), taken)
    ]


def keep(results: Sequence[Result]) -> None:
    """Append one line for each commit."""
    measured = datetime.now(UTC).isoformat(timespec="seconds")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (line, rows, commit), median in medians(results).items():
        figures.setdefault(commit, {})[line] = {
            "rows": rows,
            "core_seconds": round(median.core_seconds, 3),
            "seconds": round(median.seconds, 3),
            "peak_mib": round(median.peak_mib),
        }
    with FILE.open("a", encoding="utf-8") as kept:
        for commit, lines in figures.items():
            date = _git("show", "-s", "--format=%cs", commit.removesuffix("+"))
            line = {"commit": commit, "date": date, "measured": measured, "machine": machine(), "lines": lines}
            kept.write(json.dumps(line) + "\n")


def default_commits() -> tuple[str, ...]:
    """The newest kept commit, or the last one, and the working tree."""
    kept = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    return (json.loads(kept[-1])["commit"].removesuffix("+") if kept else "HEAD"), HERE


def _states(names: Sequence[str], folder: Path) -> list[State]:
    """Write the files of each commit into a folder of its own; the working tree stays where it is."""
    states = list[State]()
    for name in names:
        commit, root = _git("rev-parse", "--short=7", "HEAD" if name == HERE else f"{name}^{{commit}}"), ROOT
        if name == HERE:
            taken = any(state.commit == commit for state in states)
            commit += "+" if taken or _git("status", "--porcelain") else ""
        else:
            root, packed = folder / "commits" / commit, folder / f"{commit}.tar"
            _git("archive", f"--output={packed}", commit)
            shutil.unpack_archive(packed, root, filter="data")
        states.append(State(commit, root, folder / "at" / commit))
    return states


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _write_data(options: Options) -> None:
    rows = max(DAYS, options.rows // SHARE)
    training = min(TRAINING_ROWS, options.rows)
    write_days(options.folder / "data", _large_days(rows), training)
    write_days(options.folder / "small", _small_days(), training)


def _large_days(rows: int) -> Days:
    """A day of one small partition, and the days of the large case."""
    return days_of([min(rows, ONE_PARTITION_ROWS), *spread(rows, DAYS)], TODAY)


def _small_days() -> Days:
    return days_of([SMALL_ROWS] * SMALL_DAYS, TODAY, delay=SMALL_DAYS + 10)


def _prepared(group: Group, state: State, options: Options) -> Lines:
    try:
        return group.prepare(state, options)
    except SystemExit as failure:
        print(f"{state.commit} has no {', '.join(group.lines)}: {failure.code}", file=sys.stderr, flush=True)
        return {}


def _of_kind(state: State, options: Options, *, kind: str) -> Lines:
    """Train, build features and score, of one kind of model."""
    rows = max(DAYS, options.rows // SHARE)
    days = _large_days(rows)
    served = state.project(kind, kind, options.folder / "data", days)
    new, trained = Home(served.root / "new"), Home(served.root / "trained")
    first, (small, *large) = days.first.isoformat(), days.keys
    served.run(served.ready, "--partition", first)
    shutil.copytree(served.ready.root, trained.root, symlinks=True)
    served.materialize(served.ready, "features", small, large[-1])

    def training() -> Result:
        cost = served.run(new, "--partition", first)
        shutil.rmtree(new.root)
        return cost.result("training", state.commit, min(TRAINING_ROWS, options.rows))

    def features() -> Result:
        shutil.copytree(trained.root, new.root, symlinks=True)
        cost = served.materialize(new, "features", small, large[-1])
        shutil.rmtree(new.root)
        return cost.result("features", state.commit, rows)

    def scored(line: str, first: str, last: str, expected: int) -> Result:
        cost = served.run(served.copy_ready(new.root), "--from", first, "--to", last)
        shutil.rmtree(new.root)
        return _complete(cost, line, state, expected)

    lines = {
        "training": training,
        "features": features,
        "one_partition": partial(scored, "one_partition", small, small, min(rows, ONE_PARTITION_ROWS)),
        kind: partial(scored, kind, large[0], large[-1], rows),
    }
    lines["one_partition"]()
    lines[kind]()
    return lines


def _of_small_days(state: State, options: Options) -> Lines:
    """Score many small days in one run, and show the status of all."""
    days = _small_days()
    served = state.project("small", "trees", options.folder / "small", days)
    project.make_ready(served, days)
    done, again = served.copy_ready(served.root / "done"), served.root / "again"
    served.run(done, "--from", days.keys[0], "--to", days.keys[-1])

    def many() -> Result:
        cost = served.run(served.copy_ready(again), "--from", days.keys[0], "--to", days.keys[-1])
        shutil.rmtree(again)
        return _complete(cost, "small_partitions", state, SMALL_DAYS * SMALL_ROWS)

    def status() -> Result:
        return served.command_on(done, "status").result("status", state.commit, SMALL_DAYS)

    status()
    return {"small_partitions": many, "status": status}


def _of_warehouse(state: State, options: Options) -> Lines:
    """Commit small groups, and publish after a partition was replaced."""
    filled, empty = state.folder / "filled", state.folder / "empty"
    rows = max(1, options.rows // 10)
    state.warehouse_work(filled, "fill", rows)

    def commit() -> Result:
        cost = state.warehouse_work(empty, "commit", 0, COMMITS, SMALL_ROWS)
        shutil.rmtree(empty)
        return cost.result("commit", state.commit, COMMITS * SMALL_ROWS)

    def publish() -> Result:
        return state.warehouse_work(filled, "publish").result("publish", state.commit, rows)

    return {"commit": commit, "publish": publish}


def _complete(cost: Cost, line: str, state: State, rows: int) -> Result:
    """The result of a run that scored as many rows as expected."""
    if (scored := json.loads(cost.output)["rows_scored"]) != rows:
        sys.exit(f"{state.commit} scored {scored} rows of {line} instead of {rows}.")
    return cost.result(line, state.commit, rows)


GROUPS = (
    Group(("commit", "publish"), _of_warehouse),
    Group(("training", "features", "one_partition", "trees"), partial(_of_kind, kind="trees")),
    Group(("small_partitions", "status"), _of_small_days),
    *(Group((kind,), partial(_of_kind, kind=kind)) for kind in ("linear", "categorical", "forest")),
)
LINES = [line for group in GROUPS for line in group.lines]
