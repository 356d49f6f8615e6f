"""The asset of the report, on a real instance."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg

from batch_platform_tests.harness.deployment import deploy_trained


def test_the_report_is_an_asset_with_a_job_and_a_schedule(tmp_path, monkeypatch):
    deployed = deploy_trained(tmp_path, monkeypatch, report={"every": "week"})
    refused = deployed.run("report")
    assert not refused.success
    (failure,) = [event.step_failure_data for event in refused.all_events if event.is_step_failure]
    assert "no partition is scored" in failure.user_failure_data.description
    assert deployed.run("features", "predictions", first="2024-02-01", last="2024-02-09").success
    schedule = deployed.definitions.resolve_schedule_def("small_report_every_week")
    assert schedule.cron_schedule == "0 7 * * 1"
    assert schedule.execution_timezone == "Europe/Berlin"
    monday = datetime(2024, 2, 12, 7, tzinfo=ZoneInfo("Europe/Berlin"))
    with dg.build_schedule_context(instance=deployed.instance, scheduled_execution_time=monday) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or []
    job = deployed.definitions.resolve_job_def("small_report")
    assert job.execute_in_process(instance=deployed.instance, tags=dict(request.tags)).success
    (event,) = deployed.materializations("report")
    metadata = {name: entry.value for name, entry in event.asset_materialization.metadata.items()}
    file = Path(metadata["file"])
    assert file == deployed.pipeline.home.reports("small") / "2024-02-09.html"
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing unfinished is left"
    assert file.stat().st_size == metadata["bytes"]
    assert "<h2>Drift</h2>" in file.read_text(encoding="utf-8")
    assert (metadata["first"], metadata["last"], metadata["partitions"]) == ("2024-02-01", "2024-02-09", 9)
    assert metadata["rows_scored"] == 9 * 40
