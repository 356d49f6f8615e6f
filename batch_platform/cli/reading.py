"""The commands that read what is published: `export`, `sql`, `rejected`, `trace` and `report`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from shlex import quote
from time import perf_counter

import click
import duckdb

from batch_platform.cli import terminal
from batch_platform.cli.project import asked_for, find_project
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import (
    DataError,
    NothingPublishedError,
    WrongUseError,
    counted,
    number,
    require_local,
)
from batch_platform.operations.export import FORMATS, export, require_writable, write_query
from batch_platform.operations.trace import (
    PARTITION,
    Dependents,
    TracedReasons,
    TracedSource,
    dependents,
    trace,
    with_source_rows,
)
from batch_platform.planning.steps import ranges
from batch_platform.reports.report import write_report
from batch_platform.scoring.rejected_rows import RejectedRow, Rejections, rejections
from batch_platform.warehouse.descriptions import LEDGERS_SCHEMA
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import table_columns
from batch_platform.warehouse.tables_in_files import PREDICTIONS


@terminal.command(
    "export",
    "export flight_delays --to scores.csv --from 2013-03-01 --to 2013-03-31",
    "export flight_delays --to scores.parquet --features",
)
@click.argument("pipeline")
@click.option(
    "--to",
    "destinations",
    metavar="FILE|KEY",
    multiple=True,
    help="File to write, whose name ends with .parquet, .csv or .json. Given once more with the key of a partition, the last one.",
)
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one that is scored.")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option(
    "--features",
    is_flag=True,
    help="Add the columns that each row was scored from; one named like a column of the predictions gets `_feature` behind its name.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--for-spreadsheet",
    is_flag=True,
    help="Put an apostrophe before each text of a CSV file that begins with =, +, -, @, a tab or a return, which spreadsheets run "
    "as a formula. Without it, texts are written as they are.",
)
def export_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    destinations: tuple[str, ...],
    first: str | None,
    only: str | None,
    *,
    features: bool,
    overwrite: bool,
    for_spreadsheet: bool,
) -> None:
    """Write predictions of PIPELINE to a file, ordered by partition and key.

    With --to scores.csv --from 2026-01-01 --to 2026-01-31, the file holds the predictions of January.
    """
    path, last = _file_and_last(destinations)
    declared = find_project(folder).declared_as(pipeline)
    asked = None
    if first or last or only:
        asked = {partition.key for partition in asked_for(declared.spec, datetime.now(UTC), first, last, only)}
    options = {"features": features, "overwrite": overwrite, "for_spreadsheet": for_spreadsheet}
    done = export(declared, path, partition_keys=asked, **options)
    terminal.report(done)
    span = (
        done.first if done.partitions == 1 else f"{counted(done.partitions, 'partition')}, {done.first} to {done.last}"
    )
    terminal.say(f"{counted(done.rows, 'row')} ({span}) written to {done.file}")


def _file_and_last(destinations: Sequence[str]) -> tuple[Path, str | None]:
    """Tell the file, which has an ending, from the last partition among the values of `--to`."""
    files = [text for text in destinations if Path(text).suffix or "/" in text]
    keys = [text for text in destinations if text not in files]
    if len(files) != 1 or len(keys) > 1:
        msg = "--to names one file, which ends with .parquet, .csv or .json, and at most one partition."
        raise WrongUseError(msg, hint="--to scores.parquet --from 2026-01-01 --to 2026-01-31")
    return Path(files[0]).expanduser().absolute(), keys[0] if keys else None


@terminal.command(
    "sql",
    'sql flight_delays "SELECT carrier, avg(score) FROM predictions GROUP BY carrier"',
    "sql flight_delays \"FROM performance WHERE metric = 'roc_auc'\" --to auc.csv",
    "sql flight_delays -",
)
@click.argument("pipeline")
@click.argument("query")
@click.option("--to", "file", metavar="FILE", help=f"File to write, whose name ends with {', '.join(FORMATS)}.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option("--limit", default=20, show_default=True, help="Maximum number of rows to show; --json has all rows.")
def sql_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, query: str, file: str | None, limit: int, *, overwrite: bool
) -> None:
    """Answer QUERY, one SELECT, from the published tables of PIPELINE; `-` reads it from standard input.

    A table without a schema is one of the pipeline's or of batch_platform's; a file that you may read can be joined. Times are in
    UTC. It waits for no run, changes nothing, and blocks nobody.
    """
    declared = find_project(folder).declared_as(pipeline)
    text = sys.stdin.read() if query == "-" else query
    path = None if file is None else Path(file).expanduser().absolute()
    if path is not None:
        require_writable(path, overwrite=overwrite)
    with open_published(declared.home) as con:
        if (pipeline,) not in con.execute("SELECT schema_name FROM duckdb_schemas()").fetchall():
            msg = f"Nothing of {pipeline} is published yet."
            raise NothingPublishedError(msg, hint=f"run it first: batch-platform run {pipeline}.")
        con.execute(f"SET search_path = '{pipeline},{LEDGERS_SCHEMA}'")
        try:
            statements = con.extract_statements(text)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                problem = "is empty" if not statements else "must be one SELECT; the published tables cannot be changed"
                msg = f"The query {problem}."
                raise WrongUseError(msg, hint="write one query for each call, or open the copy in Python or DuckDB.")
            if path is not None:
                con.execute(f"CREATE TEMP VIEW answer AS {text}")  # takes a semicolon or a comment at its end
                rows = write_query(con, "FROM answer", path)
                terminal.report({"file": str(path), "rows": rows})
                terminal.say(f"{counted(rows, 'row')} written to {path}")
                return
            answer = con.execute(statements[0])
            columns = [name for name, *_ in answer.description]
            if terminal.is_json():
                terminal.report([dict(zip(columns, row, strict=True)) for row in answer.fetchall()])
                return
            shown = answer.fetchmany(limit + 1)
        except duckdb.Error as error:
            if isinstance(error, duckdb.CatalogException) and not table_columns(con, pipeline, PREDICTIONS.view):
                msg = f"{pipeline} has no table of predictions yet: nothing is scored, or its first run goes on."
                raise NothingPublishedError(msg, hint=f"batch-platform status {pipeline} shows what is due.") from error
            msg = f"{pipeline}: the query fails: {' '.join(str(error).split())}"
            hint = "batch-platform guide tables lists the tables and their columns."
            if isinstance(error, duckdb.IOException) and str(declared.home.lake) in msg:  # a lost file
                hint = f"batch-platform status {pipeline} names what is damaged, and batch-platform run {pipeline} scores it again."
            raise DataError(msg, hint=hint) from error
    terminal.show_table(columns, shown[:limit], separators=False)
    if len(shown) > limit:
        terminal.say("and more rows. Hint: --limit N shows more; --to scores.csv writes all of them.")


@terminal.command("rejected", "rejected flight_delays --partition 2013-03-01", "rejected flight_delays --limit 100")
@click.argument("pipeline")
@click.option("--partition", "only", metavar="KEY", help="A single partition. Default: all partitions.")
@click.option("--limit", default=20, show_default=True, help="Maximum number of rows to list; --json lists all rows.")
def rejected_command(folder: Path | None, pipeline: str, only: str | None, limit: int) -> None:
    """List the rows of PIPELINE that broke the contract, each with its reason.

    If there were too many in a partition, so that it was not published, they are shown until it is scored again.
    """
    declared = find_project(folder).declared_as(pipeline)
    if only is not None:
        declared.spec.partitions.calendar.named(only)
    asked, most = None if only is None else [only], None if terminal.is_json() else limit
    rejected = rejections(pipeline, declared.home, partition_keys=asked, most=most)
    terminal.report(rejected)
    where, refused = f"{pipeline}, partition {only}" if only else pipeline, rejected.refused
    if rejected.rows:
        terminal.say(f"{where}: {counted(rejected.rows, 'rejected row')}")
        _show_rejected(rejected)
        terminal.say(f"Hint: after a fix, batch-platform replay {pipeline} scores these partitions again.")
    if refused is not None:
        if rejected.rows:
            terminal.say()
        keys = sorted({row.partition for row in refused.listed})
        budget = declared.spec.features.rejected_budget
        terminal.say(
            f"{where}: {refused.rows:,} rows refused, more than max_rejected ({budget}) allowed when last scored"
        )
        _show_rejected(refused)
        again = f"--partition {keys[0]}" if len(keys) == 1 else f"--from {keys[0]} --to {keys[-1]}"
        terminal.say(
            f"Hint: nothing of these attempts is published. Correct the source or the features, or raise "
            f"features.max_rejected; then batch-platform run {pipeline} {again}"
        )
    if not rejected.rows and refused is None:
        terminal.say(f"{where}: no rejected rows.")


def _show_rejected(rejected: Rejections) -> None:
    terminal.show_table(("rows", "reason"), [(count, reason) for reason, count in rejected.reasons.items()])
    terminal.say()
    columns = ("partition", "key", "column", "value", "reason")
    terminal.show_table(columns, [_line(row) for row in rejected.listed])
    if rejected.rows > len(rejected.listed):
        more = rejected.rows - len(rejected.listed)
        terminal.say(f"and {more:,} more rows. Hint: --limit N lists more; --json lists all of them with every value.")


def _line(row: RejectedRow) -> tuple[object, ...]:
    key = " ".join(f"{name}={value}" for name, value in row.key.items())
    value = "" if row.column is None else repr(row.row.get(row.column))
    return row.partition, key, row.column, value, row.reason


@terminal.command(
    "trace",
    "trace flight_delays flight_id=2013-03-01T10:00Z-UA-475-EWR --reasons",
    "trace flight_delays --source weather --partition 2013-03-01",
)
@click.argument("pipeline")
@click.argument("key", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--source", metavar="SOURCE", help="List the predictions that depend on this source instead.")
@click.option("--partition", "only", metavar="KEY", help="With --source: only this partition of the source.")
@click.option("--reasons", "explained", is_flag=True, help="Compute what moved the score most, where it is not stored.")
def trace_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, key: tuple[str, ...], source: str | None, only: str | None, *, explained: bool
) -> None:
    """Show what produced a score of PIPELINE, or what depends on one of its sources.

    A row is given by its key as KEY=VALUE; if it occurs in several partitions, partition=K selects one of them. Shown are the row, the model and its training window, the feature file, the
    rows of the sources, and the run; with --reasons the columns that moved the score most, where the model can tell.
    """
    declared = find_project(folder).declared_as(pipeline)
    example = f"batch-platform trace {pipeline} {' '.join(f'{quote(name)}=…' for name in declared.spec.features.key)}"
    if bool(key) == bool(source) or (only and not source):
        msg = "give either KEY=VALUE of a row, or --source, to which --partition may be added."
        raise WrongUseError(msg, hint=example)
    if source and explained:
        msg = "--reasons is for a row, not for --source."
        raise WrongUseError(msg, hint=f"{example} --reasons")
    if wrong := [part for part in key if "=" not in part]:
        msg = f"{wrong[0]!r} is not KEY=VALUE."
        raise WrongUseError(msg, hint=example)
    if key and all(part.startswith(f"{PARTITION}=") for part in key) and PARTITION not in declared.spec.features.key:
        msg = "a partition alone names no row."
        raise WrongUseError(msg, hint=f"{example} {key[0]}")
    builder, home = declared.builder, declared.home
    if source is not None:
        predictions = dependents(builder, home, source, only)
        terminal.report(predictions)
        _show_dependents(predictions, declared.spec.partitions.calendar)
        return
    of_key = dict(part.split("=", 1) for part in key)
    traces = trace(declared.spec, home, of_key, declared.bundle if explained else None)
    rows = with_source_rows(builder, traces)
    terminal.report(rows)
    for row in rows:
        fields = asdict(row)
        del fields["sources"], fields["reasons"]
        terminal.show_fields(fields)
        if row.reasons is not None:
            _show_reasons(row.reasons)
        for traced in row.sources:
            _show_source(traced)


def _show_reasons(reasons: TracedReasons) -> None:
    if reasons.note:
        terminal.say(f"reasons: {reasons.note}")
        return
    terminal.say(
        f"reasons, computed now: what moved the raw score ({reasons.unit}) from its base value {number(reasons.base)}:"
    )
    for reason in reasons.largest:
        value = "missing" if reason["value"] is None else reason["value"]
        terminal.say(f"  {reason['feature']} ({value}): {number(reason['contribution'], '+.4g')}")


def _show_source(source: TracedSource) -> None:
    terminal.say(f"source {source.name} ({source.kind}):")
    terminal.say(f"  version: {source.version or '-'}{'' if source.unchanged else ', not as it is now'}")
    terminal.say(f"  columns read: {'not known' if source.columns is None else ', '.join(source.columns) or 'none'}")
    if source.note:
        terminal.say(f"  {source.name} {source.note}")
    if source.rows_of_key is not None:
        terminal.say(f"  rows of this key: {source.rows_of_key:,}")
    for row in source.rows:
        terminal.show_fields({"row": row}, indent=2)


def _show_dependents(dependent: Dependents, calendar: Calendar) -> None:
    source = f"partition {dependent.partition} of {dependent.source}" if dependent.partition else dependent.source
    partitions = dependent.partitions
    terminal.say(
        f"{dependent.pipeline}: {counted(len(partitions), 'partition')}, {counted(dependent.rows_scored, 'row')}, depend on {source}"
    )
    terminal.say(f"  {dependent.note}")
    for version, count in dependent.versions.items():
        terminal.say(f"  version {version}: features of {counted(count, 'partition')}")
    if dependent.models:
        terminal.say(f"  models trained on it: {', '.join(dependent.models)}")
    for (through, model), members in groupby(
        partitions, key=lambda partition: (partition.through, partition.model_version)
    ):
        keys = terminal.spans(ranges(calendar.named(partition.partition) for partition in members))
        terminal.say(f"  {keys}: through its {' and its '.join(through)}, scored by {model}")


ENDING = ".html"


@terminal.command(
    "report", "report flight_delays", "report flight_delays --from 2013-03-01 --to 2013-03-31 --out march.html"
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
def report_command(folder: Path | None, pipeline: str, first: str | None, last: str | None, file: Path | None) -> None:
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
