"""The guide's assets that follow by themselves and its alert, in a project of a user's."""

from datetime import timedelta

from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.dagster_project import PACKAGE, write_defs_yaml
from batch_platform_tests.harness.receiver import receiver
from batch_platform_tests.harness.small_pipeline import small_declaration
from batch_platform_tests.harness.workspace import workspace_of

_, FOLLOWERS, ALERTS = blocks("python", GUIDE["acting"])


def test_a_sensor_tells_of_an_old_model_and_assets_follow(project, monkeypatch):
    write_defs_yaml(project, small_declaration())
    (project / PACKAGE / "defs" / "alerts.py").write_text(ALERTS)
    (project / PACKAGE / "defs" / "followers.py").write_text(FOLLOWERS.replace("churn", "small"))
    hook = receiver()
    with hook.up(), workspace_of(project, monkeypatch) as location:
        monkeypatch.setenv("ALERTS_URL", f"http://127.0.0.1:{hook.port}/")
        for _ in range(2):  # the second time it has looked today
            location.evaluate_sensors()
        assert hook.messages == [{"text": "small: the newest model is that of 2024-02-01"}]
        own = {
            spec.key.path[0]: spec
            for spec in location.definitions.resolve_all_asset_specs()
            if spec.automation_condition
        }
    assert own.keys() == {"overview", "morning_mail"}
    assert own["morning_mail"].freshness_policy.fail_window.to_timedelta() == timedelta(hours=26)
