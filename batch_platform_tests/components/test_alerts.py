"""Alerts: real runs and checks on a real instance, and a real HTTP server that is down at first."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest

from batch_platform.components.alerts import Looked, Subject, Trouble, _failed, announce, look, without_keys
from batch_platform.components.describe import metadata
from batch_platform.components.receivers import Message, Severity, deliver, identity
from batch_platform.monitoring.measure import ALARMS
from batch_platform_tests.harness.deployment import Deployment, deploy_trained
from batch_platform_tests.harness.receiver import Receiver, receiver
from batch_platform_tests.harness.small_pipeline import small_events

DAY = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
SECRET = "k9-never-to-be-seen"
AT = datetime(2024, 2, 1, tzinfo=UTC)


class Alerts:
    """The sensor of a deployment, ticked by hand as the daemon does: with the cursor of its last tick."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.cursor = deployment, None

    def tick(self) -> str:
        """Let it look once; returns why it requests no run, which is what the UI shows of the tick."""
        sensor = self.deployment.definitions.resolve_sensor_def("small_alerts")
        with dg.build_sensor_context(
            instance=self.deployment.instance, cursor=self.cursor, definitions=self.deployment.definitions
        ) as context:
            result = sensor.evaluate_tick(context)
        self.cursor = result.cursor
        assert not result.run_requests
        return result.skip_message or ""


@pytest.fixture
def hook() -> Receiver:
    return receiver()


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: Receiver) -> Deployment:
    monkeypatch.setenv("ALERTS_TOKEN", SECRET)
    return deploy_trained(tmp_path, monkeypatch, monitoring={"drift": {}, "notify": [f"{hook.url}?token={SECRET}"]})


def test_a_receiver_that_was_down_is_told_once_of_a_broken_feature_and_of_no_secret(deployed, hook):
    alerts, day = Alerts(deployed), "2024-02-08"
    broken = small_events().with_columns(amount=pl.when(day != DAY).then("amount"))
    assert deployed.run("features", "predictions", first="2024-02-01", last="2024-02-04").success
    assert alerts.tick() == "Messages: 0 sent, none waiting."
    broken.write_parquet(deployed.pipeline.folder / "events.parquet")
    assert deployed.run("features", "predictions", first=day).success
    reason = alerts.tick()
    assert reason.startswith("Messages: 0 sent, 1 waiting: receiver 1 (json): ")
    assert SECRET not in reason + str(alerts.cursor), "the address of a receiver is a secret"
    with hook.up():
        assert alerts.tick() == "Messages: 1 sent, none waiting."
        small_events().write_parquet(deployed.pipeline.folder / "events.parquet")
        assert deployed.run("features", "predictions", first=day).success
        assert alerts.tick() == "Messages: 0 sent, none waiting.", "repair sends no message"
    (message,) = hook.messages
    assert (message["title"], message["type"]) == (f"small: the check drift on drift failed ({day})", "failure")
    lines = dict(line.split(": ", 1) for line in message["message"].splitlines())
    assert (lines["Pipeline"], lines["Partitions"]) == ("small", day)
    assert lines["How bad"].startswith("failure. drifted: amount ")
    assert lines["Columns"].startswith("amount")
    assert lines["See"] == "http://127.0.0.1:3000/assets/small/drift?view=checks&checkDetail=drift"


@pytest.mark.full
def test_a_failed_backfill_is_one_message_that_names_what_is_left_undone(deployed, hook):
    alerts, days = Alerts(deployed), ("2024-02-01", "2024-02-04")
    with hook.up():
        deployed.run("features", "predictions", first="2024-02-02")
        config = {"predictions": {"model": "no-such-version"}}
        assert not deployed.run("features", "predictions", first=days[0], last=days[1], config=config).success
        alerts.tick()
        alerts.tick()
    (message,) = hook.messages
    assert message["title"] == "small: predictions failed (2024-02-01, 2024-02-03...2024-02-04 (3))"
    assert "small has no version 'no-such-version'" in message["message"]
    (run,) = deployed.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert message["message"].endswith(f"See: http://127.0.0.1:3000/runs/{run.run_id}")


@pytest.mark.full
def test_a_pipeline_that_is_late_is_announced_once_per_missed_deadline(tmp_path, monkeypatch):
    deployed = deploy_trained(tmp_path, monkeypatch, monitoring={"fresh_by": "07:00", "notify": ["json://127.0.0.1/"]})
    looked = Looked()

    def titles(at: str) -> list[str]:
        nonlocal looked
        instant = datetime.fromisoformat(at).replace(tzinfo=ZoneInfo("Europe/Berlin"))
        looked = look(deployed.wiring, deployed.instance, [], replace(looked, waiting=()), instant)
        return [message.title for message in looked.waiting]

    deployed.run("features", "predictions", first="2024-02-01")
    assert titles("2024-02-03T06:59") == []
    assert titles("2024-02-03T07:01") == ["small: the check newest_partition_scored on predictions failed"]
    assert "2024-02-02 is not scored, which was expected by 2024-02-03 07:00" in looked.waiting[0].text
    assert titles("2024-02-04T06:59") == [], "it goes on"
    assert len(titles("2024-02-04T07:01")) == 1, "the next deadline was missed"
    deployed.run("features", "predictions", first="2024-02-02", last="2024-02-03")
    assert titles("2024-02-04T08:01") == []


