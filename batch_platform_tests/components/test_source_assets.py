"""Sources as assets: what a run and an observation record about them."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.sources.opening import Sources, SourceState
from batch_platform_tests.harness.deployment import Deployment, deploy
from batch_platform_tests.harness.small_pipeline import small_events


def test_every_kind_of_source_is_observed(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "observed_source.py").write_text(
        "import polars as pl\ndef shops():\n    return pl.DataFrame({'shop': ['a', 'b', 'c']})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    sources = {
        "shops": {"python": "observed_source.shops"},
        "prices": {"csv": "prices.csv"},
        "stock": {"duckdb": "stock.duckdb", "table": "stock"},
    }
    deployment = deploy(tmp_path, monkeypatch, sources=sources)
    folder = deployment.pipeline.folder
    (folder / "prices.csv").write_text("item,price\n1,2.5\n2,3.5\n")
    with duckdb.connect(str(folder / "stock.duckdb")) as con:
        con.execute("CREATE TABLE stock AS SELECT 1 AS item, 'x' AS shelf")
    expected = {
        "events": (2400, {"id": "BIGINT", "amount": "DOUBLE"}),
        "shops": (3, {"shop": "VARCHAR"}),
        "prices": (2, {"item": "BIGINT", "price": "DOUBLE"}),
        "stock": (1, {"item": "INTEGER", "shelf": "VARCHAR"}),
    }
    for name, (rows, columns) in expected.items():
        assert deployment.run(name).success
        (seen,) = deployment.observations(name)
        metadata = seen.asset_observation.metadata
        assert metadata["dagster/row_count"].value == rows
        types = {column.name: column.type for column in metadata["dagster/column_schema"].value.columns}
        assert types.items() >= columns.items()
        assert metadata["location"].value
        assert seen.asset_observation.data_version


@pytest.mark.full
def test_a_run_logs_the_schema_of_a_source_and_opens_only_new_versions_for_it(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    opened: list[str] = []
    state = Sources.state

    def noted(sources: Sources, name: str, partition: Partition | None) -> SourceState:
        opened.append(name)
        return state(sources, name, partition)

    monkeypatch.setattr(Sources, "state", noted)
    for day in ("2024-01-01", "2024-01-02"):
        assert deployment.run("features", first=day).success
    small_events().head(100).write_parquet(deployment.pipeline.folder / "events.parquet")
    assert deployment.run("features", first="2024-01-03").success
    seen = [entry.asset_observation.metadata for entry in deployment.observations("events")]
    assert [metadata["dagster/row_count"].value for metadata in seen] == [2400, 2400, 100]
    assert all(
        "amount" in {column.name for column in metadata["dagster/column_schema"].value.columns} for metadata in seen
    )
    assert opened == ["events", "events"]


def daily_files(tmp_path: Path, monkeypatch: Any, days: list[str]) -> Deployment:
    deployment = deploy(tmp_path, monkeypatch, sources={"events": {"parquet": "daily/{partition_key}.parquet"}})
    local = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String)
    (deployment.pipeline.folder / "daily").mkdir()
    for day in days:
        small_events().filter(local == day).write_parquet(deployment.pipeline.folder / "daily" / f"{day}.parquet")
    return deployment


def test_a_source_with_a_file_for_each_partition_has_a_version_for_each(tmp_path, monkeypatch):
    days = ["2024-01-01", "2024-01-03", "2024-01-04"]
    deployment = daily_files(tmp_path, monkeypatch, days)
    assert deployment.run("events").success
    seen = {entry.asset_observation.partition: entry.asset_observation for entry in deployment.observations("events")}
    assert list(seen) == days
    assert len({observation.data_version for observation in seen.values()}) == 3
    assert all(observation.metadata["dagster/partition_row_count"].value == 40 for observation in seen.values())
    assert deployment.run("events", first="2024-01-03").success
    assert [entry.asset_observation.partition for entry in deployment.observations("events")] == [*days, "2024-01-03"]
