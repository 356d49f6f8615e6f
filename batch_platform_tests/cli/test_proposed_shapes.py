"""`batch-platform new`: tables of every shape become pipelines, and what would deceive a model is left out."""

import os
import pty
import re
import select
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from batch_platform.cli.proposal.choices import BY_CONTENT, MOST_MODELS
from batch_platform.cli.proposal.columns import feature_reasons, label_evidence
from batch_platform.cli.proposal.origin import locate
from batch_platform.cli.proposal.survey import survey
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.windows import serving_periods
from batch_platform_tests.cli.proposals import (
    AFTER_ALL,
    HOURS,
    START,
    customers,
    declared,
    names,
    orders,
    pipeline_of,
    proposed,
    readings,
    unlabelled,
)
from batch_platform_tests.harness.command_line import published, start_command
from batch_platform_tests.harness.small_pipeline import carry_out

pytestmark = pytest.mark.usefixtures("few_trees")

SOON_AFTER = (START + timedelta(hours=HOURS + 2)).replace(tzinfo=UTC)  # the end of the readings
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def test_a_table_without_times_is_scored_whole_today_and_its_rows_are_named_by_their_place(tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    proposal, files = proposed(tmp_path / "customers.csv", now=NOON)
    assert (proposal.windows, names(proposal.key), proposal.label.name) == (None, [], "left")
    assert "it is the only column with nulls" in proposal.evidence
    attributes = declared(files)
    assert attributes["partitions"] == {"every": "day", "start": "2025-06-01", "snapshot": True, "timezone": "UTC"}
    assert attributes["features"]["key"] == ["row_in_file"]
    assert attributes["model"]["train"] == {"every": "month", "held_out": 0.2}
    pipeline = pipeline_of(files, tmp_path)
    carry_out(pipeline, NOON)
    assert [run.rows_scored for run in pipeline.state().scores.values()] == [600]
    rows = pipeline.history.features(*pipeline.state().features.values())
    assert rows.sort("row_in_file")["months"].to_list() == customers()["months"].to_list()


def test_a_time_can_be_the_key(tmp_path):
    readings().write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", now=SOON_AFTER)
    assert (names(proposal.key), proposal.windows.time.name, proposal.every) == (["at"], "at", "day")
    assert proposal.evidence == ("no other column can be predicted",)
    assert "end" not in declared(files)["partitions"], "more rows are to come"


@pytest.mark.full
def test_new_rows_whose_key_is_their_time_are_scored_the_next_day(tmp_path):
    readings().write_parquet(tmp_path / "sensor.parquet")
    last, now = START + timedelta(hours=HOURS), SOON_AFTER
    _, files = proposed(tmp_path / "sensor.parquet", now=now)
    pipeline = pipeline_of(files, tmp_path)
    carry_out(pipeline, now)
    carry_out(pipeline, now)
    before = set(pipeline.state().scores)
    assert f"{last - timedelta(days=1):%Y-%m-%d}" in before
    readings(HOURS + 24).write_parquet(tmp_path / "sensor.parquet")
    carry_out(pipeline, now + timedelta(days=1))
    assert set(pipeline.state().scores) - before == {f"{last:%Y-%m-%d}"}
    assert pipeline.state().scores[f"{last:%Y-%m-%d}"].rows_scored == 24


def sales() -> list[dict[str, Any]]:
    days = [START + timedelta(days=day) for day in range(400)]
    noise = iter(np.random.default_rng(4).normal(0, 2, 3 * len(days)))
    return [
        {"shop": shop, "day": day, "sales": 50.0 + 20 * at + 10 * (day.weekday() > 4) + next(noise)}
        for day in days
        for at, shop in enumerate(("a", "b", "c"))
    ]


def test_a_panel_is_keyed_by_entity_and_time(tmp_path):
    rows = sales()
    pl.DataFrame(rows).write_parquet(tmp_path / "sales.parquet")
    proposal, files = proposed(tmp_path / "sales.parquet")
    assert (names(proposal.key), proposal.label.name, proposal.every) == (["shop", "day"], "sales", "week")
    assert declared(files)["features"]["time"] == "day"
    numbers = pl.DataFrame(rows).with_columns(pl.col("shop").rank("dense").cast(pl.Int64))
    for name, key in {"shop": ["shop", "day"], "hour": []}.items():  # an hour is a feature, and no entity
        numbers.rename({"shop": name}).write_parquet(tmp_path / "numbers.parquet")
        numbered, _ = proposed(tmp_path / "numbers.parquet", label="sales")
        assert names(numbered.key) == key


@pytest.mark.full
def test_every_row_of_a_panel_is_scored(cli, tmp_path):
    pl.DataFrame(sales()).write_parquet(tmp_path / "sales.parquet")
    assert cli(tmp_path, "new", "sales", "--from", "sales.parquet").code == 0
    ran = cli(tmp_path, "run", "sales")
    assert ran.code == 0, ran.err
    query = "SELECT count(*), count(DISTINCT (shop, day)), count(DISTINCT shop) FROM sales.predictions"
    ((rows, keys, shops),) = published(tmp_path, query)
    assert (rows == keys > 500, shops) == (True, 3)


@pytest.mark.full
def test_a_series_that_its_day_before_nearly_decides_is_scored(cli, tmp_path):
    hours = [START + timedelta(hours=hour) for hour in range(60 * 24)]
    smooth = [50 + 10 * np.sin(at.hour / 12 * np.pi) + 0.05 * number / 24 for number, at in enumerate(hours)]
    pl.DataFrame({"at": hours, "temp": smooth}).write_parquet(tmp_path / "normals.parquet")
    assert cli(tmp_path, "new", "normals", "--from", "normals.parquet", "--yes").code == 0
    ran = cli(tmp_path, "run", "normals")
    assert ran.code == 0, ran.err
    assert published(tmp_path, "SELECT count(*) > 100 FROM normals.predictions") == [(True,)]
    ((leaks, allowed),) = published(tmp_path, "SELECT count(*), bool_and(allowed) FROM normals.suspected_leaks")
    assert (leaks > 0, allowed) == (True, True)


def test_features_of_the_past_are_what_was_known_when_the_partition_started(tmp_path):
    table = readings()
    table.write_parquet(tmp_path / "sensor.parquet")
    _, files = proposed(tmp_path / "sensor.parquet", timezone="UTC")
    pipeline = pipeline_of(files, tmp_path)
    (partition,) = [item for item in pipeline.spec.partitions.calendar.due(NOON) if item.key == "2025-01-20"]
    with pipeline.builder.sources.connect(partition) as con:
        rows = pipeline.builder.query.run(con, partition, ["at"]).pl()
    before = table.filter(pl.col("at") < datetime(2025, 1, 20))  # noqa: DTZ001 - as START
    week = before.filter(pl.col("at") >= datetime(2025, 1, 13))["level"].mean()  # noqa: DTZ001 - as START
    assert rows["level_mean_7_days"].to_list() == pytest.approx([week] * 24)
    assert rows["level_1_day_before"].to_list() == pytest.approx(before.tail(24)["level"].to_list())
    assert rows["level_7_days_before"].to_list() == pytest.approx(before.tail(7 * 24).head(24)["level"].to_list())
    month = before.filter(pl.col("at") >= datetime(2024, 12, 23))  # noqa: DTZ001 - as START
    of_hour = month.group_by(pl.col("at").dt.hour()).agg(pl.mean("level"))
    usual = (of_hour.sort("at")["level"] - month["level"].mean()).to_list()
    assert rows["level_of_hour_28_days"].to_list() == pytest.approx(usual)
    assert rows["hour"].to_list() == list(range(24))
    assert rows["weekday"].to_list() == [1] * 24


@pytest.mark.full
def test_a_sensor_with_the_same_day_every_day_ends_in_predictions_though_its_hour_says_all(cli, tmp_path):
    random, hours = np.random.default_rng(1), np.arange(24 * 50)
    usual = np.random.default_rng(99).normal(20, 5, 24)
    rows = readings(len(hours)).with_columns(level=usual[hours % 24] + random.normal(0, 1, len(hours)))
    rows.write_parquet(tmp_path / "sensor.parquet")
    answer = cli(tmp_path, "new", "sensor", "--from", "sensor.parquet", "--label", "level")
    assert answer.code == 0, answer.err
    assert "mean by hour" in next(line for line in answer.out.splitlines() if "proposed" in line)
    newest = str(rows["at"].max().date())
    ran = cli(tmp_path, "run", "sensor", "--partition", newest)
    assert ran.code == 0, ran.err
    ((scored, error),) = published(
        tmp_path,
        "SELECT (SELECT count(*) FROM sensor.predictions), value FROM sensor.performance WHERE metric = 'rmse'",
    )
    assert scored == 24
    assert error < 1.3, "the noise has 1"
    reasons = published(tmp_path, "SELECT DISTINCT reason FROM batch_platform.promotions")
    same = "(no difference)"
    guesses = (
        f"not clearly better than guessing (mean by hour): rmse 1.00 against 1.00 on 240 rows of 10 partitions {same}"
    )
    assert reasons == [(f"meets the gate; {guesses}",)]


@pytest.mark.full
def test_features_of_the_past_read_all_files_where_each_day_has_its_own(cli, tmp_path):
    for (day,), rows in readings(24 * 28).group_by(pl.col("at").dt.date()):
        rows.write_parquet(tmp_path / f"sensor_{day}.parquet")
    answer = cli(tmp_path, "new", "sensor", "--from", "sensor_*.parquet", "--label", "level")
    assert answer.code == 0, answer.err
    ran = cli(tmp_path, "run", "sensor")
    assert ran.code == 0, ran.err
    files = sorted((tmp_path / ".batch_platform/lake/sensor/features").rglob("*2025-01-26*.parquet"))
    (built,) = [pl.read_parquet(file) for file in files]
    assert built["level_mean_7_days"].null_count() == 0


@pytest.mark.full
def test_a_long_past_is_learned_from_and_only_its_last_periods_are_scored(tmp_path):
    readings(24 * 900).write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", now=datetime(2099, 1, 1, tzinfo=UTC))
    train = declared(files)["model"]["train"]
    assert (train["every"], train["start"]) == ("month", "2026-12-01")
    assert proposal.windows.start == START


LEAKS = {
    "copy": (
        lambda table: table.with_columns(copy=pl.col("left").fill_null(value=False).cast(pl.Int8)),
        "tells the value of left",
    ),
    "other name": (
        lambda table: table.with_columns(state=pl.when(pl.col("left")).then(pl.lit("gone")).otherwise(pl.lit("here"))),
        "tells the value of left",
    ),
    "null with it": (
        lambda table: table.with_columns(why=pl.when(pl.col("left").is_not_null()).then(pl.col("spend"))),
        "is null exactly where left is null",
    ),
    "constant": (lambda table: table.with_columns(country=pl.lit("DE")), "has the same value in every row"),
    "identifier": (
        lambda table: table.with_columns(other_id=pl.int_range(pl.len()) * 3),
        "is an identifier, with another value in every row",
    ),
    "free text": (
        lambda table: table.with_columns(note=pl.format("note {}", pl.int_range(pl.len()))),
        "is a text with about",
    ),
}


@pytest.mark.parametrize(("change", "reason"), LEAKS.values(), ids=LEAKS)
def test_what_tells_the_label_or_nothing_is_left_out_with_the_reason(tmp_path, change, reason):
    known = customers().with_columns(first_id=pl.int_range(pl.len()))
    table = change(known)
    table.write_parquet(tmp_path / "customers.parquet")
    proposal, _ = proposed(tmp_path / "customers.parquet", label="left", key=("first_id",))
    added = set(table.columns) - set(known.columns)
    assert {name for name, why in proposal.left_out.items() if reason in why} == added
    assert {"months", "spend"} <= {*names(proposal.features)}


def test_columns_that_add_up_to_the_label_are_left_out(tmp_path):
    random = np.random.default_rng(1)
    parts = {
        "casual": random.integers(0, 100, 500),
        "registered": random.integers(0, 300, 500),
        "heat": random.random(500),
    }
    pl.DataFrame(parts).with_columns(count=pl.col("casual") + pl.col("registered")).write_csv(tmp_path / "bikes.csv")
    proposal, _ = proposed(tmp_path / "bikes.csv", label="count")
    assert names(proposal.features) == ["heat"]
    assert proposal.left_out["casual"].startswith("adds up to count with registered")


def test_texts_with_few_values_are_kept_beside_the_predictions(tmp_path):
    customers().write_parquet(tmp_path / "customers.parquet")
    _, files = proposed(tmp_path / "customers.parquet")
    assert declared(files)["predictions"] == {"keep": ["plan"]}


def test_without_evidence_no_column_is_predicted_and_no_rows_are_grouped(cli, tmp_path):
    random = np.random.default_rng(2)
    pl.DataFrame({f"x{at}": random.random(200) for at in range(4)}).write_csv(tmp_path / "points.csv")
    refused = cli(tmp_path, "new", "points", "--from", "points.csv")
    assert (refused.code, list(tmp_path.iterdir())) == (2, [tmp_path / "points.csv"])
    assert "It is not clear which column of" in refused.error
    assert "--cluster groups similar rows instead" in refused.error
    assert cli(tmp_path, "new", "points", "--from", "points.csv", "--cluster").code == 0
    ran = cli(tmp_path, "run", "points")
    assert ran.code == 0, ran.err
    assert published(tmp_path, "SELECT count(*), count(DISTINCT prediction) FROM points.predictions") == [(200, 5)]
    both = cli(tmp_path, "new", "more", "--from", "points.csv", "--cluster", "--label", "x1")
    assert "--label and --cluster exclude each other" in both.error


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        ("parquet", pl.DataFrame.write_parquet),
        ("csv", pl.DataFrame.write_csv),
        ("jsonl", pl.DataFrame.write_ndjson),
    ],
)
def test_rows_of_several_files_that_nothing_names_are_named_by_their_file_and_place(tmp_path, ending, write):
    (tmp_path / "parts").mkdir()
    tables = [customers(300, spend=[float(at * 1000 + row) for row in range(300)]) for at in range(2)]
    for at, table in enumerate(tables):
        write(table, tmp_path / "parts" / f"part-{at}.{ending}")
    proposal, files = proposed(tmp_path / "parts", label="left")
    assert (names(proposal.key), proposal.key_holds) == (
        [],
        "as long as files keep their names and rows their place in them",
    )
    assert declared(files)["features"]["key"] == ["file", "row_in_file"]
    pipeline = pipeline_of(files, tmp_path)
    (partition,) = pipeline.spec.partitions.calendar.due(AFTER_ALL)[-1:]
    with pipeline.builder.sources.connect(partition) as con:
        rows = pipeline.builder.query.run(con, partition, ["file", "row_in_file"]).pl().sort("file", "row_in_file")
        (source,) = con.frames(partition, con.names).values()
        places = ["file", "row_in_file", "spend"]
        assert source.select(places).sort(places).collect().equals(rows.select(places)), "as Python features read them"
    assert rows["file"].to_list() == [f"part-{at}.{ending}" for at in (0, 1) for _ in range(300)]
    assert rows["row_in_file"].to_list() == 2 * [*range(1, 301)]
    assert rows["spend"].to_list() == [value for table in tables for value in table["spend"]]


