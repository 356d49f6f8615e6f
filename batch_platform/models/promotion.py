"""Decisions that people make on versions: promote one, withdraw the champion, compare two.

Returns what would be recorded, with the scored partitions that it affects; writes nothing and reads no clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from batch_platform.declaration.errors import WrongUseError
from batch_platform.models.bundle import Manifest
from batch_platform.models.registry import Registry
from batch_platform.warehouse.ledger import Action, Promotion, ScoreRun, Version

DATA_WINDOWS = ("training", "evaluation")


@dataclass(frozen=True)
class Decision:
    """A decision and the scored partitions whose champion it changes."""

    promotion: Promotion
    before: Version | None  # the champion where the decision begins to hold
    after: Version | None
    partitions: list[
        str
    ]  # keys of partitions whose champion would no longer be the version that scored them; oldest first


@dataclass(frozen=True)
class Maker:
    """Who decides, when and why."""

    actor: str
    at: datetime
    reason: str = ""
    run_id: str = ""


def promote(
    registry: Registry, scores: Mapping[str, ScoreRun], name: str, maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Approve a version.

    Args:
        registry: As recorded.
        scores: The newest commits, by partition key.
        name: The version.
        maker: Of the decision.
        holds_from: It serves partitions that start at this time or later; None: from its serving period on.

    Raises:
        WrongUseError: There is no such version, its bundle was removed, or it already serves.
    """
    version = registry.present(name)
    begin = max(version.serving_start, holds_from or version.serving_start)
    if registry.serves(version, begin):
        msg = f"{registry.pipeline}: {name} already serves from {_day(begin)} on."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} lists the decisions.")
    last = registry.last_decision(name)
    reason = maker.reason or "promoted by hand"
    if last is not None and last.action == "refused":
        reason += f"; the gate had refused it: {last.reason}"
    if last is not None and last.action == "challenger":
        reason += f"; it was a challenger: {last.reason}"
    evidence = "{}" if last is None else last.evidence
    return _decide(registry, scores, _promotion(version, "approved", reason, evidence, maker, begin))


def roll_back(
    registry: Registry, scores: Mapping[str, ScoreRun], maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Withdraw the champion, so that the one before it serves again.

    Args:
        registry: As recorded.
        scores: The newest commits, by partition key.
        maker: Of the decision; the champion at that time is withdrawn.
        holds_from: Withdraw it for partitions that start at this time or later; None: for all that it serves.

    Raises:
        WrongUseError: There is no champion, or no version would serve instead.
    """
    champion = registry.champion(maker.at if holds_from is None else max(holds_from, maker.at))
    if champion is None:
        msg = f"{registry.pipeline} has no champion to withdraw."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} lists the versions.")
    begin = max(champion.serving_start, holds_from or champion.serving_start)
    reason = maker.reason or "rolled back by hand"
    decision = _decide(registry, scores, _promotion(champion, "withdrawn", reason, "{}", maker, begin))
    if decision.after is None:
        msg = f"{registry.pipeline}: no approved version but {champion.version} serves {_day(begin)}; nothing is withdrawn."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} promote VERSION first.")
    return decision


def compared(first: Manifest, second: Manifest) -> dict[str, tuple[Any, Any]]:
    """The facts in which two manifests differ, and their metrics and data windows in any case.

    Returns:
        The values of both by name; None if a manifest has no fact of that name.
    """
    left, right = _facts(first), _facts(second)
    always = {name for name in left | right if name.startswith(("metrics.", "training.", "evaluation."))}
    return {
        name: (left.get(name), right.get(name))
        for name in dict.fromkeys([*left, *right])
        if name in always or left.get(name) != right.get(name)
    }


def _decide(registry: Registry, scores: Mapping[str, ScoreRun], event: Promotion) -> Decision:
    then = replace(registry, promotions=[*registry.promotions, event])
    begin = event.holds_from
    affected = sorted(_affected(registry, then, scores.values()), key=lambda run: run.partition_start)
    return Decision(
        promotion=event,
        before=None if begin is None else registry.champion(begin),
        after=None if begin is None else then.champion(begin),
        partitions=[run.partition_key for run in affected],
    )


def _affected(before: Registry, after: Registry, runs: Iterable[ScoreRun]) -> Iterable[ScoreRun]:
    for run in runs:
        champion = after.champion(run.partition_start)
        if champion != before.champion(run.partition_start) and champion and champion.version != run.model_version:
            yield run


def _promotion(  # noqa: PLR0913 - each is one fact of the decision
    version: Version, action: Action, reason: str, evidence: str, maker: Maker, begin: datetime
) -> Promotion:
    return Promotion(
        pipeline=version.pipeline,
        version=version.version,
        action=action,
        reason=reason,
        evidence=evidence,
        actor=maker.actor,
        decided_at=maker.at,
        run_id=maker.run_id,
        holds_from=begin,
    )


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The facts of a manifest under flat names."""
    values = asdict(manifest)
    facts: dict[str, Any] = {"estimator": values["estimator"], "flavour": values["flavour"], "task": values["task"]}
    facts |= {f"metrics.{name}": value for name, value in sorted(values["evaluation"].pop("metrics").items())}
    facts |= {f"params.{name}": value for name, value in sorted(values["params"].items())}
    for window in DATA_WINDOWS:
        facts |= {f"{window}.{name}": value for name, value in values[window].items()}
    facts |= {f"features.{column['name']}": _column(column) for column in values["contract"]}
    facts["features_code_version"] = values["features_code_version"]
    return facts | {f"libraries.{name}": value for name, value in sorted(values["libraries"].items())}


def _column(column: Mapping[str, Any]) -> str:
    """Describe a column in a few words."""
    categories = f"{len(column['categories'])} categories" if column["categories"] else ""
    return ", ".join(filter(None, [column["type"], categories, "nullable" if column["nullable"] else ""]))


def _day(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
