"""`batch-platform new`: a time is found and read in every usual notation, and never guessed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform_tests.harness.tiers import crossed
from batch_platform_tests.proposal.proposals import AFTER_ALL, START, built, orders, pipeline_of, proposed, proposed_for

pytestmark = pytest.mark.usefixtures("few_trees")

ROWS = 400
ZONE = ZoneInfo("Europe/Berlin")
CLOCKS = [  # in Berlin; summer time begins among them, and none of them lies in the hour that it leaves out
    START.replace(month=3, day=15, minute=30) + timedelta(minutes=75) * at for at in range(ROWS)
]
INSTANTS = [(START + timedelta(hours=1) * at).replace(tzinfo=UTC) for at in range(ROWS)]
ROWS_OF_A_DAY = 20
DAYS = [START + timedelta(days=at // ROWS_OF_A_DAY) for at in range(ROWS)]
MONTHS = [datetime(2020 + at // 100, at // 10 % 10 + 1, 1) for at in range(ROWS)]  # noqa: DTZ001 - as START


def local(clock: datetime) -> datetime:
    return clock.replace(tzinfo=ZONE).astimezone(UTC)


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


# The values of a column `at`, the instants that they are, and what the SQL says of them.
NOTATIONS: dict[str, tuple[Any, list[datetime], str]] = {
    "nanoseconds": (pl.Series(CLOCKS, dtype=pl.Datetime("ns")), [*map(local, CLOCKS)], '"at" >= $partition_start'),
    "nanoseconds of a zone": (
        pl.Series(INSTANTS, dtype=pl.Datetime("ns", "America/New_York")),
        INSTANTS,
        'CAST("at" AS TIMESTAMPTZ)',
    ),
    "dates": ([day.date() for day in DAYS], [*map(local, DAYS)], '"at" >= $partition_start'),
    "texts with an offset": (
        [f"{instant + timedelta(hours=2):%Y-%m-%dT%H:%M:%S}+02:00" for instant in INSTANTS],
        INSTANTS,
        'CAST("at" AS TIMESTAMPTZ)',
    ),
    "day first": (
        [f"{clock.day}/{clock.month}/{clock.year} {clock:%H:%M}" for clock in CLOCKS],
        [*map(local, CLOCKS)],
        "strptime(\"at\", '%d/%m/%Y %H:%M')",
    ),
    "month first": (
        [f"{clock:%m/%d/%Y %I:%M:%S %p}" for clock in CLOCKS],
        [*map(local, CLOCKS)],
        "strptime(\"at\", '%m/%d/%Y %I:%M:%S %p')",
    ),
    "some with a time of day": (
        [
            f"{clock:%d.%m.%Y}" if clock.hour == 0 and clock.minute == 0 else f"{clock:%d.%m.%Y %H:%M}"
            for clock in CLOCKS
        ],
        [*map(local, CLOCKS)],
        "strptime(\"at\", ['%d.%m.%Y', '%d.%m.%Y %H:%M'])",
    ),
    "eight digits": (
        [int(f"{day:%Y%m%d}") for day in DAYS],
        [*map(local, DAYS)],
        "strptime(CAST(\"at\" AS VARCHAR), '%Y%m%d')",
    ),
    "seconds": ([seconds(instant) for instant in INSTANTS], INSTANTS, 'to_timestamp("at")'),
    "milliseconds": (
        [seconds(instant) * 1000 + 7 for instant in INSTANTS],
        [instant + timedelta(milliseconds=7) for instant in INSTANTS],
        'make_timestamptz(CAST("at" * 1000 AS BIGINT))',
    ),
    "days of a spreadsheet": (
        [(clock - datetime(1899, 12, 30)) / timedelta(days=1) for clock in CLOCKS],  # noqa: DTZ001 - as START
        [*map(local, CLOCKS)],
        'make_timestamp(CAST(round(("at" - 25569) * 86400) AS BIGINT) * 1000000)',
    ),
    "years": (
        [month.year for month in MONTHS],
        [local(month.replace(month=1)) for month in MONTHS],
        "strptime(CAST(\"at\" AS VARCHAR), '%Y')",
    ),
}


@pytest.mark.parametrize(("notation", "kind"), crossed(NOTATIONS, ["parquet", "csv"]))
def test_every_row_has_its_instant_in_the_partition_that_holds_it(tmp_path, notation, kind):
    values, instants, sql = NOTATIONS[notation]
    table = orders(ROWS, id=range(ROWS), at=values)
    file = tmp_path / f"orders.{kind}"
    table.write_parquet(file) if kind == "parquet" else table.write_csv(file)
    proposal, files = proposed(file, timezone=ZONE.key, key=("id",), time="at" if "years" in notation else None)
    assert proposal.windows.time.name == "at"
    assert kind == "csv" or sql in files["features.sql"]  # DuckDB recognises times in ISO notation in a CSV file
    rows = built(pipeline_of(files, tmp_path), instants)
    times = rows["at"].cast(pl.Datetime("us")) if rows["at"].dtype == pl.Date else rows["at"]
    times = times if times.dtype.time_zone else times.dt.replace_time_zone(ZONE.key)  # pyright: ignore[reportAttributeAccessIssue] - a Datetime
    assert rows["id"].to_list() == [*range(ROWS)]
    assert times.dt.convert_time_zone("UTC").to_list() == instants


def test_a_time_that_names_no_row_where_clocks_are_set_forward_is_no_key(tmp_path):
    clocks = [datetime(2025, 3, 1) + timedelta(hours=at) for at in range(24 * 60)]  # noqa: DTZ001 - 02:30 on 30 March is none
    table = pl.DataFrame({"at": [f"{at:%Y-%m-%d %H:%M}" for at in clocks], "x": range(24 * 60)})
    table = table.with_columns(y=pl.col("x") % 24 * 1.5, x=pl.col("x") % 7)
    in_utc, _ = proposed_for(table, tmp_path, label="y")
    assert [column.name for column in in_utc.key] == ["at"]
    proposal, files = proposed_for(table, tmp_path, label="y", timezone=ZONE.key)
    assert [column.name for column in proposal.key] == []
    pipeline = pipeline_of(files, tmp_path)
    (day,) = [
        partition for partition in pipeline.spec.partitions.calendar.due(AFTER_ALL) if partition.key == "2025-03-30"
    ]
    with pipeline.builder.session() as session:
        assert session.write(day, tmp_path / "built").rows == 24


def parts(*names: str) -> dict[str, list[int]]:
    return {name: [getattr(clock, name) for clock in CLOCKS] for name in names}


# The columns that tell a time together, the instants, and what the SQL makes of them.
TOGETHER: dict[str, tuple[dict[str, Any], list[datetime], str]] = {
    "year month day hour minute": (
        parts("year", "month", "day", "hour", "minute"),
        [*map(local, CLOCKS)],
        'make_timestamptz("year", "month", "day", "hour", "minute", 0) AS year_month_day_hour_minute',
    ),
    "Yr Mo": (
        {"Yr": [month.year for month in MONTHS], "Mo": [month.month for month in MONTHS]},
        [*map(local, MONTHS)],
        "make_timestamptz(Yr, Mo, 1, 0, 0, 0)",
    ),
    "date hour": (
        {"date": [clock.date() for clock in CLOCKS], **parts("hour")},
        [local(clock.replace(minute=0)) for clock in CLOCKS],
        'CAST("date" + to_hours("hour") AS TIMESTAMPTZ)',
    ),
}


@pytest.mark.parametrize("names", TOGETHER)
def test_columns_that_tell_a_time_together_are_composed(tmp_path, names):
    columns, instants, sql = TOGETHER[names]
    proposal, files = proposed_for(
        orders(ROWS, id=range(ROWS), at=None, **columns), tmp_path, timezone=ZONE.key, key=("id",)
    )
    assert sql.replace('"', "") in files["features.sql"].replace('"', "")
    assert proposal.windows.time.made_of == tuple(columns)
    rows = built(pipeline_of(files, tmp_path), instants)
    assert rows["id"].to_list() == [*range(ROWS)]
    assert rows["_".join(columns)].dt.convert_time_zone("UTC").to_list() == instants


AMBIGUOUS = [f"{at % 12 + 1:02d}/{at // 12 % 12 + 1:02d}/2025" for at in range(ROWS)]


@pytest.mark.parametrize(("order", "first"), [("dmy", "%d/%m/%Y"), ("mdy", "%m/%d/%Y")])
def test_an_order_of_day_and_month_that_the_values_leave_open_is_asked_for(cli, tmp_path, order, first):
    orders(ROWS, at=AMBIGUOUS).write_csv(tmp_path / "orders.csv")
    asked = cli(tmp_path, "new", "orders", "--from", "orders.csv")
    assert asked.code == 2
    assert (
        "which fit day first and month first. Hint: say which it is with --date-order dmy or --date-order mdy"
        in asked.error
    )
    assert not (tmp_path / "pipelines").exists()
    made = cli(tmp_path, "new", "orders", "--from", "orders.csv", "--date-order", order, "--json").json
    assert made["time_read"] == f"text as {first}"
    assert f"strptime(\"at\", '{first}')" in Path(made["folder"], "features.sql").read_text(encoding="utf-8")


def stamps(step: int) -> list[int]:
    return [1_735_689_600 + step * at for at in range(ROWS)]


def test_a_time_that_only_some_rows_have_gives_way_to_one_that_all_have(tmp_path):
    refunded = [DAYS[at] if at % 100 == 0 else None for at in range(ROWS)]
    table = orders(ROWS, at=None, refunded_on=refunded, paid_at=stamps(3_600), returned=None)
    table = table.with_columns(fraud=pl.col("refunded_on").is_not_null())
    proposal, _ = proposed_for(table, tmp_path, label="fraud")
    assert proposal.windows.time.name == "paid_at"
    assert proposal.others["time"] == ["refunded_on"]
    assert proposal.windows.timeless == 0


@pytest.mark.parametrize("name", ["birthday", "last_purchase"])
def test_a_table_whose_only_time_tells_of_an_entity_is_scored_whole_unless_that_time_is_named(tmp_path, name):
    proposal, files = proposed_for(orders(ROWS, at=None, **{name: DAYS}), tmp_path)
    assert (proposal.windows, proposal.others["time"]) == (None, [name])
    assert "snapshot: true" in files["defs.yaml"]
    assert proposed(tmp_path / "table.parquet", time=name)[0].windows.time.name == name


@pytest.mark.unit
@pytest.mark.parametrize("far_off", [["1900-01-05"], ["1970-01-01", "1970-01-01", "2099-12-31"], []], ids=" ".join)
def test_a_few_times_far_from_all_others_decide_nothing_and_are_stated(tmp_path, far_off):
    days = [*(f"{day:%Y-%m-%d}" for day in DAYS), *far_off]
    table = pl.DataFrame({"id": range(len(days)), "at": days, "x": [n % 7 for n in range(len(days))]})
    table.with_columns(y=pl.col("x") * 1.5).sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "table.csv")
    with survey(locate(str(tmp_path / "table.csv"), None), "UTC") as seen:
        span = seen.span("at")
    assert (span.first, span.last, span.rows) == (DAYS[0].replace(tzinfo=UTC), DAYS[-1].replace(tzinfo=UTC), ROWS)
    assert (f"{span.far_off:%Y-%m-%d}" if span.far_off else "") == max(far_off, default="")
    assert span.filled["day"] == ROWS // ROWS_OF_A_DAY
