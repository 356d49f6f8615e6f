"""`batch-platform new`: from somebody's table to scores, whatever its columns are called and hold."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import LONGEST
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.proposal import choices
from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform_tests.harness.small_pipeline import carry_out
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.proposal.proposals import (
    AFTER_ALL,
    DAYS,
    ROWS,
    START,
    names,
    orders,
    pipeline_of,
    proposed,
    proposed_for,
)

pytestmark = pytest.mark.usefixtures("few_trees")


def scored(pipeline: Pipeline) -> dict[str, int]:
    """The rows scored by partition, once all is done that is due."""
    carry_out(pipeline, AFTER_ALL)
    carry_out(pipeline, AFTER_ALL)  # features first, where a model waits for them
    return {key: run.rows_scored for key, run in pipeline.state().scores.items()}


def assert_all_scored_from_the_first_model_on(pipeline: Pipeline) -> None:
    """Require that the pipeline scores every order of each day from its first model on, which is early enough for ten days."""
    rows = scored(pipeline)
    assert len(rows) >= 10
    assert sum(rows.values()) == orders().filter(pl.col("at") >= datetime.fromisoformat(min(rows))).height


def test_the_report_as_json_names_every_choice_and_what_else_could_be(cli, tmp_path):
    orders(signed_up_at=[START] * ROWS, code=range(ROWS)).write_parquet(tmp_path / "orders.parquet")
    report = cli(tmp_path, "new", "orders", "--from", "orders.parquet", "--json").json
    assert (report["key"], report["time"], report["label"]) == (["id"], "at", "returned")
    assert report["others"] == {"key": ["code"], "time": ["signed_up_at"], "label": ["amount", "items", "shop"]}
    assert report["label_evidence"] == ["its name", "it has two values"]
    assert (report["every"], report["partitions"], report["rows"]) == ("day", DAYS, ROWS)
    assert report["features"] == ["amount", "items", "shop"]
    assert report["left_out"] == {
        "code": "is an identifier, with another value in every row",
        "signed_up_at": "is a time, from which a number could be computed as a feature, such as an age in days",
    }
    assert {file.name for file in Path(report["folder"]).iterdir()} == {"defs.yaml", "features.sql", "labels.sql"}
    taken = cli(tmp_path, "new", "orders", "--from", "orders.parquet")
    assert (taken.code, "already exists. Hint: choose another name, or delete the folder" in taken.error) == (2, True)
    moved = Path(report["folder"]).rename(Path(report["folder"]).with_name("renamed"))
    declared = cli(tmp_path, "new", "orders", "--from", "orders.parquet")
    assert (declared.code, f"{moved / 'defs.yaml'} declares a pipeline 'orders' already." in declared.error) == (
        2,
        True,
    )
    unknown = cli(tmp_path, "new", "more", "--from", "orders.parquet", "--label", "retuned")
    assert (unknown.code, "did you mean 'returned'?" in unknown.error) == (2, True)


def noisy(values: int) -> list[int]:
    """The value, of some in turn, that a row has, but any of them in two fifths of the rows: less would be a copy of the label."""
    random = np.random.default_rng(2)
    wrong, other = random.random(ROWS) < 0.4, random.integers(0, values, ROWS)
    return [int(other[at]) if wrong[at] else at % values for at in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "target", "estimator"),
    [
        ({}, "classes", "HistGradientBoostingClassifier"),
        pytest.param(
            {"returned": None, "items": noisy(3), "label": ["yes", "no", "later"] * (ROWS // 3)},
            "classes",
            "HistGradientBoostingClassifier",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"returned": None, "items": noisy(50), "target": [at % 50 * 3 for at in range(ROWS)]},
            "numbers",
            "HistGradientBoostingRegressor",
            marks=pytest.mark.full,
        ),
        pytest.param({"returned": None}, "none", "KMeans", marks=pytest.mark.full),
    ],
)
def test_the_estimator_follows_from_the_label(tmp_path, columns, target, estimator):
    proposal, files = proposed_for(orders(**columns), tmp_path, cluster=target == "none")
    assert proposal.target == target
    assert estimator in files["defs.yaml"]
    assert ("labels.sql" in files) == (target != "none")
    assert_all_scored_from_the_first_model_on(pipeline_of(files, tmp_path))


FILLING = 1_800  # rows


def times(**step: int) -> list[datetime]:
    return [START + timedelta(**step) * at for at in range(FILLING)]


@pytest.mark.parametrize(
    ("columns", "every", "start", "end"),
    [
        ({"at": times(seconds=60)}, "hour", "2025-01-01-00:00", "2025-01-02-06:00"),
        ({"at": times(hours=1)}, "day", "2025-01-01", "2025-03-17"),
        ({"at": times(hours=30)}, "week", "2024-12-30", "2031-03-03"),
        ({"at": [date(2025, 1 + at % 12, 1) for at in range(FILLING)]}, "month", "2025-01-01", "2026-01-01"),
    ],
)
def test_partitions_are_as_long_as_the_rows_fill(tmp_path, columns, every, start, end):
    proposal, files = proposed_for(orders(FILLING, **columns), tmp_path, now=datetime(2099, 1, 1, tzinfo=UTC))
    partitions = yaml.safe_load(files["defs.yaml"])["attributes"]["partitions"]
    assert (proposal.every, partitions["start"], partitions["end"]) == (every, start, end)
    calendar = PipelineSpec.model_validate(yaml.safe_load(files["defs.yaml"])["attributes"]).partitions.calendar
    first, last = proposal.windows.span.first, proposal.windows.span.last
    assert calendar.first_start <= first
    assert calendar.last_end is not None
    assert calendar.last_end > last
    assert calendar.holding(first) is not None
    judged_by = 2 if every == "month" else 5  # partitions; a quarter of eleven months is two
    assert proposal.windows.evaluate.nominal >= judged_by * LONGEST[every].nominal


@pytest.mark.parametrize(("rows_of_a_day", "every"), [(20, "week"), (30, "day"), (45, "day")])
def test_days_of_few_rows_become_weeks_if_enough_of_them_remain(tmp_path, rows_of_a_day, every):
    days = [START + timedelta(days=at // rows_of_a_day) for at in range(FILLING)]
    assert proposed_for(orders(FILLING, at=days), tmp_path)[0].every == every


def test_a_key_of_two_columns_is_found_by_their_names_and_can_be_named(tmp_path):
    columns = {"id": None, "customer_id": [at // 3 for at in range(ROWS)], "product_id": [at % 3 for at in range(ROWS)]}
    assert names(proposed_for(orders(**columns), tmp_path)[0].key) == ["customer_id", "product_id"]
    asked = proposed(tmp_path / "table.parquet", key=("product_id", "customer_id"))[0]
    assert names(asked.key) == ["product_id", "customer_id"]
    with pytest.raises(WrongUseError, match="are not identified by product_id: some"):
        proposed(tmp_path / "table.parquet", key=("product_id",))


@pytest.mark.full
def test_names_that_scoring_takes_for_itself_give_way(tmp_path):
    _, files = proposed_for(orders().rename({"id": "run_id", "at": "scored_at", "amount": "score"}), tmp_path)
    features = yaml.safe_load(files["defs.yaml"])["attributes"]["features"]
    assert (features["key"], features["time"]) == (["run_id_given"], "scored_at_given")
    assert_all_scored_from_the_first_model_on(pipeline_of(files, tmp_path))


def test_a_column_that_tells_the_label_is_found_in_a_table_of_which_a_sample_is_compared(tmp_path):
    rows, random = 50_000, np.random.default_rng(6)
    label = random.integers(0, 3, rows)
    known = {"y": [None if at % 10 == 9 else int(value) for at, value in enumerate(label)], "heat": random.random(rows)}
    other_name = [["north", "south", "west"][value] for value in label]
    with_it = [None if value is None else at % 5 for at, value in enumerate(known["y"])]
    table = pl.DataFrame({**known, "region": other_name, "refund": with_it})
    proposal, _ = proposed_for(table, tmp_path, label="y")
    assert names(proposal.features) == ["heat"]
    assert proposal.left_out == {
        "region": "tells the value of y, so it may be known only with the label",
        "refund": "is null exactly where y is null, so it may be known only with the label",
    }


def test_models_of_a_large_table_learn_from_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "MOST_LEARNED", ROWS - 1)
    _, files = proposed_for(orders(), tmp_path)
    assert pipeline_of(files, tmp_path).spec.model.train.max_rows == ROWS - 1


@pytest.mark.parametrize("stand_in", [None, datetime(1900, 1, 1)])  # noqa: DTZ001 - as START
def test_rows_without_a_time_are_reported(cli, tmp_path, stand_in):
    lacking = [stand_in if at % 10 == 0 else time for at, time in enumerate(orders()["at"])]
    proposal, files = proposed_for(orders(at=lacking), tmp_path)
    assert (proposal.windows.timeless, proposal.every, proposal.windows.span.filled["day"]) == (ROWS // 10, "day", DAYS)
    far_off = ", or far from all others, such as 1900-01-01" if stand_in else ""
    why = f"{ROWS // 10} rows whose at is not a time{far_off}"
    assert f"-- In no partition: {why}." in files["features.sql"]
    answer = cli(tmp_path, "new", "orders", "--from", "table.parquet")
    assert f"; in no partition: {why}" in answer.out
    assert f"{tmp_path} is now a Dagster project." in answer.out


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        (
            {"returned": None},
            {},
            "It is not clear which column of .* to predict. It could be .*shop \\(.*, north', süd--\\)",
        ),
        (
            dict.fromkeys(("at", "amount", "items", "shop")) | {"same": [1] * ROWS, "code": range(ROWS)},
            {"label": "returned"},
            "left to learn from: code is an identifier, with another value in every row; id is a text .*; same has the same",
        ),
        ({}, {"time": "shop"}, "'shop' of .* has type VARCHAR and cannot be read as times"),
        (
            {"house": [f"house {at % 450}" if at > 0 else None for at in range(ROWS)]},
            {"label": "house"},
            "'house' of .* holds 450 distinct texts in 899 rows; texts can be predicted only if each is in two rows",
        ),
    ],
)
def test_a_table_without_a_possible_pipeline_is_refused_with_the_reason(tmp_path, columns, asked, message):
    with pytest.raises(WrongUseError, match=message):
        proposed_for(orders(**columns), tmp_path, **asked)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("new", "Orders", "--from", "orders.parquet"), 2, "'Orders' is not a valid name"),
        (("new", "orders", "--from", "oders.parquet"), 2, "did you mean 'orders.parquet'?"),
        (
            ("new", "orders", "--from", "orders.parquet", "--table", "orders"),
            2,
            "is not a DuckDB file. Hint: give --table with a DuckDB file",
        ),
        (("new", "orders", "--from", "broken.parquet"), 1, "broken.parquet'. Hint: correct the file"),
        (("new", "orders", "--from", "empty.parquet"), 2, "has no rows"),
        (("new", "orders", "--from", "{{ x }}.parquet"), 2, "brackets that have a meaning"),
    ],
)
def test_wrong_use_is_explained_in_one_paragraph_and_writes_nothing(cli, tmp_path, arguments, code, message):
    orders(100).write_parquet(tmp_path / "orders.parquet")
    orders(100).clear().write_parquet(tmp_path / "empty.parquet")
    for name in ("broken.parquet", "{{ x }}.parquet"):
        (tmp_path / name).write_bytes(b"PAR1 no table")
    before = {path.name for path in tmp_path.iterdir()}
    answer = cli(tmp_path, *arguments)
    assert answer.code == code
    assert message in answer.error
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_project_of_another_kind_is_left_alone(cli, tmp_path):
    orders(100).write_parquet(tmp_path / "orders.parquet")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\nversion = '1'\n")
    answer = cli(tmp_path, "new", "orders", "--from", "orders.parquet")
    assert (answer.code, "[tool.dg.project]" in answer.error) == (2, True)
    (tmp_path / "pyproject.toml").unlink()
    (tmp_path / "pipelines").mkdir()
    answer = cli(tmp_path, "new", "orders", "--from", "orders.parquet")
    assert (answer.code, "already contains 'pipelines'" in answer.error) == (2, True)
    assert {path.name for path in tmp_path.rglob("*")} == {"orders.parquet", "pipelines"}


WORDS = ["select", "order", "yes", "null", "date", "Group", "*", "{{ env.HOME }}", 'na"me; DROP TABLE x --']
NAMES = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(NAMES, min_size=4, max_size=4, unique_by=str.casefold))
@pytest.mark.full
def test_the_files_refer_to_columns_of_any_name(tmp_path_factory, columns):
    folder = tmp_path_factory.mktemp("named")
    key, time, label, feature = columns
    own = {"id": key, "at": time, "returned": label, "amount": feature}
    orders(60, items=None, shop=None).rename(own).write_parquet(folder / "orders.parquet")
    with survey(locate(str(folder / "orders.parquet"), None), "UTC") as seen:
        assume({column.name for column in seen.columns} == {*columns})  # DuckDB renames what differs in capitals alone
    proposal, files = proposed(folder / "orders.parquet", key=(key,), time=time, label=label)
    declared = PipelineSpec.model_validate(yaml.safe_load(files["defs.yaml"])["attributes"])
    pipeline = pipeline_of(files, folder)
    calendar = declared.partitions.calendar
    partition = calendar.holding(proposal.windows.span.first)
    assert partition is not None
    with pipeline.builder.sources.connect(partition) as con:
        assert pipeline.builder.query is not None
        assert pipeline.builder.labels_query is not None
        made = pipeline.builder.query.run(con, partition, [*declared.features.key, declared.features.time or ""])
        assert len(made.columns) == 5, "with the hour and the weekday"
        assert made.pl().height
        assert declared.labels is not None
        labels = pipeline.builder.labels_query.run(con, partition, [*declared.features.key, declared.labels.column])
        assert labels.pl().height