def test_a_failed_delivery_is_announced_only_while_it_is_declared(tmp_path, monkeypatch):
    (blocked := tmp_path / "receiver").write_text("no folder")
    declared = {"predictions": {"deliver": [{"parquet": str(blocked), "name": "crm"}]}}
    deployed = deploy_trained(tmp_path, monkeypatch, monitoring={"notify": ["json://127.0.0.1/"]}, **declared)
    deployed.run("features", "predictions", first="2024-02-01")
    assert not deployed.run("delivered_crm", first="2024-02-01").success
    spec = deployed.wiring.spec
    undeclared = spec.model_copy(update={"predictions": spec.predictions.model_copy(update={"deliver": []})})
    for declaration, expected in ((spec, ["small: delivered_crm failed (2024-02-01)"]), (undeclared, [])):
        wiring = replace(deployed.wiring, spec=declaration)
        looked = look(wiring, deployed.instance, [], Looked(), datetime(2024, 2, 3, tzinfo=UTC))
        assert [message.title for message in looked.waiting] == expected


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a receiver that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"json://127.0.0.1:{server.getsockname()[1]}/?rto=1"


def test_a_receiver_that_takes_nothing_gets_everything_again_in_order(hook):
    urls = [hook.url, "nonsense://here"]
    messages = [Message(title, "text", "failure", tuple(map(identity, urls))) for title in ("first", "second")]
    outcome = deliver(urls, messages)
    assert (outcome.waiting, outcome.sent) == (tuple(messages), 0)
    assert [failure.partition(": ")[0] for failure in outcome.failures] == [
        "receiver 1 (json)",
        "receiver 2 (nonsense)",
    ]
    assert deliver([], messages).waiting == (), "nobody is declared any more"
    with hook.up():
        deliver(urls, outcome.waiting)
    assert [it["title"] for it in hook.messages] == ["first", "second"]


def test_f34_receivers_that_never_answer_before_a_healthy_one_neither_hold_it_up_nor_pile_up_threads(silent, hook):
    down = receiver()
    urls = [silent, down.url, hook.url]
    message = Message("title", "text", "failure", tuple(map(identity, urls)))
    with hook.up():
        outcome = deliver(urls, [message])
        assert [it["title"] for it in hook.messages] == ["title"]
        assert (outcome.sent, [it.waiting for it in outcome.waiting]) == (1, [message.waiting[:2]])
        with down.up():
            outcome = deliver(urls, outcome.waiting)
        assert [it.waiting for it in outcome.waiting] == [message.waiting[:1]]
        assert [len(it.messages) for it in (down, hook)] == [1, 1], "each is told once"
        assert outcome.failures[0].startswith("receiver 1 (json): ")
    threads = threading.active_count()
    for _ in range(2):
        outcome = deliver(urls, outcome.waiting)
    assert threading.active_count() <= threads


def test_a_fault_is_announced_once_a_day_and_another_column_or_a_failure_is_another_fault(deployed):
    announced = {}

    def titles(hours: int, **columns: Severity) -> list[str]:
        nonlocal announced
        severity = "failure" if "failure" in columns.values() else "warning"
        trouble = Trouble(severity, AT + timedelta(hours=hours), "detail", "run", columns)
        messages, announced = announce(deployed.wiring, {Subject("drift", "drift"): {"2024-02-01": trouble}}, announced)
        return [line for message in messages for line in message.text.splitlines() if line.startswith("Columns: ")]

    assert titles(0, amount="warning") == ["Columns: amount"]
    assert titles(1, amount="warning") == [], "the same day"
    assert titles(2, amount="warning", items="warning") == ["Columns: items"]
    assert titles(3, amount="failure") == ["Columns: amount"]
    assert titles(4, amount="warning") == titles(5, amount="failure") == []
    assert titles(23, amount="failure") == ["Columns: amount"], "the next day in Berlin"


def test_a_message_ends_before_the_first_key():
    text = "2 rows break the contract. For example id=7 shop=Ada (amount=-3); id=8 (no amount). Hint: look at paid=1."
    assert (
        without_keys(text, ["id"])
        == "2 rows break the contract. For example (rows are not named). Hint: look at paid=1."
    )
    assert without_keys("the plaid=3 of nobody", ["id"]) == "the plaid=3 of nobody"


def test_the_worst_column_comes_first_in_a_message_whatever_its_name():
    shown = {ALARMS: [["zone", "fail"], ["amount", "warn"]]}
    check = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("drift"),
        check_name="drift",
        passed=False,
        metadata=metadata(shown),
        partition="2024-02-01",
    )
    stored = dg.deserialize_value(dg.serialize_value(check), dg.AssetCheckEvaluation)
    assert [*_failed(stored, AT, "run").columns] == ["zone", "amount"]
