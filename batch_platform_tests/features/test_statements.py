"""The statements that a partition of features costs."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from batch_platform.features.build import FeatureBuilder
from batch_platform.features.sources import opening
from batch_platform.features.sources.opening import Sources, bounded
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import small_spec, write_small_project

OWN_FILE = {"sources": {"events": {"parquet": "{partition_key}.parquet"}}}


@pytest.fixture
def statements(monkeypatch) -> list[str]:
    """The statements that sessions have executed by their end."""
    executed: list[str] = []

    @contextmanager
    def logged(spill: Path | None, timezone: str):
        with bounded(spill, timezone) as con:
            con.execute("CALL enable_logging('QueryLog')")
            yield con
            log = con.execute("SELECT message FROM duckdb_logs WHERE type = 'QueryLog' ORDER BY timestamp").fetchall()
            executed.extend(text for (text,) in log)

    monkeypatch.setattr(opening, "bounded", logged)
    return executed


def builder_of(folder: Path, **declared) -> FeatureBuilder:
    write_small_project(folder)
    spec = small_spec(**declared)
    return FeatureBuilder(spec, Sources(spec, folder, Home(folder)))


@pytest.mark.parametrize(("declared", "statements_each"), [({}, 1), (OWN_FILE, 2)])
def test_a_further_partition_costs_one_statement_and_one_for_each_source_with_a_file_of_its_own(
    tmp_path, statements, declared, statements_each
):
    counts = list[int]()
    for days in (1, 5):
        folder = tmp_path / str(days)
        builder = builder_of(folder, **declared)
        partitions = [builder.spec.partitions.calendar.named(f"2024-01-0{day}") for day in range(1, days + 1)]
        for partition in partitions:
            shutil.copyfile(folder / "events.parquet", folder / f"{partition.key}.parquet")
        statements.clear()
        with builder.session() as session:
            for partition in partitions:
                session.write(partition, folder / "lake")
        counts.append(len(statements))
    assert counts[1] - counts[0] == 4 * statements_each
