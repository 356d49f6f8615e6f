"""The `new` command as it is called. Imports nothing heavy."""

from pathlib import Path

import click

from batch_platform.cli.options import reports


@click.command()
@click.argument("name")
@click.option(
    "--from", "given", metavar="FILE", required=True, help="A Parquet, CSV or DuckDB file, or a glob in quotes."
)
@click.option("--table", metavar="TABLE", help="The table, of a DuckDB file.")
@click.option("--key", multiple=True, metavar="COLUMN", help="Names a row; more than once for several together.")
@click.option("--time", metavar="COLUMN", help="When a row's thing happens.")
@click.option("--label", metavar="COLUMN", help="What is to be predicted.")
@click.option("--timezone", default="UTC", show_default=True, help="In which days begin.")
@reports
@click.pass_obj
def new(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    name: str,
    given: str,
    table: str | None,
    key: tuple[str, ...],
    time: str | None,
    label: str | None,
    timezone: str,
    *,
    as_json: bool,
) -> None:
    """Propose a pipeline NAME for a table: key, time, features, label and a first model, as files to read and change."""
    from batch_platform.cli import proposing
    from batch_platform.cli.proposal.choices import Asked

    asked = Asked(key=key, time=time, label=label, timezone=timezone)
    proposing.new(folder, name, given, table, asked, as_json=as_json)
