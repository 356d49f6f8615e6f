"""The guide's dbt project beside its pipeline, in an environment with what the guide's command installs."""

import os
import re
import shlex
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from batch_platform.cli.project import project_files
from batch_platform_tests.harness.checkout import GUIDE, ROOT, blocks, shell
from batch_platform_tests.harness.served import BACKFILL, BACKFILL_STATUS, served

DAYS, ROWS_A_DAY = 40, 40
SCORED = [f"2024-02-{day:02}" for day in range(1, 7)]
LOADED = """
import pipelines.definitions
graph = pipelines.definitions.defs().resolve_asset_graph()
for key in sorted(key.to_user_string() for key in graph.get_all_asset_keys()):
    print(key, *sorted(parent.to_user_string() for parent in graph.get(__import__("dagster").AssetKey(key.split("/"))).parent_keys))
"""


def write_project(folder: Path) -> None:
    """Write the files of the page, and the raw orders."""
    for path, text in project_files("pipelines").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for block in (block for language in ("yaml", "sql", "python") for block in blocks(language, GUIDE["dbt"])):
        path = re.match(r"(?:#|--) (\S+)\n", block)[1]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(block, encoding="utf-8")
    random, begin = np.random.default_rng(1), datetime(2024, 1, 1, 12, tzinfo=UTC)
    items = random.integers(1, 9, DAYS * ROWS_A_DAY)
    orders = {
        "id": range(len(items)),
        "ts": [begin + timedelta(days=at // ROWS_A_DAY, minutes=at % ROWS_A_DAY) for at in range(len(items))],
        "items": items,
        "amount": random.lognormal(3, 1, len(items)),
        "returned": random.random(len(items)) < 1 / (1 + np.exp(4 - items)),
    }
    pl.DataFrame(orders).write_parquet(folder / "orders.parquet")


@pytest.mark.release
def test_dbt_builds_what_a_pipeline_scores_and_tables_of_the_scores_in_a_backfill(tmp_path):
    write_project(tmp_path)
    (install,) = blocks("bash", GUIDE["dbt"])
    shell(
        f"{sys.executable} -m venv env && env/bin/pip install -q -e {shlex.quote(str(ROOT))} && env/bin/{install}",
        tmp_path,
    )
    shell("mkdir -p .batch_platform/dagster", tmp_path)

    def in_project(command: str) -> str:
        return shell(f"export PATH=$PWD/env/bin:$PATH DAGSTER_HOME=$PWD/.batch_platform/dagster; {command}", tmp_path)

    in_project("cd dbt && dbt parse")
    parents = {
        line.split()[0]: line.split()[1:] for line in in_project(f"python -c {shlex.quote(LOADED)}").splitlines()
    }
    assert parents["returns/features"] == ["orders"]
    assert parents["returns_by_day"] == ["returns/predictions"]

    in_project("dagster asset materialize --select orders -m pipelines.definitions")
    in_project("batch-platform run returns --from 2024-02-01 --to 2024-02-02")
    chosen = [["orders"], ["returns", "features"], ["returns", "predictions"], ["returns_by_day"]]
    days = {"assetSelection": [{"path": path} for path in chosen], "partitionNames": SCORED[2:], "tags": []}
    search = f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}"  # where the resource finds dbt
    command = tmp_path / "env" / "bin" / "batch-platform"
    with served(tmp_path, tmp_path / ".batch_platform", command=command, PATH=search) as ui:
        launched = ui.ask(BACKFILL, backfillParams=days)

        def ended() -> dict[str, Any] | None:
            backfill = ui.ask(BACKFILL_STATUS, id=launched["backfillId"])
            return backfill if backfill["status"] not in ("REQUESTED", "CANCELING") else None

        backfill = ui.wait(ended)
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    with duckdb.connect(str(tmp_path / "shop.duckdb"), read_only=True) as con:
        by_day = dict(con.sql("SELECT partition_key, orders FROM returns_by_day ORDER BY ALL").fetchall())
    assert by_day == dict.fromkeys(SCORED, ROWS_A_DAY)
