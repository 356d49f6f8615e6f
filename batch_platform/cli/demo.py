"""The `demo` command: train, score and evaluate a shipped pipeline, and say what to try next; or copy it to the user."""

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
from batch_platform.cli.declared import read_declared
from batch_platform.cli.project import explained, find_or_create_project, shipped_project
from batch_platform.cli.run import asked_for, bring_up_to_date
from batch_platform.cli.sample import customers
from batch_platform.cli.summary import RunSummary
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import RunFailedError, WrongUseError, named
from batch_platform.monitoring.measure import Judgement
from batch_platform.monitoring.measures.performance import PERFORMANCE, POOLED, asked_of
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.monitoring.units import UnitRule
from batch_platform.pipeline.export import require_writable
from batch_platform.pipeline.recorded import recorded_evaluations
from batch_platform.pipeline.shipped import FLIGHTS, FOLDER, MODULE, shipped
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published

WINDOWS: dict[str, tuple[str | None, str | None]] = {  # first and last partition of a demo; left out: all
    FLIGHTS: ("2013-03-01", "2013-04-30"),
    "patient_risk": ("1983-01-01", None),
}


@dataclass(frozen=True)
class Measured:
    """A metric of a model over all that the demo scored."""

    model: str  # the champions together, or the name of a challenger
    metric: str
    value: float
    low: float | None  # ends of the 95% interval
    high: float | None
    rows: int


@dataclass(frozen=True)
class Month:
    """The predictions of a month compared with the true outcomes."""

    month: str
    flights_scored: int
    flights_with_outcome: int
    share_late: float
    roc_auc: float


@click.command("demo", epilog=terminal.examples("demo", "demo --list", "demo credit_default --copy-to bank"))
@click.argument("name", default=FLIGHTS)
@click.option("--table", metavar="FILE", help="Only write a small CSV table of customers to FILE, to try `new` with.")
@click.option("--list", "listing", is_flag=True, help="List the demos.")
@click.option(
    "--copy-to", "target", type=click.Path(path_type=Path), help="Copy the pipeline and its data to this project."
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, name: str, table: str | None, target: Path | None, *, listing: bool) -> None:
    """Train, score and evaluate a shipped pipeline on real data, and say what to try next.

    Without NAME these are two months of flights. The data go to the current folder, or to BATCH_PLATFORM_HOME.
    """
    if table is not None:
        _write_table(Path(table).expanduser())
        return
    if folder is not None:
        msg = "demo runs the shipped pipeline."
        raise WrongUseError(msg, hint="leave --project out; the data go to the current folder or BATCH_PLATFORM_HOME.")
    if listing:
        _list()
        return
    named(name, dict.fromkeys(shipped()), f"There is no demo {name!r}; there are")
    if target is not None:
        _copy(name, target)
        return
    project = shipped_project()
    wiring = project.pipeline(name)
    first, last = WINDOWS.get(name, (None, None))
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, None)
    facts = " 336,776 real flights from New York in 2013; two months are scored." if name == FLIGHTS else ""
    terminal.say(f"{wiring.spec.description}{facts}")
    windowed = bool(first or last)
    outcome = bring_up_to_date(project, wiring, PlanRequest(now, partitions, serve_all=windowed), named=windowed)
    if outcome.error:
        raise RunFailedError(outcome.error)
    if name == FLIGHTS:
        months, warnings = _months(project.home, partitions), _warnings(wiring, partitions)
        terminal.report({"outcome": outcome, "months": months, "warnings": warnings})
        _conclude(outcome, months)
        _explain(warnings, len(partitions))
        _try_next()
        return
    measured, segments = _measured(wiring, project.home), _segments(wiring, project.home)
    terminal.report({"outcome": outcome, "measured": measured, "segments": segments})
    terminal.say()
    rows = [
        (it.model, it.metric, it.value, "-" if it.low is None else f"{it.low:.4g} to {it.high:.4g}", it.rows)
        for it in measured
    ]
    if rows:
        terminal.show_table(("model", "metric", "value", "95% interval", "rows"), rows)
    if segments:
        terminal.show_table(("segment", "rows in the newest partition"), [*segments.items()])
    ours = _called("batch-platform")
    terminal.say(f"The data are in {outcome.published}. Three things to try next:")
    terminal.say(f"  {ours} report {name}   # what to send to people who never open Dagster")
    terminal.say(f"  {ours} ui --demos   # the asset graph, each partition's numbers, backfills, schedules")
    terminal.say(
        f"  {ours} demo {name} --copy-to FOLDER   # the pipeline as your own project; its README.md says what to change"
    )


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


