"""The `backtest` command: score history with another model and compare it with production."""

import json
import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import asked_for, find_project
from batch_platform.components.progress import Pace
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, counted
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import METRICS, default_metric
from batch_platform.pipeline.backtest import BACKTESTS, SCORES, Backtested, backtest
from batch_platform.pipeline.backtest_comparison import totals
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.warehouse.published import open_published


@terminal.command(
    "backtest",
    "backtest churn --from 2026-04-01 --to 2026-04-30 --model 2026-03-01-7e122641",
    "backtest churn --from 2026-04-01 --to 2026-04-30 --estimator churn.models.network",
)
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", required=True, help="First partition.")
@click.option("--to", "last", metavar="KEY", required=True, help="Last partition (inclusive).")
@click.option("--model", "version", metavar="VERSION", help="Score every partition with this version.")
@click.option(
    "--estimator",
    metavar="PATH",
    help="Train this estimator for each serving period, as of its start. Import path of a class, or of a function that "
    "builds an estimator.",
)
@click.option(
    "--param",
    "params",
    metavar="NAME=VALUE",
    multiple=True,
    help="Estimator parameter as NAME=VALUE. The value is parsed as JSON, otherwise as text.",
)
@click.option("--scores", is_flag=True, help="Also store the score of every row, in PIPELINE.backtest_scores.")
def backtest_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    first: str,
    last: str,
    version: str | None,
    estimator: str | None,
    params: tuple[str, ...],
    *,
    scores: bool,
) -> None:
    """Score past partitions of PIPELINE with another model, as of then, and compare it with production.

    Nothing in production changes.
    """
    if bool(version) == bool(estimator) or (params and not estimator):
        msg = "give either --model, or --estimator, to which --param may be added."
        hint = f"batch-platform backtest {pipeline} --from {first} --to {last} --estimator sklearn.ensemble.RandomForestClassifier"
        raise WrongUseError(msg, hint=hint)
    model = BacktestModel(version, estimator, dict(map(_parameter, params)))
    wiring, now = find_project(folder).pipeline(pipeline), datetime.now(UTC)
    partitions = asked_for(wiring.spec, now, first, last, None)
    open_published(wiring.pipeline().home).close()  # nothing is created where nothing was run
    stamp = Stamp(f"backtest-{uuid.uuid4().hex[:12]}", now, clock=lambda: datetime.now(UTC))
    count = len(partitions)
    what = version or f"{estimator}, trained for each serving period"
    terminal.say(f"{pipeline}: backtest of {what}, on {count} partition{'s' if count > 1 else ''}")
    pace = cache(lambda: Pace("backtest", count))  # begun with the first partition: the training before does not count
    with terminal.progress({"backtest": count}) as listener:

        def watch(partition: Partition, rows: int, of: int) -> None:
            listener(pace().reached(partition.key, rows, None if rows >= of else of))

        def announce(period: Partition) -> None:
            terminal.say(f"  training the model of {period.key}")

        result = backtest(
            wiring.pipeline(), partitions, model, stamp, keep_scores=scores, watch=watch, announce=announce
        )
    table, published = f"{pipeline}.{BACKTESTS}", str(wiring.pipeline().home.published)
    report = {
        "pipeline": pipeline,
        "backtest_id": stamp.run_id,
        "candidate": {"version": model.version, "estimator": model.estimator, "params": model.params},
        "partitions": result.partitions,
        "totals": totals(result.partitions),
        "difference": result.verdict and result.verdict.difference,
        "table": table,
        "published": published,
    }
    terminal.report(report)
    _show(result, _metric_shown(wiring, result))
    terminal.say(f"Read it in {published}, table {table}, backtest_id '{stamp.run_id}'.")
    if scores:
        terminal.say(f"  the score of every row: table {pipeline}.{SCORES}")


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        msg = f"--param {text!r} is not NAME=VALUE."
        raise WrongUseError(msg, hint="for example --param max_iter=300")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _show(result: Backtested, metric: str) -> None:
    terminal.show_table(
        ("partition", "model", metric, "production", "by", "rows", "rejected", "note"),
        [
            (
                line.partition,
                f"{line.model}{' (in sample)' if line.in_sample else ''}",
                line.metrics.get(metric),
                line.production.get(metric),
                f"{line.production_version or '-'}{' (in sample)' if line.production_in_sample else ''}",
                line.rows_measured,
                line.rows_rejected,
                line.note,
            )
            for line in result.partitions
        ],
    )
    for total in totals(result.partitions):
        text = f"  {total.metric}: {total.value:.4f}, the mean of {counted(total.partitions, 'partition')}"
        if total.production_value is not None and total.value_where_compared is not None:
            if total.compared != total.partitions:
                text += f" ({total.value_where_compared:.4f} of the {total.compared} that production scored)"
            text += f"; production {total.production_value:.4f}"
        terminal.say(text)
    if result.verdict is not None:
        terminal.say(f"  on all rows together: {result.verdict.beside('production')}")


def _metric_shown(wiring: Wiring, result: Backtested) -> str:
    """The metric of the gate if it was measured, otherwise the default of the task, otherwise any metric."""
    measured = {name for partition in result.partitions for name in partition.metrics}
    default = default_metric(result.task)
    wanted = (wiring.spec.model.promote.metric, default, *sorted(measured & METRICS.keys()))
    return next((name for name in wanted if name in measured), default)
