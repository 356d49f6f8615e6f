"""The `new` command: propose a pipeline for a table and write it into a project, which is created if there is none."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click
import yaml

from batch_platform.cli import terminal
from batch_platform.cli.check import all_of, check_declared
from batch_platform.cli.project import Project, find_project, is_in_project
from batch_platform.cli.proposal.choices import (
    BY_CONTENT,
    PART_NAMES,
    Asked,
    Proposal,
    likely_times,
    local_key,
    propose,
)
from batch_platform.cli.proposal.columns import label_evidence
from batch_platform.cli.proposal.course import with_usual_course
from batch_platform.cli.proposal.dated import Layout, layout
from batch_platform.cli.proposal.files import files_of
from batch_platform.cli.proposal.instants import ORDERS, DateOrder
from batch_platform.cli.proposal.origin import Origin, locate
from batch_platform.cli.proposal.pair import survey_of_two
from batch_platform.cli.proposal.revision import Existing, changed_by, difference, existing, revised
from batch_platform.cli.proposal.survey import Survey, survey
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, counted, first_few, listed
from batch_platform.declaration.inputs import Encoding
from batch_platform.declaration.notation import check_name, check_timezone
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, place_of_name
from batch_platform.pipeline.new_label import new_label
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home

PACKAGE = "pipelines"  # root module of a project that this command creates
_PYPROJECT = """\
[project]
name = "{package}"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{package}"
"""
_DEFINITIONS = '''\
"""What Dagster loads: every pipeline in a folder below `defs`."""

from pathlib import Path

import dagster as dg

from batch_platform.components import load_from_defs_folder


@dg.definitions
def defs() -> dg.Definitions:
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
'''


def project_files(package: str) -> dict[str, str]:
    """The smallest Dagster project with a root module of this name: the text of its files, by path."""
    return {
        "pyproject.toml": _PYPROJECT.format(package=package),
        f"{package}/__init__.py": "",
        f"{package}/definitions.py": _DEFINITIONS,
        f"{package}/defs/__init__.py": "",
    }


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
        _revise(present, _revision(present, asked, file, table, encoding, date_order), folder, yes=yes, now=now)
        return
    if (pair_of := _two_files(file, train, score, table, encoding, asked)) is None:
        with survey(locate(file or "", table, encoding), timezone, date_order) as table_survey:
            ask = terminal.can_ask() and not yes
            table_survey = _with_date_order(table_survey, asked) if ask else table_survey  # noqa: PLW2901 - the same table
            proposal = _answered(table_survey, asked) if ask else propose(table_survey, asked)
            proposal = with_usual_course(table_survey, proposal)
            reading, pair = layout(table_survey, proposal), None
    else:
        with survey_of_two(*pair_of, label, timezone, date_order) as (table_survey, pair):
            proposal = propose(table_survey, replace(asked, label=pair.label, snapshot=True))
            proposal = replace(proposal, left_out=proposal.left_out | pair.left_out)
            note = f"rows to learn from in {pair.train.path.name}, rows to score in {pair.score.path.name}; both are scored"
            reading = Layout(pair.train, note)
    project, created = _project(folder)
    target = (project.declarations or project.root) / name
    origin = _relative(reading.origin, project.root, target)
    past = None if reading.past is None else _relative(reading.past, project.root, target)
    if pair is not None:
        pair = replace(pair, score=_relative(pair.score, project.root, target))
    _require_new(name, target, project)
    _write(target, files_of(name, proposal, origin, past, pair), project.home, now)
    report = _report(name, target, table_survey, proposal) | {
        "source": {**origin.block},
        "source_read": reading.note,
        "one_file": pair is None and not origin.number_rows,
        "project": str(project.root),
        "project_made": created,
    }
    terminal.report(report)
    _show(report)


def _existing(folder: Path | None, name: str) -> Existing | None:
    """The pipeline of this name that the project has already."""
    root = (folder or Path.cwd()).absolute()
    if not root.is_dir() or not is_in_project(root):
        return None
    project = find_project(root)
    return existing((project.declarations or project.root) / name)


def _revision(  # noqa: PLR0913 - the options of the command
    present: Existing,
    asked: Asked,
    file: str | None,
    table: str | None,
    encoding: Encoding | None,
    date_order: DateOrder | None,
) -> dict[str, str]:
    """The files of a pipeline, changed as the proposal for what the user names now differs from that for what is declared."""
    path, own_table = present.table if file is None else (file, table)
    encoding = encoding or (present.encoding if file is None else None)
    with survey(locate(path, own_table, encoding), present.spec.partitions.timezone, date_order) as table_survey:
        declared = present.as_declared(asked, [column.name for column in table_survey.columns])
        before, after = (_files(present, table_survey, answers) for answers in (declared, changed_by(declared, asked)))
    return revised(present.files, before, after)


def _files(present: Existing, table_survey: Survey, asked: Asked) -> dict[str, str]:
    project = find_project(present.folder)
    proposal = with_usual_course(table_survey, propose(table_survey, asked))
    if proposal.windows is None and present.spec.partitions.snapshot:
        proposal = replace(proposal, today=present.start)
    reading = layout(table_survey, proposal)
    origin = _relative(reading.origin, project.root, present.folder)
    past = None if reading.past is None else _relative(reading.past, project.root, present.folder)
    return files_of(present.spec.name, proposal, origin, past)


def _revise(present: Existing, files: dict[str, str], folder: Path | None, *, yes: bool, now: datetime) -> None:
    """Show how the files of a pipeline would change, and write them if the user wants it."""
    name, shown = present.spec.name, difference(present.files, files)
    home = find_project(folder).home
    anew = _starting_anew(present, files, home) if shown else ""
    if not terminal.is_json():
        for line in shown.splitlines() or [f"{name}: nothing changes."]:
            terminal.say(line)
        if anew:
            terminal.say(anew)
    wanted = bool(shown) and (yes or (terminal.can_ask() and terminal.confirm("Write this")))
    if wanted:
        with _explained(present.folder), _checked(present.folder, files, home, now) as written:
            for file in files:
                (written / file).replace(present.folder / file)
    terminal.report(
        {"pipeline": name, "folder": str(present.folder), "diff": shown, "written": wanted, "predictions": anew}
    )
    if shown and not terminal.is_json():
        terminal.say(f"Written; next: batch-platform run {name}" if wanted else "Nothing is written: --yes writes it.")


def _starting_anew(present: Existing, files: dict[str, str], home: Home) -> str:
    """Say what becomes of stored predictions of another type of label; empty if they stay."""
    with _explained(present.folder), _beside(present.folder, files) as written:
        declared = yaml.safe_load(files["defs.yaml"])["attributes"]
        changed = Pipeline(PipelineSpec.model_validate(declared), written, home)
        change = new_label(changed, changed.published_ledgers())
    return "" if change is None else f"{change} The next run does it: batch-platform run {present.spec.name}"


def _two_files(  # noqa: PLR0913 - the options of the command
    file: str | None,
    train: str | None,
    score: str | None,
    table: str | None,
    encoding: Encoding | None,
    asked: Asked,
) -> tuple[Origin, Origin] | None:
    """The files to learn from and to score; None for one table. Raises WrongUseError for options that exclude each other."""
    if train is None and score is None:
        if file is None:
            msg = "No table is named."
            raise WrongUseError(msg, hint="name it with --from FILE, or two with --train FILE --score FILE.")
        return None
    excluded = {"--from": file, "--table": table, "--time": asked.time, "--cluster": asked.cluster or None}
    if given := [option for option, value in excluded.items() if value is not None]:
        msg = f"{listed(given)} cannot be given with --train and --score: the rows of both files are scored as they are then."
        raise WrongUseError(msg, hint="leave it out.")
    if train is None or score is None:
        msg = "--train and --score go together: the rows to learn from, and the rows to score."
        raise WrongUseError(msg, hint="name both files, or a single one with --from.")
    return locate(train, None, encoding), locate(score, None, encoding)


def _relative(origin: Origin, root: Path, target: Path) -> Origin:
    """The location as the files in a target name it: relative to them within the project."""
    return (
        replace(origin, path=Path(os.path.relpath(origin.path, target))) if origin.path.is_relative_to(root) else origin
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


def _answered(table_survey: Survey, asked: Asked) -> Proposal:
    """Ask for the label, the time and the key, with the proposal as the default of each; propose with the answers."""
    columns = [column.name for column in table_survey.columns]
    if asked.label is None and not asked.cluster:
        likely = label_evidence(table_survey)
        default = likely[0].column.name if likely and likely[0].points else ""
        label = terminal.ask("Column to predict (empty: group similar rows)", default, columns)
        asked = replace(asked, label=label or None, cluster=not label)
    proposal = propose(table_survey, asked)
    if asked.time is None and proposal.windows is not None and proposal.others["time"]:
        time = terminal.ask("Time of a row", proposal.windows.time.name, columns)
        if time != proposal.windows.time.name:
            asked = replace(asked, time=time)
            proposal = propose(table_survey, asked)
    if not asked.key and len(proposal.key) == 1 and proposal.others["key"]:
        key = terminal.ask("Column that identifies a row", proposal.key[0].name, columns)
        if key != proposal.key[0].name:
            proposal = propose(table_survey, replace(asked, key=(key,)))
    return proposal


def _report(name: str, target: Path, table_survey: Survey, proposal: Proposal) -> dict[str, Any]:
    """What is proposed, and why."""
    windows = proposal.windows
    return {
        "pipeline": name,
        "folder": str(target),
        "rows": table_survey.rows,
        "key": [column.name for column in proposal.key],
        "key_unique": proposal.key_holds,
        "snapshot": windows is None,
        "time": None if windows is None else windows.time.name,
        "time_read": "" if windows is None or windows.time.reading is None else windows.time.reading.note,
        "rows_without_time": 0 if windows is None else windows.timeless - len(windows.span.far_off),
        "times_far_off": [] if windows is None else list(windows.span.far_off),
        "first": None if windows is None else windows.span.first,
        "last": None if windows is None else windows.span.last,
        "every": proposal.every,
        "end": None if windows is None or windows.end is None else local_key(windows.end, proposal.every),
        "partitions": 1 if windows is None else windows.span.filled[proposal.every],
        "label": None if proposal.label is None else proposal.label.name,
        "positive": proposal.positive,
        "label_delay": "0 days" if windows is None else str(windows.delay),
        "label_evidence": list(proposal.evidence),
        "estimator": proposal.estimator,
        "train_every": proposal.train_every,
        "features": [column.name for column in proposal.features],
        "calendar_features": [] if windows is None else [PART_NAMES[part] for part in windows.calendar],
        "history_features": windows is not None and windows.past is not None,
        "left_out": proposal.left_out,
        "others": proposal.others,
    }


def _project(folder: Path | None) -> tuple[Project, bool]:
    """Find the project to write into, or create it without changing any existing file; returns whether it was created."""
    root = (folder or Path.cwd()).absolute()
    if not root.is_dir() or is_in_project(root):
        return find_project(root), False
    if (root / "pyproject.toml").exists():
        msg = f"{root / 'pyproject.toml'} has no [tool.dg.project], so Dagster would find no pipelines there."
        hint = 'add [tool.dg] directory_type = "project" and [tool.dg.project] root_module to it.'
        raise WrongUseError(msg, hint=hint)
    if (root / PACKAGE).exists():
        msg = f"{root} is not a Dagster project and cannot become one: it already contains {PACKAGE!r}."
        raise WrongUseError(msg, hint="name another folder with --project.")
    with _explained(root):
        for path, text in project_files(PACKAGE).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return find_project(root), True


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


def _write(target: Path, files: dict[str, str], home: Home, now: datetime) -> None:
    """Check the files of a pipeline, and write all of them or none."""
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _checked(target, files, home, now) as written:
            written.chmod(0o755)
            written.rename(target)


@contextmanager
def _checked(target: Path, files: dict[str, str], home: Home, now: datetime) -> Generator[Path]:
    """Write files into a new folder beside the target and check them; the folder is removed unless it is renamed."""
    with _beside(target, files) as written:
        _require_sound(written, home, now)
        yield written


@contextmanager
def _beside(target: Path, files: dict[str, str]) -> Generator[Path]:
    """Write files into a new folder beside the target, which is removed unless it is renamed."""
    written = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))  # as deep as the target: paths are relative
    try:
        for file, text in files.items():
            (written / file).write_bytes(text.encode())
        yield written
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _require_sound(folder: Path, home: Home, now: datetime) -> None:
    """Raise what would make every run of a written pipeline fail."""
    declared = yaml.safe_load((folder / "defs.yaml").read_text(encoding="utf-8"))
    spec = PipelineSpec.model_validate(declared["attributes"])
    problems, _ = check_declared(Pipeline(spec, folder, home), now)
    if problems:
        raise all_of(problems)


@contextmanager
def _explained(target: Path) -> Generator[None]:
    """Explain which path cannot be written, and why."""
    try:
        yield
    except OSError as error:
        msg = f"{target} cannot be written ({error.strerror})."
        hint = "correct its permissions, or choose another folder with --project."
        raise BatchPlatformError(msg, hint=hint) from error


def _show(report: dict[str, Any]) -> None:
    others = {role: f"; also possible: {listed(names)}" if names else "" for role, names in report["others"].items()}
    because = f" ({', '.join(report['label_evidence'])})" if report["label_evidence"] else ""
    scored = f", score is for {report['positive']!r}" if report["positive"] else ""
    late = report["label_delay"]
    known = "" if late == "0 days" else f"; known {late} later, as the newest {late} have none (labels.delay)"
    label = (
        f"{report['label']}{scored}{because}{known}{others['label']}"
        if report["label"]
        else "none: similar rows are grouped"
    )
    if report["snapshot"]:
        time = "none: every day the whole table is scored as it is then"
        partitions = "snapshots of the whole table, from today on"
        learns = (
            "its rows with a label; a fifth of them, drawn at random, is held out, which is optimistic about the future"
            if report["label"]
            else "all rows but a fifth, drawn at random, which is held out to judge the groups by"
        )
    else:
        first, last = (f"{report[name]:%Y-%m-%d %H:%M}" for name in ("first", "last"))
        lost = report["rows_without_time"]
        timeless = f", and {lost:,} rows without a time, which belong to no partition" if lost else ""
        read = f" ({report['time_read']})" if report["time_read"] else ""
        if far_off := report["times_far_off"]:
            count = counted(len(far_off), "row")
            timeless += f"; left out: {count} far from all others, such as {far_off[0]:%Y-%m-%d}"
        time = f"{report['time']}{read}, {first} to {last} UTC{timeless}{others['time']}"
        ends = f"; until {report['end']}: remove `end` once new rows arrive" if report["end"] else ""
        partitions = f"{report['every']}, of which {report['partitions']:,} hold rows{ends}"
        learns = "all rows before the period that it serves"
    made = [*report["calendar_features"], *(["earlier values of the label"] if report["history_features"] else [])]
    features = [f"{len(report['features'])}: {first_few(report['features'])}"] if report["features"] else []
    features += [f"from the time: {', '.join(made)}"] if made else []
    place = (
        "a row's file and its place there" if "number_rows" in report["source"] else "the place of a row in its file"
    )
    place = "what a row holds" if report["key_unique"] == BY_CONTENT else place
    if report["project_made"]:
        terminal.say(f"{report['project']} is now a Dagster project.")
    terminal.say(f"{report['pipeline']}: proposed from {report['rows']:,} rows")
    source = {"source": report["source_read"]} if report["source_read"] else {}
    terminal.show_fields(
        {
            **source,
            "key": f"{', '.join(report['key']) or place}, unique {report['key_unique']}{others['key']}",
            "time": time,
            "partitions": partitions,
            "label": label,
            "model": f"{report['estimator']}, trained once a {report['train_every']}"
            if report["train_every"]
            else f"{report['estimator']}, trained once",
            "learns from": learns,
            "features": "; ".join(features),
            "left out": report["left_out"] or "nothing",
        },
        indent=2,
    )
    terminal.say(
        f"Read and edit the files in {report['folder']}: a feature must be known when its partition starts. Then run"
    )
    terminal.say(f"  batch-platform run {report['pipeline']}")
