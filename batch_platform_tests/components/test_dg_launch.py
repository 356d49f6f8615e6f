"""`dg launch` on somebody else's project, as processes: partitions, ranges and jobs, from an empty home on."""

import os
from functools import partial
from pathlib import Path

import duckdb
import pytest

from batch_platform_tests.components.dg_command import CHECKOUT, accepted, environment
from batch_platform_tests.harness.dagster_project import PACKAGE, write_dagster_project

pytestmark = pytest.mark.full

IN_ONE_PROCESS = "import dagster as dg\n\ndefs = dg.Definitions(executor=dg.in_process_executor)\n"


@pytest.fixture
def folder(tmp_path):
    return write_dagster_project(tmp_path / "project", partitions={"start": "2024-01-17"})


@pytest.fixture
def entered(tmp_path, folder):
    """Enter a command in the project."""
    env = environment(tmp_path / "home", PYTHONPATH=os.pathsep.join((str(folder), str(CHECKOUT))))
    return partial(accepted, cwd=folder, env=env)


@pytest.fixture
def launch(entered):
    return partial(entered, "dg", "launch")


def scored(home: Path) -> list[tuple[str, int]]:
    with duckdb.connect(str(home / "published.duckdb"), read_only=True) as con:
        query = "SELECT partition_key, count(*) FROM small.predictions GROUP BY ALL ORDER BY ALL"
        return con.execute(query).fetchall()


def test_a_partition_a_range_and_the_job_that_brings_them_up_to_date_are_launched_by_dg(launch, folder, tmp_path):
    launch("--job", "small_bring_up_to_date", "--partition-range", "2024-02-01...2024-02-01")
    assert scored(tmp_path / "home") == [("2024-02-01", 40)]
    launch("--assets", "key:small/features", "--partition", "2024-02-02")
    launch("--assets", "key:small/predictions", "--partition", "2024-02-02")
    (folder / PACKAGE / "defs" / "own.py").write_text(IN_ONE_PROCESS)  # until here each step had a process of its own
    for asset in ("features", "predictions"):  # which have other partitions, so that dg takes one after the other
        launch("--assets", f"key:small/{asset}", "--partition-range", "2024-02-03...2024-02-05")
    assert scored(tmp_path / "home") == [(f"2024-02-0{day}", 40) for day in range(1, 6)]
