"""Scoring: every row is scored or rejected with a reason, whatever the batch and the model."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import file_digests
from batch_platform.models.bundle import Bundle
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.scoring.batch import NOT_FINITE, score_batch
from batch_platform.scoring.engines import local
from batch_platform.scoring.engines.local import LocalEngine
from batch_platform.scoring.partition import BundleFolder, ScoringOrder, Staged
from batch_platform.scoring.run import require_within_budget
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.scoring.batches import DAY, SPEC, STAMP, bundle, rows

pytestmark = pytest.mark.unit


def order(features: Path, rows: int, model: Bundle | None = None, sha256: str | None = None) -> ScoringOrder:
    """The folder of a model that is open already; it holds no bundle."""
    model = model or bundle()
    folder = BundleFolder(model.version, features.with_name("no-bundle"), model.sha256, rows)
    return ScoringOrder(DAY, features, sha256 or file_digests(features)[0], rows, folder)


def stage(asked: ScoringOrder, model: Bundle, spec: PipelineSpec, folder: Path, stamp: Stamp = STAMP) -> Staged:
    with LocalEngine(spec, folder, stamp, bundles={model.version: model}) as engine:
        (staged,) = engine.staged([asked])
        return staged


def staged(tmp_path: Path, frame: pl.DataFrame, model: Bundle | None = None, spec: PipelineSpec = SPEC) -> Staged:
    features, model = tmp_path / "features.parquet", model or bundle()
    frame.write_parquet(features)
    return stage(order(features, frame.height, model), model, spec, tmp_path)


ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from([13.0, float("nan"), float("inf"), 2000.0]), st.floats(0, 1000)),
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.sampled_from(["a", "b", "never seen", ""])),
    ),
    max_size=40,
)


@given(ROWS)
def test_law_2_every_row_is_scored_or_rejected_and_never_both(table):
    frame = rows(*(list(column) for column in zip(*table, strict=True))) if table else rows([])
    scored = score_batch(frame, bundle(), SPEC)
    assert scored.predictions.height + scored.rejected.height == frame.height
    assert sorted([*scored.predictions["id"], *scored.rejected["id"]]) == list(range(frame.height))
    assert scored.predictions["score"].is_finite().all()
    assert scored.rejected["__reason"].null_count() == 0


@given(ROWS, st.integers(1, 7))
def test_law_4_the_size_of_a_batch_changes_nothing(table, size):
    frame = rows(*(list(column) for column in zip(*table, strict=True))) if table else rows([])
    whole = score_batch(frame, bundle(), SPEC)
    parts = [score_batch(frame[at : at + size], bundle(), SPEC) for at in range(0, max(frame.height, 1), size)]
    assert pl.concat([part.predictions for part in parts]).equals(whole.predictions)
    assert pl.concat([part.rejected for part in parts]).sort("id").equals(whole.rejected.sort("id"))


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_partition_read_in_batches_is_staged_the_same(tmp_path, monkeypatch, batch):
    frame = rows([float(n) for n in range(50)], shop=["a", "new"] * 25)
    monkeypatch.setattr(local, "BATCH_ROWS", batch)
    partition = staged(tmp_path, frame, spec=small_spec(features={"max_rejected": 0.5}))
    assert (partition.counts.rows_in, partition.counts.rows_scored, partition.counts.rows_rejected) == (50, 49, 1)
    assert partition.counts.reasons == {NOT_FINITE: 1}
    assert partition.counts.unseen == {"shop": 25}
    assert pl.read_parquet(list(partition.predictions))["id"].to_list() == [n for n in range(50) if n != 13]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_score_that_is_not_finite_is_rejected_with_its_row(tmp_path, task):
    partition = staged(tmp_path, rows([13.0, *[1.0] * 19]), bundle(task, () if task == "regression" else (False, True)))
    assert partition.counts.rows_rejected == 1
    (row,) = pl.read_parquet(list(partition.rejected)).to_dicts()
    assert row["reason"] == NOT_FINITE
    assert row["column_name"] is None
    assert json.loads(row["key"]) == {"id": 0}
    assert json.loads(row["row"])["amount"] == 13.0


@pytest.mark.parametrize(("bad", "passes"), [(0, True), (9, True), (10, True), (11, False), (100, False)])
def test_the_budget_is_exact_to_the_row(tmp_path, bad, passes):
    frame = rows([2000.0] * bad + [1.0] * (100 - bad))
    partition = staged(tmp_path, frame)
    assert partition.counts.rows_rejected == bad
    if passes:
        require_within_budget(SPEC, partition)
        return
    with pytest.raises(DataError) as caught:
        require_within_budget(SPEC, partition)
    message = str(caught.value)
    assert (
        f"small, partition 2024-02-03: {bad} of 100 rows break the contract, more than max_rejected (10.00%)" in message
    )
    assert f"amount: above the maximum 1000 ({bad} rows)" in message
    assert "id=0 (amount=2000.0)" in message


def test_a_prediction_has_its_key_time_kept_columns_and_origin(tmp_path):
    predictions = pl.read_parquet(list(staged(tmp_path, rows([250.0])).predictions))
    assert predictions.to_dicts() == [
        {
            "id": 0,
            "ts": DAY.start,
            "shop": "a",
            "prediction": False,
            "score": 0.25,
            "partition_key": "2024-02-03",
            "model_version": "2024-02-01-0a0a0a0a",
            "scored_at": STAMP.at,
            "run_id": "run",
        }
    ]


def test_the_time_of_scoring_is_that_of_the_stamps_clock(tmp_path):
    features = tmp_path / "features.parquet"
    rows([1.0]).write_parquet(features)
    later = datetime(2024, 3, 1, 5, tzinfo=UTC)
    partition = stage(order(features, 1), bundle(), SPEC, tmp_path, Stamp("run", STAMP.at, lambda: later))
    assert partition.started_at == later
    assert pl.read_parquet(list(partition.predictions))["scored_at"].to_list() == [later]


@pytest.mark.parametrize(
    ("task", "classes", "columns", "values"),
    [
        ("binary", ("no", "yes"), ["prediction", "score"], ["yes", 0.75]),
        ("multiclass", (1, 2, 3), ["prediction", "score_1", "score_2", "score_3"], [1, 0.75, 0.125, 0.125]),
        ("regression", (), ["prediction"], [0.75]),
        ("clustering", (), ["prediction"], [1]),
    ],
)
def test_the_columns_of_each_task(task, classes, columns, values):
    scored = score_batch(rows([750.0]), bundle(task, classes), SPEC)
    assert prediction_columns(task, classes) == columns
    assert list(scored.predictions.select(columns).row(0)) == values
    empty = score_batch(rows([]), bundle(task, classes), SPEC)
    assert empty.predictions.schema == scored.predictions.schema


def test_a_missing_kept_column_is_refused():
    with pytest.raises(DataError, match="small: the features lack the columns nothing_like_it; they have amount, id, "):
        score_batch(rows([1.0]), bundle(), small_spec(predictions={"keep": ["nothing_like_it"]}))


def test_a_kept_column_may_not_have_the_name_of_a_score():
    name = "Score_Y"
    frame = rows([1.0]).with_columns(pl.lit("mine").alias(name))
    with pytest.raises(DataError, match=f"the columns {name} cannot be kept: predictions have their own"):
        score_batch(frame, bundle("multiclass", ("x", "y", "z")), small_spec(predictions={"keep": [name]}))


@examples(30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), min_size=1, max_size=5))
def test_any_text_is_kept_unchanged(texts):
    scored = score_batch(rows([1.0] * len(texts), shop=texts), bundle(), SPEC)
    assert scored.predictions["shop"].to_list() == texts
