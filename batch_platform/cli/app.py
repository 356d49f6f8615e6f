"""The `batch-platform` command: what the UI does, in a terminal, and what only a terminal can.

Exit codes: 0 done, 1 the work failed, 2 wrong use. Errors are one paragraph on standard error.
"""

import atexit
import gc as collector
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from batch_platform import __version__
from batch_platform.cli import failures, terminal
from batch_platform.cli.backtest import backtest
from batch_platform.cli.new import new
from batch_platform.cli.options import project_of, reports
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.redaction import redact


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option(
    "--project",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of the Dagster project to serve; default: the one around the current folder, else the shipped one.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and Dagster's own log.")
@click.pass_context
def app(context: click.Context, folder: Path | None, *, debug: bool) -> None:
    """Periodic batch inference on Dagster and DuckDB."""
    if debug:
        os.environ[terminal.DEBUG_VARIABLE] = "1"
    context.obj = folder


@app.command()
@reports
@click.pass_obj
def demo(folder: Path | None, *, as_json: bool) -> None:
    """Train, score and evaluate two months of real flights, and say what to try next."""
    from batch_platform.cli import demonstration

    if folder is not None:
        msg = "demo runs the shipped pipeline."
        raise WrongUseError(msg, hint="leave --project out; the data go to the current folder or BATCH_PLATFORM_HOME.")
    demonstration.run(as_json=as_json)


@app.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, help="Port to listen on.")
@click.pass_obj
def ui(folder: Path | None, host: str, port: int) -> None:
    """Start Dagster's webserver and daemon on this project's home, until interrupted."""
    from batch_platform.cli.serving import serve

    serve(project_of(folder), host, port)


