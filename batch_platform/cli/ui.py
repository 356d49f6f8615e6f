"""The `ui` command: run Dagster's webserver and daemon on a project's home, with one code server, and end all together."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import click
import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.components.alerts import UI_VARIABLE
from batch_platform.components.dagster_internals import DAEMON_COMMAND, code_server
from batch_platform.components.guard import LOOPBACK, TOKEN
from batch_platform.components.instance import VARIABLE, prepare_instance, settings_that_matter
from batch_platform.declaration.errors import BatchPlatformError

GENERATED = "a generated one"
WEBSERVER = [sys.executable, "-m", "batch_platform.components.guard"]
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
@click.option("--read-only", is_flag=True, help="Show everything, and let nothing be launched or changed in the UI.")
@click.option(
    "--allowed-host", multiple=True, metavar="NAME", help="Another name by which browsers may address the UI."
)
@click.pass_obj
def command(  # noqa: PLR0913 - one parameter for each option
    folder: Path | None, host: str, port: int, token: str | None, *, read_only: bool, allowed_host: tuple[str, ...]
) -> None:
    """Run Dagster's webserver and daemon for the project until interrupted.

    What web pages of other sites send to it is refused. On 127.0.0.1 it asks for no login unless told so with --token.
    """
    project = find_project(folder)
    os.environ.pop(TOKEN, None)  # only the webserver is told
    if token == GENERATED or (token is None and host not in LOOPBACK):
        token = secrets.token_urlsafe(24)
    instance = prepare_instance(project.home)
    if instance != project.home.dagster:
        terminal.say(f"The instance of Dagster is {instance}, which {VARIABLE} names. What matters of its settings:")
        for setting in settings_that_matter(instance):
            terminal.say(f"  {setting}")
    allowed = [word for name in allowed_host for word in ("--allowed-host", name)]
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    os.environ.setdefault(UI_VARIABLE, page)  # for the links of alerts, which the code server writes
    children: list[subprocess.Popen[bytes]] = []
    stop_signals: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stop_signals.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with (
        dg.DagsterInstance.from_config(str(instance)) as opened,
        code_server(project.code_location, opened) as workspace,
    ):
        file = project.home.dagster / "workspace.yaml"
        file.unlink(missing_ok=True)  # may be a link
        file.write_text(json.dumps(workspace), encoding="utf-8")  # JSON is YAML
        target = ["-w", str(file)]
        commands = [
            [*WEBSERVER, "-h", host, "-p", str(port), *allowed, *(["--read-only"] if read_only else []), *target],
            [*DAEMON_COMMAND, *target],
        ]
        environment = {**os.environ, VARIABLE: str(instance)}
        environments = [environment | ({TOKEN: token} if token else {}), environment]
        children += [
            subprocess.Popen(words, env=variables, cwd=project.root)  # noqa: S603 - no text of others
            for words, variables in zip(commands, environments, strict=True)
        ]
        address = f"{page}{f'/?token={quote(token)}' if token else ''}"
        terminal.say(f"{address} serves {project.root} with the data in {project.home.root}. Press Ctrl-C to stop.")
        while not stop_signals and all(child.poll() is None for child in children):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        for child in children:
            child.terminate()
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
    if not stop_signals:
        msg = "The webserver or the daemon stopped unexpectedly; its last messages are above."
        raise BatchPlatformError(msg, hint=f"if port {port} is taken, choose another one with --port.")
