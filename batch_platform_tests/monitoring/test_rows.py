"""Rows as wholes: a sketch is the merge of its parts, and copies, repeats and columns that no longer go together are told in their first partition."""

from datetime import UTC, date, datetime
from functools import reduce
from operator import add

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.monitoring.measures.evaluated import CONTRADICTION
from batch_platform.monitoring.measures.rows import FEATURE_ROWS
from batch_platform.monitoring.profiles import RowSketch, kept_of, row_hashes, sketch_of
from batch_platform.reports.figures import read_figures
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline, small_spec

NOW = datetime(2024, 2, 21, 12, tzinfo=UTC)
NAMED = {"a": None, "b": None, "shop": ("east", "west")}
SQL = "SELECT id, ts, amount, total, items, shop FROM events WHERE ts >= $partition_start AND ts < $partition_end"
COPIED, SHUFFLED, REPEATED, APART, FLIPPED = "2024-02-03", "2024-02-04", "2024-02-05", "2024-02-07", "2024-02-09"
FEATURES = ("amount", "total", "items", "shop")
LAST_GOOD, LAST = "2024-02-10", date(2024, 2, 19)


def rows_of(random: np.random.Generator, rows: int) -> np.ndarray:
    return np.column_stack([random.normal(size=rows), random.integers(0, 9, rows), random.integers(0, 2, rows)])


@pytest.mark.unit
@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 9))
def test_the_sketch_of_a_whole_is_the_merge_of_those_of_its_parts_in_any_order(sizes, seed):
    random = np.random.default_rng(seed)
    parts = [rows_of(random, size) for size in sizes]
    parts += [part[:40] for part in parts]  # rows that parts have in common
    whole = sketch_of(np.concatenate([np.empty((0, 3)), *parts]), NAMED)
    merged = reduce(add, [sketch_of(part, NAMED) for part in reversed(parts)], RowSketch())
    assert (merged.rows, merged.identity, merged.repeated) == (whole.rows, whole.identity, whole.repeated)
    if whole.rows:
        np.testing.assert_array_equal(merged.hashes, whole.hashes)
        np.testing.assert_array_equal(merged.counts, whole.counts)
        np.testing.assert_array_equal(merged.values, whole.values)


@pytest.mark.unit
def test_a_sketch_of_many_rows_keeps_as_many_as_it_may_and_counts_their_repeats_exactly():
    rows = rows_of(np.random.default_rng(1), 60_000)
    sketch = sketch_of(np.concatenate([rows, rows[:15_000]]), NAMED)
    assert len(sketch.hashes) == kept_of(3)
    assert sketch.repeated == pytest.approx(0.2, abs=0.02)
    few = sketch_of(np.tile(rows[:10], (9000, 1)), NAMED)  # all of them repeat each other
    assert (len(few.hashes), few.repeated) == (10, 1 - 10 / 90_000)


@pytest.mark.unit
def test_a_hash_knows_columns_by_name_and_categories_by_text():
    rows = rows_of(np.random.default_rng(2), 500)
    rows[3, 0], rows[4, 2] = np.nan, np.nan
    turned = rows[:, [2, 0, 1]].copy()
    turned[:, 0] = 1 - turned[:, 0]
    other = {"shop": ("west", "east"), "a": None, "b": None}
    np.testing.assert_array_equal(row_hashes(rows, NAMED), row_hashes(turned, other))
    assert len(np.unique(row_hashes(rows, NAMED))) == 500
    assert not np.intersect1d(
        row_hashes(rows, NAMED), row_hashes(rows, {**dict.fromkeys("xy"), "shop": NAMED["shop"]})
    ).size


def faulty_events() -> pl.DataFrame:
    """Five hundred orders a day: one day holds those of the day before once more, in one each feature is shuffled, one repeats a fifth, in
    one `total` is shuffled, in one every other label is wrong, and in the last ones every sixteenth.
    """
    events = small_events(date(2024, 1, 1), LAST, rows_per_day=500)
    events = events.with_columns(total=pl.col("amount") * 2 + pl.col("items"))
    days = events.with_columns(day=LOCAL_DAY).partition_by("day", as_dict=True, include_key=False)
    before, repeated, apart = days["2024-02-02",], days[REPEATED,], days[APART,]
    days[COPIED,] = days[COPIED,].with_columns(before.drop("id", "ts"))
    days[SHUFFLED,] = days[SHUFFLED,].with_columns(
        pl.col(name).sample(fraction=1, shuffle=True, seed=at) for at, name in enumerate(FEATURES)
    )
    days[REPEATED,] = pl.concat([repeated, repeated.head(100).with_columns(pl.col("id") + 1_000_000)])
    days[APART,] = apart.with_columns(pl.col("total").sample(fraction=1, shuffle=True, seed=1))
    days[FLIPPED,] = days[FLIPPED,].with_columns(pl.col("returned").xor(pl.col("id") % 2 == 0))
    wrong = pl.col("returned").xor(pl.col("id") % 16 == 0)
    days |= {key: rows.with_columns(wrong) for key, rows in days.items() if key[0] > LAST_GOOD}
    return pl.concat(days.values())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    columns = {"amount": {"nullable": True}, "total": {"nullable": True}}
    pipeline = small_pipeline(
        tmp_path_factory.mktemp("rows"), events=faulty_events(), features_sql=SQL, features={"columns": columns}
    )
    carry_out(pipeline, NOW)
    return pipeline


