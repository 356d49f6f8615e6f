"""Fixtures of the tests that use Dagster: a command, a project, and no modules of another test's project."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_platform_tests.harness.command_line import InProcess, copy_of_finished_project, write_project
from batch_platform_tests.harness.dagster_project import (
    forget_projects,
    remember_installed_components,
    remember_migrations,
    remember_statements,
)

remember_installed_components()
remember_migrations()
remember_statements()


@pytest.fixture(autouse=True)
def no_project_of_another_test() -> Iterator[None]:
    """Every project on disk is a package of the same name: forget where the last project lay."""
    path = list(sys.path)
    forget_projects()
    yield
    sys.path[:] = path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> InProcess:
    """The command, called in this process."""
    return InProcess(monkeypatch, capfd)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the test's own with all that is due done."""
    return copy_of_finished_project(tmp_path)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A project in which nothing has run yet."""
    return write_project(tmp_path / "project")
