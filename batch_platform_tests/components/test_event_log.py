"""The event log held open: the same events for every reader, at a fraction of the connections."""

import os
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite import sqlite_event_log

from batch_platform.components.event_log import quick_event_log
from batch_platform.components.instance import prepare_instance
from batch_platform.warehouse.home import Home
from batch_platform_tests.deployment import deploy_trained

KEY = dg.AssetKey("orders")


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    with dg.DagsterInstance.from_config(str(prepare_instance(Home(tmp_path).create()))) as instance:
        yield instance


def report(instance, *partitions: str) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition, metadata={"rows": 1}))


def test_an_event_is_read_by_another_process_as_soon_as_it_is_logged(instance, tmp_path):
    read = "import dagster as dg; print(sorted(dg.DagsterInstance.get().get_materialized_partitions(dg.AssetKey('orders'))))"
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path / "dagster")}
    with quick_event_log(instance):
        report(instance, "a", "b")
        seen = subprocess.check_output([sys.executable, "-c", read], env=environment, text=True)
    assert seen == "['a', 'b']\n"


def test_an_error_within_takes_no_event_back_and_leaves_the_log_as_it_was(instance):
    def fail():
        with quick_event_log(instance):
            report(instance, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    report(instance, "b")
    assert instance.get_materialized_partitions(KEY) == {"a", "b"}
    assert "_connect" not in vars(instance.event_log_storage)


def test_holding_it_open_twice_is_holding_it_open_once(instance):
    with quick_event_log(instance):
        with quick_event_log(instance):
            report(instance, "a")
        report(instance, "b")
    assert instance.get_materialized_partitions(KEY) == {"a", "b"}


def test_a_run_over_many_partitions_opens_each_database_a_few_times_and_not_for_every_event(
    tmp_path_factory, tmp_path, monkeypatch
):
    """Holds Dagster's storage to opening its databases in one place, and counts what this project would else pay for."""
    deployed = deploy_trained(tmp_path_factory.getbasetemp() / "event_log", tmp_path, monkeypatch)
    opened = 0
    create_engine = sqlite_event_log.create_engine

    def counted(*args, **options):
        nonlocal opened
        opened += 1
        return create_engine(*args, **options)

    monkeypatch.setattr(sqlite_event_log, "create_engine", counted)
    with quick_event_log(deployed.instance):
        assert deployed.run("features", "predictions", first="2024-02-01", last="2024-02-29").success
    assert len(deployed.materializations("predictions")) == 29
    assert 0 < opened < 20
