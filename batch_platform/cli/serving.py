"""The `ui` command: Dagster's webserver and daemon on a project's home, ended together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from batch_platform.cli import terminal
from batch_platform.cli.project import Project
from batch_platform.components.dagster_internals import DAEMON_COMMAND
from batch_platform.components.instance import prepare_instance
from batch_platform.declaration.errors import BatchPlatformError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 20


def serve(project: Project, host: str, port: int) -> None:
    """Run both until interrupted or until one of them ends.

    Raises:
        BatchPlatformError: One of them ended by itself.
    """
    if host not in LOOPBACK:
        terminal.warn(f"Dagster has no login; whoever reaches {host}:{port} can run everything here.")
    home = prepare_instance(project.home)
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    target = ["-w", str(_workspace(project, home))]
    commands = [
        [sys.executable, "-m", "dagster_webserver", "-h", host, "-p", str(port), *target],
        [*DAEMON_COMMAND, *target],
    ]
    children: list[subprocess.Popen[bytes]] = []
    asked_to_stop: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        asked_to_stop.append(number)
        for child in children:
            child.terminate()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    children += [subprocess.Popen(command, env=environment, cwd=project.root) for command in commands]  # noqa: S603 - our own words
    terminal.say(f"http://{host}:{port} serves {project.root} with the data in {project.home.root}; Ctrl-C ends it.")
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
    if not asked_to_stop:
        msg = "The webserver or the daemon ended by itself; its last lines are above."
        raise BatchPlatformError(msg, hint=f"is port {port} free? --port chooses another.")


def _workspace(project: Project, home: Path) -> Path:
    """What both processes load, written for them, so that both know it by the project's own name."""
    kind = "autoload_defs_module" if project.autoloaded else "python_module"
    location = {
        "module_name": project.module,
        "working_directory": str(project.root),
        "location_name": project.location,
    }
    path = home / "workspace.yaml"
    path.write_text(json.dumps({"load_from": [{kind: location}]}), encoding="utf-8")  # JSON is YAML
    return path
