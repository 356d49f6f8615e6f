"""Homes that earlier formats wrote, stored with the project that made them: 29 scored days of 12 orders, without Dagster's records."""

import tarfile
from pathlib import Path

import duckdb
import pytest

from batch_platform.warehouse.ledger import FORMAT
from batch_platform_tests.harness.command_line import published, run_command

STORED = sorted(Path(__file__).parent.glob("home_of_format_*.tar.xz"))
ROWS = ("FROM small.predictions ORDER BY ALL", "FROM small.performance ORDER BY ALL")
RUNS = "SELECT seq, partition_key, model_version, model_sha256, input_hash, rows_scored, run_id FROM batch_platform.score_runs ORDER BY ALL"


@pytest.mark.full
@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.name.partition(".")[0])
def test_a_home_of_an_earlier_format_is_brought_to_todays_keeps_its_rows_and_nothing_is_done_again(stored, tmp_path):
    with tarfile.open(stored) as archive:
        archive.extractall(tmp_path, filter="data")
    project = tmp_path / "project"
    with duckdb.connect(str(project / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        before = [con.execute(query).fetchall() for query in (*ROWS, RUNS)]
        assert con.execute("SELECT format FROM batch_platform.meta").fetchall()[0][0] < FORMAT
    refused = run_command(project, "status", "small")
    assert (
        refused.code,
        refused.error.endswith("Hint: batch-platform run NAME brings the home to the new format."),
    ) == (1, True)
    done = run_command(project, "run", "small")
    assert done.code == 0, done.err
    assert "29 of 60 partitions are scored: 348 rows in, 348 scored, 0 rejected." in done.out
    assert published(project, "SELECT format FROM batch_platform.meta") == [(FORMAT,)]
    assert [published(project, query) for query in (*ROWS, RUNS)] == before
    (status, reading) = run_command(project, "status", "small", "--verify", "--json").json
    assert (status["due"], status["only_in_ledger"], reading["differing"]) == ({}, [], [])
