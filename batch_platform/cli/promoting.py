"""The commands by which people decide of models: `compare`, `promote`, `rollback`."""

import getpass
from dataclasses import dataclass
from datetime import datetime

from batch_platform.cli import terminal
from batch_platform.cli.execution import RunOptions
from batch_platform.cli.project import Project
from batch_platform.cli.running import bring_up_to_date
from batch_platform.components.wiring import Wiring
from batch_platform.models.bundle import read_manifest
from batch_platform.models.promotion import Decision, Maker, compared, promote, roll_back


@dataclass(frozen=True)
class Decided:
    """When somebody decides, from which partition on it holds, and why."""

    at: datetime
    first: str | None
    reason: str


@dataclass(frozen=True)
class Report:
    """A recorded decision."""

    pipeline: str
    version: str
    action: str
    reason: str
    holds_from: datetime | None
    champion_before: str | None  # of what starts where the decision begins to hold
    champion_after: str | None
    partitions: list[str]  # scored by another version than their champion is now
    rescored: bool


def show_comparison(wiring: Wiring, one: str, other: str, *, as_json: bool) -> None:
    """Two versions side by side.

    Raises:
        WrongUseError: There is no such version, or its bundle was removed.
    """
    pipeline = wiring.pipeline()
    registry = pipeline.published_state().registry
    manifests = [
        read_manifest(pipeline.home.bundle(wiring.spec.name, name), registry.present(name).sha256)
        for name in (one, other)
    ]
    found = compared(*manifests)
    if as_json:
        terminal.show_json({name: {one: left, other: right} for name, (left, right) in found.items()})
        return
    terminal.show_table(("", one, other), [(name, left, right) for name, (left, right) in found.items()])


def promote_version(wiring: Wiring, version: str, decided: Decided, *, as_json: bool) -> None:
    """Approve a version and say what changes.

    Raises:
        WrongUseError: There is no such version or partition, or it already serves.
    """
    state = wiring.pipeline().state()
    maker = Maker(actor=_me(), at=decided.at, reason=decided.reason)
    decision = promote(state.registry, state.scores, version, maker, holds_from=_start(wiring, decided.first))
    wiring.pipeline().decide(decision.promotion, state)
    _tell(wiring, decision, rescored=False, as_json=as_json)


def roll_back_champion(project: Project, wiring: Wiring, decided: Decided, *, rescore: bool, as_json: bool) -> None:
    """Withdraw the champion, say what it had scored, and score that again if asked to.

    Raises:
        WrongUseError: There is no such partition, no champion, or none before it.
        RunFailedError: Scoring again failed; the champion is withdrawn all the same.
    """
    state = wiring.pipeline().state()
    maker = Maker(actor=_me(), at=decided.at, reason=decided.reason)
    decision = roll_back(state.registry, state.scores, maker, holds_from=_start(wiring, decided.first))
    wiring.pipeline().decide(decision.promotion, state)
    again = rescore and bool(decision.partitions)
    _tell(wiring, decision, rescored=again, as_json=as_json)
    if again:
        partitions = [wiring.spec.partitions.calendar.named(key) for key in decision.partitions]
        options = RunOptions(partitions=partitions, now=decided.at, named=True)
        bring_up_to_date(project, wiring, options, quiet=as_json)


def _me() -> str:
    return getpass.getuser()


def _start(wiring: Wiring, key: str | None) -> datetime | None:
    return None if key is None else wiring.spec.partitions.calendar.named(key).start


def _tell(wiring: Wiring, decision: Decision, *, rescored: bool, as_json: bool) -> None:
    event = decision.promotion
    report = Report(
        pipeline=event.pipeline,
        version=event.version,
        action=event.action,
        reason=event.reason,
        holds_from=event.holds_from,
        champion_before=decision.before.version if decision.before else None,
        champion_after=decision.after.version if decision.after else None,
        partitions=decision.partitions,
        rescored=rescored,
    )
    if as_json:
        terminal.show_json(report)
        return
    begin = "" if event.holds_from is None else f" from {event.holds_from:%Y-%m-%d %H:%M} UTC on"
    terminal.say(f"{event.pipeline}: {event.version} is {event.action}{begin}: {event.reason}.")
    if report.champion_before == report.champion_after:
        terminal.say(f"  champion there: {report.champion_after}, as before")
    else:
        terminal.say(f"  champion there: {report.champion_after}, before {report.champion_before or 'none'}")
    if decision.partitions:
        span = f"{decision.partitions[0]} to {decision.partitions[-1]}"
        terminal.say(f"  scored by another version: {len(decision.partitions)} partitions ({span})")
    if decision.partitions and not rescored:
        first, last = decision.partitions[0], decision.partitions[-1]
        terminal.say(f"  batch-platform run {wiring.spec.name} --from {first} --to {last}   scores them again")
