"""The built wheel, and what it does in somebody else's Dagster project."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from zipfile import ZipFile

import duckdb
import pytest

from batch_platform import __version__
from batch_platform_tests.harness.checkout import ROOT, clone_after_demo, copy_checkout, shell
from batch_platform_tests.harness.dagster_project import (
    PACKAGE,
    pipeline_folder,
    write_dagster_project,
    write_defs_yaml,
)
from batch_platform_tests.harness.small_pipeline import small_declaration

pytestmark = pytest.mark.release

SHIPPED = {".py", ".yaml", ".sql", ".csv", ".parquet", ".typed", ".md", ".html", ".ipynb"}

DECLARED = {
    "name": "churn",
    "description": "Whether a customer leaves.",
    "partitions": {"start": "2024-01-17", "end": "2024-02-07"},
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = copy_checkout(tmp_path_factory.mktemp("source"))
    shell(f"{quote(sys.executable)} -m build --wheel --outdir dist .", folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """Somebody else's project beside an environment that holds the wheel."""

    folder: Path
    project: Path

    def command(self, arguments: str) -> str:
        """What `batch-platform` prints for that project."""
        return shell(f"env/bin/batch-platform --project {quote(str(self.project))} {arguments}", self.folder)


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    shell(f"python3 -m venv env && env/bin/pip install --no-deps {quote(str(wheel))}", folder)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (required,) = (clone_after_demo(tmp_path_factory.mktemp("of_clone")) / ".venv" / "lib").glob(
        "python*/site-packages"
    )
    (packages / "required.pth").write_text(f"{required}\n")  # what the wheel requires, installed for the demo
    shell("env/bin/pip check", folder)
    project = write_dagster_project(folder / "project")
    pipeline_folder(project).rename(pipeline_folder(project, "churn"))
    write_defs_yaml(project, small_declaration(**DECLARED), "churn")
    return Installed(folder, project)


def test_wheel_holds_yaml_sql_data_and_types_and_no_tests(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
        (entries,) = [archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    tracked = {path.relative_to(ROOT) for path in (ROOT / "batch_platform").rglob("*") if path.is_file()}
    expected = {str(path) for path in tracked if path.suffix in SHIPPED}
    assert "batch_platform/py.typed" in expected
    assert {Path(name).suffix for name in expected} == SHIPPED
    assert {name for name in names if not name.startswith(f"batch_platform-{__version__}.dist-info/")} == expected
    assert f"Version: {__version__}\n" in metadata
    assert "Requires-Dist: dagster" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "batch-platform = batch_platform.cli:process" in entries
    assert "[dagster_dg_cli.registry_modules]\nbatch_platform = batch_platform.components" in entries


def test_environment_has_no_test_dependency(installed):
    listed = json.loads(shell("env/bin/pip list --format json", installed.folder))
    names = {package["name"].lower() for package in listed}
    assert "batch-platform" in names
    assert not names & {"pytest", "hypothesis", "ruff", "pyright", "build"}


def test_pipeline_of_the_other_project_runs(installed):
    assert installed.command("check").splitlines()[0] == "churn: ok"
    output = installed.command("run churn")
    assert output.startswith("churn: to do\n")
    assert "6 of 21 partitions are scored: 240 rows in, 240 scored, 0 rejected." in output
    (status,) = json.loads(installed.command("status --json"))
    assert (status["pipeline"], status["counts"]) == ("churn", {"scored": 6, "warm-up": 15})
    (model,) = json.loads(installed.command("models churn list --json"))
    assert (model["version"], model["champion"]) == (status["champion"], True)
    (traced,) = json.loads(installed.command("trace churn id=1450 --json"))
    assert traced["commit"]["model_version"] == model["version"]
    assert traced["features"]["file"].startswith(f"{installed.project}/.batch_platform/")
    assert not (installed.folder / ".batch_platform").exists()
    installed.command("report churn --out report.html")
    assert "<svg" in (installed.folder / "report.html").read_text(encoding="utf-8"), "a plain install draws its charts"
    with duckdb.connect(str(installed.project / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM churn.predictions").fetchall() == [(240,)]


def test_dagster_loads_the_other_project(installed):
    validate = f"cd {quote(str(installed.project))} && ../env/bin/python -m dagster definitions validate -m {PACKAGE}.definitions"
    shell(validate, installed.folder)


def test_outside_of_a_project_the_shipped_pipeline_is_served(installed, tmp_path):
    (status,) = json.loads(shell(f"{quote(str(installed.folder))}/env/bin/batch-platform status --json", tmp_path))
    assert status["pipeline"] == "flight_delays"
    assert list(tmp_path.iterdir()) == [], "a report creates nothing"
