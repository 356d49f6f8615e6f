"""The work of the `backtest` command: say what is tested, do it, and tell it partition by partition and in total."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batch_platform.cli import terminal
from batch_platform.components.progress import Pace
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import default_metric
from batch_platform.monitoring.performance import COVERAGE
from batch_platform.pipeline.backtest import BacktestModel, backtest
from batch_platform.pipeline.backtest_tables import BACKTESTS, SCORES, TestedPartition, Total, totals


@dataclass(frozen=True)
class Ordered:
    """What is to be tested, on which partitions, and when that was asked."""

    partitions: Sequence[Partition]
    candidate: BacktestModel
    now: datetime
    keep_scores: bool


@dataclass(frozen=True)
class ReportedPartition:
    """One partition of the report."""

    partition: str
    model: str  # a registered version, or the serving period that it was trained for
    in_sample: bool
    rows_in: int
    rows_scored: int
    rows_rejected: int
    rows_measured: int
    metrics: dict[str, float]
    production: dict[str, float]
    production_version: str | None
    production_in_sample: bool | None
    note: str


@dataclass(frozen=True)
class BacktestReport:
    """What a backtest found."""

    pipeline: str
    backtest_id: str
    candidate: dict[str, Any]
    partitions: list[ReportedPartition]
    totals: list[Total]
    table: str
    published: str


def run_backtest(wiring: Wiring, ordered: Ordered, *, as_json: bool) -> None:
    """Test a candidate and report.

    Raises:
        BatchPlatformError: It cannot be tested; nothing is stored.
    """
    pipeline, candidate = wiring.pipeline(), ordered.candidate
    stamp = Stamp(f"backtest-{uuid.uuid4().hex[:12]}", ordered.now, clock=lambda: datetime.now(UTC))
    count = len(ordered.partitions)
    if not as_json:
        what = candidate.version or f"{candidate.estimator}, trained for each serving period"
        terminal.say(f"{wiring.spec.name}: backtest of {what}, on {count} partition{'s' if count > 1 else ''}")
    paces: list[Pace] = []  # one, begun with the first partition: what was trained before is no part of it
    with terminal.progress({"backtest": count}, quiet=as_json) as listener:

        def watch(partition: Partition, rows: int, of: int) -> None:
            pace = paces[0] if paces else Pace("backtest", count)
            paces.append(pace)
            done = rows >= of
            listener(pace.finished(partition.key, rows) if done else pace.on_the_way(partition.key, rows, of))

        found = backtest(pipeline, ordered.partitions, candidate, stamp, keep_scores=ordered.keep_scores, watch=watch)
    report = BacktestReport(
        pipeline=wiring.spec.name,
        backtest_id=stamp.run_id,
        candidate={"version": candidate.version, "estimator": candidate.estimator, "params": candidate.params},
        partitions=[_reported(one) for one in found],
        totals=totals(found),
        table=f"{wiring.spec.name}.{BACKTESTS}",
        published=str(pipeline.home.published),
    )
    if as_json:
        terminal.show_json(report)
        return
    _show(wiring, report, found)
    if ordered.keep_scores:
        terminal.say(f"  the score of every row: table {wiring.spec.name}.{SCORES}")


def _reported(one: TestedPartition) -> ReportedPartition:
    return ReportedPartition(
        partition=one.partition,
        model=_named(one),
        in_sample=one.in_sample,
        rows_in=one.rows_in,
        rows_scored=one.rows_scored,
        rows_rejected=one.rows_rejected,
        rows_measured=one.comparison.rows,
        metrics=one.comparison.metrics,
        production=one.comparison.production,
        production_version=one.production_version,
        production_in_sample=one.production_in_sample,
        note=one.note,
    )


def _named(one: TestedPartition) -> str:
    return one.model.version if one.registered else f"trained for {one.model.serving_period}"


def _show(wiring: Wiring, report: BacktestReport, found: Sequence[TestedPartition]) -> None:
    metric = _metric_shown(wiring, found)
    terminal.show_table(
        ("partition", "model", metric, "production", "by", "rows", "rejected", "note"),
        [
            (
                one.partition,
                f"{_named(one)}{' (in sample)' if one.in_sample else ''}",
                one.comparison.metrics.get(metric),
                one.comparison.production.get(metric),
                f"{one.production_version or '-'}{' (in sample)' if one.production_in_sample else ''}",
                one.comparison.rows,
                one.rows_rejected,
                one.note,
            )
            for one in found
        ],
    )
    for one in report.totals:
        said = f"  {one.metric}: {one.value:.4f} over {one.partitions} partitions"
        if one.production_value is not None and one.value_where_compared is not None:
            where = (
                ""
                if one.compared == one.partitions
                else f" ({one.value_where_compared:.4f} of the {one.compared} that it scored)"
            )
            said += f"{where}; production {one.production_value:.4f}; better in {one.better}, worse in {one.worse}"
        terminal.say(said)
    terminal.say(f"Read it in {report.published}, table {report.table}, backtest_id '{report.backtest_id}'.")


def _metric_shown(wiring: Wiring, found: Sequence[TestedPartition]) -> str:
    """The metric of the gate where it is measured, else that of the task, else any."""
    measured = {name for one in found for name in one.comparison.metrics}
    wanted = (wiring.spec.model.promote.metric, default_metric(found[0].model.task), *sorted(measured - {COVERAGE}))
    return next((name for name in wanted if name in measured), default_metric(found[0].model.task))
