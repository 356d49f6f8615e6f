"""The health of a pipeline: what is late, unusual or old, judged by what came before it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from batch_platform.monitoring.catalogue import read_failed_checks
from batch_platform.monitoring.measure import Aspect
from batch_platform.monitoring.measures.health import EMPTY, volume
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.health import freshness, health_of
from batch_platform.pipeline.measured import Measured, newest_measured
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline, small_spec
from batch_platform_tests.pipeline.planned_states import with_changes

EMPTY_DAY = "2024-02-06"
NOW = datetime(2024, 2, 29, 6, 30, tzinfo=UTC)  # 07:30 in Berlin


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The pipeline with few rows, and bad amounts, on the newest day, and none on a day before."""
    events = small_events().filter((LOCAL_DAY != "2024-02-28") | (pl.col("id") % 8 == 0), LOCAL_DAY != EMPTY_DAY)
    bad = (LOCAL_DAY == "2024-02-28") & (pl.col("id") % 16 == 0)
    pipeline = small_pipeline(
        tmp_path_factory.mktemp("odd"),
        events=events.with_columns(pl.when(bad).then(-1.0).otherwise("amount").alias("amount")),
        features={"columns": {"amount": {"min": 0}}, "max_rejected": "100%"},
        monitoring={
            "fresh_by": "07:00",
            "drift": {},
            "performance": {"warn_below": 0.99},
            "max_champion_age": "20 days",
        },
    )
    carry_out(pipeline, NOW)
    return pipeline


def health(pipeline, now=NOW) -> dict[str, Aspect]:
    state = pipeline.published_state()
    plan = make_plan(pipeline.spec, state, PlanRequest(now))
    status = status_of(pipeline.spec, state, plan, now, measured=newest_measured(pipeline.home, pipeline.spec, state))
    return {aspect.name: aspect for aspect in status.health.aspects}


def test_every_aspect_of_the_newest_partitions_is_judged(odd):
    aspects = health(odd)
    assert {name: aspect.level for name, aspect in aspects.items()} == {
        "fresh": "none",
        "volume": "warn",
        "rejected_share": "warn",
        "drift": None,
        "performance": "warn",
        "estimated_performance": None,
        "champion_age": "warn",
    }
    assert aspects["drift"].text == "3 rows of 2024-02-28 are too few to judge drift"
    assert aspects["rejected_share"].text.startswith("2 of 5 rows rejected in 2024-02-28, at most 0.00% in the ")
    assert (
        aspects["champion_age"].text
        == "the model is 28 days old, more than the 20 days that are allowed: train a new one"
    )
    assert aspects["performance"].text.endswith(" on 2024-02-27 is below 0.99")
    assert aspects["performance"].partition == "2024-02-27", "the labels of the newest day are not known yet"


def test_the_newest_partition_counts_whatever_else_was_scored_meanwhile(odd):
    state = odd.published_ledgers()
    assert freshness(odd.spec, state, NOW).text == "fresh (2024-02-28)"
    lacking = with_changes(state, scores={key: run for key, run in state.scores.items() if key != "2024-02-28"})
    assert freshness(odd.spec, lacking, NOW - timedelta(hours=1)).passed, "before the deadline"
    late = freshness(odd.spec, lacking, NOW)
    assert (late.level, late.partition) == ("fail", "2024-02-28")
    assert late.text == (
        "2024-02-28 is not scored, which was expected by 2024-02-29 07:00; the newest scored partition is 2024-02-27"
    )
    undeclared = small_spec()
    assert freshness(undeclared, lacking, NOW).passed
    next_day = freshness(undeclared, lacking, NOW + timedelta(days=1))
    assert (next_day.level, next_day.partition) == ("warn", "2024-02-28")
    before_any_model = with_changes(lacking, scores={})
    assert freshness(odd.spec, before_any_model, datetime(2024, 1, 20, tzinfo=UTC)).level is None
    assert freshness(odd.spec, before_any_model, NOW).level == "fail"


def test_a_partition_without_rows_is_named_until_the_declaration_accepts_it(odd):
    def named(**monitoring: object) -> list[str]:
        declared = odd.spec.monitoring.model_copy(update=monitoring)
        with open_published(odd.home) as con:
            failed = read_failed_checks(con, odd.spec.model_copy(update={"monitoring": declared}))
        return [check.partition_key for check in failed if check.faults == (EMPTY,)]

    assert named() == named(allow_empty=["2024-02-07"]) == [EMPTY_DAY]
    assert named(allow_empty=True) == named(allow_empty=[EMPTY_DAY]) == []
    run = odd.published_ledgers().scores[EMPTY_DAY]
    weeks = [replace(run, partition_start=run.partition_start - timedelta(days=7 * week)) for week in range(1, 9)]
    past = Past(odd.spec.partitions.calendar, weeks)
    assert volume(past, run).text == "2024-02-06 has no rows", "however usual that is"
    assert volume(past, run, may_be_empty=True).passed


@pytest.mark.unit
def test_a_source_whose_file_is_gone_fails(tmp_path):
    pipeline = small_pipeline(tmp_path)
    sources, state = pipeline.builder.sources, pipeline.state()
    assert sources.gone() == []
    (pipeline.folder / "events.parquet").unlink()
    assert sources.gone() == ["events"]
    first, *_ = health_of(pipeline.spec, state, NOW, Measured(gone=sources.gone())).aspects
    assert (first.name, first.level, first.text) == ("sources", "fail", "the source 'events' is gone")


@pytest.mark.unit
def test_many_failures_of_a_step_are_counted_and_few_are_named(tmp_path):
    pipeline = small_pipeline(tmp_path)
    failed = [("features", f"2024-02-{day:02}") for day in range(1, 13)]
    failed += [("performance", "2024-02-03"), ("performance", "2024-02-05")]
    failures = [Failure(step, key, "why", None, "declared", NOW, "a run") for step, key in failed]
    first, *_ = health_of(pipeline.spec, pipeline.state(), NOW, Measured(), failures).aspects
    assert first.text == (
        "failed: features 12 times between 2024-02-01 and 2024-02-12; performance 2024-02-03, 2024-02-05"
    )
    assert first.numbers == {"failures": 14}


@pytest.mark.unit
def test_a_partition_must_be_scored_by_the_first_such_time_after_it_is_due():
    def by(fresh_by, key="2024-03-30", **partitions):
        spec = small_spec(partitions={"end": None, **partitions}, monitoring={"fresh_by": fresh_by})
        return spec.periods.deadline(spec.partitions.calendar.named(key)).isoformat()

    assert by("07:00") == "2024-03-31T05:00:00+00:00", "on the clocks of summer"
    assert by("00:00") == "2024-03-31T22:00:00+00:00"
    assert by("6 hours") == "2024-03-31T05:00:00+00:00"
    assert by("07:00", end_offset=1) == "2024-03-30T06:00:00+00:00"
    assert by("1 hour", "2024-03-30-10:00", every="hour") == "2024-03-30T11:00:00+00:00"
    assert by(1050) == "2024-03-31T15:30:00+00:00", "as YAML reads 17:30"
