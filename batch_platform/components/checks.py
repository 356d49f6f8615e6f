"""Asset checks: each partition's own result as it commits, and one summary for the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from batch_platform.components.events import PartitionLog
from batch_platform.components.wiring import Wiring
from batch_platform.evaluation import Evaluated
from batch_platform.learning import Trained
from batch_platform.monitoring.performance import DEFAULT_METRIC, is_worse
from batch_platform.scoring_run import Committed

ROWS_BALANCE, GATE, PERFORMANCE = "rows_balance", "gate", "performance"
_WARN = dg.AssetCheckSeverity.WARN


def rows_balance(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """Every row that came in is scored or rejected; what depends on the predictions waits for it."""
    return dg.AssetCheckSpec(
        ROWS_BALANCE,
        asset=asset,
        blocking=True,
        description="Every row of the features is either scored or rejected with a reason: rows_in = rows_scored + rows_rejected.",
    )


def log_rows_balance(log: PartitionLog, committed: Committed) -> None:
    """Log the balance of one partition."""
    run = committed.run
    log.checked(
        committed.partition.key,
        ROWS_BALANCE,
        passed=_balanced(committed),
        metadata={"rows_in": run.rows_in, "rows_scored": run.rows_scored, "rows_rejected": run.rows_rejected},
    )


def rows_balance_summary(committed: Sequence[Committed]) -> dg.AssetCheckResult:
    """The balance of all partitions of a run."""
    return dg.AssetCheckResult(
        check_name=ROWS_BALANCE,
        passed=all(_balanced(one) for one in committed),
        metadata={
            "partitions": len(committed),
            "rows_in": sum(one.run.rows_in for one in committed),
            "rows_scored": sum(one.run.rows_scored for one in committed),
            "rows_rejected": sum(one.run.rows_rejected for one in committed),
        },
    )


def gate(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The trained version meets what the pipeline asks of a model."""
    return dg.AssetCheckSpec(
        GATE,
        asset=asset,
        description="The trained version meets model.promote. A refused one is kept and never serves; the champion goes on serving.",
    )


def log_gate(log: PartitionLog, partition_key: str | None, trained: Trained) -> None:
    """Log what was decided of one version."""
    log.checked(
        partition_key,
        GATE,
        passed=trained.decision.action == "approved",
        severity=_WARN,
        metadata={
            "version": trained.version.version,
            "decision": trained.decision.action,
            "reason": trained.decision.reason,
            **trained.version.metric_values,
        },
    )


def gate_summary(decisions: Sequence[Trained]) -> dg.AssetCheckResult:
    """What was decided of all versions of a run."""
    refused = [trained.version.version for trained in decisions if trained.decision.action != "approved"]
    return dg.AssetCheckResult(
        check_name=GATE,
        passed=not refused,
        severity=_WARN,
        metadata={"trained": len(decisions), "refused": ", ".join(refused) or "none"},
    )


def performance(wiring: Wiring, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """A warning when a partition's metric is worse than declared; none where nothing is declared."""
    rule = wiring.spec.monitoring.performance
    if rule is None:
        return []
    description = f"The metric of the gate is at least {rule.warn_below:g} (an error: at most)."
    return [dg.AssetCheckSpec(PERFORMANCE, asset=asset, description=description)]


@dataclass(frozen=True)
class Judged:
    """One evaluated partition, held against what is declared."""

    partition_key: str
    metric: str
    value: float
    passed: bool


def tasks_of_versions(wiring: Wiring) -> dict[str, str]:
    """What kind of model each version is, as far as performance is held against anything."""
    if wiring.spec.monitoring.performance is None:
        return {}
    return {version.version: version.task for version in wiring.pipeline().state().registry.versions}


def judge(wiring: Wiring, tasks: Mapping[str, str], one: Evaluated) -> Judged | None:
    """Hold a partition against what is declared; None where nothing is, or where the gate's metric has no value."""
    rule = wiring.spec.monitoring.performance
    if rule is None:
        return None
    metric = wiring.spec.model.promote.metric or DEFAULT_METRIC[tasks[one.model_version]]
    if metric not in one.metrics:
        return None
    value = one.metrics[metric]
    return Judged(one.partition.key, metric, value, passed=not is_worse(metric, value, rule.warn_below))


def log_performance(log: PartitionLog, judged: Judged) -> None:
    """Log how one partition did."""
    metadata = {"metric": judged.metric, judged.metric: judged.value}
    log.checked(judged.partition_key, PERFORMANCE, passed=judged.passed, severity=_WARN, metadata=metadata)


def performance_summary(judged: Sequence[Judged]) -> dg.AssetCheckResult:
    """Which partitions of a run did worse than declared."""
    worse = [f"{one.partition_key} ({one.value:.4f})" for one in judged if not one.passed]
    return dg.AssetCheckResult(
        check_name=PERFORMANCE,
        passed=not worse,
        severity=_WARN,
        metadata={"partitions": len(judged), "worse": ", ".join(worse) or "none"},
    )


def _balanced(committed: Committed) -> bool:
    run = committed.run
    return run.rows_in == run.rows_scored + run.rows_rejected
