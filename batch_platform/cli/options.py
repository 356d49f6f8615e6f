"""What the commands share. Imports nothing heavy."""

import functools
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from batch_platform.cli import terminal


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json` to a command, and keep what users' code prints out of its report."""

    @functools.wraps(command)
    def reporting(*args: object, **options: object) -> None:
        with terminal.reporting():
            command(*args, **options)

    return click.option("--json", "as_json", is_flag=True, help="Report as JSON.")(reporting)


@contextmanager
def uncollected() -> Generator[None]:
    """Pause the garbage collector while modules and definitions load: it takes long and finds nothing there."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