def _list() -> None:
    """Name the demos and what each predicts."""
    declared = read_declared(*map(FOLDER.joinpath, shipped())) or {}
    demos = {name: declared[name].spec.description or "" for name in shipped()}
    terminal.report(demos)
    terminal.show_table(("demo", "predicts"), [*demos.items()])
    terminal.say("Next: batch-platform demo NAME; batch-platform guide demos")


def _copy(name: str, target: Path) -> None:
    """Copy a shipped pipeline into a project of the user's, which is created where there is none."""
    with explained(target):
        target.mkdir(parents=True, exist_ok=True)
    project, created = find_or_create_project(target)
    place = (project.declarations or project.root) / name
    if place.exists():
        msg = f"{place} exists, and nothing was copied."
        raise WrongUseError(msg, hint="name another folder with --copy-to.")
    with explained(place):
        shutil.copytree(FOLDER / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        declaration = place / "defs.yaml"
        own = f"{place.parent.parent.name}.{place.parent.name}"  # its functions are those of the copy
        text = declaration.read_text(encoding="utf-8").replace(f"{MODULE}.", f"{own}.")
        declaration.write_text(text, encoding="utf-8")
    terminal.report({"project": str(project.root), "project_made": created, "folder": str(place)})
    if created:
        terminal.say(f"{project.root} is now a Dagster project.")
    terminal.say(f"{place} holds the pipeline and its data. Next: cd {shlex.quote(str(target))}")
    first, _ = WINDOWS.get(name, (None, None))
    terminal.say(f"      batch-platform run {name}{f' --from {first}' if first else ''}")


def _measured(wiring: Wiring, home: Home) -> list[Measured]:
    """The gate's metric of all that was scored and has a label, for the champions together and for each challenger."""
    spec, metric = wiring.spec, wiring.spec.model.promote.metric
    if spec.labels is None:
        return []
    with open_published(home) as con:
        only = [metric] if metric else None
        metrics = pooled_performance(con, spec.name, by_version=False, only=only, unit=UnitRule.of(spec))
    return [
        Measured(row["challenger"] or "champion", *(row[name] for name in ("metric", "value", "low", "high", "rows")))
        for row in metrics.sort("challenger", nulls_last=False).iter_rows(named=True)
    ]


def _segments(wiring: Wiring, home: Home) -> dict[str, int]:
    """Rows by cluster in the newest partition of a pipeline without labels."""
    if wiring.spec.labels is not None:
        return {}
    table = f"{wiring.spec.name}.predictions"
    newest = f"partition_key = (SELECT max(partition_key) FROM {table})"
    with open_published(home) as con:
        rows = con.execute(
            f"SELECT prediction, count(*) FROM {table} WHERE {newest} GROUP BY ALL ORDER BY 1"
        ).fetchall()
    return {str(segment): count for segment, count in rows}


def _months(home: Home, partitions: Sequence[Partition]) -> list[Month]:
    """The predictions of each month beside the true outcomes of its flights, by the published tables."""
    query = f"""
        SELECT month, scored, rows, positives / rows, value FROM {FLIGHTS}.{POOLED} JOIN (
            SELECT partition_key[:7] AS month, count(*) AS scored FROM {FLIGHTS}.predictions
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
    terminal.say(f"  {ours} run {FLIGHTS} --from 2013-05-01 --to 2013-05-31   # another month")
    query = "SELECT flight_id, score, prediction FROM predictions ORDER BY score DESC LIMIT 5"
    terminal.say(f'  {ours} sql {FLIGHTS} "{query}"   # the flights that are most likely late')


def _called(program: str) -> str:
    """Command by which the shell that started this process calls a program of this environment."""
    ours, found = Path(sys.executable).with_name(program), shutil.which(program)
    if not ours.exists() or (found and Path(found).parent.samefile(ours.parent)):
        return program
    return shlex.quote(min(os.path.relpath(ours), str(ours), key=len))