def test_rows_of_arrow_files_need_a_key_of_their_own(tmp_path):
    for at in range(2):
        customers().write_ipc(tmp_path / f"part-{at}.arrow")
    with pytest.raises(WrongUseError, match=r"No column of .* identifies its rows, nor do two or three together"):
        proposed(tmp_path / "part-*.arrow", label="left")


def answered(folder: Path, *arguments: str, answers: dict[str, str]) -> str:
    """Call the command on a terminal and answer its questions; returns what the terminal showed."""
    ours, theirs = pty.openpty()
    process = start_command(folder, *arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, waiting, deadline = "", dict(answers), time.monotonic() + 300
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            shown += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        for question in [question for question in waiting if question in shown]:
            os.write(ours, f"{waiting.pop(question)}\n".encode())
    assert process.wait(60) == 0, shown
    assert not waiting, shown
    return shown


THE_KEY = {"Columns that identify a row": ""}
OF_ORDERS = ("--from", "orders.parquet", "--label", "returned")


def orders_created_later() -> pl.DataFrame:
    return orders().with_columns(created=pl.col("at") + timedelta(days=400))


@pytest.mark.full
def test_on_a_terminal_it_asks_for_the_label_unless_the_proposal_is_accepted_beforehand(tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    shown = answered(tmp_path, "new", "one", "--from", "customers.csv", answers={"Column to predict": "", **THE_KEY})
    assert "[left]" in shown, "the proposal is the default"
    assert "  plan: basic, plus, pro" in shown
    assert "  months: 1 to 69" in shown
    assert (
        declared({"defs.yaml": (tmp_path / "pipelines/defs/one/defs.yaml").read_text()})["labels"]["column"] == "left"
    )
    assert "Column to predict" not in answered(tmp_path, "new", "three", "--from", "customers.csv", "--yes", answers={})


def test_on_a_terminal_it_takes_another_label(tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    answered(
        tmp_path,
        "new",
        "two",
        "--from",
        "customers.csv",
        answers={"Column to predict": "pln", "'pln' is not possible; choose from": "plan", **THE_KEY},
    )
    assert (
        declared({"defs.yaml": (tmp_path / "pipelines/defs/two/defs.yaml").read_text()})["labels"]["column"] == "plan"
    )


def test_on_a_terminal_another_time_and_key_can_be_chosen(tmp_path):
    orders_created_later().write_parquet(tmp_path / "orders.parquet")
    answers = {"Time of a row": "created", "identify a row": "id, at"}
    answered(tmp_path, "new", "one", *OF_ORDERS, answers=answers)
    one = (tmp_path / "pipelines/defs/one/defs.yaml").read_text()
    assert "time: created" in one
    assert 'key: [id, "at"]' in one.replace("at]", '"at"]').replace('""', '"')


@pytest.mark.full
def test_on_a_terminal_no_time_can_be_chosen(tmp_path):
    orders_created_later().write_parquet(tmp_path / "orders.parquet")
    answered(tmp_path, "new", "two", *OF_ORDERS, answers={"Time of a row": "none", "identify a row": ""})
    assert "snapshot: true" in (tmp_path / "pipelines/defs/two/defs.yaml").read_text()


def labelled(rows: int, **columns: Any) -> pl.DataFrame:
    """Five measurements of which `outcome_7` depends on two, and others as given."""
    random = np.random.default_rng(11)
    measured = {f"m{at}": random.normal(size=rows).round(3) for at in range(5)}
    level = measured["m0"] + measured["m1"] + random.normal(0, 0.3, rows)
    return pl.DataFrame({"site": random.integers(0, 4, rows), **measured, "level_2": level.round(3), **columns})


@pytest.mark.full
def test_columns_that_can_be_learned_are_shown_first_with_their_values_and_the_command_to_repeat(tmp_path):
    random = np.random.default_rng(12)
    labelled(400, noise=random.normal(size=400)).write_csv(tmp_path / "table.csv")
    with survey(locate(str(tmp_path / "table.csv"), None), "UTC") as seen:
        points = {evidence.column.name: evidence.points for evidence in label_evidence(seen)}
    assert points["level_2"] > points["m2"] > points["m3"] - 0.01, "what others tell comes before what they do not"
    process = start_command(tmp_path, "new", "table", "--from", "table.csv", "--timezone", "Europe/Berlin")
    _, errors = process.communicate(timeout=300)
    assert "site (0, 1, 2, 3)" in errors
    assert re.search(r"level_2 \(-\d\.\d+ to \d\.\d+\)", errors)
    assert "Hint: name it: batch-platform new table --from table.csv --timezone Europe/Berlin --label " in errors


def test_the_last_word_of_a_name_says_whether_a_column_is_called_like_a_label(tmp_path):
    random = np.random.default_rng(13)
    others = {name: random.integers(0, 9, 300) for name in ("accounts_opened_by", "late_fees", "sold_via", "months")}
    values = random.normal(size=300) + others["late_fees"] / 3
    named = {"value_eur": values, "math4": random.normal(size=300)}
    more = {"y92": random.integers(0, 2, 300), "site": random.integers(0, 4, 300)}
    pl.DataFrame(others | named | more).write_csv(tmp_path / "table.csv")
    with survey(locate(str(tmp_path / "table.csv"), None), "UTC") as seen:
        ranked = label_evidence(seen)
    assert ranked[0].column.name == "value_eur"
    assert {evidence.column.name for evidence in ranked if "its name" in evidence.reasons} == {*named}


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("Order", range(1, 401), "counts the rows"),
        ("entry", [at * 37 % 430 for at in range(400)], "counts the rows"),
        ("PID", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("Patient MRN", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("id_str", [f"c{at}" for at in range(400)], "is a text with about 400 distinct values"),
        ("Kunden-Nr", [at // 8 for at in range(400)], "is called like an identifier, and has 50 values in 400 rows"),
        ("Rechnungsnummer", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("subject_id", [at // 8 for at in range(400)], "is called like an identifier, and has 50 values in 400 rows"),
        ("customer_name", [f"Ann {at // 8}" for at in range(400)], "is called like an identifier, and has 50 values"),
        (
            "name",
            [f"Ann {at // 8}" for at in range(400)],
            "is called like an identifier, and has 50 values in 400 rows",
        ),
        ("brand_name", [f"b{at // 8}" for at in range(400)], None),
        ("clerk", [f"Ann {at % 250}" for at in range(400)], "is a text with about 2"),
        ("Unnamed: 0", [at // 2 for at in range(400)], "is the number that pandas gave the row"),
        ("store_id", [at % 5 for at in range(400)], None),
        ("steps", [at * 7919 % 100_003 for at in range(400)], None),
        ("paid", [at * at for at in range(400)], None),
        ("lipid", [at * at * 3 for at in range(400)], None),
        ("distid", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("price_index", [100 + at / 7 for at in range(400)], None),
        ("consumerIndex", [at * at * 3 for at in range(400)], None),
        ("index", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("order_no", [at * at * 0.25 for at in range(400)], None),
        (
            "order_no",
            [None, *(at * 3.0 for at in range(399))],
            "is an identifier, with another value in every row that has one",
        ),
    ],
)
def test_identifiers_are_no_features_and_a_unique_quantity_is(tmp_path, name, values, reason):
    labelled(400, **{name: values, "y": [at % 3 == 0 for at in range(400)]}).write_csv(tmp_path / "table.csv")
    with survey(locate(str(tmp_path / "table.csv"), None), "UTC") as seen:
        reasons = feature_reasons(seen, seen.column("y"), [seen.column("y")], None)
    told = reasons[next(column for column in reasons if column.name == name)]
    assert told is reason is None or (told or "").startswith(reason or "no reason")


def test_a_table_with_times_is_scored_whole_if_that_is_asked_for(cli, tmp_path):
    orders().write_parquet(tmp_path / "orders.parquet")
    made = cli(tmp_path, "new", "orders", "--from", "orders.parquet", "--snapshot", "--json").json
    assert (made["snapshot"], made["time"]) == (True, None)
    assert cli(tmp_path, "run", "orders").code == 0
    both = cli(tmp_path, "new", "two", "--from", "orders.parquet", "--snapshot", "--time", "at")
    assert both.code == 2
    assert "--time and --snapshot exclude each other" in both.error


def test_a_proposal_that_would_not_run_is_not_written(cli, tmp_path, monkeypatch):
    from batch_platform.cli import new

    customers().write_csv(tmp_path / "customers.csv")
    written = new.files_of
    monkeypatch.setattr(new, "files_of", lambda *of: written(*of) | {"features.sql": "SELECT nothing FROM nowhere"})
    answer = cli(tmp_path, "new", "broken", "--from", "customers.csv")
    assert answer.code == 1
    assert list((tmp_path / "pipelines/defs").iterdir()) == [tmp_path / "pipelines/defs/__init__.py"]


def test_years_make_no_partitions_but_may_name_a_row(tmp_path):
    planes = pl.DataFrame({"tail": [f"N{at}" for at in range(300)], "year": [1960 + at % 50 for at in range(300)]})
    planes = planes.with_columns(seats=pl.col("year") % 17 * 10 + pl.int_range(300) % 3)
    planes.write_parquet(tmp_path / "planes.parquet")
    proposal, _ = proposed(tmp_path / "planes.parquet", label="seats")
    assert (proposal.windows, names(proposal.key), names(proposal.features)) == (None, ["tail"], ["year"])
    firms = planes.with_columns(tail=pl.format("firm {}", pl.int_range(300) // 50), heat=pl.int_range(300) % 13)
    firms.write_parquet(tmp_path / "firms.parquet")
    proposal, _ = proposed(tmp_path / "firms.parquet", label="seats")
    assert (proposal.windows, names(proposal.key)) == (None, ["tail", "year"])
    asked, _ = proposed(tmp_path / "firms.parquet", label="seats", time="year")
    assert (asked.every, "month" in asked.windows.calendar) == ("month", False), "it is January in every row"


def test_columns_that_are_all_there_is_to_learn_from_are_features_and_no_key(tmp_path):
    fields = pl.DataFrame(
        {"site": [f"s{at // 20}" for at in range(400)], "variety": [f"v{at % 20}" for at in range(400)]}
    )
    fields.with_columns(harvest=pl.int_range(400) % 20 * 1.5 + pl.int_range(400) // 20).write_csv(
        tmp_path / "fields.csv"
    )
    proposal, _ = proposed(tmp_path / "fields.csv", label="harvest")
    assert (names(proposal.key), names(proposal.features)) == ([], ["site", "variety"])


@pytest.mark.parametrize("days", [15, 20, 40, 50, 120, pytest.param(800, marks=pytest.mark.full)])
def test_a_training_period_is_proposed_wherever_two_weeks_allow_one_and_never_many_models(tmp_path, days):
    readings(24 * days).write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", now=datetime(2099, 1, 1, tzinfo=UTC))
    spec = pipeline_of(files, tmp_path).spec
    periods = serving_periods(spec, datetime(2099, 1, 1, tzinfo=UTC))
    assert proposal.train_every in ("week", "month")
    assert 1 <= len(periods) <= MOST_MODELS + 1, "the last one begins where the table ends"
    assert spec.model.train.start in (None, periods[0].key), "the first declared period has enough to learn from"


@pytest.mark.parametrize(("label", "days", "start"), [("text", 90, None), ("numbers", 120, "2025-04-02")])
def test_a_first_serving_period_is_declared_only_where_enough_labels_are_known_by_then(tmp_path, label, days, start):
    """Earlier values of numbers are features, which need a delay more: 20 days for them, 40 for labels, 28 to learn and judge."""
    table = unlabelled(readings(24 * days), "level", 24 * 20)
    if label == "text":
        table = table.with_columns(
            pl.col("level").round().cast(pl.Int64).cast(pl.String), pressure=pl.int_range(pl.len()) % 7
        )
    table.write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", now=datetime(2099, 1, 1, tzinfo=UTC), label="level")
    assert str(proposal.windows.delay) == "20 days"
    assert declared(files)["model"]["train"].get("start") == start
    assert len(serving_periods(pipeline_of(files, tmp_path).spec, datetime(2099, 1, 1, tzinfo=UTC))) <= MOST_MODELS


def test_a_table_with_too_few_labels_or_a_single_one_is_refused(cli, tmp_path):
    customers(70).write_csv(tmp_path / "few.csv")
    refused = cli(tmp_path, "new", "few", "--from", "few.csv")
    assert refused.code == 2
    assert "cannot be trained: There are 16 rows to learn from; at least 20 are needed." in refused.error
    customers(left=[1] * 599 + [None]).write_csv(tmp_path / "same.csv")
    refused = cli(tmp_path, "new", "same", "--from", "same.csv", "--label", "left")
    assert (refused.code, "cannot be trained: " in refused.error) == (2, True)


@pytest.mark.parametrize(
    ("rows", "strays", "lost", "delay"),
    [
        (240, 0, 0, "10 days"),
        (240, 5, 0.3, "10 days"),
        (245, 0, 0, "11 days"),
        (0, 0, 0.3, "0 days"),
        (1, 0, 0, "1 day"),
    ],
)
def test_labels_are_known_as_late_as_the_end_of_the_table_without_labels_is_long(tmp_path, rows, strays, lost, delay):
    table = unlabelled(readings().with_columns(state=pl.col("level") > 10), "state", rows, strays=strays, lost=lost)
    table.write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", label="state")
    assert (proposal.every, str(proposal.windows.delay)) == ("day", delay)
    assert declared(files)["labels"]["delay"] == delay


@pytest.mark.full
def test_a_table_without_labels_in_its_last_weeks_is_trained_and_measured_on_what_is_mature(cli, tmp_path):
    table = unlabelled(readings(), "level", 24 * 14)
    table.write_parquet(tmp_path / "sensor.parquet")
    answer = cli(tmp_path, "new", "sensor", "--from", "sensor.parquet", "--label", "level", "--yes")
    assert "level; known 14 days later, as the newest 14 days have none (labels.delay)" in answer.out
    ran = cli(tmp_path, "run", "sensor")
    assert ran.code == 0, ran.err
    last = START + timedelta(hours=HOURS)
    ((until,),) = published(tmp_path, "SELECT max(trained_until) FROM batch_platform.model_versions")
    assert until.replace(tzinfo=None) <= last - timedelta(days=14)
    assert published(tmp_path, "SELECT max(partition_key) FROM sensor.predictions") == [
        (f"{last - timedelta(days=1):%Y-%m-%d}",)
    ]
    assert published(tmp_path, "SELECT count(*) > 0 FROM sensor.performance WHERE value IS NOT NULL") == [(True,)]
    unlabelled(readings(24 * 120), "level", 24 * 14).write_parquet(tmp_path / "longer.parquet")
    proposal, files = proposed(tmp_path / "longer.parquet", label="level")
    assert proposal.windows.past.lags == ()
    assert "past.\"at\" < $partition_start - INTERVAL '14 days'" in files["features.sql"]


COUNTERS = {"n": list(range(1, HOURS + 1)), "rownames": list(range(HOURS, 0, -1))}
MEASURES = {
    "day": [at.day for at in readings()["at"]],
    "visits": np.cumsum(np.random.default_rng(9).integers(1, 4, HOURS)).tolist(),
    "stock": np.random.default_rng(9).permutation(HOURS * 2)[:HOURS].tolist(),
}


@pytest.mark.full
def test_a_counter_of_the_rows_of_a_series_is_neither_key_nor_feature(tmp_path):
    table = readings().with_columns(pl.Series(name, values) for name, values in {**COUNTERS, **MEASURES}.items())
    spread = pl.int_range(HOURS) + (pl.int_range(HOURS) - 700).clip(0)
    table = table.with_columns(at=START + pl.duration(hours=1) * spread, level=pl.col("level") + pl.col("visits") / 1e3)
    table.write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", label="level")
    assert names(proposal.key) == ["at"]
    assert {*names(proposal.features)} == {*MEASURES}
    assert proposal.left_out == dict.fromkeys(COUNTERS, "counts the rows, which at already identifies")
    assert "--   rownames: counts the rows, which at already identifies" in files["features.sql"]
    named, _ = proposed(tmp_path / "sensor.parquet", label="level", key=("n",))
    assert (names(named.key), "rownames" in named.left_out) == (["n"], True)


@pytest.mark.parametrize("name", ["id", "invoice_no"])
def test_an_id_is_the_key_of_a_series_which_learns_from_its_past_all_the_same(tmp_path, name):
    readings().with_columns(pl.int_range(HOURS).alias(name), row_no=pl.int_range(HOURS)).write_parquet(
        tmp_path / "sensor.parquet"
    )
    proposal, files = proposed(tmp_path / "sensor.parquet", label="level")
    assert (names(proposal.key), names(proposal.features)) == ([name], [])
    assert "level_1_day_before" in files["features.sql"]


def test_a_series_with_a_time_twice_is_proposed_and_the_time_named(tmp_path):
    table = readings()
    pl.concat([table, table.tail(1)]).write_parquet(tmp_path / "sensor.parquet")
    proposal, files = proposed(tmp_path / "sensor.parquet", label="level")
    assert (names(proposal.key), proposal.key_holds) == ([], BY_CONTENT)
    assert "level_1_day_before" in files["features.sql"]
    assert (
        f"at would be the key, but several rows have the same time (2 rows at {table['at'][-1]:%Y-%m-%d %H:%M} UTC)"
        in files["features.sql"]
    )
    pl.concat([table, table]).write_parquet(tmp_path / "twice.parquet")
    with pytest.raises(WrongUseError, match=f"at is not unique: several rows have {HOURS:,} of its values, such as "):
        proposed(tmp_path / "twice.parquet", label="level")


def test_a_counter_stays_the_key_where_times_repeat(tmp_path):
    table = pl.concat([readings(), readings()]).with_columns(n=pl.int_range(2 * HOURS), flow=pl.col("level") % 1)
    table.write_parquet(tmp_path / "sensors.parquet")
    assert names(proposed(tmp_path / "sensors.parquet", label="level")[0].key) == ["n"]


def test_a_number_of_events_stays_the_key_where_their_times_are_unique_by_chance(tmp_path):
    table = readings().with_columns(n=pl.int_range(HOURS), flow=pl.col("level") % 1)
    seconds = (pl.int_range(HOURS) ** 2) % 3541  # within the hour, at no regular interval
    table.with_columns(pl.col("at") + pl.duration(seconds=seconds)).write_parquet(tmp_path / "events.parquet")
    proposal, _ = proposed(tmp_path / "events.parquet", label="level")
    assert (names(proposal.key), proposal.windows.past) == (["n"], None)


def test_predictions_that_another_label_cannot_keep_are_announced_and_start_anew(cli, tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    assert cli(tmp_path, "new", "churn", "--from", "customers.csv", "--label", "left").code == 0
    assert cli(tmp_path, "run", "churn").code == 0
    ((day,),) = published(tmp_path, "SELECT DISTINCT partition_key FROM churn.predictions")
    announced = (
        "churn: its models predict truth values, but they are to predict texts now. Predictions start anew, with new models. "
        "The first commit of new predictions deletes the old ones of 1 partition, with what was measured of them; until then "
        "they can be read."
    )
    shutil.rmtree(tmp_path / "pipelines/defs/churn")
    assert cli(tmp_path, "new", "churn", "--from", "customers.csv", "--label", "plan").code == 0
    refused = cli(tmp_path, "run", "churn", "--partition", day)
    assert (refused.code, "Hint: batch-platform run churn" in refused.error) == (2, True)
    ran = cli(tmp_path, "run", "churn")
    assert ran.code == 0, ran.err
    assert announced in ran.out
    plans = published(tmp_path, "SELECT DISTINCT prediction FROM churn.predictions ORDER BY 1")
    assert {plan for (plan,) in plans} <= {"basic", "plus", "pro"}
    again = cli(tmp_path, "run", "churn")
    assert (again.code, "anew" in again.out) == (0, False)
