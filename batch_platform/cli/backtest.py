"""The `backtest` command as it is called. Imports nothing heavy."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from batch_platform.cli.options import project_of, reports
from batch_platform.declaration.errors import WrongUseError


@click.command()
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", required=True, help="First partition.")
@click.option("--to", "last", metavar="KEY", required=True, help="Last partition, included.")
@click.option("--model", "version", metavar="VERSION", help="Score every partition by this version.")
@click.option(
    "--estimator",
    metavar="PATH",
    help="Train this for each serving period, as of its start: an import path of a class, or of a function that builds one.",
)
@click.option("--param", "params", metavar="NAME=VALUE", multiple=True, help="Of the estimator; JSON, else text.")
@click.option("--scores", is_flag=True, help="Keep the score of every row too, in PIPELINE.backtest_scores.")
@reports
@click.pass_obj
def backtest(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    first: str,
    last: str,
    version: str | None,
    estimator: str | None,
    params: tuple[str, ...],
    *,
    scores: bool,
    as_json: bool,
) -> None:
    """Score history as of then by another model, and hold it against what production did; production stays as it is."""
    if bool(version) == bool(estimator) or (params and not estimator):
        msg = "give either --model, or --estimator, to which --param may be added."
        hint = f"batch-platform backtest {pipeline} --from {first} --to {last} --estimator sklearn.ensemble.RandomForestClassifier"
        raise WrongUseError(msg, hint=hint)
    given = dict(map(_parameter, params))

    from batch_platform.cli.backtesting import Ordered, run_backtest
    from batch_platform.cli.running import asked_for
    from batch_platform.pipeline.backtest import BacktestModel

    wiring = project_of(folder).pipeline(pipeline)
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, None)
    ordered = Ordered(partitions, BacktestModel(version, estimator, given), now, keep_scores=scores)
    run_backtest(wiring, ordered, as_json=as_json)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        msg = f"--param {text!r} is not NAME=VALUE."
        raise WrongUseError(msg, hint="for example --param max_iter=300")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
