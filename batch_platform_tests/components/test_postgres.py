"""Dagster's records in PostgreSQL, as the guide sets it up."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.command_line import OVERRIDES, copy_of_finished_project, published
from batch_platform_tests.harness.dagster_project import forget_projects, write_defs_yaml
from batch_platform_tests.harness.postgres_server import postgres
from batch_platform_tests.harness.small_pipeline import small_declaration
from batch_platform_tests.harness.workspace import workspace_of

pytestmark = pytest.mark.full

DAY = "2024-02-29"  # the last one: what is left is one range


def test_run_status_drop_and_a_schedule_work_with_dagsters_records_in_postgresql(tmp_path, monkeypatch, cli):
    project, records = copy_of_finished_project(tmp_path), tmp_path / "records"
    records.mkdir()
    (records / "dagster.yaml").write_text(blocks("yaml", GUIDE["production"])[1])
    with postgres() as address:
        monkeypatch.setenv("DAGSTER_PG_URL", address)
        monkeypatch.setenv("DAGSTER_HOME", str(records))
        here = {"DAGSTER_HOME": str(records)}
        run = cli(project, "run", "small", "--partition", DAY, "--force", **here)
        assert run.code == 0, run.err
        (status,) = cli(project, "status", "small", "--json", **here).json
        assert (status["due"], status["only_in_ledger"]) == ({}, [])  # new records are told of what was done before
        with dg.DagsterInstance.from_config(str(records)) as instance:
            predictions = dg.AssetKey(["small", "predictions"])
            before = instance.get_materialized_partitions(predictions)
            assert cli(project, "drop", "small", "--partition", DAY, "--yes", **here).code == 0
            assert before - instance.get_materialized_partitions(predictions) == {DAY}
            (done,) = instance.get_runs()
            assert (done.run_id, done.status) == (status["last_run"], dg.DagsterRunStatus.SUCCESS)

        changed = small_declaration(**OVERRIDES | {"predictions": {"keep": []}})  # makes every partition stale
        write_defs_yaml(project, changed)
        forget_projects()
        with workspace_of(project, monkeypatch) as location:
            (requested,) = location.tick("small_score_when_due", datetime.now(UTC) + timedelta(days=1))
            assert location.execute(requested).status == dg.DagsterRunStatus.SUCCESS
        scored = "SELECT count(DISTINCT partition_key) FROM small.predictions WHERE run_id = $run"
        assert published(project, scored, {"run": requested}) == [(28,)]
    assert [path.name for path in records.iterdir() if path.suffix == ".db"] == []
    down = cli(project, "run", "small", "--partition", DAY, **here)
    assert down.err.startswith("Error: Dagster's own records cannot be used: OperationalError: ")
    assert "Hint: predictions, models and tables are whole" in down.err
    answer = cli(project, "status", "small", **here)
    assert (answer.code, "Dagster's own records cannot be used" in answer.err) == (0, True)
    assert "last commit: " in answer.out
