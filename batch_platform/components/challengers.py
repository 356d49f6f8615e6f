"""What the UI shows of challengers: a check that warns when one fails, and numbers to plot beside production."""

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
    """The check that warns when a challenger fails; none if no challenger is declared."""
    if not wiring.spec.challengers:
        return []
    description = (
        "Every challenger was trained, and scored what the champion scored. A challenger that fails is recorded with its "
        "reason and gives a warning here; production continues without it."
    )
    return [dg.AssetCheckSpec(CHECK, asset=asset, description=description)]


def described(wiring: Wiring) -> str:
    """A sentence about the challengers to add to a description; empty if there are none."""
    names = ", ".join(f"`{challenger.name}`" for challenger in wiring.spec.challengers)
    name = wiring.spec.name
    if not names:
        return ""
    return (
        f"\n\nChallengers ({names}) score the same rows in the same pass into `{name}.challenger_scores` and never serve; "
        f"`{name}.challengers` says for each partition how far each challenger agrees with the champion."
    )


def challenged(
    log: PartitionLog, pipeline: Pipeline, period: Partition, partition_key: str | None, stamp: Stamp
) -> list[Trained]:
    """Train the missing challengers of a serving period; returns its current model with them."""
    done = pipeline.challenge(period, stamp)
    log.observed(partition_key or period.key, partition_key, metadata=_trained_metadata(done))
    log_trained(log, partition_key, done)
    registry = pipeline.state().registry
    own = [version for version in registry.of_model if version.serving_period == period.key]
    standing = registry.last_decision(own[-1].version) if own else None
    return [] if standing is None else [Trained(own[-1], standing, [], challengers=done)]


def trained(result: Trained) -> dict[str, Any]:
    """Metadata about the challengers of a trained version."""
    return _trained_metadata(result.challengers)


def log_trained(log: PartitionLog, partition_key: str | None, done: Sequence[TrainedChallenger]) -> None:
    """Log the check on the challengers of one serving period."""
    if done:
        trainings = [challenger.training for challenger in done]
        outcomes = {training.challenger: training.failure or training.version for training in trainings}
        passed = not any(training.failure for training in trainings)
        log.checked(partition_key, CHECK, passed=passed, severity=_WARN, metadata=outcomes)


def trained_summary(wiring: Wiring, done: Sequence[Trained]) -> list[dg.AssetCheckResult]:
    """The check on all challengers that a run trained."""
    trainings = [challenger.training for result in done for challenger in result.challengers]
    failed = [f"{training.challenger} ({training.serving_period})" for training in trainings if training.failure]
    return _summary(wiring, "trained", len(trainings), failed)


def scored(partition: Committed) -> dict[str, Any]:
    """Metadata about the challengers of a partition: how far each agrees with the champion, as a table and as numbers."""
    if not partition.challengers:
        return {}
    lines = [
        f"| {run.challenger} | {run.model_version or '-'} | {run.rows_scored:,} | {run.rows_rejected:,} "
        f"| {_number(run.rank_correlation)} | {_number(run.decisions_flipped)} | {markdown(run.failure or '')} |"
        for run in partition.challengers
    ]
    head = "| challenger | version | scored | rejected | rank correlation | decisions flipped | failure |"
    table = "\n".join([head, "| --- | --- | ---: | ---: | ---: | ---: | --- |", *lines])
    return {"challengers": dg.MetadataValue.md(table), **_numbers(partition)}


def log_scored(log: PartitionLog, scored: Committed) -> None:
    """Log the check on the challengers of one partition."""
    if scored.challengers:
        failures = {f"{run.challenger}_failure": run.failure for run in scored.challengers if run.failure}
        metadata = {**_numbers(scored), **failures}
        log.checked(scored.partition.key, CHECK, passed=not failures, severity=_WARN, metadata=metadata)


def scored_summary(wiring: Wiring, done: Sequence[Committed]) -> list[dg.AssetCheckResult]:
    """The check on the challengers of all partitions of a run."""
    runs = [run for partition in done for run in partition.challengers]
    failed = [f"{run.challenger} ({run.partition_key})" for run in runs if run.failure]
    return _summary(wiring, "scored", len(runs), failed)


def _trained_metadata(done: Sequence[TrainedChallenger]) -> dict[str, Any]:
    if not done:
        return {}
    lines: list[str] = []
    metrics: dict[str, float] = {}
    for challenger in done:
        training, version, decision = challenger.training, challenger.version, challenger.decision
        remark = training.failure or (decision.reason if decision else "")
        lines.append(f"| {training.challenger} | {training.version or '-'} | {markdown(remark)} |")
        if version is not None:
            metrics |= {f"{training.challenger}_{metric}": value for metric, value in version.metric_values.items()}
    table = "\n".join(["| challenger | version | |", "| --- | --- | --- |", *lines])
    return {"challengers": dg.MetadataValue.md(table), **metrics}


def _numbers(partition: Committed) -> dict[str, float]:
    values = {
        f"{run.challenger}_{name}": value
        for run in partition.challengers
        for name, value in (
            ("rank_correlation", run.rank_correlation),
            ("decisions_flipped", run.decisions_flipped),
            ("rows_rejected", None if run.failure else run.rows_rejected),
        )
    }
    return {name: value for name, value in values.items() if value is not None}


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
