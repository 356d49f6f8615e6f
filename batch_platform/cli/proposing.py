"""The `new` command: a pipeline proposed for somebody's table, written into a project, which is made where there is none."""

import importlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project, is_in_project
from batch_platform.cli.proposal.choices import ESTIMATORS, Asked, Proposal, propose
from batch_platform.cli.proposal.files import files_of
from batch_platform.cli.proposal.survey import Survey, locate, survey
from batch_platform.cli.reporting import check_pipeline
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, listed
from batch_platform.declaration.notation import check_name, check_timezone

PACKAGE = "pipelines"  # of a project that is made here
_PYPROJECT = f"""\
[project]
name = "{PACKAGE}"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{PACKAGE}"
"""
_DEFINITIONS = '''\
"""What Dagster loads: every pipeline in a folder below `defs`."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
'''
_PROJECT_FILES = {
    "pyproject.toml": _PYPROJECT,
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/definitions.py": _DEFINITIONS,
    f"{PACKAGE}/defs/__init__.py": "",
}


def new(folder: Path | None, name: str, given: str, table: str | None, asked: Asked, *, as_json: bool) -> None:  # noqa: PLR0913 - the options of the command
    """Propose a pipeline, write its folder, and check what was written.

    Raises:
        WrongUseError: The name is none or is taken, there is no such table or column, or no column can be key or time.
        SourceError: The table cannot be read.
    """
    _check(name, asked)
    origin = locate(given, table)
    with survey(origin, asked.timezone) as seen:
        proposal = propose(seen, asked)
    project, made = _project(folder)
    target = (project.declarations or project.root) / name
    if origin.path.is_relative_to(project.root):
        origin = replace(origin, path=Path(os.path.relpath(origin.path, target)))
    _write(target, files_of(name, proposal, origin))
    report = {**_report(name, target, seen, proposal), "project": str(project.root), "project_made": made}
    if as_json:
        terminal.show_json(report)
    else:
        _show(report)
    check_pipeline(project.pipeline(name), datetime.now(UTC))


def _check(name: str, asked: Asked) -> None:
    try:
        check_name(name)
        check_timezone(asked.timezone)
    except ValueError as error:
        msg = f"{error}."
        raise WrongUseError(msg) from error


def _project(folder: Path | None) -> tuple[Project, bool]:
    """The project to write into, and whether it was made here, since there was none."""
    root = (folder or Path.cwd()).absolute()
    made = root.is_dir() and not is_in_project(root)
    if made:
        _make_project(root)
        importlib.invalidate_caches()
    return find_project(root), made


def _make_project(root: Path) -> None:
    """The least that Dagster takes for a project; nothing that is there is changed."""
    if (root / "pyproject.toml").exists():
        msg = f"{root / 'pyproject.toml'} has no [tool.dg.project], so that Dagster finds no pipelines there."
        hint = 'add to it: [tool.dg] directory_type = "project" and [tool.dg.project] root_module.'
        raise WrongUseError(msg, hint=hint)
    if (root / PACKAGE).exists():
        msg = f"{root} is no Dagster project, and cannot be made one: it has a {PACKAGE!r} of its own."
        raise WrongUseError(msg, hint="name another folder with --project.")
    with _explained(root):
        for path, text in _PROJECT_FILES.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")


def _write(target: Path, files: dict[str, str]) -> None:
    """All files or none."""
    if target.exists():
        msg = f"{target} exists already."
        raise WrongUseError(msg, hint="choose another name, or remove the folder.")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as aside:
            written = Path(aside) / target.name
            written.mkdir()
            for file, text in files.items():
                (written / file).write_bytes(text.encode())
            written.rename(target)


@contextmanager
def _explained(target: Path) -> Generator[None]:
    """Say what cannot be written."""
    try:
        yield
    except OSError as error:
        msg = f"{target} cannot be written ({error.strerror})."
        raise BatchPlatformError(msg, hint="mend the permissions, or choose another folder with --project.") from error


def _report(name: str, target: Path, seen: Survey, proposal: Proposal) -> dict[str, Any]:
    """What was proposed."""
    return {
        "pipeline": name,
        "folder": str(target),
        "rows": seen.rows,
        "key": [one.name for one in proposal.key],
        "key_unique": proposal.key_holds,
        "time": proposal.time.name,
        "rows_without_time": proposal.timeless,
        "first": proposal.span.first,
        "last": proposal.span.last,
        "every": proposal.every,
        "partitions": proposal.span.filled[proposal.every],
        "label": None if proposal.label is None else proposal.label.name,
        "estimator": ESTIMATORS[proposal.target],
        "features": [one.name for one in proposal.features],
        "left_out": proposal.left_out,
        "others": proposal.others,
    }


def _show(report: dict[str, Any]) -> None:
    """The same to be read, with what changes each choice."""
    label = report["label"] or "none found, so rows are grouped; --label names one"
    first, last = (f"{report[name]:%Y-%m-%d %H:%M}" for name in ("first", "last"))
    timeless = f", and {report['rows_without_time']:,} rows without, which belong to no partition"
    timeless = timeless if report["rows_without_time"] else ""
    others = {name: f"; also possible: {listed(found)}" if found else "" for name, found in report["others"].items()}
    if report["project_made"]:
        terminal.say(f"{report['project']} is a Dagster project now.")
    terminal.say(f"{report['pipeline']}: proposed by what {report['rows']:,} rows hold")
    terminal.show_fields(
        {
            "key": f"{', '.join(report['key'])}, unique {report['key_unique']}{others['key']}",
            "time": f"{report['time']}, {first} to {last} UTC{timeless}{others['time']}",
            "partitions": f"{report['every']}, of which {report['partitions']:,} hold rows",
            "label": label,
            "model": report["estimator"],
            "features": f"{len(report['features'])}: {', '.join(report['features'])}",
            "left out": report["left_out"] or "nothing",
        },
        indent=2,
    )
    terminal.say(
        f"Read and change the files in {report['folder']}: a feature must be known when its partition starts. Then"
    )
    terminal.say(f"  batch-platform run {report['pipeline']}")
