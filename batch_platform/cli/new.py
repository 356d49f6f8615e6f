"""The `new` command: propose a pipeline for a table and write it into a project, which is created if there is none."""

import importlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from batch_platform.cli import terminal
from batch_platform.cli.check import check_pipeline
from batch_platform.cli.project import Project, find_project, is_in_project
from batch_platform.cli.proposal.choices import ESTIMATORS, Asked, propose
from batch_platform.cli.proposal.dated import layout
from batch_platform.cli.proposal.files import files_of
from batch_platform.cli.proposal.instants import ORDERS, DateOrder
from batch_platform.cli.proposal.origin import locate
from batch_platform.cli.proposal.survey import survey
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, listed
from batch_platform.declaration.notation import check_name, check_timezone

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


@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
'''


def project_files(package: str) -> dict[str, str]:
    """The smallest Dagster project with a root module of this name: the text of its files, by path."""
    return {
        "pyproject.toml": _PYPROJECT.format(package=package),
        f"{package}/__init__.py": "",
        f"{package}/definitions.py": _DEFINITIONS,
        f"{package}/defs/__init__.py": "",
    }


@click.command("new")
@click.argument("name")
@click.option(
    "--from",
    "file",
    metavar="FILE",
    required=True,
    help="File (Parquet, CSV, JSON, Arrow or DuckDB), folder, or quoted glob of files.",
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
@click.option(
    "--timezone", default="UTC", show_default=True, help="Time zone that defines when a day starts, e.g. Europe/Berlin."
)
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    name: str,
    file: str,
    table: str | None,
    key: tuple[str, ...],
    time: str | None,
    date_order: DateOrder | None,
    label: str | None,
    timezone: str,
) -> None:
    """Propose a pipeline NAME for a table, as files to read and edit.

    The key, the time, the features, the label and a first model are guessed from what the table holds, unless an option
    names them.
    """
    try:
        check_name(name)
        check_timezone(timezone)
    except ValueError as error:
        msg = f"{error}."
        raise WrongUseError(msg) from error
    origin, asked = locate(file, table), Asked(key=key, time=time, label=label, timezone=timezone)
    with survey(origin, timezone, date_order) as table_survey:
        proposal = propose(table_survey, asked)
        reading = layout(table_survey, proposal)
    origin = reading.origin
    project, created = _project(folder)
    target = (project.declarations or project.root) / name
    if origin.path.is_relative_to(project.root):
        origin = replace(origin, path=Path(os.path.relpath(origin.path, target)))
    _write(target, files_of(name, proposal, origin))
    report = {
        "pipeline": name,
        "folder": str(target),
        "source": {**origin.block},
        "source_read": reading.note,
        "rows": table_survey.rows,
        "key": [column.name for column in proposal.key],
        "key_unique": proposal.key_holds,
        "time": proposal.time.name,
        "time_read": proposal.time.reading.note if proposal.time.reading else "",
        "rows_without_time": proposal.timeless,
        "first": proposal.span.first,
        "last": proposal.span.last,
        "every": proposal.every,
        "partitions": proposal.span.filled[proposal.every],
        "label": None if proposal.label is None else proposal.label.name,
        "estimator": ESTIMATORS[proposal.target],
        "features": [column.name for column in proposal.features],
        "left_out": proposal.left_out,
        "others": proposal.others,
        "project": str(project.root),
        "project_made": created,
    }
    terminal.report(report)
    _show(report)
    check_pipeline(project.pipeline(name), datetime.now(UTC))


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


def _write(target: Path, files: dict[str, str]) -> None:
    """Write all files of a folder or none."""
    if target.exists():
        msg = f"{target} already exists."
        raise WrongUseError(msg, hint="choose another name, or remove the folder.")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as temporary:
            written = Path(temporary) / target.name
            written.mkdir()
            for file, text in files.items():
                (written / file).write_bytes(text.encode())
            written.rename(target)


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
    label = report["label"] or "none found, so similar rows are grouped; name one with --label"
    first, last = (f"{report[name]:%Y-%m-%d %H:%M}" for name in ("first", "last"))
    lost = report["rows_without_time"]
    timeless = f", and {lost:,} rows without a time, which belong to no partition" if lost else ""
    read = f" ({report['time_read']})" if report["time_read"] else ""
    others = {role: f"; also possible: {listed(names)}" if names else "" for role, names in report["others"].items()}
    if report["project_made"]:
        terminal.say(f"{report['project']} is now a Dagster project.")
    terminal.say(f"{report['pipeline']}: proposed from {report['rows']:,} rows")
    source = {"source": report["source_read"]} if report["source_read"] else {}
    terminal.show_fields(
        {
            **source,
            "key": f"{', '.join(report['key'])}, unique {report['key_unique']}{others['key']}",
            "time": f"{report['time']}{read}, {first} to {last} UTC{timeless}{others['time']}",
            "partitions": f"{report['every']}, of which {report['partitions']:,} hold rows",
            "label": label,
            "model": report["estimator"],
            "features": f"{len(report['features'])}: {', '.join(report['features'])}",
            "left out": report["left_out"] or "nothing",
        },
        indent=2,
    )
    terminal.say(
        f"Read and edit the files in {report['folder']}: a feature must be known when its partition starts. Then run"
    )
    terminal.say(f"  batch-platform run {report['pipeline']}")
