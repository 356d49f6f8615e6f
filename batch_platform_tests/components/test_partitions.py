"""Dagster's partitions and those of the calendar are the same."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Calendar
from batch_platform_tests.harness.small_pipeline import small_spec

STARTS = {"hour": "2023-02-10T06:00", "day": "2023-02-10", "week": "2023-02-10", "month": "2023-02-01"}
ENDS = {"hour": "2024-05-17T13:00", "day": "2024-05-17", "week": "2024-05-31", "month": "2024-06-01"}
TIMEZONES = ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata"]


@pytest.mark.parametrize("every", list(ENDS))
@pytest.mark.parametrize("timezone", TIMEZONES)
def test_dagster_and_the_calendar_name_the_same_partitions(tmp_path, every, timezone):
    if every == "hour" and timezone == "Australia/Lord_Howe":  # refused: its clocks shift by half an hour
        timezone = "Australia/Sydney"
    partitions = {"every": every, "start": STARTS[every], "end": ENDS[every], "timezone": timezone}
    spec = small_spec(partitions=partitions, model={"train": {"evaluate": "31 days"}})
    assert_same_partitions(Wiring(spec, tmp_path).partitions, spec.partitions.calendar)


@pytest.mark.parametrize("every", list(ENDS))
@pytest.mark.parametrize("timezone", ["UTC", "America/New_York"])
def test_dagster_and_the_calendar_name_the_same_serving_periods(tmp_path, every, timezone):
    partitions = {"start": "2023-02-10", "end": "2024-05-17", "timezone": timezone}
    spec = small_spec(partitions=partitions, model={"train": {"every": every}})
    assert_same_partitions(Wiring(spec, tmp_path).serving_periods, spec.periods.trainable)
    begun = spec.periods.begun(datetime(2024, 5, 1, tzinfo=UTC))
    known = {*begun}
    assert begun == [period for period in spec.periods.trainable.due(begun[-1].start) if period in known]
    assert_same_partitions(Wiring(spec, tmp_path).served, spec.periods.served)
    assert spec.periods.served.first_start >= begun[0].start


def assert_same_partitions(dagsters: dg.TimeWindowPartitionsDefinition, calendar: Calendar) -> None:
    ours = calendar.due(calendar.last_end)
    assert list(dagsters.get_partition_keys()) == [partition.key for partition in ours]
    for partition in (ours[0], *ours[-400:]):
        window = dagsters.time_window_for_partition_key(partition.key)
        assert (window.start, window.end) == (partition.start, partition.end)
