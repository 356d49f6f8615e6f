"""Freshness as Dagster shows it: its own policy, and the check that a backfill of an old day does not satisfy."""

from datetime import timedelta
from typing import Any

import dagster as dg

from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.wiring import Wiring
from batch_platform_tests.harness.deployment import deploy_trained
from batch_platform_tests.harness.small_pipeline import small_spec

FRESH_BY = {"fresh_by": "07:00"}


def policy(tmp_path, fresh_by, every="day", **partitions):
    spec = small_spec(
        partitions={"every": every, "end": None, **partitions},
        model={"train": {"evaluate": "31 days"}},
        monitoring={"fresh_by": fresh_by},
    )
    return Wiring(spec, tmp_path).freshness_policy


def cron(deadline, hours):
    return dg.FreshnessPolicy.cron(deadline, timedelta(hours=hours), "Europe/Berlin")


def test_dagsters_policy_says_when_the_declaration_does(tmp_path):
    assert policy(tmp_path, "07:30") == cron("30 7 * * *", 7.5)
    assert policy(tmp_path, "07:00", "week") == cron("0 7 * * 1", 7)
    assert policy(tmp_path, "07:00", "month") == cron("0 7 1 * *", 7)
    assert policy(tmp_path, "07:00", "hour") == cron("0 7 * * *", 24)
    assert policy(tmp_path, "00:00", "month") == cron("0 0 2 * *", 24)
    assert policy(tmp_path, "00:00", "week") == cron("0 0 * * 2", 24)
    assert policy(tmp_path, "2 hours") == dg.FreshnessPolicy.time_window(timedelta(hours=27))
    assert policy(tmp_path, "2 hours", "hour") == dg.FreshnessPolicy.time_window(timedelta(hours=3))
    assert policy(tmp_path, "07:00", end="2024-03-01") is None, "after the last partition nothing has to be scored"
    assert policy(tmp_path, None) is None


def test_an_old_day_does_not_make_a_pipeline_fresh(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, partitions={"end": "2024-02-05"}, monitoring=FRESH_BY)
    deployment.run("features", "predictions", first="2024-02-01", last="2024-02-02")
    check = dg.AssetCheckKey(deployment.key("predictions"), "newest_partition_scored")

    def newest() -> Any:
        (record,) = deployment.instance.event_log_storage.get_asset_check_execution_history(check, limit=1)
        return record.event.dagster_event.asset_check_evaluation_data

    late = newest()
    assert (late.passed, late.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert late.description == (
        "2024-02-04 is not scored, which was expected by 2024-02-05 07:00; the newest scored partition is 2024-02-02"
    )
    deployment.run("features", "predictions", first="2024-02-04")
    assert newest().passed
    endless = build_definitions(small_spec(partitions={"end": None}, monitoring=FRESH_BY), deployment.pipeline.folder)
    policies = {spec.key.path[1]: spec.freshness_policy for spec in endless.resolve_all_asset_specs()}
    assert {name: policy for name, policy in policies.items() if policy} == {"predictions": cron("0 7 * * *", 7)}
