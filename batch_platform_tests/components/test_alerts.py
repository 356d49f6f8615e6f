"""Alerts: real runs and checks on a real instance, and a real HTTP server that is down at first."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest

from batch_platform.components.alerts import Looked, _failed, _messages, look, without_keys
from batch_platform.components.describe import metadata
from batch_platform.components.incidents import Changes, Incident, Subject, Trouble, after_checks, follow
from batch_platform.components.receivers import Message, deliver, identity
from batch_platform.monitoring.measure import ALARMS
from batch_platform_tests.harness.deployment import Deployment, deploy_trained
from batch_platform_tests.harness.receiver import Receiver, receiver
from batch_platform_tests.harness.small_pipeline import small_events

DAY = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
BROKEN = {  # which feature is broken, on which day and how
    "items": ("2024-02-05", (pl.col("items") * 100).cast(pl.Int32)),  # another unit
    "amount": ("2024-02-08", pl.lit(None, pl.Float64)),  # all null
}
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
    return deploy_trained(
        tmp_path,
        monkeypatch,
        monitoring={"drift": {}, "notify": [f"{hook.url}?token={SECRET}"]},
    )


def broken_events(*columns: str) -> pl.DataFrame:
    broken = {column: pl.when(BROKEN[column][0] == DAY).then(BROKEN[column][1]).otherwise(column) for column in columns}
    return small_events().with_columns(**broken)


@pytest.mark.full
def test_a_broken_feature_is_told_once_and_is_over_once_it_is_repaired_whatever_else_is_broken(deployed, hook):
    file, alerts, standing = deployed.pipeline.folder / "events.parquet", Alerts(deployed), BROKEN["amount"][0]
    assert deployed.run("features", "predictions", first="2024-02-01", last="2024-02-04").success
    assert alerts.tick() == "0 incidents going on. Messages: 0 sent, none waiting."

    broken_events("amount").write_parquet(file)
    assert deployed.run("features", "predictions", first=standing).success
    reason = alerts.tick()
    assert reason.startswith("1 incident going on. Messages: 0 sent, 1 waiting: receiver 1 (json): ")
    assert SECRET not in reason + str(alerts.cursor), "the address of a receiver is a secret"
    alerts.tick()
    assert hook.messages == []
    with hook.up():
        assert alerts.tick() == "1 incident going on. Messages: 1 sent, none waiting."
        alerts.tick()
        (message,) = hook.messages
        assert message["title"] == f"small: the check drift on drift failed ({standing})"
        assert message["type"] == "failure"
        lines = dict(line.split(": ", 1) for line in message["message"].splitlines())
        assert lines["Pipeline"] == "small"
        assert lines["Partitions"] == standing
        assert lines["How bad"].startswith("failure. drifted: amount ")
        assert "psi_" not in lines["How bad"], "the text says it"
        assert "null 100.0%" in lines["How bad"]
        assert lines["Columns"].startswith("amount")
        assert lines["See"] == "http://127.0.0.1:3000/assets/small/drift?view=checks&checkDetail=drift"
        for column, (day, _) in BROKEN.items():
            if column != "amount":
                broken_events("amount", column).write_parquet(file)
                hook.messages.clear()
                assert deployed.run("features", "predictions", first=day).success
                alerts.tick()
                alerts.tick()
                (message,) = hook.messages
                assert f"How bad: failure. drifted: {column} " in message["message"], message
            (small_events() if column == "amount" else broken_events("amount")).write_parquet(file)
            hook.messages.clear()
            assert deployed.run("features", "predictions", first=day).success
            going_on = "0 incidents" if column == "amount" else "1 incident"
            assert alerts.tick() == f"{going_on} going on. Messages: 1 sent, none waiting."
            alerts.tick()
            (message,) = hook.messages
            title = f"small: over: the check drift on drift failed ({day})"
            assert (message["title"], message["type"]) == (title, "success")


@pytest.mark.full
def test_a_failed_backfill_is_one_incident_that_names_what_is_left_undone(deployed, hook):
    alerts, days = Alerts(deployed), ("2024-02-01", "2024-02-04")
    with hook.up():
        deployed.run("features", "predictions", first="2024-02-02")
        config = {"predictions": {"model": "no-such-version"}}
        assert not deployed.run("features", "predictions", first=days[0], last=days[1], config=config).success
        alerts.tick()
        (message,) = hook.messages
        assert message["title"] == "small: predictions failed (2024-02-01, 2024-02-03...2024-02-04 (3))"
        assert "small has no version 'no-such-version'" in message["message"]
        (run,) = deployed.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert message["message"].endswith(f"See: http://127.0.0.1:3000/runs/{run.run_id}")

        source = deployed.pipeline.folder / "events.parquet"
        source.rename(source.with_suffix(".away"))
        assert not deployed.run("features", first="2024-02-05").success
        alerts.tick()
        assert [it["title"] for it in hook.messages[1:]] == ["small: features failed (2024-02-05)"]
        source.with_suffix(".away").rename(source)
        assert deployed.run("features", "predictions", first=days[0], last="2024-02-05").success
        alerts.tick()
        alerts.tick()
        assert sorted(it["title"] for it in hook.messages[2:]) == [
            "small: over: features failed (2024-02-05)",
            "small: over: predictions failed (2024-02-01, 2024-02-03...2024-02-04 (3))",
        ]


def test_a_partition_that_passes_together_with_others_is_over(deployed, hook):
    alerts, day = Alerts(deployed), BROKEN["amount"][0]
    broken_events("amount").write_parquet(deployed.pipeline.folder / "events.parquet")
    with hook.up():
        assert deployed.run("features", "predictions", first=day).success
        assert alerts.tick() == "1 incident going on. Messages: 1 sent, none waiting."
        small_events().write_parquet(deployed.pipeline.folder / "events.parquet")
        assert deployed.run("features", "predictions", first="2024-02-06", last=day).success
        assert alerts.tick() == "0 incidents going on. Messages: 1 sent, none waiting."
        assert hook.messages[-1]["title"] == f"small: over: the check drift on drift failed ({day})"


def test_a_pipeline_that_is_late_is_told_once_until_it_has_caught_up(tmp_path, monkeypatch):
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
    (incident,) = looked.incidents
    assert incident.detail.startswith("2024-02-02 is not scored, which was expected by 2024-02-03 07:00")
    assert titles("2024-02-04T08:00") == [], "it goes on"
    deployed.run("features", "predictions", first="2024-02-02", last="2024-02-03")
    assert titles("2024-02-04T08:01") == ["small: over: the check newest_partition_scored on predictions failed"]


def test_a_failed_delivery_is_over_once_it_is_declared_no_more(tmp_path, monkeypatch):
    (blocked := tmp_path / "receiver").write_text("no folder")
    declared = {"predictions": {"deliver": [{"parquet": str(blocked), "name": "crm"}]}}
    deployed = deploy_trained(tmp_path, monkeypatch, monitoring={"notify": ["json://127.0.0.1/"]}, **declared)
    deployed.run("features", "predictions", first="2024-02-01")
    assert not deployed.run("delivered_crm", first="2024-02-01").success
    looked = look(deployed.wiring, deployed.instance, [], Looked(), datetime(2024, 2, 3, tzinfo=UTC))
    assert [message.title for message in looked.waiting] == ["small: delivered_crm failed (2024-02-01)"]
    spec = deployed.wiring.spec
    undeclared = spec.model_copy(update={"predictions": spec.predictions.model_copy(update={"deliver": []})})
    looked = look(
        replace(deployed.wiring, spec=undeclared),
        deployed.instance,
        [],
        replace(looked, waiting=()),
        datetime(2024, 2, 4, tzinfo=UTC),
    )
    assert [message.title for message in looked.waiting] == ["small: over: delivered_crm failed (2024-02-01)"]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a receiver that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"json://127.0.0.1:{server.getsockname()[1]}/?rto=1"


def test_a_receiver_that_takes_nothing_gets_everything_again_in_order():
    urls = ["json://127.0.0.1:9/", "nonsense://here"]
    messages = [Message(title, "text", "failure", tuple(map(identity, urls))) for title in ("first", "second")]
    outcome = deliver(urls, messages)
    assert (outcome.waiting, outcome.sent) == (tuple(messages), 0)
    assert [failure.partition(": ")[0] for failure in outcome.failures] == [
        "receiver 1 (json)",
        "receiver 2 (nonsense)",
    ]
    assert deliver([], messages).waiting == (), "nobody is declared any more"


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


def trouble(severity: Any = "warning", hours: int = 0) -> Trouble:
    return Trouble(severity, AT + timedelta(hours=hours), "detail", "run")


def opened(*keys: str) -> Incident:
    (incident,) = follow([], {SUBJECT: dict.fromkeys(keys, trouble())}, AT, lambda _: None).begun
    return incident


SUBJECT = Subject("predictions", "drift")


def test_partitions_join_an_incident_that_is_young_or_holds_the_one_before():
    first, later = opened("2024-02-01"), AT + timedelta(days=2)
    both = {SUBJECT: {"2024-02-01": trouble(), "2024-02-20": trouble("failure")}}
    soon = follow([first], both, AT + timedelta(hours=23), lambda _: None)
    assert (soon.begun, soon.worse) == ((), soon.going_on), "it is worse"
    assert soon.going_on[0].troubled == ("2024-02-01", "2024-02-20")
    assert follow([first], both, later, lambda _: "2024-02-01").begun == (), "it follows on the first"
    (second,) = follow([first], both, later, lambda _: "2024-02-19").begun
    assert (second.troubled, second.severity) == (("2024-02-20",), "failure")
    over = follow([first, second], {SUBJECT: {"2024-02-20": trouble()}}, later, lambda _: None)
    assert [incident.recovered for incident in over.ended] == [("2024-02-01",)]
    assert over.going_on == (second,)


def of_columns(**columns: Any) -> Trouble:
    severity = "failure" if "failure" in columns.values() else "warning"
    return replace(trouble(severity), columns=columns)


def test_what_is_new_or_worse_is_told_also_while_something_else_goes_on():
    soon = AT + timedelta(hours=1)

    def told(going_on, troubles, at=soon):
        changes = follow(going_on, {SUBJECT: troubles}, at, lambda _: None)
        return changes, [(it.troubled, dict(it.columns)) for it in (*changes.begun, *changes.worse, *changes.ended)]

    standing, _ = told([], {"1": of_columns(amount="warning")}, AT)
    same = {"1": of_columns(amount="warning"), "2": of_columns(amount="warning")}
    changes, news = told(standing.going_on, same)
    assert news == []
    assert [incident.troubled for incident in changes.going_on] == [("1", "2")]
    other = {**same, "2": of_columns(amount="warning", items="failure")}
    changes, news = told(changes.going_on, other)
    assert news == [(("2",), {"items": "failure"})], "another column fails"
    assert told(changes.going_on, other)[1] == []
    assert told(changes.going_on, {**other, "3": of_columns(items="failure")})[1] == [], "known by now"
    later = AT + timedelta(days=9)
    assert told(changes.going_on, after_checks(changes.going_on, SUBJECT, [], {}), later)[1] == []
    repaired, news = told(changes.going_on, same)
    assert [(incident.recovered, incident.severity) for incident in repaired.ended] == [(("2",), "failure")]
    assert repaired.going_on[0].troubled == ("1", "2"), "the warning goes on"

    worse, news = told(repaired.going_on, {**same, "1": of_columns(amount="failure")})
    assert news == [(("1", "2"), {"amount": "failure"})]
    assert (worse.begun, worse.worse) == ((), worse.going_on)
    again, news = told(worse.going_on, same)
    assert news == told(again.going_on, {**same, "1": of_columns(amount="failure")})[1] == [], "told once"
    of_check, _ = told([], {"1": trouble()}, AT)
    changes, news = told(of_check.going_on, {"1": trouble(), "2": trouble("failure")})
    assert [(incident.severity, incident.troubled) for incident in changes.worse] == [("failure", ("1", "2"))]


def test_a_day_that_is_gone_need_not_be_repaired():
    incident = opened("2024-02-01", "2024-02-02")
    assert after_checks([incident], SUBJECT, {"2024-02-01"}, {}).keys() == {"2024-02-02"}
    assert after_checks([incident], SUBJECT, {"2024-02-03"}, {}) == {}
    gone = ["2024-02-02", "2024-02-09"]
    assert after_checks([incident], SUBJECT, [], {}, gone).keys() == {"2024-02-01"}, "a dropped day did not pass"
    still = after_checks([incident], SUBJECT, {"2024-02-04"}, {"2024-02-03": trouble()})
    assert still.keys() == {"2024-02-01", "2024-02-02", "2024-02-03"}


def test_incidents_of_the_same_partitions_are_one_message_the_column_to_blame_first(deployed):
    def incident(
        check: str | None, severity: Any = "warning", partition: str = "2024-02-01", **columns: Any
    ) -> Incident:
        found = replace(trouble(severity), columns=columns, detail=f"detail of {check}")
        return follow([], {Subject("predictions", check): {partition: found}}, AT, lambda _: None).begun[0]

    members = [
        incident("volume"),
        incident("drift", "warning", amount="warning"),
        incident("other", partition="2024-02-09"),
    ]
    first, second = _messages(deployed.wiring, Changes((), tuple(members), (), ()), AT)
    assert first.title == "small: the check drift on predictions gives a warning (2024-02-01)"
    assert "Columns: amount" in first.text
    assert "Also: the check volume on predictions gives a warning. detail of volume" in first.text
    assert "other" in second.title
    assert first.severity == "warning"


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
