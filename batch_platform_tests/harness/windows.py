"""Random windows around a change of clocks."""

from datetime import date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import assume, reject
from hypothesis import strategies as st
from pydantic import ValidationError

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.spec import PipelineSpec
from batch_platform_tests.harness.small_pipeline import small_spec

ZONES = sorted(available_timezones())
WITHOUT_A_MIDNIGHT = ["Africa/Cairo", "America/Santiago", "America/Sao_Paulo", "Asia/Beirut", "Asia/Tehran"]  # yearly


@st.composite
def windows_near_a_change(draw) -> tuple[PipelineSpec, list[Partition], int]:
    """Partitions around a day on which clocks change, if they do, with windows of whole partitions, and the length of one."""
    zone = draw(st.sampled_from(WITHOUT_A_MIDNIGHT) | st.sampled_from(ZONES))
    every = draw(st.sampled_from(["hour", "day", "week"]))
    day = draw(st.dates(date(1975, 1, 1), date(2036, 1, 1)))
    noons = [datetime.combine(day + timedelta(days=n), time(12), ZoneInfo(zone)) for n in range(400)]
    change = next((late.date() for early, late in pairwise(noons) if early.utcoffset() != late.utcoffset()), day)
    first = change - timedelta(days=draw(st.integers(60, 100) if every == "week" else st.integers(15, 25)))
    evaluate, delay = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    days, unit = (7 if every == "week" else 1), "hours" if every == "hour" else "days"
    by_the_hour = every == "day" and draw(st.booleans())
    declared = {
        "partitions": {"every": every, "start": str(first), "end": None, "timezone": zone},
        "labels": {"delay": f"{delay * days} {unit}"},
        "model": {
            "train": {
                "every": "day",
                "window": f"{(3 * evaluate + delay) * days} {unit}",
                "evaluate": f"{evaluate * 24} hours" if by_the_hour else f"{evaluate * days} {unit}",
            }
        },
    }
    try:
        spec = small_spec(**declared)
    except ValidationError:
        reject()  # hours in a zone whose clocks shift by part of an hour, or a window that is too short for its delay
    calendar = spec.partitions.calendar
    partitions = calendar.within(calendar.first_start, calendar.first_start + timedelta(days=130 if days > 1 else 35))
    if every != "hour":  # some islands left out a day
        starts = [date.fromisoformat(partition.key) for partition in partitions]
        assume(all(late - early == timedelta(days=days) for early, late in pairwise(starts)))
    return spec, partitions, evaluate
