"""What the commands share: their options, and the project that they serve. Imports nothing heavy."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batch_platform.cli import terminal

if TYPE_CHECKING:
    from batch_platform.cli.project import Project


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """A command that reports, to people or as JSON; what users' code prints meanwhile is no part of the report."""

    @functools.wraps(command)
    def reporting(*args: object, **options: object) -> None:
        with terminal.reporting():
            command(*args, **options)

    return click.option("--json", "as_json", is_flag=True, help="Report as JSON.")(reporting)


def project_of(folder: Path | None) -> "Project":
    """The project of a folder, imported only when a command needs it.

    Raises:
        WrongUseError: See `find_project`.
    """
    from batch_platform.cli.project import find_project

    return find_project(folder)
