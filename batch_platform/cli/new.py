"""The `new` command: propose a pipeline for a table and write it into a project, which is created if there is none."""

import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from shlex import join, quote
from time import monotonic
from typing import get_args

import click
import yaml

from batch_platform.cli import terminal
from batch_platform.cli.check import check_declared
from batch_platform.cli.project import (
    Project,
    explained,
    find_or_create_project,
    find_project,
    is_in_project,
    require_room,
)
from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError, all_of, counted
from batch_platform.declaration.inputs import Encoding
from batch_platform.declaration.notation import check_name, check_timezone, rendered
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, place_of_name
from batch_platform.monitoring.comparison import ROUNDING
from batch_platform.pipeline.declared import from_environment
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.proposal.choices import MOST_LISTED, Asked, Proposal, likely_labels, propose
from batch_platform.proposal.files import files_of, layout
from batch_platform.proposal.instants import ORDERS, DateOrder
from batch_platform.proposal.origin import locate
from batch_platform.proposal.summary import report_of, sentences
from batch_platform.proposal.survey import Survey, survey
from batch_platform.proposal.trial import SECONDS, Trial, candidates, past_of, require_fits, that_runs, tried

_NONE = "none"  # answer to a question on a terminal


@terminal.command(
    "new",
    "new churn --from customers.csv --label churned",
    "new sales --from 'daily/*.parquet' --time sold_at --key store --key sold_at",
)
@click.argument("name")
@click.option(
    "--from",
    "file",
    metavar="FILE",
    required=True,
    help="File (Parquet, CSV, JSON, Arrow or DuckDB), folder or quoted glob of files, here or in a store such as s3://, or address of a database.",
)
@click.option(
    "--encoding",
    type=click.Choice([*get_args(Encoding)]),
    help="Character encoding of CSV files that are not UTF-8; convert others, such as cp1252, with iconv.",
)
@click.option("--table", metavar="TABLE", help="Table of a database, or of a DuckDB file that has several.")
@click.option(
    "--key",
    multiple=True,
    metavar="COLUMN",
    help="Column that identifies a row. Repeat it for a key of several columns.",
)
@click.option("--time", metavar="COLUMN", help="Column that says when a row's event happens.")
@click.option(
    "--date-order",
    type=click.Choice([*ORDERS]),
    help="Order of day, month and year in dates such as 01/02/2026, where the table does not tell.",
)
@click.option("--label", metavar="COLUMN", help="Column to predict.")
@click.option("--cluster", is_flag=True, help="Group similar rows instead of predicting a column.")
@click.option("--snapshot", is_flag=True, help="Score the whole table every day, whatever times it has.")
@click.option("--yes", is_flag=True, help="Take the proposal without asking.")
@click.option(
    "--timezone", default="UTC", show_default=True, help="Time zone that defines when a day starts, e.g. Europe/Berlin."
)
def new_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    name: str,
    file: str,
    table: str | None,
    encoding: Encoding | None,
    key: tuple[str, ...],
    time: str | None,
    date_order: DateOrder | None,
    label: str | None,
    timezone: str,
    *,
    cluster: bool,
    snapshot: bool,
    yes: bool,
) -> None:
    """Propose a pipeline NAME for a table, as files to read and edit.

    The key, the time, the features, the label and a first model are guessed from what the table holds, unless an option
    names them. On a terminal it asks before it takes a guess. A table without a time is scored whole, once a day.
    """
    try:
        check_name(name)
        check_timezone(timezone)
    except ValueError as error:
        msg = f"{error}."
        raise WrongUseError(msg) from error
    for option, other, why in (
        (label, cluster, "--label and --cluster exclude each other: groups are found without a label."),
        (time, snapshot, "--time and --snapshot exclude each other: without a time, the whole table is scored."),
    ):
        if option is not None and other:
            raise WrongUseError(why, hint="leave one of them out.")
    _prepare(folder, name)
    now = datetime.now(UTC)
    asked = Asked(now, key, time, label, cluster, snapshot, timezone, command=join(["batch-platform", *sys.argv[1:]]))
    origin = locate(file, table, encoding)
    with (
        terminal.busy("Reading the table") as status,
        survey(origin, timezone, date_order) as table_survey,
    ):
        if terminal.can_ask() and not yes:
            status.stop()
            asked = _answered(table_survey, asked)
            status.start()
        status.update(f"Comparing {len(table_survey.columns)} columns")
        proposal = propose(table_survey, asked)
        status.stop()
        proposal, trial = _tried(table_survey, proposal, asked)
        reading = layout(table_survey, proposal)
    project, created = find_or_create_project(folder)
    target = (project.declarations or project.root) / name
    _write(target, files_of(name, proposal, reading, project.root, target), project, now)
    report = report_of(name, target, table_survey, proposal, reading)
    report["trial"] = None if trial is None else asdict(trial)
    terminal.report(report | {"project": str(project.root), "project_made": created})
    if created:
        terminal.say(f"{project.root} is now a Dagster project.")
    terminal.say(f"{name}: proposed from {table_survey.rows:,} rows")
    terminal.show_fields(sentences(proposal, reading), indent=2)
    terminal.say(f"Read and edit the files in {target}: a feature must be known when its row is scored. Then run")
    terminal.say(f"  batch-platform run {name}")


