"""The `batch-platform` command: its list of commands, and how it ends.

Exit codes: 0 done, 1 the work failed, 2 wrong use. Errors are one paragraph on standard error.
"""

import atexit
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import click

from batch_platform import __version__
from batch_platform.cli import terminal
from batch_platform.declaration.errors import WrongUseError, did_you_mean, is_interruption
from batch_platform.declaration.explaining import explained
from batch_platform.declaration.redaction import redact
from batch_platform.kernels.native_threads import let_waiting_threads_sleep

INTERRUPTED = 130  # the exit code of a process ended by SIGINT
COMMANDS = {  # each is the object `NAME_command` of a module, imported when it is called
    "demo": "Train, score and evaluate a shipped pipeline on real data.",
    "ui": "Start Dagster's webserver and daemon for the project.",
    "new": "Propose a pipeline for a table, as files to read and edit.",
    "check": "Validate every pipeline without running it.",
    "run": "Bring partitions of a pipeline up to date.",
    "train": "Train the model of a serving period, with the history it needs.",
    "status": "Show which partitions are scored, missing, failed or stale.",
    "models": "List, show, compare, promote or roll back trained versions.",
    "backtest": "Score history with another model and compare it with production.",
    "trace": "Show what produced a score, or what depends on a source.",
    "rejected": "List the rows that broke the contract, and why.",
    "replay": "Score partitions with rejected rows again, after a fix.",
    "export": "Write predictions to a Parquet, CSV or JSON file.",
    "sql": "Answer a query from the published tables.",
    "report": "Write a report for people who never open Dagster.",
    "drop": "Delete partitions of a pipeline for good.",
    "erase": "Erase the rows of a subject, such as a customer.",
    "health": "Answer a probe: say whether the home, its lock and the daemon are well.",
    "backup": "Copy the home to a folder or an object store while runs go on.",
    "restore": "Restore a backup, or a lost warehouse from the published copy.",
    "gc": "Remove files that nothing refers to.",
    "guide": "Show the guide in the terminal.",
}
MODULES = {  # of the commands that share one
    "replay": "run",
    **dict.fromkeys(("export", "sql", "rejected", "trace", "report"), "reading"),
    **dict.fromkeys(("erase", "gc"), "drop"),
    "restore": "backup",
}
REMOVED = {  # commands of earlier releases, with what to do instead
    "rename": "batch-platform run NEW_NAME makes everything under the new name; then batch-platform gc --drop OLD_NAME.",
}


class _Commands(click.Group):
    """The commands, each loaded only when it is called, so that `--help` imports nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as click calls it
        if cmd_name not in COMMANDS:
            return None
        with terminal.uncollected():
            module = import_module(f"batch_platform.cli.{MODULES.get(cmd_name, cmd_name)}")
            return getattr(module, f"{cmd_name}_command")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] in REMOVED:
            msg = f"There is no command {args[0]!r} any more."
            raise WrongUseError(msg, hint=REMOVED[args[0]])
        if not ctx.resilient_parsing and args[0] not in COMMANDS and (near := did_you_mean(args[0], COMMANDS)):
            msg = f"No such command {args[0]!r}."
            raise WrongUseError(msg, hint=near)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as click calls it
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option(
    "--project",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of the Dagster project. Default: the project around the current folder, otherwise the shipped pipelines.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and Dagster's own log.")
@click.pass_context
def app(context: click.Context, folder: Path | None, *, debug: bool) -> None:
    """Periodic batch inference on Dagster and DuckDB."""
    if debug:
        os.environ[terminal.DEBUG_VARIABLE] = "1"
    let_waiting_threads_sleep()
    context.obj = folder


def main() -> None:
    """Run the command and exit with its exit code."""
    sys.exit(_run(sys.argv[1:]))


def process() -> NoReturn:
    """Run the command as a whole process, which ends without freeing its memory: that takes a third of a second.

    A request to terminate and the end of a terminal interrupt it as Ctrl-C does.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the end of a terminal
            # A shell lets its background processes ignore SIGINT itself.
            signal.signal(number, signal.default_int_handler)
    resend_lost_interruptions()
    terminal.say_if_loading_takes_long()
    code = _run(sys.argv[1:])
    atexit._run_exitfuncs()  # noqa: SLF001 - all else that the interpreter does at its end is to free memory
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run the command, report a failure in one paragraph, and return the exit code."""
    try:
        terminal.log_as_declared()
        _require_values(arguments)
        with app.make_context("batch-platform", arguments) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "batch-platform"
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
        else:
            terminal.fail(f"{error.format_message()} Hint: {command} --help")
        return WrongUseError.exit_code
    except (KeyboardInterrupt, click.Abort) as end:
        if isinstance(end, click.Abort):  # Ctrl-C or Ctrl-D at a prompt, behind which the cursor stands
            click.echo(err=True)
        return _interrupted()
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the outermost call: every error is reported, none is lost
        if terminal.debugging():
            sys.stderr.write(redact("".join(traceback.format_exception(error))))
        return _interrupted() if is_interruption(error) else explain(error)
    return 0


def _interrupted() -> int:
    terminal.fail("interrupted; everything committed so far stays. Hint: run the same command again to continue.")
    return INTERRUPTED


def _require_values(arguments: list[str]) -> None:
    """Refuse an option with an empty value: an unset variable in a script must not mean the option's default."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument and before.startswith("-"):
            empty = before
        elif argument.startswith("--") and argument.endswith("="):
            empty = argument[:-1]
        else:
            continue
        msg = f"{empty} has an empty value."
        raise WrongUseError(msg, hint="leave the option out, or check the variable that its value comes from.")


def explain(error: Exception) -> int:
    """Print one paragraph about an error and return the exit code."""
    ours = explained(error, hint=terminal.debug_hint())
    terminal.fail(str(ours))
    return ours.exit_code


_LATER = 0.05  # seconds after which the callback is over


def resend_lost_interruptions() -> None:
    """Interrupt the main thread again whenever Python drops or only prints the exception that stands for a signal.

    The handler of a signal raises its exception in whatever Python code runs next. In a callback from C, a finalizer or a
    `__del__`, Python prints it and goes on: LLVM calls such a callback after each function that it compiles for Numba. Errors
    of finalizers of what was interrupted are dropped; all others are printed as before.
    """
    unraisable_hook, print_hook = sys.unraisablehook, sys.excepthook

    def on_unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        from batch_platform.sources.interruption import was_interrupted  # which imports DuckDB

        if _stands_for_a_signal(dropped.exc_type):
            _send_again()
        elif not was_interrupted():
            unraisable_hook(dropped)

    def on_printed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if _stands_for_a_signal(kind):
            _send_again()
        else:
            print_hook(kind, error, traceback)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_printed


def _stands_for_a_signal(kind: type[BaseException]) -> bool:
    """Tell KeyboardInterrupt, and the exception that Dagster's handler raises within a run, from errors."""
    return not issubclass(kind, (Exception, GeneratorExit, SystemExit))


def _send_again() -> None:
    """Interrupt the main thread from another one, once it is out of the code that lost the exception; once for several losses.

    By SIGTERM: a shell lets its background processes ignore SIGINT.
    """
    if any(isinstance(thread, _Sender) for thread in threading.enumerate()):
        return
    sender = _Sender(_LATER, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM))
    sender.daemon = True
    sender.start()


class _Sender(threading.Timer):
    """Sends the signal."""