@app.command()
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition; default: the first that a model serves.")
@click.option("--to", "last", metavar="KEY", help="Last partition, included; default: the last that is due.")
@click.option("--partition", "only", metavar="KEY", help="One partition.")
@click.option("--model", metavar="VERSION", help="Score by this version instead of the champions.")
@click.option("--force", is_flag=True, help="Build and score again even where nothing changed.")
@reports
@click.pass_obj
def run(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    first: str | None,
    last: str | None,
    only: str | None,
    model: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Bring partitions of PIPELINE up to date, with whatever upstream they lack."""
    with _keeping_all():
        from batch_platform.cli.execution import RunOptions
        from batch_platform.cli.running import asked_for, bring_up_to_date

        project = project_of(folder)
        wiring = project.pipeline(pipeline)
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, only)
    options = RunOptions(partitions=partitions, now=now, force=force, model=model, named=bool(first or only))
    outcome = bring_up_to_date(project, wiring, options, quiet=as_json)
    if as_json:
        terminal.show_json(outcome)


@app.command()
@click.argument("pipeline", required=False)
@click.option("--all", "every", is_flag=True, help="A line for each partition instead of one for each stretch.")
@reports
@click.pass_obj
def status(folder: Path | None, pipeline: str | None, *, every: bool, as_json: bool) -> None:
    """Say which partitions are scored, missing, failed or stale, and why."""
    with _keeping_all():
        from batch_platform.cli.reporting import show_status

        project = project_of(folder)
        wirings = [project.pipeline(pipeline)] if pipeline else list(project.pipelines.values())
        show_status(project, wirings, datetime.now(UTC), every=every, as_json=as_json)


@app.command()
@click.argument("pipeline")
@click.option("--partition", "only", metavar="KEY", help="One partition; default: all.")
@click.option("--limit", default=20, show_default=True, help="Rows to list; all of them with --json.")
@reports
@click.pass_obj
def rejected(folder: Path | None, pipeline: str, only: str | None, limit: int, *, as_json: bool) -> None:
    """List the rows of PIPELINE that broke the contract, and why."""
    from batch_platform.cli.rejecting import show_rejected

    show_rejected(project_of(folder).pipeline(pipeline), only, limit, as_json=as_json)


@app.command()
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition; default: the first with rejected rows.")
@click.option("--to", "last", metavar="KEY", help="Last partition, included; default: the last with rejected rows.")
@click.option("--partition", "only", metavar="KEY", help="One partition.")
@reports
@click.pass_obj
def replay(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, first: str | None, last: str | None, only: str | None, *, as_json: bool
) -> None:
    """Score the partitions of PIPELINE that have rejected rows again, after a fix in the sources or in the rules."""
    from batch_platform.cli.rejecting import replay_rejected
    from batch_platform.cli.running import asked_for

    project = project_of(folder)
    wiring = project.pipeline(pipeline)
    now = datetime.now(UTC)
    replay_rejected(project, wiring, asked_for(wiring, now, first, last, only), now, as_json=as_json)


@app.command()
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--keep", default="30 days", show_default=True, help="How long versions never promoted are kept.")
@reports
@click.pass_obj
def gc(folder: Path | None, keep: str, *, dry_run: bool, as_json: bool) -> None:
    """Remove what nothing refers to: old bundles never promoted, features of dropped partitions, remains of killed runs."""
    from batch_platform.cli.tidying import clean

    clean(project_of(folder), datetime.now(UTC), keep, dry_run=dry_run, as_json=as_json)


@app.command()
@reports
@click.pass_obj
def check(folder: Path | None, *, as_json: bool) -> None:
    """Validate every pipeline's YAML, SQL and model without running it."""
    from batch_platform.cli.reporting import show_check

    show_check(project_of(folder), datetime.now(UTC), as_json=as_json)


@app.command()
@click.argument("pipeline")
@click.argument("key", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--source", metavar="SOURCE", help="Instead: the predictions that depend on this source.")
@click.option("--partition", "only", metavar="KEY", help="With --source: on this partition of it.")
@reports
@click.pass_obj
def trace(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, key: tuple[str, ...], source: str | None, only: str | None, *, as_json: bool
) -> None:
    """Say what produced a score: row, model, training window, feature file, source rows, run; or what a source went into."""
    from batch_platform.cli.tracing import show_dependents, show_trace

    wiring = project_of(folder).pipeline(pipeline)
    example = " ".join(f"{name}=…" for name in wiring.spec.features.key)
    if bool(key) == bool(source) or (only and not source):
        msg = "give either KEY=VALUE of a row, or --source, to which --partition may be added."
        raise WrongUseError(msg, hint=f"batch-platform trace {pipeline} {example}")
    if source is not None:
        show_dependents(wiring, source, only, as_json=as_json)
        return
    if wrong := [part for part in key if "=" not in part]:
        msg = f"{wrong[0]!r} is not KEY=VALUE."
        raise WrongUseError(msg, hint=f"batch-platform trace {pipeline} {example}")
    show_trace(wiring, dict(part.split("=", 1) for part in key), as_json=as_json)


class _ListedByDefault(click.Group):
    """Commands of which `list` may be left out, its options being given."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, ["list", *args] if args[0].startswith("-") else args)


@app.group(cls=_ListedByDefault, invoke_without_command=True)
@click.argument("pipeline")
@click.pass_context
def models(context: click.Context, pipeline: str) -> None:
    """The trained versions of PIPELINE; lists them where no command follows."""
    context.obj = _Chosen(context.obj, pipeline)
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=False)


@models.command("list")
@reports
@click.pass_obj
def list_models(chosen: "_Chosen", *, as_json: bool) -> None:
    """All versions, the champion marked."""
    from batch_platform.cli.reporting import show_models

    show_models(project_of(chosen.folder).pipeline(chosen.pipeline), datetime.now(UTC), as_json=as_json)


@models.command("show")
@click.argument("version")
@reports
@click.pass_obj
def show_model(chosen: "_Chosen", version: str, *, as_json: bool) -> None:
    """Everything in the manifest of a version, and what was decided of it."""
    from batch_platform.cli.reporting import show_version

    show_version(project_of(chosen.folder).pipeline(chosen.pipeline), version, as_json=as_json)


@models.command("compare")
@click.argument("one")
@click.argument("other")
@reports
@click.pass_obj
def compare_models(chosen: "_Chosen", one: str, other: str, *, as_json: bool) -> None:
    """Metrics, data windows, and what else differs between two versions, side by side."""
    from batch_platform.cli.promoting import show_comparison

    show_comparison(project_of(chosen.folder).pipeline(chosen.pipeline), one, other, as_json=as_json)


@models.command("promote")
@click.argument("version")
@click.option("--from", "first", metavar="KEY", help="First partition that it serves; default: all it can serve.")
@click.option("--reason", default="", help="Why, for the record.")
@reports
@click.pass_obj
def promote_model(chosen: "_Chosen", version: str, first: str | None, reason: str, *, as_json: bool) -> None:
    """Approve a version that waits, was refused or was withdrawn."""
    from batch_platform.cli.promoting import Decided, promote_version

    decided = Decided(datetime.now(UTC), first, reason)
    promote_version(project_of(chosen.folder).pipeline(chosen.pipeline), version, decided, as_json=as_json)


@models.command("rollback")
@click.option(
    "--from", "first", metavar="KEY", help="First partition that it serves no more; default: all that it serves."
)
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--rescore", is_flag=True, help="Score again what it had scored, by the version before.")
@reports
@click.pass_obj
def roll_back_model(chosen: "_Chosen", first: str | None, reason: str, *, rescore: bool, as_json: bool) -> None:
    """Withdraw the champion: the version before it serves again, and what it scored is listed."""
    from batch_platform.cli.promoting import Decided, roll_back_champion

    decided = Decided(datetime.now(UTC), first, reason)
    project = project_of(chosen.folder)
    roll_back_champion(project, project.pipeline(chosen.pipeline), decided, rescore=rescore, as_json=as_json)


app.add_command(backtest)
app.add_command(new)


@dataclass(frozen=True)
class _Chosen:
    """What the commands below `models` are about."""

    folder: Path | None
    pipeline: str


@contextmanager
def _keeping_all() -> Generator[None]:
    """Do without the garbage collector, which finds nothing in what is imported and read, and takes long to look."""
    collector.disable()
    try:
        yield
    finally:
        collector.freeze()
        collector.enable()


def main() -> None:
    """Run the command and leave with its exit code."""
    sys.exit(_run(sys.argv[1:]))


def process() -> NoReturn:
    """The same as all that a process does: it ends without taking the interpreter apart, which takes a third of a second."""
    code = _run(sys.argv[1:])
    atexit._run_exitfuncs()  # noqa: SLF001 - all else that the interpreter does at its end is to free memory
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run the command; what goes wrong is told in one paragraph. Gives the exit code."""
    try:
        with app.make_context("batch-platform", arguments) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return failures.explain_usage(error)
    except KeyboardInterrupt:
        return failures.explain_interruption()
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the edge: what escapes is told, not lost
        if terminal.debugging():
            sys.stderr.write(redact("".join(traceback.format_exception(error))))
        return failures.explain(error)
    return 0