def _tried(table_survey: Survey, proposal: Proposal, asked: Asked) -> tuple[Proposal, Trial | None]:
    """Have the past of the table choose among what can be proposed, and show how each did; require that it can be trained."""
    now = asked.now
    past = past_of(table_survey, proposal)
    if past is None:
        return proposal, None
    proposal, began = that_runs(proposal, past, now), monotonic()
    if proposal.time is not None and not candidates(proposal):
        msg = f"{table_survey.origin.path} has too few rows for a model to learn from earlier labels, and no other column to learn from."
        instead = f"score the whole table with --snapshot instead of --time {quote(proposal.time.name)}, or "
        raise WrongUseError(msg, hint=f"{instead if proposal.time.is_number else ''}add rows or columns.")
    count = len(candidates(proposal))
    part = "the past" if proposal.windows else "random parts"
    terminal.say(f"Trying {count} proposals on {part} of the table, up to {SECONDS} s")
    choice = tried(proposal, past, lambda: monotonic() - began)
    if choice is None:
        terminal.say("  none: the past is too short to learn from it and to predict the rest")
    else:
        terminal.show_table(*choice[1].as_table())
        if left := count - len(choice[1].candidates):
            terminal.say(f"  {counted(left, 'proposal')} not tried: the {SECONDS} s were over")
        if proposal.windows:  # other rows than those on which `run` and `status` measure
            terminal.say(
                f"  on {choice[1].rows:,} rows of the past; run and status measure each model on the end of what it had"
            )
    proposal, trial = choice or (proposal, None)
    if trial is not None and trial.trivial is not None and trial.trivial < (1 - ROUNDING) * trial.chosen.value:
        terminal.say(
            "  The trivial model predicts at least as well: the columns may not tell the label, and run may refuse its models"
        )
    try:
        require_fits(proposal, past, now)
    except TrainingRefusedError as error:
        msg = f"What would be proposed for {table_survey.origin.path} cannot be trained: {error.message}"
        raise WrongUseError(msg, hint="add rows with a label, or name another --label, --key or --time.") from error
    return proposal, trial


def _prepare(folder: Path | None, name: str) -> None:
    """Import what the project defines, if there is one: it may register kinds of sources. Refuse a name that is taken there."""
    root = (folder or Path.cwd()).absolute()
    if not root.is_dir() or not is_in_project(root):
        require_room(root)
        return
    project = find_project(root)
    _require_new(name, (project.declarations or project.root) / name, project)
    if not project.autoloaded:
        import_module(project.module)


def _answered(table_survey: Survey, asked: Asked) -> Asked:
    """Ask for the label, the time and the key, with the proposal as the default of each."""
    columns = [column.name for column in table_survey.columns]
    if asked.label is None and not asked.cluster:
        likely = likely_labels(table_survey, asked)[:MOST_LISTED]
        for evidence in likely:
            terminal.say(f"  {evidence.column.name}: {table_survey.shown(evidence.column)}")
        default = likely[0].column.name if likely else _NONE
        label = terminal.ask(f"Column to predict ({_NONE}: group similar rows)", default, [*columns, _NONE])
        asked = replace(asked, label=None if label == _NONE else label, cluster=label == _NONE)
    proposal = propose(table_survey, asked)
    if asked.time is None and not asked.snapshot and any(column.reading for column in table_survey.columns):
        default = proposal.time.name if proposal.time else _NONE
        time = terminal.ask(f"Time of a row ({_NONE}: score the whole table every day)", default, [*columns, _NONE])
        if time != default:
            asked = replace(asked, time=None if time == _NONE else time, snapshot=time == _NONE)
            proposal = propose(table_survey, asked)
    if not asked.key:
        default = ", ".join(column.name for column in proposal.key)
        enter = "" if default else "; Enter: none does"
        key = terminal.ask(f"Columns that identify a row, with commas between{enter}", default, columns, several=True)
        asked = asked if key == default else replace(asked, key=tuple(name.strip() for name in key.split(",")))
    return asked


def _require_new(name: str, target: Path, project: Project) -> None:
    """Refuse a folder that exists, and a name that another folder of the project declares."""
    if target.exists():
        msg = f"{target} already exists."
        raise WrongUseError(msg, hint="choose another name, or delete the folder to get a new proposal.")
    for file_name in FILE_NAMES if project.declarations else ():
        for file in sorted(target.parent.rglob(file_name)):
            with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # a broken pipeline, which others name
                if place_of_name(file.read_text(encoding="utf-8"), name) is not None:
                    msg = f"{file} declares a pipeline {name!r} already."
                    raise WrongUseError(msg, hint="choose another name.")


def _write(target: Path, files: dict[str, str], project: Project, now: datetime) -> None:
    """Write the files into a folder, all or none; explain what cannot be written, or would not run."""
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Relative paths hold there too: it is as deep as the target.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".", ignore_cleanup_errors=True) as beside:
            written = Path(beside)
            for file, text in files.items():
                (written / file).write_bytes(text.encode())
            _require_sound(written, project, now)
            written.chmod(0o755)
            written.rename(target)


def _require_sound(folder: Path, project: Project, now: datetime) -> None:
    """Raise what would make every run of a written pipeline fail."""
    declared = yaml.safe_load((folder / "defs.yaml").read_text(encoding="utf-8"))
    pipeline = Pipeline(
        PipelineSpec.model_validate(rendered(declared["attributes"], from_environment)), folder, project.home
    )
    problems, _ = check_declared(pipeline, now)
    if problems:
        raise all_of(problems)
