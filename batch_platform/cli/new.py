"""The `new` command: propose a pipeline for a table and write it into a project, which is created if there is none."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import yaml

from batch_platform.cli import terminal
from batch_platform.cli.check import all_of, check_declared
from batch_platform.cli.project import Project, explained, find_or_create_project, find_project, is_in_project
from batch_platform.cli.proposal.choices import Asked, Proposal, likely_times, propose
from batch_platform.cli.proposal.columns import label_evidence
from batch_platform.cli.proposal.course import with_usual_course
from batch_platform.cli.proposal.dated import Layout, layout
from batch_platform.cli.proposal.files import files_of
from batch_platform.cli.proposal.instants import ORDERS, DateOrder
from batch_platform.cli.proposal.origin import Origin, locate
from batch_platform.cli.proposal.revision import Existing, difference, existing, revised
from batch_platform.cli.proposal.summary import report_of, sentences
from batch_platform.cli.proposal.survey import Survey, survey
from batch_platform.declaration.errors import WrongUseError, listed
from batch_platform.declaration.inputs import Encoding
from batch_platform.declaration.notation import check_name, check_timezone
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, place_of_name
from batch_platform.pipeline.new_label import new_label
from batch_platform.pipeline.pipeline import Pipeline


@click.command(
    "new",
    epilog=terminal.examples(
        "new churn --from customers.csv --label churned",
        "new sales --from 'daily/*.parquet' --time sold_at --key store --key sold_at",
    ),
)
@click.argument("name")
@click.option(
    "--from",
    "file",
    metavar="FILE",
    help="File (Parquet, CSV, JSON, Arrow or DuckDB), folder, or quoted glob of files.",
)
@click.option(
    "--train", metavar="FILE", help="File of rows with a label to learn from, if --score names the rows to score."
)
@click.option("--score", metavar="FILE", help="File of rows to score, which have no label.")
@click.option(
    "--encoding", type=click.Choice([*get_args(Encoding)]), help="Character encoding of CSV files that are not UTF-8."
)
@click.option("--table", metavar="TABLE", help="Table of a DuckDB file that has several.")
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
@click.option("--yes", is_flag=True, help="Take the proposal without asking.")
@click.option(
    "--timezone", default="UTC", show_default=True, help="Time zone that defines when a day starts, e.g. Europe/Berlin."
)
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    name: str,
    file: str | None,
    train: str | None,
    score: str | None,
    table: str | None,
    encoding: Encoding | None,
    key: tuple[str, ...],
    time: str | None,
    date_order: DateOrder | None,
    label: str | None,
    timezone: str,
    *,
    cluster: bool,
    yes: bool,
) -> None:
    """Propose a pipeline NAME for a table, as files to read and edit.

    The key, the time, the features, the label and a first model are guessed from what the table holds, unless an option
    names them. On a terminal it asks before it takes a guess. A table without a time is scored whole, once a day.
    For a pipeline that exists, --label, --cluster, --time and --key show what would change, and --yes writes it.
    """
    try:
        check_name(name)
        check_timezone(timezone)
    except ValueError as error:
        msg = f"{error}."
        raise WrongUseError(msg) from error
    if cluster and label is not None:
        msg = "--label and --cluster exclude each other: groups are found without a label."
        raise WrongUseError(msg, hint="leave one of them out.")
    now = datetime.now(UTC)
    asked = Asked(now, key=key, time=time, label=label, cluster=cluster, timezone=timezone)
    present = _existing(folder, name)
    if present is not None and train is None and score is None and (key or time or label or cluster):
        origin = present.origin(encoding) if file is None else locate(file, table, encoding)
        _revise(present, _revision(present, origin, asked, date_order), find_project(folder), now, yes=yes)
        return
    if train is None and score is None:
        if file is None:
            msg = "No table is named."
            raise WrongUseError(msg, hint="name it with --from FILE, or two with --train FILE --score FILE.")
        origin, second = locate(file, table, encoding), None
    else:
        origin, second = _two_files({"--from": file, "--table": table}, train, score, encoding, asked)
    with survey(origin, timezone, date_order, score=second, label=label) as table_survey:
        if second is None and terminal.can_ask() and not yes:
            table_survey = _with_date_order(table_survey, asked)  # noqa: PLW2901 - the same table
            asked = _answered(table_survey, asked)
        proposal, reading = _proposed(table_survey, asked)
    project, created = find_or_create_project(folder)
    target = (project.declarations or project.root) / name
    reading = reading.relative_to(project.root, target)
    _require_new(name, target, project)
    with _written_beside(target, files_of(name, proposal, reading)) as written:
        _require_sound(_pipeline(written, project), now)
        written.chmod(0o755)
        written.rename(target)
    report = report_of(name, target, table_survey, proposal, reading)
    terminal.report(report | {"project": str(project.root), "project_made": created})
    if created:
        terminal.say(f"{project.root} is now a Dagster project.")
    terminal.say(f"{name}: proposed from {table_survey.rows:,} rows")
    terminal.show_fields(sentences(proposal, reading), indent=2)
    terminal.say(f"Read and edit the files in {target}: a feature must be known when its partition starts. Then run")
    terminal.say(f"  batch-platform run {name}")


def _proposed(table_survey: Survey, asked: Asked) -> tuple[Proposal, Layout]:
    proposal = with_usual_course(table_survey, propose(table_survey, asked))
    return proposal, layout(table_survey, proposal)


def _two_files(
    others: dict[str, str | None], train: str | None, score: str | None, encoding: Encoding | None, asked: Asked
) -> tuple[Origin, Origin]:
    """The files to learn from and to score; raises WrongUseError if one is missing, or other options exclude them."""
    excluded = {**others, "--time": asked.time, "--cluster": asked.cluster or None}
    if named := [option for option, value in excluded.items() if value is not None]:
        msg = f"{listed(named)} cannot be given with --train and --score: the rows of both files are scored as they are then."
        raise WrongUseError(msg, hint="leave it out.")
    if train is None or score is None:
        msg = "--train and --score go together: the rows to learn from, and the rows to score."
        raise WrongUseError(msg, hint="name both files, or a single one with --from.")
    return locate(train, None, encoding), locate(score, None, encoding)


def _existing(folder: Path | None, name: str) -> Existing | None:
    """The pipeline of this name that the project has already."""
    root = (folder or Path.cwd()).absolute()
    if not root.is_dir() or not is_in_project(root):
        return None
    project = find_project(root)
    return existing((project.declarations or project.root) / name)


def _revision(present: Existing, origin: Origin, asked: Asked, date_order: DateOrder | None) -> dict[str, str]:
    """The files of a pipeline, changed as the proposal for what the user names now differs from that for what is declared."""
    partitions, project = present.spec.partitions, find_project(present.folder)
    proposed: list[dict[str, str]] = []
    with survey(origin, partitions.timezone, date_order) as table_survey:
        for answers in present.answers(asked, [column.name for column in table_survey.columns]):
            proposal, reading = _proposed(table_survey, answers)
            if proposal.windows is None and partitions.snapshot:
                proposal = replace(proposal, today=datetime.fromisoformat(partitions.start))
            reading = reading.relative_to(project.root, present.folder)
            proposed.append(files_of(present.spec.name, proposal, reading))
    return revised(present.files, *proposed)


def _revise(present: Existing, files: dict[str, str], project: Project, now: datetime, *, yes: bool) -> None:
    """Show how the files of a pipeline would change and what becomes of its predictions; write them if the user wants it."""
    name, shown = present.spec.name, difference(present.files, files)
    report = {"pipeline": name, "folder": str(present.folder), "diff": shown, "written": False, "predictions": ""}
    if not shown:
        terminal.say(f"{name}: nothing changes.")
        terminal.report(report)
        return
    for line in shown.splitlines():
        terminal.say(line)
    with _written_beside(present.folder, files) as written:
        changed = _pipeline(written, project)
        if (change := new_label(changed, changed.published_ledgers())) is not None:
            report["predictions"] = f"{change} The next run does it: batch-platform run {name}"
            terminal.say(str(report["predictions"]))
        if yes or (terminal.can_ask() and terminal.confirm("Write this")):
            _require_sound(changed, now)
            report["written"] = True
            for file in files:
                (written / file).replace(present.folder / file)
    terminal.report(report)
    terminal.say(
        f"Written; next: batch-platform run {name}" if report["written"] else "Nothing is written: --yes writes it."
    )


def _with_date_order(table_survey: Survey, asked: Asked) -> Survey:
    """Ask for the order of day and month if the dates in the likeliest time column leave it open."""
    time = next(iter(likely_times(table_survey, asked)), None)
    if time is None or time.reading is None or not time.reading.undecided:
        return table_survey
    orders = time.reading.undecided
    meanings = ", ".join(f"{order}: {ORDERS[order]}" for order in orders)
    question = f"Order of the dates in {time.name}, such as {table_survey.example(time.name)} ({meanings})"
    answer = terminal.ask(question, None, orders)
    return table_survey.with_date_order(next(order for order in orders if order == answer))


def _answered(table_survey: Survey, asked: Asked) -> Asked:
    """Ask for the label, the time and the key, with the proposal as the default of each."""
    columns = [column.name for column in table_survey.columns]
    if asked.label is None and not asked.cluster:
        likely = label_evidence(table_survey)
        default = likely[0].column.name if likely and likely[0].points else ""
        label = terminal.ask("Column to predict (empty: group similar rows)", default, columns)
        asked = replace(asked, label=label or None, cluster=not label)
    proposal = propose(table_survey, asked)
    if asked.time is None and proposal.time is not None and proposal.others["time"]:
        time = terminal.ask("Time of a row", proposal.time.name, columns)
        if time != proposal.time.name:
            asked = replace(asked, time=time)
            proposal = propose(table_survey, asked)
    if not asked.key and len(proposal.key) == 1 and proposal.others["key"]:
        key = terminal.ask("Column that identifies a row", proposal.key[0].name, columns)
        asked = asked if key == proposal.key[0].name else replace(asked, key=(key,))
    return asked


def _require_new(name: str, target: Path, project: Project) -> None:
    """Refuse a folder that exists, and a name that another folder of the project declares."""
    if target.exists():
        msg = f"{target} already exists."
        raise WrongUseError(
            msg, hint="choose another name, or name another --label, --time or --key to see what would change."
        )
    for file_name in FILE_NAMES if project.declarations else ():
        for file in sorted(target.parent.rglob(file_name)):
            with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # a broken pipeline, which others name
                if place_of_name(file.read_text(encoding="utf-8"), name) is not None:
                    msg = f"{file} declares a pipeline {name!r} already."
                    raise WrongUseError(msg, hint="choose another name.")


@contextmanager
def _written_beside(target: Path, files: dict[str, str]) -> Generator[Path]:
    """Write files into a new folder beside the target, which is removed unless it is renamed; explain what cannot be written."""
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        written = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=".")
        )  # relative paths hold, since it is as deep as the target
        try:
            for file, text in files.items():
                (written / file).write_bytes(text.encode())
            yield written
        finally:
            shutil.rmtree(written, ignore_errors=True)


def _pipeline(folder: Path, project: Project) -> Pipeline:
    declared = yaml.safe_load((folder / "defs.yaml").read_text(encoding="utf-8"))
    return Pipeline(PipelineSpec.model_validate(declared["attributes"]), folder, project.home)


def _require_sound(pipeline: Pipeline, now: datetime) -> None:
    """Raise what would make every run of a written pipeline fail."""
    problems, _ = check_declared(pipeline, now)
    if problems:
        raise all_of(problems)
