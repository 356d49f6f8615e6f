"""The benchmark's results for people: Markdown tables of medians and ratios, and in a sentence where we lose."""

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from batch_platform_tests.benchmarks.environments import requirements
from batch_platform_tests.benchmarks.measuring import OURS, Result, medians

LIBRARIES = ("dagster", "duckdb", "polars", "pyarrow", "numpy", "scikit-learn", "numba")
NOTICEABLE = 1.02


def machine() -> str:
    """The hardware that everything ran on."""
    cores = len(os.sched_getaffinity(0))
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {model[1] if model else platform.machine()}, {memory:.0f} GiB, {platform.system()}"


def versions(peers: Sequence[str]) -> str:
    """The versions of all that is named."""
    installed = {item.metadata["Name"].lower() for item in metadata.distributions()}
    ours = [f"{name} {metadata.version(name)}" for name in LIBRARIES if name in installed]
    lines = [f"Python {platform.python_version()}, batch-platform {metadata.version('batch-platform')}, {', '.join(ours)}"]
    lines += [f"{peer}: {', '.join(requirements(peer)).replace('==', ' ')}" for peer in peers]
    return "; ".join(lines)


def table(results: Sequence[Result]) -> str:
    """Medians, and each contender's time as a multiple of ours."""
    middle = medians(results)
    lines = [
        "| workload | contender | median s | peak MiB | rows/s | time against batch_platform |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (workload, rows, contender), one in middle.items():
        ours = middle.get((workload, rows, OURS))
        ratio = "" if ours is None else f"{one.seconds / ours.seconds:.2f}"
        lines.append(
            f"| {workload}, {rows:,} rows | {contender} | {one.seconds:.2f} | {one.peak_mib:,.0f} "
            f"| {rows / one.seconds:,.0f} | {ratio} |"
        )
    return "\n".join(lines)


def losses(results: Sequence[Result]) -> str:
    """Who is faster or needs less memory than we do, and by how much."""
    middle = medians(results)
    found: list[str] = []
    for (workload, rows, contender), one in middle.items():
        ours = middle.get((workload, rows, OURS))
        if ours is None or contender == OURS:
            continue
        where = f"{workload} ({rows:,} rows)"
        if one.seconds * NOTICEABLE < ours.seconds:
            found.append(f"{where}: {contender} takes {one.seconds / ours.seconds:.2f} times our time")
        if one.peak_mib * NOTICEABLE < ours.peak_mib:
            found.append(f"{where}: {contender} holds {one.peak_mib / ours.peak_mib:.2f} times our memory")
    if not any(result.contender != OURS for result in results):
        return ""
    return f"Where we lose: {'; '.join(found) if found else 'nowhere in this table'}."