def test_each_fault_gives_a_warning_in_its_partition_and_no_other_day_does(scored):
    with open_published(scored.home) as con:
        query = "FROM small.health WHERE check_name = 'feature_rows' ORDER BY partition_key"
        health = con.sql(query).pl()
    assert health.height == 19  # the days that the model of February serves
    assert dict(health.filter(~pl.col("passed")).select("partition_key", "columns").rows()) == {
        COPIED: "copied rows",
        SHUFFLED: "columns apart",
        REPEATED: "repeated rows",
        APART: "columns apart",
    }
    texts = dict(health.select("partition_key", "text").rows())
    assert texts[COPIED] == "the features of all 500 rows are those of 2024-02-02"
    assert texts[REPEATED] == "19.8% of the rows repeat the features of another, at most 5.6% are usual"
    assert "columns no longer go together" in texts[APART]
    assert set(health.filter(~pl.col("passed"))["severity"]) == {"warning"}


def test_performance_that_the_estimate_does_not_explain_is_named_where_labels_are_wrong_and_nowhere_else(scored):
    with open_published(scored.home) as con:
        health = con.sql("FROM small.health WHERE check_name = 'concept_drift' ORDER BY partition_key").pl()
        (row,) = con.sql(f"FROM small.concept_drift WHERE partition_key = '{FLIPPED}'").pl().to_dicts()
    assert health.height == 19
    failed = health.filter(~pl.col("passed"), pl.col("partition_key") <= LAST_GOOD)
    assert failed["partition_key"].sort().to_list() == [SHUFFLED, FLIPPED]
    assert failed.sort("partition_key")["columns"].to_list() == ["", "exchanged labels"]
    assert set(health["asset"]) == {"performance"}
    assert row["contradicted"], "half of the labels are exchanged"
    assert row["metric"] == "log_loss"
    assert row["deviation"] < -4
    assert row["value"] > np.log(2) > row["estimate"]
    labels, rows = (failed.filter(partition_key=key)["text"].item() for key in (FLIPPED, SHUFFLED))
    assert labels.startswith(CONTRADICTION)
    assert CONTRADICTION not in rows
    assert rows.endswith("they have the features of other rows (columns apart), as the check feature_rows says")


def test_the_report_gives_the_figures_of_partitions_in_doubt_apart(scored):
    doubtful = [COPIED, SHUFFLED, REPEATED, APART, FLIPPED]
    with open_published(scored.home) as con:
        whole = read_figures(con, scored.spec)
        sound = read_figures(con, scored.spec, "2024-02-01", "2024-02-02")
        alone = read_figures(con, scored.spec, SHUFFLED, SHUFFLED)
    assert whole.doubtful.keys == doubtful
    assert whole.doubtful.left_out
    assert whole.window.all_keys == sorted([*whole.window.keys, *doubtful])
    assert whole.overall["roc_auc"]["partitions"] == len(whole.window.keys) - 1 == 14, (
        "labels of the newest day are not known yet"
    )
    assert (sound.doubtful, sound.window.counted) == (None, sound.window.dates)
    assert not alone.doubtful.left_out


@pytest.mark.unit
def test_what_is_switched_off_is_not_judged():
    assert FEATURE_ROWS.check(small_spec(monitoring={"rows": False})) is None


def test_a_slow_loss_of_performance_is_named_though_no_partition_is_bad_enough_by_itself(scored):
    with open_published(scored.home) as con:
        health = con.sql(f"""
            SELECT partition_key, passed, text FROM small.health JOIN small.concept_drift USING (partition_key)
            WHERE check_name = 'concept_drift' AND partition_key > '{LAST_GOOD}' AND deviation > -4
            ORDER BY partition_key
        """).pl()
    assert health["passed"].to_list()[:2] == [True, True], "two such days are chance"
    late = health.filter(pl.col("partition_key") >= "2024-02-16")
    assert late.height == 4
    assert not late["passed"].any()
    assert all("like the last 7 partitions on average" in text for text in late["text"])
