"""Days of unusual length, and labels that come late."""

from collections.abc import Collection
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import polars as pl
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Partition, shifts_by_whole_hours
from batch_platform.declaration.inputs import Partitions
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import NOW, SCORED, STAMP, Held, assert_survived, days, held, prepared
from batch_platform_tests.harness.small_pipeline import (
    LABELS_BY_DAY,
    carry_out,
    small_events,
    small_pipeline,
    write_labels_by_day,
)
from batch_platform_tests.harness.tiers import examples

ZONES = sorted(available_timezones())
KNOWN_CHANGES = {
    "F17 a day of 23 hours": ("America/New_York", "day", "2013-03-08", 5),
    "F17 a day of 25 hours": ("America/New_York", "day", "2013-11-01", 5),
    "F17 hours of a day of 25": ("Europe/Berlin", "hour", "2024-10-26", 72),
    "F17 hours of a day of 23": ("Europe/Berlin", "hour", "2024-03-30", 72),
    "F17 a leap day": ("Asia/Tokyo", "day", "2024-02-27", 4),
    "F17 the week of a leap day": ("America/Los_Angeles", "week", "2024-02-18", 3),
    "F17 the month of a leap day": ("Africa/Cairo", "month", "2024-01-01", 4),
    "F17 a midnight that does not exist": ("America/Santiago", "day", "2024-09-06", 5),
    "F17 a midnight that comes twice": ("America/Havana", "day", "2024-11-01", 5),
    "F17 a day that was left out": ("Pacific/Apia", "day", "2011-12-28", 5),
    "F17 a shift by half an hour": ("Australia/Lord_Howe", "day", "2024-04-05", 4),
    "F17 UTC": ("UTC", "day", "2024-03-30", 4),
}


def built(folder: Path, zone: str, every: str, start: str, count: int) -> tuple[list[Partition], pl.DataFrame]:
    """Build features from a source with a row every few minutes and at every edge; returns partitions and their rows."""
    pipeline = small_pipeline(
        folder,
        events=small_events().head(1),
        partitions={"every": every, "start": start, "end": None, "timezone": zone},
        model={"train": {"every": None, "evaluate": "62 days"}},
        features_sql="SELECT id, ts FROM events WHERE ts >= $partition_start AND ts < $partition_end",
    )
    calendar = pipeline.spec.partitions.calendar
    spanned = timedelta(hours=count) if every == "hour" else timedelta(days=40 * count)
    partitions = calendar.due(calendar.first_start + spanned)[:count]
    first, last = partitions[0].start, partitions[-1].end
    step = timedelta(minutes=7) if every != "month" else timedelta(hours=5)
    ticks = pl.datetime_range(
        first - timedelta(hours=30), last + timedelta(hours=30), step, time_unit="us", time_zone="UTC", eager=True
    )
    edges = [
        moment + timedelta(microseconds=shift)
        for partition in partitions
        for moment in (partition.start, partition.end)
        for shift in (-1, 0)
    ]
    moments = pl.concat([ticks, pl.Series(edges, dtype=ticks.dtype)]).unique().sort()
    source = pl.DataFrame({"id": range(len(moments)), "ts": moments})
    source.write_parquet(pipeline.folder / "events.parquet")
    list(pipeline.build_features(partitions, STAMP, force=True))
    builds = pipeline.warehouse.latest(FeatureBuild, pipeline.spec.name)
    frames = [
        pl.read_parquet(pipeline.history.file(builds[partition.key])).with_columns(key=pl.lit(partition.key))
        for partition in partitions
    ]
    inside = source.filter((pl.col("ts") >= first) & (pl.col("ts") < last))
    assert_partitioned(frames, inside, pipeline.spec.partitions)
    return partitions, inside


def assert_partitioned(frames: list[pl.DataFrame], source: pl.DataFrame, declared: Partitions) -> None:
    """Assert that every row of the source is in exactly one partition: the one that a clock in the zone shows."""
    every, zone, first = declared.every, ZoneInfo(declared.timezone), date.fromisoformat(declared.start)
    rows = pl.concat(frames).sort("id")
    assert rows["id"].to_list() == source["id"].to_list(), "the partitions add up to the source"
    for key, moment in zip(rows["key"], rows["ts"], strict=True):
        local = moment.astimezone(zone)
        begins = {"hour": local, "day": local, "month": local.replace(day=1)}.get(every)
        if begins is None:
            begins = local - timedelta(days=(local.weekday() - first.weekday()) % 7)
        assert key.startswith(f"{begins:%Y-%m-%d-%H:00}" if every == "hour" else f"{begins:%Y-%m-%d}")


def known_change(folder: Path, name: str) -> None:
    zone, every, start, count = KNOWN_CHANGES[name]
    partitions, _ = built(folder, zone, every, start, count)
    hours = {(partition.end - partition.start) / timedelta(hours=1) for partition in partitions}
    if " of 23 hours" in name:
        assert 23 in hours
    if " of 25 hours" in name:
        assert 25 in hours


