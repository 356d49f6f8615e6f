"""The `demo` command: the main job on the shipped flights, end to end, and what to try next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

import numpy as np
import polars as pl

from batch_platform.cli import terminal
from batch_platform.cli.execution import RunOptions
from batch_platform.cli.project import shipped_project
from batch_platform.cli.running import Outcome, bring_up_to_date
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import Outcomes, measure
from batch_platform.warehouse.published import open_published

PIPELINE, FIRST, LAST = "flight_delays", "2013-03-01", "2013-04-30"


@dataclass(frozen=True)
class Month:
    """How the predictions of a month did against what happened."""

    month: str
    flights_scored: int
    flights_with_outcome: int
    share_late: float
    roc_auc: float


@dataclass(frozen=True)
class Report:
    """What the demonstration came to."""

    outcome: Outcome
    months: list[Month]


def run(*, as_json: bool) -> None:
    """Train the models of March and April 2013, score both months, hold them against what happened."""
    project = shipped_project()
    wiring = project.pipeline(PIPELINE)
    calendar = wiring.spec.partitions.calendar
    partitions = calendar.within(calendar.named(FIRST).start, calendar.named(LAST).end)
    if not as_json:
        terminal.say(f"{wiring.spec.description} 336,776 real flights from New York in 2013; two months are scored.")
    options = RunOptions(partitions=partitions, now=datetime.now(UTC), named=True)
    outcome = bring_up_to_date(project, wiring, options, quiet=as_json)
    report = Report(outcome, _months(wiring, partitions, options.now))
    if as_json:
        terminal.show_json(report)
    else:
        _conclude(report)


def _months(wiring: Wiring, partitions: Sequence[Partition], now: datetime) -> list[Month]:
    """Each month's predictions joined with the true outcomes of its flights."""
    pipeline, stamp = wiring.pipeline(), Stamp(run_id="demo", at=now)
    found: list[Month] = []
    with (
        open_published(pipeline.home) as con,
        pipeline.builder.session(partitions[0]) as session,
    ):
        for month, members in groupby(partitions, key=lambda partition: partition.key[:7]):
            days = list(members)
            query = f"SELECT flight_id, score FROM {PIPELINE}.predictions WHERE partition_key IN $keys"
            scored = con.sql(query, params={"keys": [day.key for day in days]}).pl()
            known = pl.concat([pipeline.history.labels(session, day, stamp) for day in days])
            joined = scored.join(known, on="flight_id")
            late = joined["late"].cast(pl.Boolean).to_numpy()
            score = joined["score"].to_numpy()
            metrics = measure(Outcomes("binary", np.column_stack([1 - score, score]), late, [False, True]))
            found.append(Month(month, scored.height, joined.height, float(late.mean()), metrics["roc_auc"]))
    return found


def _conclude(report: Report) -> None:
    terminal.say()
    terminal.show_table(
        ("month", "flights scored", "outcome known", "late", "AUC"),
        [(m.month, m.flights_scored, m.flights_with_outcome, f"{m.share_late:.1%}", m.roc_auc) for m in report.months],
    )
    terminal.say(f"Rejected rows: {report.outcome.rows_rejected:,}. Models: {', '.join(report.outcome.versions)}.")
    terminal.say(f"The data lie in {report.outcome.published}.")
    terminal.say()
    terminal.say("Three things to try next:")
    terminal.say(
        "  batch-platform ui                          the asset graph, each partition's numbers, backfills, schedules"
    )
    terminal.say(f"  batch-platform run {PIPELINE} --from 2013-05-01 --to 2013-05-31   a further month")
    statement = f"import duckdb; duckdb.connect('{report.outcome.published}', read_only=True)"
    query = f"sql('FROM {PIPELINE}.predictions ORDER BY score DESC LIMIT 5').show()"
    terminal.say(f'  python -c "{statement}.{query}"')
