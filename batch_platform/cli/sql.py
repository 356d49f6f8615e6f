"""The `sql` command: a SELECT over the published tables, shown or written to a file."""

import sys
from pathlib import Path

import click
import duckdb

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import DataError, NothingPublishedError, WrongUseError, counted
from batch_platform.operations.export import FORMATS, require_writable, write_query
from batch_platform.warehouse.descriptions import LEDGERS_SCHEMA
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import table_columns
from batch_platform.warehouse.tables_in_files import PREDICTIONS


@click.command(
    "sql",
    epilog=terminal.examples(
        'sql flight_delays "SELECT carrier, avg(score) FROM predictions GROUP BY carrier"',
        "sql flight_delays \"FROM performance WHERE metric = 'roc_auc'\" --to auc.csv",
        "sql flight_delays -",
    ),
)
@click.argument("pipeline")
@click.argument("query")
@click.option("--to", "file", metavar="FILE", help=f"File to write, whose name ends with {', '.join(FORMATS)}.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option("--limit", default=20, show_default=True, help="Maximum number of rows to show; --json has all rows.")
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
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