def any_zone(folder: Path) -> None:
    numbers = iter(range(10_000))

    @examples(60, suppress_health_check=list(HealthCheck))
    @given(
        zone=st.sampled_from(ZONES),
        every=st.sampled_from(["hour", "day", "week", "month"]),
        start=st.dates(date(1975, 1, 1), date(2035, 1, 1)),
    )
    def holds(zone: str, every: str, start: date) -> None:
        start = start.replace(day=1) if every == "month" else start
        first = datetime(start.year, start.month, start.day)  # noqa: DTZ001 - local
        assume(every != "hour" or shifts_by_whole_hours(ZoneInfo(zone), first, None))  # others are refused
        built(folder / str(next(numbers)), zone, every, str(start), 49 if every == "hour" else 3)

    holds()


def evaluations(pipeline: Pipeline) -> dict[str, EvaluationRun]:
    return pipeline.state().evaluations


def metrics(pipeline: Pipeline) -> dict[str, list[tuple[Any, ...]]]:
    with pipeline.warehouse.open() as con:
        rows = con.execute("SELECT partition_key, metric, value FROM small.performance ORDER BY ALL").fetchall()
    return {key: [row[1:] for row in rows if row[0] == key] for key, *_ in rows}


def labels_by_partition(folder: Path, *, without: Collection[str] = ()) -> tuple[Pipeline, dict[str, Held]]:
    """The small pipeline with one file of labels per day, but of some: ten days scored, nine of them with mature labels."""
    pipeline = small_pipeline(folder, **LABELS_BY_DAY)
    write_labels_by_day(pipeline.folder, without=without)
    carry_out(pipeline, NOW)
    return pipeline, held(pipeline)


def corrected_labels(folder: Path) -> None:
    """Only the partition of the corrected file is evaluated again, and nothing is scored again."""
    pipeline, before = labels_by_partition(folder)
    measured, known = metrics(pipeline), evaluations(pipeline)
    path = pipeline.folder / "returns" / f"{SCORED[1]}.parquet"
    pl.read_parquet(path).with_columns(~pl.col("returned")).write_parquet(path)
    plan = carry_out(pipeline, NOW, "corrected")
    assert [(item.step, item.partition.key, item.reason) for item in plan.items] == [
        ("performance", SCORED[1], "its labels changed")
    ]
    after = metrics(pipeline)
    assert {key for key in after if after[key] != measured[key]} == {SCORED[1]}
    assert {key for key, run in evaluations(pipeline).items() if run != known[key]} == {SCORED[1]}
    assert held(pipeline) == before
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def late_labels(folder: Path) -> None:
    """A day that was evaluated with some labels missing is evaluated again once they are there."""
    pipeline, _ = labels_by_partition(folder)
    path = pipeline.folder / "returns" / f"{SCORED[-1]}.parquet"
    whole = pl.read_parquet(path)
    whole.head(5).write_parquet(path)
    later = NOW + timedelta(days=1)
    carry_out(pipeline, later, "short")
    before = held(pipeline)
    assert evaluations(pipeline)[SCORED[-1]].rows_labelled <= 5
    whole.write_parquet(path)
    plan = carry_out(pipeline, later, "rest")
    assert [(item.step, item.partition.key) for item in plan.items] == [("performance", SCORED[-1])]
    assert evaluations(pipeline)[SCORED[-1]].rows_labelled > 30
    assert held(pipeline) == before


def awaited_labels(folder: Path) -> None:
    """A day without a file of labels is scored and waits to be evaluated; the file is all that it waits for."""
    awaited, immature = SCORED[-2:]
    pipeline, before = labels_by_partition(folder, without=(awaited, immature))
    assert sorted(before) == SCORED
    assert sorted(evaluations(pipeline)) == SCORED[:-2]
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert plan.items == []
    assert plan.awaiting == {awaited: "source 'returns' has no file of labels for it yet"}
    assert [*pipeline.evaluate(days(pipeline, awaited), Stamp("asked", NOW))] == []
    write_labels_by_day(pipeline.folder)
    plan = carry_out(pipeline, NOW, "there")
    assert [(item.step, item.partition.key) for item in plan.items] == [("performance", awaited)]
    assert evaluations(pipeline)[awaited].rows_labelled > 30
    assert held(pipeline) == before


def corrected_labels_in_a_shared_source(folder: Path) -> None:
    """One file for all partitions does not show which labels changed: the requested partitions are evaluated again."""
    pipeline = prepared(folder)
    before, measured = held(pipeline), metrics(pipeline)
    small_events().with_columns(~pl.col("returned")).write_parquet(pipeline.folder / "events.parquet")
    list(pipeline.evaluate(days(pipeline, *SCORED[1:3]), Stamp("asked", NOW)))
    after = metrics(pipeline)
    assert {key for key in after if after[key] != measured[key]} == set(SCORED[1:3])
    assert held(pipeline) == before
    small_events().write_parquet(pipeline.folder / "events.parquet")
    assert_survived(pipeline, before, {SCORED[1]})


CASES: dict[str, Case] = {
    **{name: lambda folder, name=name: known_change(folder, name) for name in KNOWN_CHANGES},
    "F17 any zone and date": any_zone,
    "F21 corrected labels": corrected_labels,
    "F21 late labels": late_labels,
    "F21 corrected labels in a shared source": corrected_labels_in_a_shared_source,
    "F43 awaited labels": awaited_labels,
}
