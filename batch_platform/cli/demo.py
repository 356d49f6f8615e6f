"""The `demo` command: train, score and evaluate a shipped pipeline, and say what to try next; or copy it to the user."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import explained, find_or_create_project, shipped_project
from batch_platform.cli.run import asked_for, bring_up_to_date
from batch_platform.cli.sample import customers
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import RunFailedError, WrongUseError, named, number
from batch_platform.monitoring.outcomes import UnitRule
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.operations.export import require_writable
from batch_platform.pipeline.declared import read_declared
from batch_platform.pipeline.shipped import FLIGHTS, FOLDER, MODULE, shipped
from batch_platform.planning.request import PlanRequest
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
    terminal.say(wiring.spec.description or name)
    windowed = bool(first or last)
    outcome = bring_up_to_date(project, wiring, PlanRequest(now, partitions, serve_all=windowed), named=windowed)
    if outcome.error:
        raise RunFailedError(outcome.error)
    measured, segments = _measured(wiring, project.home), _segments(wiring, project.home)
    terminal.report({"outcome": outcome, "measured": measured, "segments": segments})
    terminal.say()
    rows = [
        (it.model, it.metric, it.value, "-" if it.low is None else f"{number(it.low)} to {number(it.high)}", it.rows)
        for it in measured
    ]
    if rows:
        terminal.show_table(("model", "metric", "value", "95% interval", "rows"), rows)
    if segments:
        terminal.show_table(("segment", "rows in the newest partition"), [*segments.items()])
    ours = _called("batch-platform")
    terminal.say(f"The data are in {outcome.published}. Three things to try next:")
    terminal.say(f"  {ours} report {name}   # what to send to people who never open Dagster")
    terminal.say(f"  {ours} ui   # the asset graph, each partition's numbers, backfills, schedules")
    terminal.say(
        f"  {ours} demo {name} --copy-to FOLDER   # the pipeline as your own project; guide demos says what to change"
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
        raise WrongUseError(msg, hint=f"name a folder outside of this project with --copy-to, or remove {place}.")
    with explained(place):
        shutil.copytree(FOLDER / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        declaration = place / "defs.yaml"
        own = f"{place.parent.parent.name}.{place.parent.name}"  # its functions are those of the copy
        text = declaration.read_text(encoding="utf-8").replace(f"{MODULE}.", f"{own}.")
        declaration.write_text(text, encoding="utf-8")
    terminal.report({"project": str(project.root), "project_made": created, "folder": str(place)})
    if created:
        terminal.say(f"{project.root} is now a Dagster project.")
    terminal.say(f"{place} holds the pipeline and its data.")
    first, _ = WINDOWS.get(name, (None, None))
    steps = [] if target.resolve() == Path.cwd() else [f"cd {shlex.quote(str(target))}"]
    steps.append(f"batch-platform run {name}{f' --from {first}' if first else ''}")
    for at, step in enumerate(steps):
        terminal.say(f"{'      ' if at else 'Next: '}{step}")


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


def _called(program: str) -> str:
    """Command by which the shell that started this process calls a program of this environment."""
    ours, found = Path(sys.executable).with_name(program), shutil.which(program)
    if not ours.exists() or (found and Path(found).parent.samefile(ours.parent)):
        return program
    return shlex.quote(min(os.path.relpath(ours), str(ours), key=len))
