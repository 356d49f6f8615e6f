"""The health of a pipeline: what is late, unusual or old, judged by what came before it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from batch_platform.declaration.windows import deadline, oldest_champion
from batch_platform.monitoring.catalogue import read_failed_checks
from batch_platform.monitoring.health import Aspect, Health
from batch_platform.monitoring.measures.health import EMPTY, VOLUME, JudgedRun, rejected_share, volume
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.health import freshness, health_of
from batch_platform.pipeline.measured import Measured, newest_measured
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.status import status_of
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    permuted_labels,
    small_events,
    small_pipeline,
    small_spec,
)

EMPTY_DAY = "2024-02-06"
NOW = datetime(2024, 2, 29, 6, 30, tzinfo=UTC)  # 07:30 in Berlin
DAY = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The pipeline with few rows, and bad amounts, on the newest day, and none on a day before."""
    events = small_events().filter((DAY != "2024-02-28") | (pl.col("id") % 8 == 0), DAY != EMPTY_DAY)
    bad = (DAY == "2024-02-28") & (pl.col("id") % 16 == 0)
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
    lacking = replace(state, scores={key: run for key, run in state.scores.items() if key != "2024-02-28"})
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
    before_any_model = replace(lacking, scores={})
    assert freshness(odd.spec, before_any_model, datetime(2024, 1, 20, tzinfo=UTC)).level is None
    assert freshness(odd.spec, before_any_model, NOW).level == "fail"


def test_a_partition_is_judged_by_earlier_ones_alone(odd):
    runs = odd.published_ledgers().scores
    past = Past(odd.spec.partitions.calendar, runs.values())
    first, last = runs["2024-02-01"], runs["2024-02-28"]
    assert (volume(past, first).level, rejected_share(past, first).level) == (None, "none")
    assert {run.partition_key for run in past.before(last, 9, alike=True)} == {
        "2024-02-07",
        "2024-02-14",
        "2024-02-21",
    }
    assert [run.partition_key for run in past.before(last, 2, alike=False)] == ["2024-02-26", "2024-02-27"]
    weeks = [replace(first, partition_start=last.partition_start - timedelta(days=7 * week)) for week in range(1, 9)]
    judged = volume(Past(odd.spec.partitions.calendar, weeks), last)
    assert (judged.level, judged.text) == ("warn", "2024-02-28 has 5 rows, where 24 to 67 are usual")
    past.add(replace(runs["2024-02-27"], rows_rejected=3, rows_in=3))
    assert past.before(last, 1, alike=False)[0].rows_in == 3, "a partition that is scored again replaces itself"


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


def test_a_partition_must_be_scored_by_the_first_such_time_after_it_is_due():
    def by(fresh_by, key="2024-03-30", **partitions):
        spec = small_spec(partitions={"end": None, **partitions}, monitoring={"fresh_by": fresh_by})
        return deadline(spec, spec.partitions.calendar.named(key)).isoformat()

    assert by("07:00") == "2024-03-31T05:00:00+00:00", "on the clocks of summer"
    assert by("00:00") == "2024-03-31T22:00:00+00:00"
    assert by("6 hours") == "2024-03-31T05:00:00+00:00"
    assert by("07:00", end_offset=1) == "2024-03-30T06:00:00+00:00"
    assert by("1 hour", "2024-03-30-10:00", every="hour") == "2024-03-30T11:00:00+00:00"
    assert by(1050) == "2024-03-31T15:30:00+00:00", "as YAML reads 17:30"


def test_a_champion_may_by_default_serve_for_two_trainings_and_at_least_a_week():
    def oldest(every):
        return str(oldest_champion(small_spec(model={"train": {"every": every}})))

    assert [oldest(every) for every in ("day", "week", "month")] == ["7 days", "14 days", "62 days"]
    assert oldest(None) == "None"


def test_the_worst_aspect_is_the_health():
    aspects = [Aspect("drift", None, ""), Aspect("volume", "warn", ""), Aspect("fresh", "fail", "")]
    assert [aspect.name for aspect in Health.of(aspects).alarms] == ["fresh", "volume"]
    assert [Health.of(aspects[:count]).level for count in range(4)] == ["none", "none", "warn", "fail"]
    assert Health.of(aspects[:2]).reaches("warn")
    assert not Health.of(aspects[:2]).reaches("fail")


def test_a_champion_that_is_not_better_than_guessing_is_worth_a_warning(tmp_path):
    """The labels are those of other rows, from the first day on."""
    events = permuted_labels(small_events(), datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC))
    pipeline = small_pipeline(tmp_path, events=events)
    carry_out(pipeline, datetime(2024, 2, 3, tzinfo=UTC))
    (decision,) = pipeline.state().registry.promotions
    assert decision.action == "approved"
    aspect = health(pipeline, datetime(2024, 2, 3, tzinfo=UTC))["better_than_guessing"]
    assert aspect.level == "warn"
    assert aspect.text.startswith(f"the model {decision.version} is not clearly better than guessing (class shares")
    assert aspect.text.removeprefix(f"the model {decision.version} is ") in decision.reason


def test_the_volume_of_a_partition_is_not_judged_before_a_week_is_known(odd):
    runs, check = odd.published_ledgers().scores, VOLUME.check(odd.spec)
    past = Past(odd.spec.partitions.calendar, runs.values())
    early, late = (JudgedRun(runs[key], volume(past, runs[key])) for key in ("2024-02-03", "2024-02-28"))
    assert check.judge(early, "binary") is None, "a result would say that it passed"
    assert check.judge(late, "binary").level == "warn"


def test_a_model_is_as_old_as_its_newest_partition_has_it_once_the_calendar_has_ended(odd):
    years_later = health(odd, NOW.replace(year=2032))["champion_age"]
    assert years_later.text == "the model is 28 days old, more than the 20 days that are allowed: train a new one"


def test_a_source_whose_file_is_gone_fails(tmp_path):
    pipeline = small_pipeline(tmp_path)
    sources, state = pipeline.builder.sources, pipeline.state()
    assert sources.gone() == []
    (pipeline.folder / "events.parquet").unlink()
    assert sources.gone() == ["events"]
    first, *_ = health_of(pipeline.spec, state, NOW, Measured(gone=sources.gone())).aspects
    assert (first.name, first.level, first.text) == ("sources", "fail", "the source 'events' is gone")
