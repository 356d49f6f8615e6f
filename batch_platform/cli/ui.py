"""The `ui` command: run Dagster's webserver and daemon on a project's home, with one code server, and end all together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import click
import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.components.dagster_internals import DAEMON_COMMAND, code_server
from batch_platform.components.instance import VARIABLE, prepare_instance, settings_that_matter
from batch_platform.declaration.errors import BatchPlatformError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 20
SECONDS_BETWEEN_LOOKS = 0.2


@click.command("ui")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, help="Port to listen on.")
@click.pass_obj
def command(folder: Path | None, host: str, port: int) -> None:
    """Run Dagster's webserver and daemon for the project until interrupted."""
    project = find_project(folder)
    if host not in LOOPBACK:
        terminal.warn(f"Dagster has no login: anyone who can reach {host}:{port} can run everything in this project.")
    instance = prepare_instance(project.home)
    if instance != project.home.dagster:
        terminal.say(f"The instance of Dagster is {instance}, which {VARIABLE} names. What matters of its settings:")
        for setting in settings_that_matter(instance):
            terminal.say(f"  {setting}")
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
        file.write_text(json.dumps(workspace), encoding="utf-8")  # JSON is YAML
        target = ["-w", str(file)]
        commands = [
            [sys.executable, "-m", "dagster_webserver", "-h", host, "-p", str(port), *target],
            [*DAEMON_COMMAND, *target],
        ]
        environment = {**os.environ, VARIABLE: str(instance)}
        children += [subprocess.Popen(words, env=environment, cwd=project.root) for words in commands]  # noqa: S603 - no text of others
        terminal.say(
            f"http://{host}:{port} serves {project.root} with the data in {project.home.root}. Press Ctrl-C to stop."
        )
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
