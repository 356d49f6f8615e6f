"""The `export` command: predictions, with their inputs if asked for, as a Parquet, CSV or JSON file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.cli.run import asked_for
from batch_platform.declaration.errors import WrongUseError, counted
from batch_platform.operations.export import export


@click.command(
    "export",
    epilog=terminal.examples(
        "export flight_delays --to scores.csv --from 2013-03-01 --to 2013-03-31",
        "export flight_delays --to scores.parquet --features",
    ),
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
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
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
    wiring = find_project(folder).pipeline(pipeline)
    asked = None
    if first or last or only:
        asked = {partition.key for partition in asked_for(wiring, datetime.now(UTC), first, last, only)}
    options = {"features": features, "overwrite": overwrite, "for_spreadsheet": for_spreadsheet}
    done = export(wiring.pipeline(), path, partition_keys=asked, **options)
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
