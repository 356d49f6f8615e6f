"""Decisions of people on versions: let a version serve from a partition on, or withdraw the one that serves there.

`promote` and `roll_back` change nothing: they return the decision, to be recorded, and what it makes stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from batch_platform.declaration.errors import WrongUseError
from batch_platform.models.registry import Registry, Stretch
from batch_platform.warehouse.ledger import Action, Promotion, ScoreRun, Version


@dataclass(frozen=True)
class Decision:
    """A decision of a person that is not recorded yet, and the scored partitions whose champion it changes."""

    promotion: Promotion
    before: Version | None  # the champion where the decision begins to hold
    after: Version | None
    partitions: list[str]  # keys, oldest first: scored by a version that would no longer be their champion
    until: datetime | None = None  # when another version follows `after`; None: not yet known
    following: Version | None = None  # version that serves afterwards


@dataclass(frozen=True)
class Maker:
    """Who decides, when and why."""

    actor: str
    at: datetime
    reason: str = ""


@dataclass(frozen=True)
class StretchScores:
    """A stretch of the timeline, and what is scored in it."""

    stretch: Stretch
    scored: list[str]  # keys of the scored partitions, oldest first
    stale: list[str]  # those of them that another version scored
    hindsight: list[str]  # those whose version was approved to serve them only after they had ended


def promote(
    registry: Registry, scores: Mapping[str, ScoreRun], name: str, maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Let a version serve partitions that start at `holds_from` or later (None: from its serving period on), until the next decision.

    `scores` holds the newest commits, by partition key. Raises WrongUseError if there is no such version, its bundle was removed,
    or the decision would change nothing.
    """
    version = registry.present(name)
    begin = max(version.serving_start, holds_from or version.serving_start)
    last = registry.last_decision(name)
    reason = maker.reason or "promoted manually"
    if last is not None and last.action == "refused":
        reason += f"; the gate had refused it: {last.reason}"
    if last is not None and last.action == "challenger":
        reason += f"; it was a challenger: {last.reason}"
    evidence = "{}" if last is None else last.evidence
    event = _promotion(version, "approved", evidence, replace(maker, reason=reason), begin)
    decision = _decision(registry, scores, event, begin)
    if _served(decided(registry, event)) == _served(registry):
        msg = f"{registry.pipeline}: {name} already serves from {_day(begin)} on"
        hint = f"batch-platform models {registry.pipeline} timeline shows which version serves when."
        if decision.until is not None and decision.following is not None:
            msg += f", until {_day(decision.until)}, when {decision.following.version} follows"
            hint = f"--from KEY lets it serve from a later partition on; {hint}"
        msg += "."
        raise WrongUseError(msg, hint=hint)
    return decision


def roll_back(
    registry: Registry, scores: Mapping[str, ScoreRun], maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Withdraw a champion from a partition on, so that the version that served before it serves again.

    It is the version that serves at `holds_from`, and it is withdrawn for partitions that start then or later. None: the
    version that serves at the time of the decision, from where it began to. `scores` holds the newest commits, by partition
    key. Raises WrongUseError if there is no champion, or no version would serve instead.
    """
    standing = registry.timeline.at(holds_from or maker.at)
    if standing is None:
        at = "" if holds_from is None else f" at {_day(holds_from)}"
        msg = f"{registry.pipeline} has no champion to withdraw{at}."
        raise WrongUseError(
            msg, hint=f"batch-platform models {registry.pipeline} timeline shows which version serves when."
        )
    begin, champion = holds_from or standing.begin, standing.version
    maker = replace(maker, reason=maker.reason or "rolled back manually")
    decision = _decision(registry, scores, _promotion(champion, "withdrawn", "{}", maker, begin), begin)
    if decision.after is None:
        msg = f"{registry.pipeline}: no approved version but {champion.version} serves {_day(begin)}; nothing is withdrawn."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} promote VERSION first.")
    return decision


def scores_on_timeline(registry: Registry, scores: Mapping[str, ScoreRun]) -> list[StretchScores]:
    """The timeline, with what is scored in each stretch, and what of it is stale because another version scored it."""
    runs: dict[datetime, list[ScoreRun]] = {}
    for run in sorted(scores.values(), key=lambda run: run.partition_start):
        stretch = registry.timeline.at(run.partition_start)
        if stretch is not None:
            runs.setdefault(stretch.begin, []).append(run)
    lines: list[StretchScores] = []
    for stretch in registry.timeline.stretches:
        there = runs.get(stretch.begin, [])
        lines.append(
            StretchScores(
                stretch,
                scored=[run.partition_key for run in there],
                stale=[run.partition_key for run in there if run.model_version != stretch.version.version],
                hindsight=[run.partition_key for run in there if run.hindsight],
            )
        )
    return lines


def decided(registry: Registry, event: Promotion) -> Registry:
    """The registry once a decision is recorded."""
    return replace(registry, promotions=[*registry.promotions, event])


def _decision(registry: Registry, scores: Mapping[str, ScoreRun], event: Promotion, begin: datetime) -> Decision:
    then = decided(registry, event)
    partitions: list[str] = []
    for run in sorted(scores.values(), key=lambda run: run.partition_start):
        champion = then.champion(run.partition_start)
        if champion != registry.champion(run.partition_start) and champion and champion.version != run.model_version:
            partitions.append(run.partition_key)
    after = then.champion(begin)
    name = None if after is None else after.version
    until = next((at for at, version in _served(then) if at > begin and version != name), None)
    following = None if until is None else then.champion(until)
    return Decision(event, registry.champion(begin), after, partitions, until, following)


def _served(registry: Registry) -> list[tuple[datetime, str | None]]:
    """The instants from which another version serves, or none, whatever the decision."""
    served: list[tuple[datetime, str | None]] = []
    for stretch in registry.timeline.stretches:
        if not served or served[-1][1] != stretch.version.version:
            served.append((stretch.begin, stretch.version.version))
        if stretch.end is not None and registry.champion(stretch.end) is None:
            served.append((stretch.end, None))
    return served


def _promotion(version: Version, action: Action, evidence: str, maker: Maker, begin: datetime) -> Promotion:
    return Promotion(
        pipeline=version.pipeline,
        version=version.version,
        action=action,
        reason=maker.reason,
        evidence=evidence,
        actor=maker.actor,
        decided_at=maker.at,
        run_id="",
        holds_from=begin,
    )


def _day(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
