"""The processes in which the steps of a run work, and the runs whose processes died unnoticed.

A step may work in the process of its run, in a child of it, or anywhere else: the executor of the code location decides.
"""

import multiprocessing
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from batch_platform.components.dagster_internals import NOT_FINISHED_STATUSES

PROCESS_TAG = ".dagster/batch_platform_process"  # Dagster keeps tags with this prefix and does not show them
_ENDED = ("Z", "X")  # states of a process in /proc


def this_process() -> str:
    """A tag value by which a later process on this machine can tell whether this process still lives."""
    return f"{_process(os.getpid())} {_place()}"


@contextmanager
def at_work(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Generator[None]:
    """Record in the run which process does a step, for the length of the step.

    A step that works in a child process is recorded with the parent: if only the child dies, the parent reports it.
    """
    run, process = context.run, this_process()
    if run.tags.get(PROCESS_TAG) == process:  # whoever created the run did so here, and holds it for all of its steps
        yield
        return
    parent = multiprocessing.parent_process()
    processes = [process] if parent is None or parent.pid is None else [process, f"{_process(parent.pid)} {_place()}"]
    tag = f"{PROCESS_TAG}/{context.op_execution_context.op.name}"
    context.instance.add_run_tags(run.run_id, {tag: ", ".join(processes)})
    try:
        yield
    finally:
        context.instance.add_run_tags(run.run_id, {tag: ""})


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs as failed whose process is gone."""
    for run in dead_runs(instance):
        instance.report_run_failed(run, message="The process of this run ended unexpectedly; run it again.")


def dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs in progress whose process is gone.

    Dagster notices when the process of a run ends, but not when the code server ends with it.
    """
    dead: list[dg.DagsterRun] = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        gone = {tag for tag, value in run.tags.items() if tag.startswith(PROCESS_TAG) and _are_gone(value)}
        if gone and run.parent_run_id and (parent := instance.get_run_by_id(run.parent_run_id)):
            gone -= {tag for tag in gone if parent.tags.get(tag) == run.tags[tag]}  # copied into the second attempt
        if gone:
            dead.append(run)
    return dead


def _are_gone(tag: str) -> bool:
    """Whether all processes of a tag have ended; False if there are none."""
    return bool(tag) and all(_is_gone(process) for process in tag.split(", "))


def _is_gone(process: str) -> bool:
    """Whether a process has ended; False for a process elsewhere, which cannot be looked up."""
    pid, started, *place = process.split()
    if place:
        host, boot, namespace = _place().split("/")
        its_host, its_boot, its_namespace = place[0].split("/")
        if its_host != host or (its_boot == boot and its_namespace != namespace):
            return False
        if its_boot != boot:
            return True
    return _process(int(pid)) != f"{pid} {started}"


def _place() -> str:
    """Where a process id is valid: the machine, its current boot, and the name space of its processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node().replace('/', '')}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _process(pid: int) -> str:
    """A process id with the clock tick at which the process started, which tells a reused id apart.

    One that has ended is gone, also as long as its parent has not asked how: in a container nobody may ever ask.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"{pid} gone"
    state, *values = stat.rpartition(")")[2].split()
    return f"{pid} gone" if state in _ENDED else f"{pid} {values[18]}"
