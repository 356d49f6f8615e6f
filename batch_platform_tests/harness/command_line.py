"""The `batch-platform` command as a user calls it, on a user's project in a temporary folder.

The project is the small pipeline with a key of two columns, one with odd values, and one row that is rejected.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import duckdb
import polars as pl
import pytest
import yaml

from batch_platform.cli import main, terminal
from batch_platform.pipeline.shipped import DEMOS_VARIABLE
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.harness.dagster_project import forget_projects, pipeline_folder, write_dagster_project
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.small_pipeline import small_events
from batch_platform_tests.harness.starting_points import made_once

COMMAND = str(Path(sys.executable).with_name("batch-platform"))
REJECTED_ID, REJECTED_DAY = 2000, "2024-02-19"
HANGS_AFTER = 1800  # seconds: a hang is an error, slowness is none
OWN_VARIABLES = (HOME_VARIABLE, "DAGSTER_HOME", terminal.DEBUG_VARIABLE, DEMOS_VARIABLE)

OVERRIDES: dict[str, Any] = {
    "features": {"key": ["id", "shop"], "columns": {"amount": {"min": 0}}, "max_rejected": "5%"},
    "predictions": {"keep": ["items"]},
    "labels": {"sql": "labels.sql"},
}
LABELS_SQL = """\
SELECT id, shop, returned
FROM events
WHERE ts >= $partition_start AND ts < $partition_end AND returned IS NOT NULL
"""


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The report: all of standard output, with nothing on standard error."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out, parse_constant=pytest.fail)

    @property
    def error(self) -> str:
        """The one paragraph that reports a failure; standard error holds nothing else."""
        assert self.code in (1, 2)
        assert self.err.startswith("Error: ")
        assert self.err.count("\n") == 1
        assert not any(word in self.err for word in ("Traceback", "dagster.", "DAGSTER", "Warning"))
        return self.err.removeprefix("Error: ").rstrip()


class InProcess:
    """Calls the command in this process, each time as if it had just started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, folder: Path, *args: str, **environment: str) -> Answer:
        self._capfd.readouterr()
        with self._monkeypatch.context() as patch:
            code = exit_code(patch, folder, *args, **environment)
        captured = self._capfd.readouterr()
        return Answer(code, captured.out, without_signs_of_life(captured.err))


def exit_code(patch: pytest.MonkeyPatch, folder: Path, *args: str, **environment: str) -> int:
    """Call the command in this process, as if it had just started."""
    forget_projects()
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["batch-platform", *args])
    patch.setattr(sys, "path", [*sys.path])
    for name in OWN_VARIABLES:
        patch.setenv(name, environment.get(name, ""))
        if name not in environment:
            patch.delenv(name)
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def without_signs_of_life(text: str) -> str:
    """Standard error without the lines of a command that is silent for long, which a busy machine adds."""
    return re.sub(r"^still at work after \d+ s\n", "", text, flags=re.MULTILINE)


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without the variables that choose a home."""
    return {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES} | variables


def start_command(folder: Path, *args: str, **options: Any) -> "subprocess.Popen[str]":
    """Start the command in a process of its own, without a terminal; `options` as for `subprocess.Popen`."""
    without_terminal = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [COMMAND, *args], **({"cwd": folder, "env": clean_environment(), **without_terminal} | options)
    )


def run_command(folder: Path, *args: str, own: Mapping[str, str] | None = None, **variables: str) -> Answer:
    """Call the command in a process of its own, without a terminal; `own` are variables of the project.

    The process is forked from one that has imported what the command needs; one of `run_program` begins with nothing.
    """
    with Nursery() as nursery, TemporaryDirectory() as answers:
        outputs = [Path(answers, name) for name in ("out", "err")]
        environment = clean_environment(**(own or {}), **variables)
        task = {"folder": str(folder), "arguments": args, "environment": environment, "outputs": [*map(str, outputs)]}
        code = nursery.fork(f"{__name__}.forked_command", **task).bury()
        out, err = (output.read_text(encoding="utf-8") for output in outputs)
        return Answer(code, out, without_signs_of_life(err))


def run_program(folder: Path, *words: str, **variables: str) -> Answer:
    """Run a program, such as COMMAND, with arguments in a process that begins with nothing, without a terminal."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        check=False,
    )
    return Answer(done.returncode, done.stdout, without_signs_of_life(done.stderr))


def forked_command(folder: str, arguments: list[str], environment: dict[str, str], outputs: list[str]) -> None:
    """Call the command as the process of a nursery's child, and end with it."""
    signal.alarm(HANGS_AFTER)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate([os.devnull, *outputs]):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = [COMMAND, *arguments]
    main()


def write_project(folder: Path, **overrides: Any) -> Path:
    """Write the project, in which nothing has run yet; overrides as for `small_declaration`."""
    events = small_events().with_columns(
        pl.when(pl.col("id") == REJECTED_ID).then(-1.0).otherwise(pl.col("amount")).alias("amount")
    )
    return write_dagster_project(folder, **{"events": events, "labels_sql": LABELS_SQL, **OVERRIDES, **overrides})


def copy_of_finished_project(tmp_path: Path) -> Path:
    """Copy the project with everything done into a test's folder; the original is made once per session."""

    def make(folder: Path) -> None:
        answer = run_command(write_project(folder), "run", "small")
        assert answer.code == 0, answer.err

    return copy_of(made_once(tmp_path, "finished_project", make), tmp_path / "project")


def copy_of(project: Path, folder: Path) -> Path:
    """Copy a project with its home, keeping links and file times; returns the copy."""
    return shutil.copytree(project, folder, symlinks=True)


def published(folder: Path, query: str, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
    """Query the published copy of a project."""
    with duckdb.connect(str(folder / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        return con.execute(query, dict(parameters or {})).fetchall()


def redeclare(folder: Path, **model: Any) -> None:
    """Change keys of the declared model."""
    file = pipeline_folder(folder) / "defs.yaml"
    declared = yaml.safe_load(file.read_text(encoding="utf-8"))
    declared["attributes"]["model"] |= model
    file.write_text(yaml.safe_dump(declared, allow_unicode=True), encoding="utf-8")


def takes_all(command: click.Command, arguments: list[str]) -> None:
    """Parse the arguments as the command does, without doing anything; fails as a wrong call does."""
    with command.make_context("batch-platform", list(arguments)) as context:
        rest = [*context._protected_args, *context.args]
        if isinstance(command, click.Group) and rest:
            name, inner, others = command.resolve_command(context, rest)
            assert name is not None
            takes_all(inner, others)
        else:
            assert not rest
