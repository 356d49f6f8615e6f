"""Print the results: Markdown tables of medians and ratios, and one sentence that says where we lose."""

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
    """The hardware of this machine."""
    cores = len(os.sched_getaffinity(0))
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {model[1] if model else platform.machine()}, {memory:.0f} GiB, {platform.system()}"


def versions(peers: Sequence[str]) -> str:
    """The versions of Python, of this project, of its libraries and of the peers."""
    installed = {item.metadata["Name"].lower() for item in metadata.distributions()}
    ours = [f"{name} {metadata.version(name)}" for name in LIBRARIES if name in installed]
    lines = [
        f"Python {platform.python_version()}, batch-platform {metadata.version('batch-platform')}, {', '.join(ours)}"
    ]
    lines += [f"{peer}: {', '.join(requirements(peer)).replace('==', ' ')}" for peer in peers]
    return "; ".join(lines)


def table(results: Sequence[Result]) -> str:
    """Median times, highest peak, and each contender's times as multiples of ours."""
    middle = medians(results)
    lines = [
        "| workload | rows | contender | median s | core-s | peak MiB | million rows/core-s | times ours | core-s, times ours |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (workload, rows, contender), median in middle.items():
        ours = middle.get((workload, rows, OURS))
        if not median.seconds:
            lines.append(f"| {workload} | {rows:,} | {contender} | failed | | | | | |")
            continue
        ratios = "", ""
        if ours is not None:
            ratios = _ratio(median.seconds, ours.seconds), _ratio(median.core_seconds, ours.core_seconds)
        lines.append(
            f"| {workload} | {rows:,} | {contender} | {median.seconds:.2f} | {median.core_seconds:.2f} "
            f"| {median.peak_mib:,.0f} | {_ratio(rows / 1e6, median.core_seconds)} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def _ratio(amount: float, of: float) -> str:
    return f"{amount / of:.2f}" if of else ""


def losses(results: Sequence[Result]) -> str:
    """Name the contenders that are faster or need less memory, with their figure as a share of ours."""
    middle = medians(results)
    contenders = {result.contender for result in results}
    if OURS not in contenders or len(contenders) == 1:
        return ""
    faster, thriftier, leaner = list[str](), list[str](), list[str]()
    for (workload, rows, contender), median in middle.items():
        ours = middle.get((workload, rows, OURS), median)
        if not median.seconds:
            continue  # it failed
        where = f"to {contender} on {workload} of {rows:,} rows"
        if median.seconds * NOTICEABLE < ours.seconds:
            faster.append(f"{where} ({median.seconds / ours.seconds:.2f})")
        if median.core_seconds * NOTICEABLE < ours.core_seconds:
            thriftier.append(f"{where} ({median.core_seconds / ours.core_seconds:.2f})")
        if median.peak_mib * NOTICEABLE < ours.peak_mib:
            leaner.append(f"{where} ({median.peak_mib / ours.peak_mib:.2f})")
    time, cores, memory = (", ".join(cases) if cases else "nowhere" for cases in (faster, thriftier, leaner))
    return f"Where we lose time: {time}. Where we lose core-seconds: {cores}. Where we lose memory: {memory}."
