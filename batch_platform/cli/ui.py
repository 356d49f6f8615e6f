"""The `ui` command: run Dagster's webserver and daemon on a project's home, with one code server, and end all together.

A home has one daemon: a second `ui` is refused. With --read-only it runs beside, as a webserver alone.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote, urlsplit

import click
import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.guard import LOOPBACK, TOKEN
from batch_platform.cli.instance import VARIABLE, only_service, prepare_instance, settings_that_matter
from batch_platform.cli.project import Project, find_project
from batch_platform.components.alerts import UI_VARIABLE
from batch_platform.components.dagster_internals import DAEMON_COMMAND, code_server
from batch_platform.components.processes import close_dead_runs
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError
from batch_platform.declaration.redaction import logs_json
from batch_platform.pipeline.shipped import ALL, ask_for

GENERATED = "a generated one"
WEBSERVER = [sys.executable, "-m", "batch_platform.cli.guard"]
GRACE_SECONDS = 20
SECONDS_BETWEEN_LOOKS = 0.2


@click.command(
    "ui", epilog=terminal.examples("ui", "ui --host 0.0.0.0 --port 8080 --allowed-host scores.example.com --token")
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port to listen on.")
@click.option(
    "--token",
    is_flag=False,
    flag_value=GENERATED,
    envvar=TOKEN,
    metavar="[TOKEN]",
    help=f"Ask browsers and clients for a token: this one, that of {TOKEN}, or a generated one. Always on beyond loopback.",
)
@click.option(
    "--read-only", is_flag=True, help="Show everything, and let nothing be launched or changed. Runs no daemon."
)
@click.option("--demos", is_flag=True, help="Load all shipped demos, where the shipped pipelines are served.")
@click.option(
    "--allowed-host", multiple=True, metavar="NAME", help="Another name by which browsers may address the UI."
)
@click.pass_obj
def ui_command(  # noqa: PLR0913 - one parameter for each option
    folder: Path | None,
    host: str,
    port: int,
    token: str | None,
    *,
    read_only: bool,
    demos: bool,
    allowed_host: tuple[str, ...],
) -> None:
    """Run Dagster's webserver and daemon for the project until interrupted. A home has only one daemon.

    What web pages of other sites send to it is refused. On 127.0.0.1 it asks for no login unless told so with --token.
    """
    project = find_project(folder)
    if demos and not project.is_shipped:
        msg = f"{project.root} is a project of your own, and --demos loads the shipped pipelines."
        raise WrongUseError(
            msg, hint="call it in another folder; batch-platform demo NAME --copy-to FOLDER copies a demo."
        )
    if demos:
        ask_for(ALL)
    of_environment = os.environ.pop(TOKEN, None)  # only the webserver is told
    if token == GENERATED or (token is None and host not in LOOPBACK):
        token = of_environment or secrets.token_urlsafe(24)
    instance = prepare_instance(project.home)
    if instance != project.home.dagster:
        terminal.say(f"The instance of Dagster is {instance}, which {VARIABLE} names. What matters of its settings:")
        for setting in settings_that_matter(instance):
            terminal.say(f"  {setting}")
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    os.environ.setdefault(UI_VARIABLE, page)  # the code server writes the links of alerts with it
    allowed = [word for name in allowed_host for word in ("--allowed-host", name)]
    logged = ("--log-format", "json") if logs_json() else ()
    if logged:
        # The code server takes its options from variables too.
        os.environ["DAGSTER_CLI_CODE_SERVER_START_LOG_FORMAT"] = "json"
    webserver = [*WEBSERVER, "-h", host, "-p", str(port), *allowed, *logged]
    if read_only:
        file = project.home.dagster / f"workspace-{os.getpid()}.yaml"
        ended = _serve(project, instance, file, page, token, [[*webserver, "--read-only"]])
    else:
        with only_service(project.home, page) as file:
            ended = _serve(project, instance, file, page, token, [webserver, [*DAEMON_COMMAND, *logged]])
    if ended is not None:
        msg = f"The {('webserver', 'daemon')[ended]} stopped unexpectedly; its last messages are above."
        raise BatchPlatformError(msg, hint="start batch-platform ui again.")


def _serve(  # noqa: PLR0913 - a service, and where it is
    project: Project, instance: Path, file: Path, page: str, token: str | None, commands: Sequence[Sequence[str]]
) -> int | None:
    """Run the webserver, and the daemon if there is one, until a signal comes, or one of them ends, whose place it returns.

    They read the code server's address from the workspace file, which nobody else writes.
    """
    if _answers(page):
        msg = f"Another program answers at {page}."
        raise WrongUseError(msg, hint="choose another port, such as --port 3001.")
    stop_signals: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stop_signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):  # the end of a terminal comes as the first, unless it is ignored
        signal.signal(number, stop)
    environment = {**os.environ, VARIABLE: str(instance)}
    environments = [environment | ({TOKEN: token} if token else {}), environment]
    address = f"{page}{f'/?token={quote(token)}' if token else ''}"
    terminal.say(f"Starting Dagster for {project.root}; its address follows once it answers.")
    with dg.DagsterInstance.from_config(str(instance)) as opened:
        close_dead_runs(opened)
        with code_server(project.code_location, opened) as workspace:
            file.unlink(missing_ok=True)  # may be a link
            file.write_text(json.dumps(workspace), encoding="utf-8")  # JSON is YAML
            children = [
                subprocess.Popen([*words, "-w", str(file)], env=variables, cwd=project.root)  # noqa: S603 - no text of others
                for words, variables in zip(commands, environments, strict=False)
            ]
            if len(children) == 1:
                terminal.say(
                    "No daemon: schedules, backfills and the queue go on where batch-platform ui runs without --read-only."
                )
            answers = False
            while not stop_signals and all(child.poll() is None for child in children):
                if not answers and (answers := _answers(page)):
                    served = f"{project.root} with the data in {project.home.root}"
                    terminal.say(f"{address} serves {served}. Press Ctrl-C to stop.")
                time.sleep(SECONDS_BETWEEN_LOOKS)
            ended = None if stop_signals else [child.poll() is None for child in children].index(False)
            for child in children:
                child.terminate()
    _wait_for(children)
    file.unlink()
    return ended


def _answers(page: str) -> bool:
    """Return whether a program accepts connections at the address of a page."""
    url = urlsplit(page)
    with suppress(OSError), socket.create_connection((url.hostname, url.port), timeout=1):
        return True
    return False


def _wait_for(children: Iterable["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
