"""`batch-platform new`: tables of every shape become pipelines, and what would deceive a model is left out."""

import os
import pty
import select
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import WrongUseError
from batch_platform.proposal.choices import BY_CONTENT, MOST_MODELS
from batch_platform.proposal.columns import feature_reasons
from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform_tests.harness.command_line import published, start_command
from batch_platform_tests.harness.small_pipeline import carry_out
from batch_platform_tests.proposal.proposals import (
    AFTER_ALL,
    HOURS,
    START,
    customers,
    declared,
    names,
    pipeline_of,
    proposed,
    proposed_for,
    readings,
    unlabelled,
)

pytestmark = pytest.mark.usefixtures("few_trees")

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def test_a_table_without_times_is_scored_whole_today_and_its_rows_are_named_by_their_place(tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    proposal, files = proposed(tmp_path / "customers.csv", now=NOON)
    assert (proposal.windows, names(proposal.key), proposal.label.name) == (None, [], "left")
    assert "it is the only column with nulls" in proposal.evidence
    attributes = declared(files)
    assert attributes["partitions"] == {"every": "day", "start": "2025-06-01", "snapshot": True, "timezone": "UTC"}
    assert attributes["features"]["key"] == ["row_in_file"]
    assert attributes["predictions"] == {"keep": ["plan"]}, "a text with few values"
    assert attributes["model"]["train"] == {"every": "month", "held_out": 0.2}
    pipeline = pipeline_of(files, tmp_path)
    carry_out(pipeline, NOON)
    assert [run.rows_scored for run in pipeline.state().scores.values()] == [600]
    rows = pipeline.history.features(*pipeline.state().features.values())
    assert rows.sort("row_in_file")["months"].to_list() == customers()["months"].to_list()


def test_a_time_can_be_the_key(tmp_path):
    proposal, files = proposed_for(readings(), tmp_path, now=(START + timedelta(hours=HOURS + 2)).replace(tzinfo=UTC))
    assert (names(proposal.key), proposal.windows.time.name, proposal.every) == (["at"], "at", "day")
    assert proposal.evidence == ("no other column can be predicted",)
    assert "end" not in declared(files)["partitions"], "more rows are to come"


def sales() -> list[dict[str, Any]]:
    days = [START + timedelta(days=day) for day in range(400)]
    noise = iter(np.random.default_rng(4).normal(0, 2, 3 * len(days)))
    return [
        {"shop": shop, "day": day, "sales": 50.0 + 20 * at + 10 * (day.weekday() > 4) + next(noise)}
        for day in days
        for at, shop in enumerate(("a", "b", "c"))
    ]


def test_a_panel_is_keyed_by_entity_and_time(tmp_path):
    proposal, files = proposed_for(pl.DataFrame(sales()), tmp_path)
    assert (names(proposal.key), proposal.label.name, proposal.every) == (["shop", "day"], "sales", "week")
    assert declared(files)["features"]["time"] == "day"


def test_features_of_the_past_are_what_was_known_when_the_partition_started(tmp_path):
    table = readings()
    _, files = proposed_for(table, tmp_path, timezone="UTC")
    assert "level_1_day_before" in declared(files)["model"]["allow_suspected_leaks"], "which tell a smooth label"
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


def test_columns_that_add_up_to_the_label_are_left_out(tmp_path):
    random = np.random.default_rng(1)
    parts = pl.DataFrame({name: random.integers(0, 300, 500) for name in ("casual", "registered", "heat")})
    bikes = parts.with_columns(count=pl.col("casual") + pl.col("registered"))
    proposal, _ = proposed_for(bikes, tmp_path, label="count")
    assert names(proposal.features) == ["heat"]
    assert proposal.left_out["casual"].startswith("adds up to count with registered")


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
    ("ending", "write"), [("parquet", pl.DataFrame.write_parquet), ("csv", pl.DataFrame.write_csv)]
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


@pytest.mark.full
def test_on_a_terminal_it_takes_another_label(tmp_path):
    customers().write_csv(tmp_path / "customers.csv")
    answers = {"Column to predict": "pln", "'pln' is not possible; choose from": "plan", "Columns that identify": ""}
    shown = answered(tmp_path, "new", "two", "--from", "customers.csv", answers=answers)
    assert "[left]" in shown, "the proposal is the default"
    assert "column: plan" in (tmp_path / "pipelines/defs/two/defs.yaml").read_text()


def labelled(rows: int, **columns: Any) -> pl.DataFrame:
    """Five measurements, and others as given."""
    random = np.random.default_rng(11)
    measured = {f"m{at}": random.normal(size=rows).round(3) for at in range(5)}
    return pl.DataFrame({"site": random.integers(0, 4, rows), **measured, **columns})


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("entry", [at * 37 % 430 for at in range(400)], "counts the rows"),
        ("PID", [at * at * 3 for at in range(400)], "is an identifier, with another value in every row"),
        ("Kunden-Nr", [at // 8 for at in range(400)], "is called like an identifier, and has 50 values in 400 rows"),
        ("brand_name", [f"b{at // 8}" for at in range(400)], None),
        ("clerk", [f"Ann {at % 250}" for at in range(400)], "is a text with about 2"),
        ("Unnamed: 0", [at // 2 for at in range(400)], "is the number that pandas gave the row"),
        ("store_id", [at % 5 for at in range(400)], None),
        ("lipid", [at * at * 3 for at in range(400)], None),
        ("price_index", [100 + at / 7 for at in range(400)], None),
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
    proposal, _ = proposed_for(planes, tmp_path, label="seats")
    assert (proposal.windows, names(proposal.key), names(proposal.features)) == (None, ["tail"], ["year"])


@pytest.mark.parametrize("days", [15, 50, pytest.param(800, marks=pytest.mark.full)])
def test_a_training_period_is_proposed_wherever_two_weeks_allow_one_and_never_many_models(tmp_path, days):
    proposal, files = proposed_for(readings(24 * days), tmp_path, now=datetime(2099, 1, 1, tzinfo=UTC))
    spec = pipeline_of(files, tmp_path).spec
    periods = spec.periods.begun(datetime(2099, 1, 1, tzinfo=UTC))
    assert proposal.train_every in ("week", "month")
    assert 1 <= len(periods) <= MOST_MODELS + 1, "the last one begins where the table ends"
    assert spec.model.train.start in (None, periods[0].key), "the first declared period has enough to learn from"


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
    [(240, 0, 0, "10 days"), (240, 5, 0.3, "10 days"), (245, 0, 0, "11 days"), (0, 0, 0.3, "0 days")],
)
def test_labels_are_known_as_late_as_the_end_of_the_table_without_labels_is_long(tmp_path, rows, strays, lost, delay):
    table = unlabelled(readings().with_columns(state=pl.col("level") > 10), "state", rows, strays=strays, lost=lost)
    proposal, files = proposed_for(table, tmp_path, label="state")
    assert (proposal.every, str(proposal.windows.delay)) == ("day", delay)
    assert declared(files)["labels"]["delay"] == delay


COUNTERS = {"n": list(range(1, HOURS + 1)), "rownames": list(range(HOURS, 0, -1))}
MEASURES = {
    "day": [at.day for at in readings()["at"]],
    "visits": np.cumsum(np.random.default_rng(9).integers(1, 4, HOURS)).tolist(),
    "stock": np.random.default_rng(9).permutation(HOURS * 2)[:HOURS].tolist(),
}


def test_a_counter_of_the_rows_of_a_series_is_neither_key_nor_feature(tmp_path):
    table = readings().with_columns(pl.Series(name, values) for name, values in {**COUNTERS, **MEASURES}.items())
    spread = pl.int_range(HOURS) + (pl.int_range(HOURS) - 700).clip(0)
    table = table.with_columns(at=START + pl.duration(hours=1) * spread, level=pl.col("level") + pl.col("visits") / 1e3)
    proposal, files = proposed_for(table, tmp_path, label="level")
    assert names(proposal.key) == ["at"]
    assert {*names(proposal.features)} == {*MEASURES}
    assert proposal.left_out == dict.fromkeys(COUNTERS, "counts the rows, which at already identifies")
    assert "--   rownames: counts the rows, which at already identifies" in files["features.sql"]


def test_a_series_with_a_time_twice_is_proposed_and_the_time_named(tmp_path):
    table = readings()
    proposal, files = proposed_for(pl.concat([table, table.tail(1)]), tmp_path, label="level")
    assert (names(proposal.key), proposal.key_holds) == ([], BY_CONTENT)
    assert "level_1_day_before" in files["features.sql"]
    assert (
        f"at would be the key, but several rows have the same time (2 rows at {table['at'][-1]:%Y-%m-%d %H:%M} UTC)"
        in files["features.sql"]
    )
    pl.concat([table, table]).write_parquet(tmp_path / "twice.parquet")
    with pytest.raises(WrongUseError, match=f"at is not unique: several rows have {HOURS:,} of its values, such as "):
        proposed(tmp_path / "twice.parquet", label="level")
