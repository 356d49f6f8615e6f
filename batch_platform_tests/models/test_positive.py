"""Which of two classes a score is the probability of: as declared, as before, or the one that is meant by default."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import TrainingRefusedError
from batch_platform.declaration.model import Model
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import Positive
from batch_platform.models.fitting import fit
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline
from batch_platform_tests.models.training_rows import FEATURES, HGB, data

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)
LOGISTIC = "sklearn.linear_model.LogisticRegression"
XGBOOST = "xgboost.XGBClassifier"
LEFT = small_events().select(
    pl.exclude("returned"),
    returned=pl.when(pl.col("returned")).then(pl.lit("left")).when(~pl.col("returned")).then(pl.lit("stayed")),
)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("classes", "counts", "declared", "before", "positive"),
    [
        ([False, True], (1, 9), None, None, True),
        ([0, 1], (1, 9), None, None, 1),
        (["left", "stayed"], (1, 9), None, None, "left"),
        (["left", "stayed"], (9, 1), None, None, "stayed"),
        (["left", "stayed"], (1, 9), None, "stayed", "stayed"),
        (["left", "stayed"], (9, 1), "left", "stayed", "left"),
        (["left", "stayed"], (5, 5), None, "other", "stayed"),
    ],
)
def test_the_positive_class_is_the_declared_one_then_that_of_before_then_true_one_or_the_rarer_text(
    classes, counts, declared, before, positive
):
    truth = np.repeat(np.array(classes), counts)
    assert Positive(declared, before).last(classes, truth)[-1] is positive


@pytest.mark.parametrize(
    ("estimator", "params"), [(HGB, {"max_iter": 5}), (LOGISTIC, {"class_weight": {"a": 9, "b": 1}}), (XGBOOST, {})]
)
def test_every_estimator_gives_the_probability_of_the_positive_class_last(estimator, params):
    training = data()
    late = pl.when("late").then(pl.lit("a")).otherwise(pl.lit("b"))
    named = replace(
        training, fit=training.fit.with_columns(late=late), evaluate=training.evaluate.with_columns(late=late)
    )
    of_a, of_b = (fit(Model(estimator=estimator), FEATURES, named, params, Positive(label)) for label in "ab")
    assert (of_a.signature.classes, of_b.signature.classes) == (["b", "a"], ["a", "b"])
    predicted = of_a.predictor.predict(of_a.held_out)
    assert np.allclose(predicted[:, ::-1], of_b.predictor.predict(of_b.held_out), atol=1e-6)
    assert of_a.metrics["roc_auc"] == pytest.approx(of_b.metrics["roc_auc"], abs=1e-6)
    is_a = (named.evaluate["late"] == "a").to_numpy()
    assert predicted[is_a, 1].mean() > predicted[~is_a, 1].mean() + 0.05


@pytest.mark.unit
def test_a_declared_class_that_is_no_label_is_refused():
    with pytest.raises(TrainingRefusedError, match=r"labels.positive is 'yes', but the labels .* are False, True"):
        fit(Model(estimator=HGB), FEATURES, data(), {}, Positive("yes"))


def means(pipeline) -> dict[str, float]:
    """The mean score of the rows of each label."""
    with pipeline.warehouse.open() as con:
        scores = con.sql("SELECT id, score FROM small.predictions").pl()
    joined = scores.join(LEFT, on="id").drop_nulls("returned")
    return dict(joined.group_by("returned").agg(pl.col("score").mean()).iter_rows())


def test_a_declared_positive_class_is_due_for_training_and_turns_the_scores_round(tmp_path):
    pipeline = small_pipeline(tmp_path, events=LEFT)
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.versions
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    assert (manifest.positive, manifest.classes) == ("left", ["stayed", "left"])
    assert means(pipeline)["left"] > means(pipeline)["stayed"]
    turned = small_pipeline(tmp_path, events=LEFT, labels={"positive": "stayed"})
    assert [item.step for item in make_plan(turned.spec, turned.state(), PlanRequest(NOW)).of("model")] == ["model"]
    carry_out(turned, NOW)
    assert means(turned)["left"] < means(turned)["stayed"]
    assert make_plan(turned.spec, turned.state(), PlanRequest(NOW)).items == []
