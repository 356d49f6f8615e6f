"""A trained model is held against the strongest trivial one on its evaluation rows, and refused if it is worse."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.model import Model, Promote
from batch_platform.declaration.spec import Features
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import ENTITY, PARTITION_START, ROW_TIME, TrainingData
from batch_platform.models.bundle import Window, read_manifest
from batch_platform.models.fitting import fit
from batch_platform.models.gate import pass_gate
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline

NOW = datetime(2024, 2, 1, 12, tzinfo=UTC)  # the model is trained, and no partition waits for it
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = Features(sql="features.sql", key=["id"], time="ts")
RIDGE, LOGISTIC = "sklearn.linear_model.Ridge", "sklearn.linear_model.LogisticRegression"


def data(hours: int = 24 * 70, label=None, entities: int = 0) -> TrainingData:
    """Rows an hour apart with a feature that says nothing; the last fifth is for evaluation."""
    random = np.random.default_rng(1)
    times = pl.Series([MONDAY + timedelta(hours=hour) for hour in range(hours)])
    frame = pl.DataFrame({"x": random.normal(size=hours), ROW_TIME: times.dt.replace_time_zone(None)})
    frame = frame.with_columns(
        pl.lit(MONDAY).alias(PARTITION_START),
        pl.Series(ENTITY, np.arange(hours) % entities if entities else np.arange(hours), dtype=pl.UInt64),
    )
    values = label(times, random) if label else random.normal(size=hours)
    frame = frame.with_columns(pl.Series("y", values))
    boundary = hours * 4 // 5
    return TrainingData(frame.head(boundary), frame.tail(hours - boundary), "y")


def on_weekdays(times: pl.Series, random: np.random.Generator) -> np.ndarray:
    return 10.0 * times.dt.weekday().to_numpy() + random.normal(size=len(times))


def in_the_evening(times: pl.Series, random: np.random.Generator) -> np.ndarray:
    return (times.dt.hour().to_numpy() >= 18) ^ (random.random(len(times)) < 0.1)


def by_weekday() -> pl.DataFrame:
    """Orders whose return depends on the weekday alone."""
    weekend = small_events()["ts"].dt.weekday() >= 6
    noise = np.random.default_rng(2).random(len(weekend)) < 0.1
    return small_events().with_columns(returned=weekend ^ pl.Series(noise))


def fitted(training: TrainingData, estimator: str = RIDGE, **promote):
    return fit(Model(estimator=estimator, promote=Promote(**promote)), FEATURES, training, {})


def verdict(training: TrainingData, estimator: str = RIDGE, **promote):
    model = fitted(training, estimator, **promote)
    learned_from = Window("2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00", 31, 0, 0, "")
    gate, opens = Promote(**promote), partial(pytest.fail, "no champion")
    return pass_gate(gate, FEATURES, model, training, None, opens, learned_from=learned_from)


@pytest.mark.unit
def test_a_worthless_regression_is_refused_against_the_mean_of_its_season_learned_from_the_fitted_rows():
    training = data(label=on_weekdays)
    model = fitted(training, metric="mae")
    baseline = model.trivial.baseline
    means = dict(training.fit.group_by(pl.col(ROW_TIME).dt.weekday()).agg(pl.col("y").mean()).iter_rows())
    weekdays = training.evaluate[ROW_TIME].dt.weekday().to_list()
    errors = [abs(y - means[day]) for y, day in zip(training.evaluate["y"], weekdays, strict=True)]
    assert (baseline.name, baseline.metrics["mae"]) == ("mean by weekday", pytest.approx(np.mean(errors)))
    decision = verdict(training, metric="mae")
    own, bound = model.metrics["mae"], baseline.metrics["mae"]
    told = f"worse than guessing (mean by weekday): mae {own:.1f} against {bound:.1f} on 336 rows"
    assert (decision.action, decision.reason[: len(told)]) == ("refused", told)
    difference = json.loads(decision.evidence)["baseline"]["verdict"]["difference"]
    assert 0 < difference["low"] < difference["high"]


@pytest.mark.unit
def test_a_gate_without_a_baseline_approves_it_and_a_manual_gate_lets_a_person_decide():
    training = data(label=on_weekdays)
    assert verdict(training, baseline=False).action == "approved"
    waiting = verdict(training, manual=True)
    assert waiting.action == "waiting"
    assert waiting.reason.startswith("meets the gate; worse than guessing (mean by weekday): rmse ")
    assert waiting.reason.endswith("); waits for promotion")


@pytest.mark.unit
def test_a_classification_is_held_against_the_shares_of_the_classes_by_season():
    training = data(label=in_the_evening)
    model = fitted(training, LOGISTIC)
    assert model.trivial.baseline.name == "class shares by hour"
    assert model.trivial.baseline.metrics["roc_auc"] > 0.8 > model.metrics["roc_auc"]
    decision = verdict(training, LOGISTIC)
    assert decision.action == "refused"


def test_an_entity_that_returns_is_held_against_its_last_known_value():
    def of_entity(times, random):
        return np.arange(len(times)) % 50 * 3.0 + random.normal(size=len(times)) / 10

    training = data(hours=2_000, label=of_entity, entities=50)
    assert fitted(training).trivial.baseline.name == "last known value"
    assert verdict(training).action == "refused"
    assert fitted(data(hours=2_000, label=of_entity)).trivial.baseline.name != "last known value", "no row returns"


def test_a_model_that_is_worse_beyond_chance_by_however_little_is_worthless():
    training = data(hours=6_000, label=lambda times, random: 20 + random.normal(size=len(times)))
    hour = pl.col(ROW_TIME).dt.hour().alias("hour")
    taught = TrainingData(training.fit.with_columns(hour), training.evaluate.with_columns(hour), "y")
    trees = "sklearn.ensemble.HistGradientBoostingRegressor"
    model = fitted(taught, trees, metric="rmse")
    worse = model.metrics["rmse"] / model.trivial.baseline.metrics["rmse"] - 1
    assert 0 < worse < 0.05, "all there is to learn is the baseline, and the trees learned some of the noise by heart"
    decision = verdict(taught, trees, metric="rmse")
    assert decision.action == "refused"
    assert decision.reason.startswith("worse than guessing (mean): rmse ")


def test_clusters_have_no_baseline():
    training = data()
    unlabelled = TrainingData(training.fit.drop("y"), training.evaluate.drop("y"), None)
    assert fitted(unlabelled, "sklearn.cluster.KMeans").trivial is None


def test_labelled_outliers_are_held_against_one_score_for_all_by_the_area_alone():
    training = data(label=in_the_evening)
    trivial = fitted(training, "sklearn.ensemble.IsolationForest", metric="roc_auc").trivial
    assert trivial.baseline.metrics == {"roc_auc": 0.5}
    assert fitted(training, "sklearn.ensemble.IsolationForest").trivial is None, "the share of outliers has no baseline"


@pytest.mark.full
def test_a_version_that_is_worse_than_the_baseline_takes_the_place_of_a_champion_that_is_worse_still(tmp_path):
    overfit = {"estimator": "sklearn.tree.DecisionTreeClassifier", "params": None, "refit": False}
    ungated = {"promote": {"metric": "log_loss", "baseline": False}}
    first = small_pipeline(tmp_path, events=by_weekday(), model={**overfit, **ungated})
    carry_out(first, NOW)
    (champion,) = first.state().registry.versions
    assert first.state().registry.champion(NOW) == champion
    gated = small_pipeline(
        tmp_path,
        events=by_weekday(),
        model={"params": {"max_iter": 5}, "refit": False, "promote": {"metric": "log_loss"}},
    )
    period = gated.spec.periods.serving.named("2024-02-01")
    better = gated.train(period, Stamp("again", NOW), params={"learning_rate": 1.0})
    assert better.decision.action == "approved"
    assert better.decision.reason.startswith(f"meets the gate; better than champion {champion.version}: log_loss 0.")
    assert "; worse than guessing (class shares by weekday): log_loss 0." in better.decision.reason
    manifest = read_manifest(gated.home.bundle("small", better.version.version), better.version.sha256)
    assert manifest.evaluation.baseline.name == "class shares by weekday"
    assert gated.state().registry.champion(NOW).version == better.version.version
