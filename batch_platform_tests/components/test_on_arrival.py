"""`automation: on_arrival`: from a raw asset to the report, by the conditions that Dagster's automation sensor evaluates."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from batch_platform.components.events import log_unknown_commits
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.processes import Daemon, wait
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.command_line import published, run_command
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder, write_dagster_project
from batch_platform_tests.harness.deployment import Deployment, deploy
from batch_platform_tests.harness.small_pipeline import small_events

RAW = dg.AssetKey(["raw", "orders"])
FOLLOWING = ("features", "model", "predictions", "performance", "report")
ARRIVING: dict[str, Any] = {
    "automation": "on_arrival",
    "sources": {"events": {"asset": "raw/orders", "parquet": "events/{partition_key}.parquet"}},
    "report": {"every": "month"},
}


def write_days(folder: Path) -> None:
    """A file for each local day."""
    days = small_events().with_columns(day=pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String))
    (folder / "events").mkdir(parents=True)
    for (day,), rows in days.partition_by("day", as_dict=True, include_key=False).items():
        rows.write_parquet(folder / "events" / f"{day}.parquet")


RAW_ASSET = """\
import dagster as dg

orders = dg.AssetSpec(
    ["raw", "orders"],
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-03-01", timezone="Europe/Berlin"),
)
"""


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    """The model of February is there, and nothing is scored."""
    deployed = deploy(tmp_path, monkeypatch, **ARRIVING)
    write_days(deployed.pipeline.folder)
    deployed.train()
    log_unknown_commits(deployed.wiring, deployed.instance, deployed.pipeline.state(), ())
    return deployed


@pytest.mark.full
def test_a_day_that_arrives_goes_through_to_the_report_and_then_nothing_is_requested(deployment):
    raw = dg.Definitions(assets=[dg.AssetSpec(RAW, partitions_def=deployment.wiring.partitions)])
    definitions = dg.Definitions.merge(deployment.definitions, raw)
    assets, cursor = dg.AssetSelection.assets(*map(deployment.key, FOLLOWING)), None
    requested = list[tuple[str, frozenset[str]]]()

    def tick() -> int:
        nonlocal cursor
        looked = dg.evaluate_automation_conditions(definitions, deployment.instance, assets, cursor=cursor)
        cursor = looked.cursor
        for asset in FOLLOWING:
            if looked.get_num_requested(key := deployment.key(asset)):
                days = looked.get_requested_partitions(key)
                requested.append((asset, frozenset(filter(None, days))))
                for day in sorted(days, key=str):
                    assert deployment.run(asset, first=day).success
        return looked.total_requested

    def until_nothing_is_requested() -> list[tuple[str, frozenset[str]]]:
        requested.clear()
        for _ in range(8):
            if not tick():
                return [*requested]
        raise AssertionError(requested)

    assert until_nothing_is_requested() == []
    for day in ("2024-02-01", "2024-02-04"):
        deployment.instance.report_runless_asset_event(dg.AssetMaterialization(RAW, partition=day))
        of_day = frozenset([day])
        made = until_nothing_is_requested()
        assert made[:3] == [("features", of_day), ("predictions", of_day), ("performance", of_day)]
        assert {*made[3:]} == {("report", frozenset())}
        assert deployment.pipeline.published_state().evaluations.keys() >= of_day
    assert deployment.run("features", first="2024-02-01", config={"features": {"force": True}}).success
    again = until_nothing_is_requested()
    assert ("predictions", frozenset(["2024-02-01"])) in again, "features that were built again"
    assert "model" not in dict(again)


@pytest.mark.full
def test_a_daemon_without_a_webserver_brings_a_day_from_the_raw_asset_to_the_report(tmp_path):
    project = write_dagster_project(tmp_path / "project", **ARRIVING)
    write_days(pipeline_folder(project))
    (project / PACKAGE / "defs" / "raw.py").write_text(RAW_ASSET)
    (project / PACKAGE / "defs" / "follow.py").write_text(
        blocks("python", GUIDE["scheduling"])[0].replace("churn", "small")
    )
    ran = run_command(project, "run", "small", "--partition", "2024-02-01")
    assert ran.code == 0, ran.err
    home = Home(project / ".batch_platform")
    daemon, day = Daemon(project, home), "2024-02-04"
    daemon.start()
    try:
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:

            def looked() -> bool:
                sensors = [(it.instigator_origin_id, it.selector_id) for it in instance.all_instigator_state()]
                return any(tick.is_completed for of in sensors for tick in instance.get_ticks(*of, limit=1))

            wait(looked)
            instance.report_runless_asset_event(dg.AssetMaterialization(RAW, partition=day))
            wait(lambda: instance.fetch_materializations(dg.AssetKey(["small", "report"]), limit=1).records)
            made = {
                asset: instance.fetch_materializations(dg.AssetKey(["small", asset]), limit=1).records[0].partition_key
                for asset in FOLLOWING
            }
            assert made == {**dict.fromkeys(FOLLOWING, day), "model": "2024-02-01", "report": None}
    finally:
        daemon.kill(with_its_code_server=True)
    assert list((home.root / "reports").rglob("*.html"))
    scored = "SELECT DISTINCT partition_key FROM small.predictions ORDER BY ALL"
    assert published(project, scored) == [("2024-02-01",), (day,)]
