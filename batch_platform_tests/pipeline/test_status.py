"""Where partitions stand and why, and what a row is traced back to."""

import re
from datetime import UTC, datetime

import pytest

from batch_platform.declaration.errors import DataError, SourceError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.published import reading_published
from batch_platform_tests.harness.small_pipeline import LABELS_SQL, carry_out, finished_pipeline, small_pipeline

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
