"""Where partitions stand and why, and what a row is traced back to."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
import pytest

from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    NothingPublishedError,
    SourceError,
    WrongUseError,
)
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.status import status_of
from batch_platform.pipeline.trace import trace
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.published import reading_published
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
)

NOW = datetime(2024, 2, 11, 12, tzinfo=UTC)
LABELS_KNOWN = datetime(2024, 2, 13, tzinfo=UTC)  # of every partition that is scored at NOW


def status(pipeline, now=NOW):
    state = pipeline.state()
    return status_of(pipeline.spec, state, make_plan(pipeline.spec, state, PlanRequest(now)), now)


def conditions(report):
    return {partition.partition: (partition.condition, partition.reason) for partition in report.partitions}


@pytest.fixture
def pipeline(tmp_path):
    return finished_pipeline(tmp_path, NOW)


def test_scored_partitions_name_their_model_rows_and_run(pipeline):
    report = status(pipeline)
    (version,) = pipeline.state().registry.versions
    partition = report.partitions[-1]
    assert (partition.partition, partition.condition, partition.reason) == ("2024-02-10", "scored", "")
    assert (partition.model_version, partition.rows_in, partition.rows_scored, partition.rows_rejected) == (
        version.version,
        40,
        40,
        0,
    )
    assert (partition.run_id, partition.evaluated) == ("run", False)  # its labels are known a day later
    assert report.partitions[-2].evaluated
    assert report.counts == {"scored": 10, "warm-up": 31}
    assert (report.champion, report.champion_metrics) == (version.version, version.metric_values)
    assert (report.last_commit, report.last_run) == (NOW, "run")
    assert report.due == {}


def test_partitions_that_are_not_scored_yet_are_missing_or_warm_up(tmp_path):
    report = status(small_pipeline(tmp_path))
    assert conditions(report)["2024-01-31"] == ("warm-up", "the first model serves from 2024-02-01")
    assert conditions(report)["2024-02-01"] == ("missing", "")
    assert (report.champion, report.last_commit, report.last_run) == (None, None, None)
    assert report.due == {"features": 40, "model": 1, "predictions": 10, "performance": 9}
    assert report.models_ahead == []


def test_a_model_that_is_due_before_any_partition_of_its_period_is_named_since_run_leaves_it_out(tmp_path):
    pipeline, first_of_month = small_pipeline(tmp_path), datetime(2024, 2, 1, 12, tzinfo=UTC)
    report = status(pipeline, first_of_month)
    assert (report.due["model"], report.models_ahead) == (1, ["2024-02-01"])
    due = pipeline.spec.partitions.calendar.due(first_of_month)
    assert not make_plan(pipeline.spec, pipeline.state(), PlanRequest(first_of_month, due)).of("model")


def test_partition_that_has_not_closed_is_not_listed(pipeline):
    assert "2024-02-11" not in conditions(status(pipeline))


def test_stale_partitions_say_why(pipeline):
    folder = pipeline.folder
    (folder / "features.sql").write_text(FEATURES_SQL + "AND amount < 200\n")
    changed = type(pipeline)(pipeline.spec, folder, pipeline.home)
    assert conditions(status(changed))["2024-02-10"] == ("stale", "the SQL or its declaration changed")


def test_a_failed_partition_says_why_until_it_is_scored_and_no_other_is_called_failed(tmp_path):
    pipeline = small_pipeline(tmp_path, features={"columns": {"amount": {"nullable": False}}})
    with pytest.raises(DataError):
        carry_out(pipeline, NOW)
    report = status(pipeline)
    failed = {key: reason for key, (condition, reason) in conditions(report).items() if condition == "failed"}
    assert failed.keys() == {f"2024-02-{day:02}" for day in range(1, 11)}
    assert re.fullmatch(r"\d of 40 rows break the contract.*nothing is published\.", failed["2024-02-03"])
    assert conditions(report)["2024-01-02"] == ("warm-up", "the first model serves from 2024-02-01")
    assert [failure.step for failure in report.failures] == ["predictions"] * 10
    lenient = small_pipeline(tmp_path, features={"columns": {"amount": {"nullable": False}}, "max_rejected": "50%"})
    assert conditions(status(lenient))["2024-02-03"] == ("missing", ""), "by another rule it need not fail"
    carry_out(lenient, NOW)
    assert conditions(status(lenient))["2024-02-03"] == ("scored", "")
    assert lenient.state().failures == {}


def test_another_budget_of_rejected_rows_makes_nothing_stale_and_judges_anew(tmp_path):
    rule = {"columns": {"amount": {"nullable": False}}}
    lenient = small_pipeline(tmp_path, features={**rule, "max_rejected": "7%"})
    with pytest.raises(DataError, match="more than max_rejected"):
        carry_out(lenient, NOW)
    before = conditions(status(lenient))
    refused = {key for key, (condition, _) in before.items() if condition == "failed"}
    published = {key for key, condition in before.items() if condition == ("scored", "")}
    assert refused, "some days have more nulls than others"
    assert published
    strict = small_pipeline(tmp_path, features={**rule, "max_rejected": "1%"})
    report = status(strict)
    assert {key for key, (condition, _) in conditions(report).items() if condition == "scored"} == published
    remarks = {conditions(report)[key][1] for key in published}
    assert any(
        re.fullmatch(
            r"\d of its 40 rows are rejected, more than max_rejected \(1.00%\) allows now; it was published before",
            remark,
        )
        for remark in remarks
    )
    generous = small_pipeline(tmp_path, features={**rule, "max_rejected": "50%"})
    plan = carry_out(generous, NOW, "generous")
    assert {item.partition.key for item in plan.of("predictions")} == refused
    scores = generous.state().scores
    assert {key for key, run in scores.items() if run.run_id == "generous"} == refused
    assert {condition for key, condition in conditions(status(generous)).items() if key in scores} == {("scored", "")}


def test_an_evaluation_that_failed_leaves_its_partition_scored_and_says_why(pipeline):
    pipeline = small_pipeline(
        pipeline.folder.parent,
        labels_sql=LABELS_SQL.replace("returned\n", "error('lost') AS returned\n"),
        model={"train": {"retrain": "never"}},
    )
    with pytest.raises(SourceError):
        list(pipeline.evaluate([pipeline.spec.partitions.calendar.named("2024-02-10")], Stamp("later", LABELS_KNOWN)))
    (partition,) = [line for line in status(pipeline, LABELS_KNOWN).partitions if line.partition == "2024-02-10"]
    assert (partition.condition, partition.evaluated) == ("scored", False)
    assert partition.reason.startswith("its evaluation failed: the SQL of ")


def test_trace_gives_the_row_its_commit_model_and_features(pipeline):
    (traced,) = trace(pipeline.spec, pipeline.home, {"id": "1500"})
    (version,) = pipeline.state().registry.versions
    run = pipeline.state().scores["2024-02-07"]
    build = pipeline.state().features["2024-02-07"]
    assert traced.outcome == "scored"
    assert traced.row["ts"].tzinfo is not None
    assert traced.commit == run
    assert (traced.model.version, traced.model.sha256) == (version.version, version.sha256)
    assert traced.model.params == json.loads(version.params)
    assert traced.model.decision.startswith("approved by gate: ")
    assert (traced.features.sha256, traced.features.run_id) == (build.sha256, build.run_id)
    assert traced.features.sources == json.loads(build.sources)


def test_trace_names_the_build_that_was_scored_not_a_later_one(pipeline):
    later = Stamp("later", NOW)
    partition = pipeline.spec.partitions.calendar.named("2024-02-07")
    list(pipeline.build_features([partition], later, force=True))
    pipeline.publish()
    (traced,) = trace(pipeline.spec, pipeline.home, {"id": "1500"})
    assert traced.features.run_id == "run"


@pytest.mark.full
def test_trace_finds_every_partition_of_a_key_newest_first(tmp_path):
    pipeline = small_pipeline(
        tmp_path,
        features={"key": ["id", "shop"]},
        predictions={"keep": []},
        labels=None,
        model={
            "estimator": "sklearn.cluster.KMeans",
            "params": {"n_clusters": 2, "early_stopping": None, "max_leaf_nodes": None},
        },
    )
    carry_out(pipeline, NOW)
    traces = trace(pipeline.spec, pipeline.home, {"shop": "Zürich"})
    keys = [traced.commit.partition_key for traced in traces]
    assert keys == sorted(keys, reverse=True)
    assert len(set(keys)) == 10
    assert {traced.row["shop"] for traced in traces} == {"Zürich"}


ODD = 'order "no"/~1'


@pytest.mark.full
def test_trace_takes_key_columns_of_any_name_and_type(tmp_path):
    sql = FEATURES_SQL.replace(
        "SELECT id, ts,", 'SELECT id AS "order ""no""/~1", ts, date_trunc(\'hour\', ts)::TIMESTAMP AS hour,'
    )
    labels = 'SELECT id AS "order ""no""/~1", ts, date_trunc(\'hour\', ts)::TIMESTAMP AS hour, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end'
    events = small_events().with_columns(pl.when(pl.col("id") == 1501).then(-1.0).otherwise("amount").alias("amount"))
    pipeline = small_pipeline(
        tmp_path,
        events=events,
        features_sql=sql,
        labels_sql=labels,
        features={"key": [ODD, "hour"], "columns": {"amount": {"min": 0}}, "max_rejected": "5%"},
    )
    carry_out(pipeline, NOW)
    for number, outcome in (("1500", "scored"), ("1501", "rejected")):
        (traced,) = trace(pipeline.spec, pipeline.home, {ODD: number})
        assert traced.outcome == outcome
        hour = traced.row["hour"] if outcome == "scored" else traced.row["key"]["hour"]
        for written in (str(hour), str(hour).replace(" ", "T")):
            (same,) = trace(pipeline.spec, pipeline.home, {ODD: number, "hour": written})
            assert same == traced


def test_trace_refuses_a_name_that_is_not_a_key_column(pipeline):
    with pytest.raises(
        WrongUseError, match=r"small has no key column 'idd'; its key is id\. Hint: did you mean 'id'\?"
    ):
        trace(pipeline.spec, pipeline.home, {"idd": "1"})


def test_trace_of_an_unknown_row_repeats_its_key(pipeline, tmp_path):
    with pytest.raises(DataError, match="no scored or rejected row has id=nosuch"):
        trace(pipeline.spec, pipeline.home, {"id": "nosuch"})
    empty = small_pipeline(tmp_path / "empty")
    with pytest.raises(NothingPublishedError, match="Hint: run a pipeline first"):
        trace(empty.spec, empty.home, {"id": "1"})


def test_trace_of_a_row_without_its_ledger_is_refused(pipeline):
    with pipeline.warehouse.transaction() as con:
        con.execute("DELETE FROM batch_platform.score_runs")
        con.execute("UPDATE batch_platform.changes SET change_id = 'other'")
    for copy in pipeline.home.root.glob("published*"):
        copy.unlink()
    pipeline.publish()
    with pytest.raises(IntegrityError, match="ledgers have no row for this score"):
        trace(pipeline.spec, pipeline.home, {"id": "1500"})


def test_a_committed_partition_is_in_partition_status_although_its_run_was_killed_before_it_ended(tmp_path):
    pipeline = small_pipeline(tmp_path)
    days = pipeline.spec.partitions.calendar.due(LABELS_KNOWN)
    stamp = Stamp("killed", LABELS_KNOWN)
    list(pipeline.build_features(days[:33], stamp))
    version = pipeline.train(pipeline.spec.partitions.calendar.named("2024-02-01"), stamp).version.version
    list(pipeline.score(days[31:33], stamp))
    pipeline.publish()  # as the next run does, which finds nothing due
    with reading_published(pipeline.home) as con:
        columns = "partition_key, condition, champion, rows_scored"
        rows = con.execute(f"SELECT {columns} FROM batch_platform.partition_status ORDER BY ALL").fetchall()
    assert rows == [(day.key, "scored", version, 40) for day in days[31:33]]


def test_a_training_that_failed_by_sql_that_is_mended_is_no_longer_told(pipeline):
    folder, period = pipeline.folder.parent, pipeline.spec.partitions.calendar.named("2024-02-01")
    broken = small_pipeline(folder, features_sql=FEATURES_SQL.replace("amount", "amuont"))
    with pytest.raises(DataError, match="built by an earlier version of the SQL"):
        broken.train(period, Stamp("broken", NOW))
    assert list(status(broken).refused) == ["2024-02-01"]
    mended = small_pipeline(folder)
    report, state = status(mended), mended.state()
    assert (report.refused, report.declaration_change, report.due) == ({}, None, {})
    refusal = replace(state.registry.promotions[-1], action="refused", reason="worse than guessing")
    refused = replace(state, registry=replace(state.registry, promotions=[*state.registry.promotions, refusal]))
    plan = make_plan(mended.spec, refused, PlanRequest(NOW))
    assert "is refused: worse than guessing" in status_of(mended.spec, refused, plan, NOW).refused["2024-02-01"]


def test_a_model_whose_features_could_not_be_built_gives_that_reason_and_its_hint(pipeline):
    calendar, stamp = pipeline.spec.partitions.calendar, Stamp("broken", NOW)
    broken = small_pipeline(pipeline.folder.parent, features_sql=FEATURES_SQL.replace("amount", "amuont"))
    planned = [item.partition for item in make_plan(broken.spec, broken.state(), PlanRequest(NOW)).of("features")]
    with pytest.raises(SourceError, match="amuont") as unbuilt:
        list(broken.build_features(planned, stamp))
    with pytest.raises(
        DataError, match=r"could not be built as they are declared now\. 2024-01-01: the SQL of"
    ) as untrained:
        broken.train(calendar.named("2024-02-01"), stamp)
    assert untrained.value.hint == unbuilt.value.hint
    report = status(broken)
    assert report.counts["failed"] == report.due["features"] == len(planned)
