"""The `demo` command: train, score and evaluate the shipped flights, and say what to try next."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import shipped_project
from batch_platform.cli.run import bring_up_to_date
from batch_platform.cli.sample import customers
from batch_platform.cli.summary import RunSummary
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import RunFailedError, WrongUseError
from batch_platform.monitoring.measure import Judgement
from batch_platform.monitoring.measures.performance import PERFORMANCE, POOLED, asked_of
from batch_platform.pipeline.export import require_writable
from batch_platform.pipeline.recorded import recorded_evaluations
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published

PIPELINE, FIRST, LAST = "flight_delays", "2013-03-01", "2013-04-30"


@dataclass(frozen=True)
class Month:
    """The predictions of a month compared with the true outcomes."""

    month: str
    flights_scored: int
    flights_with_outcome: int
    share_late: float
    roc_auc: float


@click.command("demo", epilog=terminal.examples("demo", "demo --table customers.csv"))
@click.option("--table", metavar="FILE", help="Only write a small CSV table of customers to FILE, to try `new` with.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, table: str | None) -> None:
    """Train, score and evaluate two months of real flights, and say what to try next.

    The data go to the current folder, or to BATCH_PLATFORM_HOME.
    """
    if table is not None:
        _write_table(Path(table).expanduser())
        return
    if folder is not None:
        msg = "demo runs the shipped pipeline."
        raise WrongUseError(msg, hint="leave --project out; the data go to the current folder or BATCH_PLATFORM_HOME.")
    project = shipped_project()
    wiring = project.pipeline(PIPELINE)
    calendar = wiring.spec.partitions.calendar
    partitions = calendar.within(calendar.named(FIRST).start, calendar.named(LAST).end)
    terminal.say(f"{wiring.spec.description} 336,776 real flights from New York in 2013; two months are scored.")
    outcome = bring_up_to_date(project, wiring, PlanRequest(datetime.now(UTC), partitions, serve_all=True), named=True)
    if outcome.error:
        raise RunFailedError(outcome.error)
    months, warnings = _months(project.home, partitions), _warnings(wiring, partitions)
    terminal.report({"outcome": outcome, "months": months, "warnings": warnings})
    _conclude(outcome, months)
    _explain(warnings, len(partitions))
    _try_next()


def _write_table(file: Path) -> None:
    """Write the sample; raises WrongUseError rather than replacing a file."""
    if file.suffix != ".csv" or file.exists():
        problem = "exists already" if file.exists() else "does not end with .csv"
        msg = f"{str(file)!r} {problem}; the sample becomes a new CSV file."
        raise WrongUseError(msg, hint="choose another name, such as --table customers.csv.")
    require_writable(file, overwrite=False)
    rows = customers()
    rows.write_csv(file)
    terminal.report({"file": str(file), "rows": rows.height})
    terminal.say(f"{rows.height:,} invented customers written to {file}; `churned` says who left, as far as known.")
    terminal.say(f"Next: batch-platform new churn --from {shlex.quote(str(file))} --yes")


def _months(home: Home, partitions: Sequence[Partition]) -> list[Month]:
    """The predictions of each month beside the true outcomes of its flights, by the published tables."""
    query = f"""
        SELECT month, scored, rows, positives / rows, value FROM {PIPELINE}.{POOLED} JOIN (
            SELECT partition_key[:7] AS month, count(*) AS scored FROM {PIPELINE}.predictions
            WHERE partition_key IN $keys GROUP BY ALL
        ) ON strftime(period_start, '%Y-%m') = month
        WHERE period = 'month' AND metric = 'roc_auc' AND model_version IS NULL AND challenger IS NULL AND segment IS NULL
        ORDER BY month
    """
    with open_published(home) as con:
        rows = con.execute(query, {"keys": [partition.key for partition in partitions]}).fetchall()
    return [Month(*row) for row in rows]


def _warnings(wiring: Wiring, partitions: Sequence[Partition]) -> list[Judgement]:
    """The days whose performance gives a warning."""
    pipeline = wiring.pipeline()
    state = pipeline.state()
    keys = [partition.key for partition in partitions if partition.key in state.evaluations]
    check = PERFORMANCE.check(wiring.spec)
    served = (evaluated.served for evaluated in recorded_evaluations(pipeline, state, keys))
    judged = [check.judge(model.tables[PERFORMANCE.name], model.version.task) for model in served if check is not None]
    return [judgement for judgement in judged if isinstance(judgement, Judgement) and not judgement.passed]


def _explain(warnings: Sequence[Judgement], days: int) -> None:
    """Say in one line what the performance warning in the UI means."""
    if warnings:
        first = warnings[0]
        terminal.say(
            f"The UI warns of the performance of {len(warnings)} of {days} days: the whole 95% interval misses "
            f"what is declared, {asked_of(first.name, first.bound)}. Nothing failed, and the predictions stay."
        )


def _conclude(outcome: RunSummary, months: list[Month]) -> None:
    terminal.say()
    terminal.show_table(
        ("month", "flights scored", "outcome known", "late", "AUC"),
        [(m.month, m.flights_scored, m.flights_with_outcome, f"{m.share_late:.1%}", m.roc_auc) for m in months],
    )
    terminal.say(f"Rejected rows: {outcome.rows_rejected:,}. Models: {', '.join(outcome.versions)}.")
    terminal.say(f"The data are in {outcome.published}.")


def _try_next() -> None:
    terminal.say()
    terminal.say("Three things to try next:")
    ours = _called("batch-platform")
    terminal.say(f"  {ours} ui   # the asset graph, each partition's numbers, backfills, schedules")
    terminal.say(f"  {ours} run {PIPELINE} --from 2013-05-01 --to 2013-05-31   # another month")
    query = "SELECT flight_id, score, prediction FROM predictions ORDER BY score DESC LIMIT 5"
    terminal.say(f'  {ours} sql {PIPELINE} "{query}"   # the flights that are most likely late')


def _called(program: str) -> str:
    """Command by which the shell that started this process calls a program of this environment."""
    ours, found = Path(sys.executable).with_name(program), shutil.which(program)
    if not ours.exists() or (found and Path(found).parent.samefile(ours.parent)):
        return program
    return shlex.quote(min(os.path.relpath(ours), str(ours), key=len))
