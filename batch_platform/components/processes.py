"""The processes in which the steps of a run work, and the runs whose processes died unnoticed.

A step may work in the process of its run, in a child of it, or anywhere else: the executor of the code location decides.
"""

import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread

import dagster as dg
from sqlalchemy.exc import OperationalError

from batch_platform.components.dagster_internals import (
    NOT_FINISHED_STATUSES,
    interrupted_by_dagster,
    process_of,
    works_in_children,
)

PROCESS_TAG = ".dagster/batch_platform_process"  # Dagster keeps tags with this prefix and does not show them
TERMINATED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
SECONDS_BETWEEN_LOOKS = 1.0  # each look asks whether the run was terminated
SECONDS_BETWEEN_KILLS = 0.1
_ENDED = ("Z", "X")  # states of a process in /proc


def this_process() -> str:
    """A tag value by which a later process on this machine can tell whether this process still lives."""
    return f"{_process(os.getpid())} {_place()}"


def kill_readers_of(workspace: Path) -> None:
    """Kill the webservers and daemons that were started with `-w` and a workspace file, and wait for their end."""
    option = ("-w", str(workspace))  # an editor may have the file open too
    ids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    while pids := [pid for pid in map(int, ids) if option in pairwise(_words(pid))]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SECONDS_BETWEEN_KILLS)


@contextmanager
def at_work(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Generator[None]:
    """Record in the run which process does a step; a terminated run interrupts it.

    A step that works in a child process is recorded with the parent: if only the child dies, the parent reports it.
    """
    run, process = context.run, this_process()
    if run.tags.get(PROCESS_TAG) == process:  # whoever created the run did so here, and holds it for all of its steps
        with _interrupted_by_termination(context):
            yield
        return
    parent = multiprocessing.parent_process()
    processes = [process] if parent is None or parent.pid is None else [process, f"{_process(parent.pid)} {_place()}"]
    tag = f"{PROCESS_TAG}/{context.op_execution_context.op.name}"
    context.instance.add_run_tags(run.run_id, {tag: ", ".join(processes)})
    with _interrupted_by_termination(context):
        yield


@contextmanager
def _interrupted_by_termination(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Generator[None]:
    """Interrupt the process of a run as Ctrl-C does, once the run is terminated, where Dagster does not do so itself."""
    instance, run_id = context.instance, context.run.run_id
    if interrupted_by_dagster(context.run) or current_thread() is not main_thread():
        yield
        return
    parent = multiprocessing.parent_process() if works_in_children(context) else None
    process, ended = (parent and parent.pid) or os.getpid(), Event()

    def watch() -> None:
        over = False
        while not over:
            over = ended.wait(SECONDS_BETWEEN_LOOKS)  # the last look is at the end of the step
            with suppress(OperationalError):  # a database that is busy answers the next look
                if (run := instance.get_run_by_id(run_id)) and run.status in TERMINATED:
                    os.kill(process, signal.SIGINT)
                    return

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs as failed whose process is gone, and those that were being terminated as canceled; their pools are free again."""
    for run in dead_runs(instance):
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message="The process of this run ended.")
        else:
            instance.report_run_failed(run, message="The process of this run ended unexpectedly; run it again.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)  # of its pools, where no daemon runs


def cancel_unfinished_runs(instance: dg.DagsterInstance, reason: str) -> int:
    """Mark all runs in progress as canceled, whose processes belong to another home; returns how many. Queued runs stay so."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    begun = [run for run in runs if run.status not in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)]
    for run in begun:
        instance.report_run_canceled(run, message=reason)
    return len(begun)


def dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs in progress whose process is gone.

    Dagster notices when the process of a run ends, but not when the code server ends with it. A run between two steps, or
    before the first one, is known by the process that was started for it.
    """
    dead: list[dg.DagsterRun] = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        tags = {tag: value for tag, value in run.tags.items() if tag.startswith(PROCESS_TAG) and value}
        if any(map(_are_gone, tags.values())):
            past = _tags_of_the_past(instance, run)
            tags = {tag: value for tag, value in tags.items() if (tag, value) not in past}
        started = None if tags else process_of(instance, run)
        if any(map(_are_gone, tags.values())) or (started and _is_gone_since(*started)):
            dead.append(run)
    return dead


def _tags_of_the_past(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[tuple[str, str]]:
    """The tags of steps that have ended, and those that a re-execution copied from the run before it.

    A step does not take its tag away at its end: Dagster writes the tags of a run as a whole, so that of two steps that
    change them at the same moment, one change is lost.
    """
    ended = {step.step_key for step in instance.get_run_step_stats(run.run_id) if step.end_time is not None}
    past = {(tag, value) for tag, value in run.tags.items() if tag.removeprefix(f"{PROCESS_TAG}/") in ended}
    before = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return past | set(before.tags.items() if before else ())


def _are_gone(tag: str) -> bool:
    """Return whether all processes of a tag have ended."""
    return all(_is_gone(process) for process in tag.split(", "))


def _is_gone_since(pid: int, at: float) -> bool:
    """Return whether the process that had an id at a time has ended; the id may belong to a later process."""
    _, started = _process(pid).split()
    booted = int(Path("/proc/stat").read_text(encoding="ascii").partition("btime ")[2].split()[0])  # whole seconds
    return started == "gone" or booted + int(started) / os.sysconf("SC_CLK_TCK") > at + 1


def _is_gone(process: str) -> bool:
    """Return whether a process has ended; False for a process elsewhere, which cannot be looked up."""
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
    """The scope of a process id: the machine, its current boot, and the name space of its processes."""
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


def _words(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []
