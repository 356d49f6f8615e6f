"""What the UI shows of challengers: checks that warn of one that fails, numbers to plot beside those of production."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from batch_platform.components.describe import markdown
from batch_platform.components.events import PartitionLog
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.train import Trained, TrainedChallenger
from batch_platform.scoring.run import Committed

CHECK = "challengers"
_WARN = dg.AssetCheckSeverity.WARN
_TOGETHER = "the run as a whole"


def specs(wiring: Wiring, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """A warning of challengers that fail; none where none is declared."""
    if not wiring.spec.challengers:
        return []
    description = (
        "Every challenger did its part: it was trained, and scored what the champion scored. One that fails is recorded "
        "with its reason and warned of here; production goes on without it."
    )
    return [dg.AssetCheckSpec(CHECK, asset=asset, description=description)]


def described(wiring: Wiring) -> str:
    """Who challenges the model, as a sentence to add to a description; empty where nobody does."""
    names = ", ".join(f"`{one.name}`" for one in wiring.spec.challengers)
    name = wiring.spec.name
    if not names:
        return ""
    return (
        f"\n\nChallengers ({names}) score the same rows in the same pass into `{name}.challenger_scores` and never serve; "
        f"`{name}.challengers` has, for each partition, how far each of them agrees with the champion."
    )


def challenged(
    log: PartitionLog, pipeline: Pipeline, period: Partition, partition_key: str | None, stamp: Stamp
) -> list[Trained]:
    """Train the challengers that a serving period lacks; gives its model as it stands, with them."""
    done = pipeline.challenge(period, stamp)
    log.observed(partition_key or period.key, partition_key, metadata=_trained_metadata(done))
    log_trained(log, partition_key, done)
    registry = pipeline.state().registry
    own = [version for version in registry.of_model if version.serving_period == period.key]
    standing = registry.last_decision(own[-1].version) if own else None
    return [] if standing is None else [Trained(own[-1], standing, [], challengers=done)]


def trained(one: Trained) -> dict[str, Any]:
    """Metadata of a trained version's challengers."""
    return _trained_metadata(one.challengers)


def log_trained(log: PartitionLog, partition_key: str | None, done: Sequence[TrainedChallenger]) -> None:
    """Log what came of the challengers of one serving period."""
    if done:
        found = {one.training.challenger: one.training.failure or one.training.version for one in done}
        passed = not any(one.training.failure for one in done)
        log.checked(partition_key, CHECK, passed=passed, severity=_WARN, metadata=found)


def trained_summary(wiring: Wiring, done: Sequence[Trained]) -> list[dg.AssetCheckResult]:
    """What came of all challengers of a run."""
    outcomes = [each.training for one in done for each in one.challengers]
    failed = [f"{one.challenger} ({one.serving_period})" for one in outcomes if one.failure]
    return _summary(wiring, "trained", len(outcomes), failed)


def scored(one: Committed) -> dict[str, Any]:
    """Metadata of a partition's challengers: how far each agrees with the champion, as a table and as numbers."""
    if not one.challengers:
        return {}
    lines = [
        f"| {run.challenger} | {run.model_version or '-'} | {run.rows_scored:,} | {run.rows_rejected:,} "
        f"| {_number(run.rank_correlation)} | {_number(run.decisions_flipped)} | {markdown(run.failure or '')} |"
        for run in one.challengers
    ]
    head = "| challenger | version | scored | rejected | rank correlation | decisions flipped | failure |"
    table = "\n".join([head, "| --- | --- | ---: | ---: | ---: | ---: | --- |", *lines])
    return {"challengers": dg.MetadataValue.md(table), **_numbers(one)}


def log_scored(log: PartitionLog, one: Committed) -> None:
    """Log what the challengers made of one partition."""
    if one.challengers:
        failures = {f"{run.challenger}_failure": run.failure for run in one.challengers if run.failure}
        log.checked(
            one.partition.key, CHECK, passed=not failures, severity=_WARN, metadata={**_numbers(one), **failures}
        )


def scored_summary(wiring: Wiring, done: Sequence[Committed]) -> list[dg.AssetCheckResult]:
    """What the challengers made of all partitions of a run."""
    runs = [run for one in done for run in one.challengers]
    return _summary(
        wiring, "scored", len(runs), [f"{run.challenger} ({run.partition_key})" for run in runs if run.failure]
    )


def _trained_metadata(done: Sequence[TrainedChallenger]) -> dict[str, Any]:
    if not done:
        return {}
    lines = [f"| {one.training.challenger} | {one.training.version or '-'} | {markdown(_said(one))} |" for one in done]
    table = "\n".join(["| challenger | version | |", "| --- | --- | --- |", *lines])
    values = {
        f"{one.training.challenger}_{metric}": value
        for one in done
        if one.version is not None
        for metric, value in one.version.metric_values.items()
    }
    return {"challengers": dg.MetadataValue.md(table), **values}


def _said(one: TrainedChallenger) -> str:
    return one.training.failure or ("" if one.decision is None else one.decision.reason)


def _numbers(one: Committed) -> dict[str, float]:
    found = {
        f"{run.challenger}_{name}": value
        for run in one.challengers
        for name, value in (
            ("rank_correlation", run.rank_correlation),
            ("decisions_flipped", run.decisions_flipped),
            ("rows_rejected", None if run.failure else run.rows_rejected),
        )
    }
    return {name: value for name, value in found.items() if value is not None}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _summary(wiring: Wiring, verb: str, count: int, failed: Sequence[str]) -> list[dg.AssetCheckResult]:
    if not wiring.spec.challengers:
        return []
    return [
        dg.AssetCheckResult(
            check_name=CHECK,
            description=_TOGETHER,
            passed=not failed,
            severity=_WARN,
            metadata={verb: f"{count - len(failed)}", "failed": listed(failed) or "none"},
        )
    ]
