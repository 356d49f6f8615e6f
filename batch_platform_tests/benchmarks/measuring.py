"""Measure a command or a call: its wall time, its core-seconds and the peak memory of its largest process.

Core-seconds are the user and system time of all processes and threads. Other work on the machine changes them little, so they are
what a shared machine lets one compare. Every contender has the same environment.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batch_platform.declaration.threads import SHORT_WAITS
from batch_platform.warehouse.home import HOME_VARIABLE

UNSET = (
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", HOME_VARIABLE, "DAGSTER_HOME", "PYTHONWARNINGS"),
    "PYTHONDONTWRITEBYTECODE",  # every process would compile the sources anew, for 0.7 core-seconds
    *SHORT_WAITS,  # which the command sets for itself, and no peer should inherit
)
ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("batch-platform"))
OURS = "batch_platform"


@dataclass(frozen=True)
class Result:
    """One measurement, as written to the JSON file."""

    workload: str
    contender: str
    seconds: float
    rows: int
    peak_mib: float
    core_seconds: float


@dataclass(frozen=True)
class Cost:
    """Cost of one run of a command.

    Args:
        seconds: Wall time of the process, including its start.
        core_seconds: User and system time of the process and of all that came from it.
        peak_mib: Peak resident memory of its largest process; other processes are not added.
        output: Its standard output.
    """

    seconds: float
    core_seconds: float
    peak_mib: float
    output: str

    def result(self, workload: str, contender: str, rows: int) -> Result:
        """The measurement of a contender that this run is."""
        return Result(workload, contender, self.seconds, rows, self.peak_mib, self.core_seconds)


@dataclass(frozen=True)
class Spent:
    """Time of one call, or of several together, in this process."""

    seconds: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, further: "Spent") -> "Spent":
        """The time of both."""
        return Spent(self.seconds + further.seconds, self.core_seconds + further.core_seconds)

    def __sub__(self, earlier: "Spent") -> "Spent":
        """The time from an earlier reading of the clocks to this one."""
        return Spent(self.seconds - earlier.seconds, self.core_seconds - earlier.core_seconds)

    def result(self, workload: str, contender: str, rows: int, peak_mib: float | None = None) -> Result:
        """The measurement of a contender that this call is; the peak is that of this process, or of the named one."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Result(workload, contender, self.seconds, rows, own if peak_mib is None else peak_mib, self.core_seconds)


def clocks() -> Spent:
    """The wall clock and the core-seconds of all threads of this process so far."""
    return Spent(time.perf_counter(), time.process_time())


def spent(call: Callable[[], object]) -> Spent:
    """Time a call in this process."""
    began = clocks()
    call()
    return clocks() - began


def run(command: Sequence[str], folder: Path, **environment: str) -> Cost:
    """Run a command in a folder and wait for its end.

    Raises:
        SystemExit: The command failed; the message holds the end of its output.
    """
    with tempfile.TemporaryDirectory() as reports:
        report, out, err = (Path(reports, name) for name in ("cost.json", "out", "err"))
        with out.open("wb") as output, err.open("wb") as error_output:
            launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(report), *command]
            variables = inherited() | environment
            subprocess.run(
                launcher,
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error_output,
                check=True,
            )
        cost = json.loads(report.read_text(encoding="utf-8"))
        printed, errors = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
    if cost["code"]:
        sys.exit(f"{' '.join(command)[:500]}\nfailed with {cost['code']}:\n{printed[-2000:]}\n{errors[-4000:]}")
    return Cost(cost["seconds"], cost["core_seconds"], cost["peak_mib"], printed)


def inherited() -> dict[str, str]:
    """This process's environment without the variables that would make machines or homes differ."""
    return {name: value for name, value in os.environ.items() if name not in UNSET}


def in_turn(contenders: Mapping[str, Callable[[], Result]], repeat: int) -> Iterator[Result]:
    """Measure contenders in the order A B C A B C …, so that other load on the machine affects all of them alike."""
    for _ in range(repeat):
        for measure in contenders.values():
            yield measure()


def medians(results: Sequence[Result]) -> dict[tuple[str, int, str], Result]:
    """The median times and the highest peak of each workload, size and contender, in order of first measurement."""
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.workload, result.rows, result.contender), []).append(result)
    return {
        key: Result(
            workload=key[0],
            contender=key[2],
            seconds=statistics.median(result.seconds for result in group),
            rows=key[1],
            peak_mib=max(result.peak_mib for result in group),
            core_seconds=statistics.median(result.core_seconds for result in group),
        )
        for key, group in groups.items()
    }
