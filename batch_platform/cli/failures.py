"""How the command line explains a failure, and its exit codes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from batch_platform.cli import terminal
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError

if TYPE_CHECKING:
    from pydantic import ValidationError
_READ_FROM_A_WORD = ("string_type", "literal_error", "int_type", "float_type")
INTERRUPTED = 130  # the exit code of a process ended by SIGINT


def explain(error: Exception) -> int:
    """Print one paragraph about an error and return the exit code.

    Dagster wraps errors raised while it loads and runs definitions, so the cause is looked up in the chain.
    """
    chain = list(_chain(error))
    if (ours := _ours(chain)) is not None:
        terminal.fail(str(ours))
        return ours.exit_code
    from pydantic import ValidationError

    for cause in chain:
        if isinstance(cause, ValidationError):
            terminal.fail(" ".join(_declared_wrongly(cause)))
            return WrongUseError.exit_code
    innermost = chain[-1]
    text = f"{type(innermost).__name__}: {innermost}".rstrip(" :.")
    terminal.fail(
        f"{text}. Hint: put --debug before the command to see the traceback: batch-platform --debug run NAME."
    )
    return BatchPlatformError.exit_code


def explain_usage(error: click.ClickException) -> int:
    """Print one paragraph about a command that click could not parse and return the exit code."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "batch-platform"
    terminal.fail(f"{error.format_message()} Hint: {command} --help")
    return WrongUseError.exit_code


def explain_interruption() -> int:
    """Print what an interruption leaves behind and return the exit code."""
    terminal.fail("interrupted; everything committed so far stays. Hint: run the same command again to continue.")
    return INTERRUPTED


def _ours(chain: list[BaseException]) -> BatchPlatformError | None:
    """The innermost error of this project, or the one raised directly from it to add where it happened."""
    innermost: BatchPlatformError | None = None
    for cause in chain:
        if isinstance(cause, BatchPlatformError) and not (innermost is not None and innermost.__cause__ is cause):
            innermost = cause
    return innermost


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _declared_wrongly(error: "ValidationError") -> Iterator[str]:
    """Each wrong key with its file and line, as annotated by Dagster."""
    for wrong in error.errors():
        path, _, position = ".".join(str(part) for part in wrong["loc"]).partition(" at ")
        message = wrong["msg"].removeprefix("Value error, ").rstrip("?.")
        if isinstance(wrong["input"], bool) and wrong["type"] in _READ_FROM_A_WORD:
            message += "; YAML reads words such as no, off and yes as truth values: put the word in quotes"
        yield f"{position}: {path}: {message}." if position else f"{path}: {message}."
