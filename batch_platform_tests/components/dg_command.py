"""The `dg` command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import batch_platform
from batch_platform.warehouse.home import HOME_VARIABLE

CHECKOUT = Path(batch_platform.__file__).parent.parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """For processes that leave nothing in the checkout."""
    (home / "dagster").mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DAGSTER_HOME": str(home / "dagster"),
        HOME_VARIABLE: str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
        **more,
    }


def command(*arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Dagster's."""
    program = Path(sys.executable).with_name(arguments[0])
    return subprocess.run([str(program), *arguments[1:]], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def accepted(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    """What a command says that must succeed."""
    done = command(*arguments, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
