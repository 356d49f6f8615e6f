"""`batch-platform new`: the past of a table chooses among what can be proposed, and what is proposed can be trained."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from batch_platform.proposal import trial
from batch_platform.proposal.choices import Asked, Proposal, propose
from batch_platform.proposal.files import Layout, files_of
from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform.proposal.trial import COLUMNS, COURSE, EARLIER, TREND, Past, Trial, past_of, that_runs, tried
from batch_platform_tests.proposal.proposals import (
    AFTER_ALL,
    customers,
    declared,
    pipeline_of,
    proposed,
    readings,
    unlabelled,
)

DAYS = 70


def seen_past(file: Path, **asked: Any) -> tuple[Proposal, Past]:
    """What is proposed for a table, and the past that it is tried on."""
    with survey(locate(str(file), None, None), asked.get("timezone", "UTC")) as seen:
        proposal = propose(seen, Asked(AFTER_ALL, **asked))
        past = past_of(seen, proposal)
        assert past is not None
        return that_runs(proposal, past, AFTER_ALL), past


def chosen_for(table: pl.DataFrame, folder: Path, label: str) -> tuple[Proposal, Trial]:
    table.write_parquet(folder / "table.parquet")
    choice = tried(*seen_past(folder / "table.parquet", label=label), lambda: 0.0)
    assert choice is not None
    return choice


def noise(rows: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, rows)


def with_level(level: Any, **columns: Any) -> pl.DataFrame:
    """Readings of every hour, whose level is a function of the hour and noise."""
    table = readings(24 * DAYS)
    hour = table["at"].dt.hour().to_numpy()
    return table.with_columns(level=level(hour, noise(table.height)), **columns)


@pytest.mark.parametrize(("label", "zone"), [("level", "UTC"), ("state", "America/New_York")])
def test_the_features_that_are_tried_are_those_that_the_pipeline_builds(tmp_path, label, zone):
    table = unlabelled(readings().with_columns(state=pl.col("level") > 10, wind=pl.int_range(pl.len()) % 7), label, 48)
    table.write_parquet(tmp_path / "sensor.parquet")
    proposal, past = seen_past(tmp_path / "sensor.parquet", label=label, timezone=zone)
    _, files = proposed(tmp_path / "sensor.parquet", label=label, timezone=zone)
    pipeline = pipeline_of(files, tmp_path)
    names = past.names(proposal)
    assert len(past.earlier) >= 3
    with pipeline.builder.session(labels=True) as session:
        for partition in pipeline.spec.partitions.calendar.due(AFTER_ALL)[9:30:10]:
            with session.batches(partition) as (batches, _):
                built = pl.concat([pl.DataFrame(batch) for batch in batches])
            rows = past.rows.filter(pl.col(trial.PARTITION_START) == partition.start)
            assert_frame_equal(rows[names], built[names])
            assert rows[label].equals(session.labels(partition)[label])


def test_no_fold_learns_from_labels_that_were_not_known_when_it_predicts(tmp_path):
    unlabelled(readings(24 * DAYS), "level", 24 * 9).write_parquet(tmp_path / "sensor.parquet")
    proposal, past = seen_past(tmp_path / "sensor.parquet", label="level")
    folds = [*trial._folds(proposal, past)]
    assert len(folds) > 1
    for fitted, later in folds:
        known = fitted[trial.PARTITION_START].max() + timedelta(days=1) + timedelta(days=9)
        assert known <= later[trial.PARTITION_START].min()


# A row is a level, columns, and what is chosen and what is not.
CHOICES: dict[str, tuple[Any, dict[str, Any], set[str], set[str]]] = {
    "an hour that says all": (lambda hour, noise: 3.0 * hour + noise, {}, {COURSE}, set()),
    "a memory": (lambda _, noise: np.cumsum(noise), {}, {EARLIER}, set()),
    "a column that says all, on thin evidence of a memory": (
        lambda hour, noise: 3.0 * noise + hour % 2,
        {"damp": pl.Series(noise(24 * DAYS))},
        {COLUMNS},
        {EARLIER},
    ),
}


@pytest.mark.parametrize("case", [pytest.param(it, marks=[pytest.mark.full] * (it != "a memory")) for it in CHOICES])
def test_the_richest_features_that_are_as_good_as_the_best_are_chosen(tmp_path, case):
    level, columns, needed, useless = CHOICES[case]
    proposal, result = chosen_for(with_level(level, **columns), tmp_path, "level")
    chosen = {*result.chosen.features}
    assert needed <= chosen
    assert not useless & chosen
    least = min(tried.value for tried in result.candidates)
    assert result.chosen.value <= least * (1 + trial.MOST_WORSE)
    assert result.plain_trees is None or result.chosen.value <= result.plain_trees * (1 + trial.MOST_WORSE)
    if useless:
        reason = proposal.left_out["earlier values of level"]
        assert reason.startswith("made predictions of the past worse: rmse ")
    assert {EARLIER in chosen, proposal.windows.past is not None} in ({True}, {False})
    assert {COURSE in chosen, bool(proposal.windows.calendar)} in ({True}, {False})


GROWTH = {
    "a trend": (lambda hour, noise: np.arange(len(hour)) / 24 + hour % 5 + noise, True),
    "a course": (lambda hour, noise: 3.0 * (hour % 5) + noise, False),
}


@pytest.mark.full
@pytest.mark.parametrize("case", GROWTH)
def test_a_trend_is_followed_only_where_nothing_without_it_is_as_good(tmp_path, case):
    level, has_trend = GROWTH[case]
    mix = np.random.default_rng(3).normal(0, 40, 24 * DAYS)  # hides the level of the days before
    table = with_level(level, mix=pl.Series(mix)).with_columns(level=pl.col("level") + pl.col("mix"))
    proposal, result = chosen_for(table, tmp_path, "level")
    assert (TREND in result.chosen.features) == ("julian" in proposal.windows.calendar) == has_trend
    files = files_of("sensor", proposal, Layout(locate(str(tmp_path / "table.parquet"), None)))
    assert ("extract(julian FROM" in files["features.sql"]) == has_trend
    assert declared(files).get("monitoring") == ({"drift": {"ignore": ["julian_day"]}} if has_trend else None)


def test_a_table_without_times_chooses_between_the_usual_and_small_trees(tmp_path):
    few = customers(300, left=[bool(value > 0) for value in noise(300)])
    _, result = chosen_for(few, tmp_path, "left")
    assert [tried.trees for tried in result.candidates] == ["usual", "small"]
    assert (result.metric, result.chosen.trees) == ("log_loss", "small"), "large trees are sure of chance"
    clear = customers(3_000).with_columns(
        left=(pl.col("months") % 7 < 3) ^ (pl.col("spend") < 40) ^ pl.Series(noise(3_000) > 1.5)
    )
    assert chosen_for(clear, tmp_path, "left")[1].chosen.trees == "usual"


@pytest.mark.usefixtures("few_trees")
def test_the_candidates_are_shown_with_their_errors_and_stand_in_the_report(cli, tmp_path):
    with_level(lambda hour, noise: 3.0 * hour + noise, damp=pl.Series(noise(24 * DAYS))).write_csv(
        tmp_path / "sensor.csv"
    )
    shown = cli(tmp_path, "new", "one", "--from", "sensor.csv", "--label", "level")
    assert shown.code == 0, shown.err
    assert "Trying 21 proposals on the past of the table, up to 30 s" in shown.out
    assert all(word in shown.out for word in ("plain trees", "trivial model", "proposed", "the best"))
    record = json.loads(cli(tmp_path, "new", "two", "--from", "sensor.csv", "--label", "level", "--json").out)["trial"]
    assert len(record["candidates"]) == 21
    assert record["chosen"] in record["candidates"]
    assert record["metric"] == "rmse"
    assert record["chosen"]["value"] < record["trivial"]
    assert record["rows"] > 0


def yearly(rows: int, file: Path) -> tuple[str, ...]:
    """Write a row a year; the arguments that propose a pipeline for it."""
    pl.DataFrame({"year": range(1966, 1966 + rows), "energy_use": noise(rows)}).write_csv(file)
    return "new", "use", "--from", file.name, "--label", "energy_use", "--time", "year"


def test_a_table_with_nothing_to_learn_from_is_refused_with_what_would_help(cli, tmp_path):
    answer = cli(tmp_path, *yearly(15, tmp_path / "yearly.csv"))
    assert answer.code == 2
    assert "too few rows for a model to learn from earlier labels" in answer.error
    assert "--snapshot instead of --time year" in answer.error
