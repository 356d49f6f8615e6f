"""The `report` command: a page for people who decide things, made of the published tables."""

from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import WrongUseError, require_local
from batch_platform.reports.report import write_report

ENDING = ".html"


@click.command(
    "report",
    epilog=terminal.examples(
        "report flight_delays", "report flight_delays --from 2013-03-01 --to 2013-03-31 --out march.html"
    ),
)
@click.argument("pipeline")
@click.option(
    "--from", "first", metavar="KEY", help="First partition. Default: the newest partitions, at most a year of days."
)
@click.option("--to", "last", metavar="KEY", help="Last partition. Default: the newest one that is scored.")
@click.option(
    "--out",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, whose name ends with .html. Default: reports/PIPELINE/LAST.html in the home.",
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, first: str | None, last: str | None, file: Path | None) -> None:
    """Write a report on PIPELINE: one HTML file for people who never open Dagster.

    It needs no network, and says what was scored, how good it was, which models served, and what is open.
    """
    if last and Path(last).suffix:
        msg = f"--to names the last partition, and {last} is a file."
        raise WrongUseError(msg, hint=f"--out {Path(last).with_suffix(ENDING)}")
    if file:
        require_local(file, "write the page here, and copy it.")
    if file and file.suffix.lower() != ENDING:
        msg = f"{file}: a report is a web page, so the name of its file must end with {ENDING}."
        raise WrongUseError(msg, hint=f"--out {file.with_suffix(ENDING)}")
    if file and not (parent := file.expanduser().absolute().parent).is_dir():
        msg = f"{file}: {parent} is not a folder."
        raise WrongUseError(msg, hint=f"mkdir -p {parent}")
    started = perf_counter()
    declared = find_project(folder).declared_as(pipeline)
    spec = declared.spec
    every = "month" if spec.report is None else spec.report.every
    written = write_report(declared, datetime.now(UTC), first, last, every=every, file=file)
    keys = written.figures.window.all_keys
    summary = {"file": str(written.file), "first": keys[0], "last": keys[-1]}
    terminal.report({**summary, "partitions": len(keys), "seconds": perf_counter() - started})
    terminal.say(f"The report on {terminal.span(keys)} is written to {written.file}")
