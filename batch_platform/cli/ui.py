"""The `ui` command: run Dagster's webserver and daemon on a project's home, and end them together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project
from batch_platform.components.dagster_internals import DAEMON_COMMAND
from batch_platform.components.instance import VARIABLE, prepare_instance, settings_that_matter
from batch_platform.declaration.errors import BatchPlatformError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 20


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
    environment = {**os.environ, VARIABLE: str(instance)}
    target = ["-w", str(_workspace(project, project.home.dagster))]
    commands = [
        [sys.executable, "-m", "dagster_webserver", "-h", host, "-p", str(port), *target],
        [*DAEMON_COMMAND, *target],
    ]
    children: list[subprocess.Popen[bytes]] = []
    stop_signals: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stop_signals.append(number)
        for child in children:
            child.terminate()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    children += [subprocess.Popen(words, env=environment, cwd=project.root) for words in commands]  # noqa: S603 - no text of others
    terminal.say(
        f"http://{host}:{port} serves {project.root} with the data in {project.home.root}. Press Ctrl-C to stop."
    )
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
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


def _workspace(project: Project, home: Path) -> Path:
    """Write the workspace file of both processes, in which the code location has the project's own name."""
    path = home / "workspace.yaml"
    path.write_text(json.dumps(project.code_location.workspace), encoding="utf-8")  # JSON is YAML
    return path
