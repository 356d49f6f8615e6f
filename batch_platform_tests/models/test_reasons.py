"""Reasons for a score: the columns that moved it most, under the user's names, with the user's values."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.model import Model
from batch_platform.declaration.predictions import Predictions, Reasons
from batch_platform.declaration.spec import Features
from batch_platform.features.history import TrainingData
from batch_platform.models.declared_model import check_model
from batch_platform.models.fitting import Fitted, fit
from batch_platform.models.refinements.known import Declared
from batch_platform.models.refinements.reasons import REASONS, STRUCT, explainer_of
from batch_platform.models.refinements.refinement import Batch, added_columns, empty_output, model_of
from batch_platform.operations.trace import trace
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.published import reading_published
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_pipeline

FEATURES = Features.model_validate({"sql": "f.sql", "key": ["id"]})
HISTOGRAM, FOREST = "sklearn.ensemble.HistGradientBoosting", "sklearn.ensemble.RandomForest"
SMALL: dict[str, dict[str, Any]] = {
    "sklearn.ensemble": {"max_iter": 10, "max_leaf_nodes": 7},
    "sklearn.linear_model": {},
    "sklearn.neighbors": {},
    "lightgbm": {"n_estimators": 10, "num_leaves": 7, "verbosity": -1},
    "xgboost": {"n_estimators": 10, "max_depth": 3},
}


def rows(count: int, task: str, seed: int) -> pl.DataFrame:
    """Rows whose label follows two numbers and a text, all with nulls."""
    random = np.random.default_rng(seed)
    x, town = random.normal(size=(count, 3)), random.integers(0, 4, count)
    signal = 2 * x[:, 0] - x[:, 1] + np.array([-2.0, 0.0, 1.0, 3.0])[town] + random.normal(size=count)
    classes = np.digitize(signal, [-1, 1])
    labels = {
        "binary": signal > 0,
        "multiclass": np.array(["low", "mid", "top"])[classes],
        "regression": np.exp(signal),
    }
    nulls = random.random((count, 3)) < 0.1
    return pl.DataFrame(
        {
            "amount": pl.Series(x[:, 0]).set(pl.Series(nulls[:, 0]), None),
            "items": pl.Series(np.round(10 * x[:, 1]).astype(int)).set(pl.Series(nulls[:, 1]), None),
            "town": pl.Series(np.array(["Zürich", "O'Brien", " ", "متجر"])[town]).set(pl.Series(nulls[:, 2]), None),
            "known": x[:, 2] > 0,
            "label": labels[task],
        }
    )


def fitted(estimator: str, task: str, reasons: int | dict[str, Any] = 4, **params: Any) -> Fitted:
    package = next(package for package in SMALL if estimator.startswith(package))
    settings = SMALL[package] if "Hist" in estimator or package != "sklearn.ensemble" else {"n_estimators": 10}
    declared = Declared(REASONS, Reasons.model_validate(reasons).count)
    data = TrainingData(rows(1_000, task, 1), rows(300, task, 2), "label")
    return fit(Model(estimator=estimator), FEATURES, data, settings | params, declared=(declared,))


def batch_of(model: Fitted, frame: pl.DataFrame, reasons: int | dict[str, Any] = 4) -> Batch:
    matrix = model.signature.contract.encode(frame)
    raw = model.scorer.predict(matrix) if len(matrix) else empty_output(model.signature)
    declared = Reasons.model_validate(reasons)
    return Batch(frame, matrix, raw, model.signature, model_of(model.scorer), reasons=declared)


def reasons_of(model: Fitted, frame: pl.DataFrame, declared: int | dict[str, Any] = 4) -> pl.Series:
    (reasons,) = added_columns(model.scorer, batch_of(model, frame, declared))
    return reasons


SHARED_TERM = "log-probability, up to a term that all classes share"
CASES = [
    (HISTOGRAM + "Classifier", "binary", "log-odds"),
    (HISTOGRAM + "Classifier", "multiclass", SHARED_TERM),
    (FOREST + "Classifier", "multiclass", "probability"),
    (FOREST + "Regressor", "regression", "unit of the label"),
    ("lightgbm.LGBMClassifier", "binary", "log-odds"),
    ("lightgbm.LGBMRegressor", "regression", "unit of the label"),
    ("xgboost.XGBClassifier", "multiclass", SHARED_TERM),
    ("xgboost.XGBRegressor", "regression", "unit of the label"),
    ("sklearn.linear_model.LogisticRegression", "multiclass", SHARED_TERM),
    ("sklearn.linear_model.PoissonRegressor", "regression", "logarithm of the label"),
]


def raw_of(scores: np.ndarray, unit: str) -> np.ndarray:
    """The explained raw score of each row, as far as the scores tell: of several classes the log-probability."""
    if unit == "log-odds":
        return np.log(scores[:, 1] / scores[:, 0])
    if unit == "logarithm of the label":
        return np.log(scores)
    if scores.ndim == 1:
        return scores
    return scores[:, 1] if scores.shape[1] == 2 else scores.max(axis=1)


@pytest.mark.parametrize(("estimator", "task", "unit"), CASES)
def test_all_contributions_of_a_row_and_the_base_value_add_up_to_the_raw_score(estimator: str, task: str, unit: str):
    model = fitted(estimator, task)
    learned = model.refinements.of("reasons")
    assert learned["unit"] == unit
    frame = rows(200, task, 3).drop("label")
    batch = batch_of(model, frame)
    explainer = explainer_of(batch.model, batch.signature, learned["means"])
    if unit.startswith("log-probability"):  # the difference of two classes says what the shared term is not
        sums = [
            base + explainer.of(batch.matrix, np.full(200, output)).sum(axis=1)
            for output, base in enumerate(explainer.bases)
        ]
        found, expected = sums[2] - sums[0], np.log(batch.raw[:, 2] / batch.raw[:, 0])
    else:
        chosen = batch.raw.argmax(axis=1) if batch.raw.ndim > 1 else np.zeros(200, int)
        bases = np.array(explainer.bases)[chosen if len(explainer.bases) > 1 else 0]
        found, expected = bases + explainer.of(batch.matrix, chosen).sum(axis=1), raw_of(batch.raw, unit)
    np.testing.assert_allclose(
        found, expected, rtol=1e-6 if "xgboost" in estimator else 0, atol=1e-5 if "xgboost" in estimator else 1e-9
    )
    reasons = reasons_of(model, frame)
    assert reasons.dtype == pl.List(STRUCT)
    sizes = reasons.list.eval(pl.element().struct["contribution"].abs())
    assert all(values == sorted(values, reverse=True) and len(values) == 4 for values in sizes.to_list())
    assert list(learned["importance"]) == ["amount", "items", "town", "known"]
    assert max(learned["importance"], key=learned["importance"].get) in ("amount", "town")


@pytest.mark.unit
@pytest.mark.parametrize(
    "estimator", [HISTOGRAM + "Classifier", "sklearn.linear_model.LogisticRegression", FOREST + "Classifier"]
)
def test_reasons_have_the_users_names_and_values_whatever_preprocessing_makes_of_them(estimator: str):
    frame = pl.DataFrame(
        {
            "amount": [1.5, None, -2.0],
            "items": [-12, 3, None],
            "town": ["Zürich", None, "a town that nobody knew"],
            "known": [True, False, True],
        }
    )
    found = [
        {reason["feature"]: reason["value"] for reason in row} for row in reasons_of(fitted(estimator, "binary"), frame)
    ]
    assert found == [
        {"amount": "1.5", "items": "-12", "town": "Zürich", "known": "true"},
        {"amount": None, "items": "3", "town": None, "known": "false"},
        {"amount": "-2.0", "items": None, "town": "a town that nobody knew", "known": "true"},
    ]


@pytest.mark.parametrize(("task", "above"), [("binary", 0.7), ("multiclass", 0.7), ("regression", 40.0)])
def test_only_rows_that_score_higher_have_reasons(task: str, above: float):
    kind = "Regressor" if task == "regression" else "Classifier"
    model, some = fitted(HISTOGRAM + kind, task, 2), {"count": 2, "above": above}
    frame = rows(200, task, 3).drop("label")
    raw = batch_of(model, frame).raw
    scores = raw if task == "regression" else raw[:, 1] if task == "binary" else raw.max(axis=1)
    expected, shown = reasons_of(model, frame, 2), reasons_of(model, frame, some)
    assert 20 < (scores > above).sum() < 180
    assert shown.is_not_null().to_list() == (scores > above).tolist()
    assert shown.drop_nulls().to_list() == expected.filter(pl.Series(scores > above)).to_list()
    assert reasons_of(model, frame[7:8], 2).to_list() == expected[7:8].to_list(), "in every batch"
    for none in (frame.clear(), frame.filter(pl.Series(scores <= above))):
        assert reasons_of(model, none, some).to_list() == [None] * none.height
        assert reasons_of(model, none, some).dtype == pl.List(STRUCT)


@pytest.mark.unit
def test_a_model_without_reasons_is_refused_with_the_key():
    with pytest.raises(
        TrainingRefusedError, match=r"^predictions\.reasons: this model has no reasons: .*remove"
    ) as refused:
        fitted("sklearn.neighbors.KNeighborsClassifier", "binary")
    assert "linear model" in str(refused.value)


@pytest.mark.unit
def test_more_reasons_than_columns_are_refused_with_the_highest_number():
    with pytest.raises(TrainingRefusedError, match=r"set predictions\.reasons to 4 or less"):
        fitted(HISTOGRAM + "Classifier", "binary", 5)


@pytest.mark.unit
def test_reasons_above_a_score_that_no_classifier_gives_are_refused(tmp_path: Path):
    never = Predictions.model_validate({"reasons": {"count": 2, "above": 1}})
    with pytest.raises(WrongUseError, match=r"predictions\.reasons\.above: 1 is never exceeded"):
        check_model(Model(estimator="sklearn.linear_model.LogisticRegression"), tmp_path, never)
    check_model(Model(estimator="sklearn.linear_model.Ridge"), tmp_path, never)


@pytest.mark.unit
@pytest.mark.parametrize("wrong", [0, True, {"count": 0}, {"above": 0.5}])
def test_a_wrong_declaration_of_reasons_is_refused_at_load(wrong: object):
    with pytest.raises(ValidationError, match="reasons"):
        Predictions.model_validate({"reasons": wrong})


def test_a_trace_computes_reasons_that_are_not_stored_from_the_bundle_that_scored_the_row(tmp_path: Path):
    now = datetime(2024, 2, 4, 12, tzinfo=UTC)
    plain, explained = (
        finished_pipeline(tmp_path / name, now, predictions={"reasons": reasons})
        for name, reasons in (("plain", None), ("explained", 4))
    )
    key = {"id": "1250"}
    (traced,) = trace(plain.spec, plain.home, key, plain.bundle)
    (stored,) = trace(explained.spec, explained.home, key, explained.bundle)
    assert stored.reasons is None, "they are in the row"
    assert (traced.reasons.note, traced.reasons.unit) == ("", "log-odds")
    assert list(traced.reasons.largest) == stored.row["reasons"]
    for file in plain.home.features("small").iterdir():
        file.unlink()
    (traced,) = trace(plain.spec, plain.home, key, plain.bundle)
    assert traced.reasons.note == "the features that the model read are gone"


@pytest.mark.full
def test_newly_declared_reasons_make_no_partition_stale_that_would_gain_none(tmp_path: Path):
    now = datetime(2024, 2, 8, 12, tzinfo=UTC)
    weekly = {"model": {"train": {"every": "week", "start": "2024-01-21", "evaluate": "3 days"}}}
    before = finished_pipeline(tmp_path, now, **weekly)
    versions = {key: run.model_version for key, run in before.state().scores.items()}
    pipeline = small_pipeline(tmp_path, predictions={"reasons": 2}, **weekly)
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(now))
    (due,) = plan.of("model")
    served_by_it = {key for key in versions if key >= due.partition.key}
    assert set() < served_by_it < versions.keys()
    assert set(plan.stale) == served_by_it
    carry_out(pipeline, now, "again")
    with pipeline.warehouse.open() as con:
        explained = con.sql("SELECT DISTINCT partition_key FROM small.predictions WHERE reasons IS NOT NULL").fetchall()
    assert {key for (key,) in explained} == served_by_it
    more = small_pipeline(tmp_path, predictions={"reasons": 3}, **weekly)
    assert set(make_plan(more.spec, more.state(), PlanRequest(now)).stale) == served_by_it


def test_a_challenger_whose_flavour_has_no_reasons_is_trained_and_scores_without_them(tmp_path: Path):
    bayes = {"name": "bayes", "estimator": "sklearn.naive_bayes.GaussianNB"}
    trees = {"name": "trees", "estimator": HISTOGRAM + "Classifier", "params": {"max_iter": 3}}
    now = datetime(2024, 2, 3, 12, tzinfo=UTC)
    pipeline = finished_pipeline(tmp_path, now, predictions={"reasons": 2}, challengers=[bayes, trees])
    registry = pipeline.state().registry
    version = registry.challenger_at("bayes", now)
    assert "predictions.reasons: this model has no reasons: " in registry.last_decision(version.version).reason
    with reading_published(pipeline.home) as con:
        counts = con.sql(
            "SELECT challenger, count(*), count(reasons) FROM small.challenger_scores GROUP BY ALL"
        ).fetchall()
        (served,) = con.sql("SELECT count(*) FROM small.predictions WHERE reasons IS NOT NULL").fetchall()
    assert sorted(counts) == [("bayes", *served, 0), ("trees", *served, *served)]
