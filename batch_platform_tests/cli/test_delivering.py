"""Deliveries as the commands announce, make and report them."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml


def declare(project: Path) -> Path:
    """Declare a delivery; returns its folder."""
    deliver = [{"parquet": "out/late", "name": "late", "columns": {"id": "order", "score": "risk"}}]
    attributes = yaml.safe_load((pipeline_folder(project) / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    write_defs_yaml(project, attributes | {"predictions": {**attributes["predictions"], "deliver": deliver}})
    return pipeline_folder(project) / "out/late"


@pytest.mark.full
def test_run_delivers_what_is_scored_already_and_retries_what_a_receiver_refused(project, cli):
    folder = declare(project)
    folder.parent.mkdir()
    folder.touch()  # a file in the way
    first = cli(project, "run", "small", "--from", "2024-02-01", "--to", "2024-02-02")
    assert first.code == 1
    assert "  deliver to 'late': 2 partitions (2024-02-01 to 2024-02-02)" in first.err + first.out
    assert "  2 partitions not delivered to 'late'; see the error at the end" in first.err + first.out
    assert "0 partitions scored by this run; in all, 2 of 2 partitions are scored" in first.err + first.out
    assert "it is not delivered to 'late': " in first.err
    status = cli(project, "status", "small")
    assert "29 partitions not delivered to 'late'" in status.out + status.err
    assert "delivered_late failed: " in status.out + status.err

    folder.unlink()
    second = cli(project, "run", "small")
    assert second.code == 0
    assert "  delivered 29 partitions to 'late'" in second.out + second.err
    rows = pl.read_parquet(folder / "partition_key=2024-02-02/small.parquet")
    assert (rows.columns, rows.height) == (["order", "risk"], 40)
    third = cli(project, "run", "small")
    assert "everything asked for is up to date" in third.out + third.err
    assert "not delivered" not in (status := cli(project, "status", "small")).out + status.err
