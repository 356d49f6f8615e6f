"""Run a command as `measuring.run` does, forked from a process that has imported it: for tests, where its cost does not matter."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from batch_platform_tests.benchmarks.measuring import Cost, inherited, run
from batch_platform_tests.warm import COMMAND, DAGSTER, WarmCommand


def run_forked(command: Sequence[str], folder: Path, **environment: str) -> Cost:
    """As `measuring.run`; the time includes the start of the parent, if this is its first command."""
    if not (command[0] in (COMMAND, DAGSTER) or command[1] == "-m"):
        return run(command, folder, **environment)  # a peer
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    began = time.perf_counter()
    with WarmCommand(command, cwd=folder, env=inherited() | environment, **files) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return Cost(time.perf_counter() - began, process.peak_mib, out)
