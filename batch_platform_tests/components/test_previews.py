"""*Preview tick result* of a schedule in the UI: it shows what a tick does, and launches it."""

from itertools import islice
from pathlib import Path

import dagster as dg
import pytest
from dagster._grpc.impl import get_external_schedule_execution
from dagster._utils.schedules import cron_string_iterator

from batch_platform.components.runs import PARTITIONS_TAG
from batch_platform_tests.components.previews import WHEN, launched_by_the_ui, preview
from batch_platform_tests.harness.deployment import Deployment, deploy, deploy_trained
from batch_platform_tests.harness.workspace import workspace

CHECKS_OF = {
    "score": [  # the volume is not judged before a week is known
        f"predictions/{check}" for check in ("champion_age", "rejected_share", "rows_balance", "score_distribution")
    ],
    "train": ["model/gate"],
    "evaluate": ["performance/performance"],
}


def ticked(deployment: Deployment, duty: str) -> list[dg.RunRequest]:
    """What a tick of the daemon at the same time requests."""
    repository, name = deployment.definitions.get_repository_def(), f"small_{duty}_when_due"
    cron = repository.get_schedule_def(name).cron_schedule
    (at,) = islice(cron_string_iterator(WHEN.timestamp(), str(cron), "Europe/Berlin"), 1)
    log_key = ["__repository__", name, "17"]
    instance = deployment.instance.get_ref()
    data = get_external_schedule_execution(repository, instance, name, at.timestamp(), "Europe/Berlin", log_key)
    return list(data.run_requests or [])


def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duty: str) -> Deployment:
    """February's model and two scored days, of which Dagster has not heard; its schedule of that duty has work to do."""
    trained = deploy_trained(tmp_path, monkeypatch, monitoring={"performance": {"warn_below": 0.1}})
    trained.score("2024-02-01", "2024-02-02")
    return deploy(tmp_path, monkeypatch, model={"params": {"max_iter": 6}}) if duty == "train" else trained


@pytest.mark.parametrize("duty", ["score", *(pytest.param(it, marks=pytest.mark.full) for it in ("train", "evaluate"))])
def test_what_a_preview_shows_is_launched_from_it_and_is_what_a_tick_requests(tmp_path, monkeypatch, duty):
    deployment = deployed(tmp_path, monkeypatch, duty)
    with workspace(deployment) as pipeline:
        shown = preview(pipeline, duty)
        assert [len(shown), *(request["runKey"] for request in shown)] == [1, ticked(deployment, duty)[0].run_key]
        first, _, last = shown[0]["runKey"].rpartition(" ")[2].partition("..")
        named = {"key": PARTITIONS_TAG, "value": first if first == last else f"{first}...{last}"}
        assert named in shown[0]["tags"], "Dagster hides its own tags of a range"
        run = pipeline.launch(launched_by_the_ui(duty, shown[0]))
        assert run.status == dg.DagsterRunStatus.SUCCESS
        assert preview(pipeline, duty) == [], "the run did all that was due"
    records = deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [record.dagster_event.asset_check_evaluation_data for record in records]
    assert {f"{check.asset_key.path[1]}/{check.check_name}" for check in found} >= set(CHECKS_OF[duty])
