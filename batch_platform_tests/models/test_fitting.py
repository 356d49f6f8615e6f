"""Training: in the order of time, on a contract learned from the beginning, judged by the gate."""

import math
import warnings
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.declaration.errors import DataError, TrainingRefusedError, WrongUseError
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.model import Model, Promote
from batch_platform.declaration.spec import Features
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import TrainingData, feature_columns
from batch_platform.models.bundle import Sampled, read_manifest
from batch_platform.models.contract import Positive
from batch_platform.models.declared_model import check_estimator_exists, make_estimator
from batch_platform.models.fitting import LEAST_ROWS, fit
from batch_platform.models.gate import judge
from batch_platform.models.judged import JudgedScores
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline
from batch_platform_tests.harness.tiers import crossed
from batch_platform_tests.models.training_rows import FEATURES, HGB, data

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
TRAINED = datetime(2024, 2, 1, 12, tzinfo=UTC)  # the model of February is due, but no day that it serves


def fitted(training: TrainingData | None = None, estimator: str = HGB, params=None, features: Features = FEATURES):
    return fit(Model(estimator=estimator), features, training or data(), params or {})


@pytest.mark.unit
def test_the_contract_is_learned_from_the_beginning_of_the_window_alone():
    training = data(amount=[float(n) for n in range(200)], kind=["old"] * 150 + ["new"] * 50)
    contract = {column.name: column for column in fitted(training).signature.contract.columns}
    assert contract["amount"].highest == 149.0
    assert contract["kind"].categories == ("old",)


def test_an_estimator_that_did_not_converge_is_remarked_on_once_and_other_warnings_stay_warnings():
    linear = "sklearn.linear_model.LogisticRegression"
    reason = "it did not converge: lbfgs failed to converge after 1 iteration(s) (status=1)"
    assert fitted(estimator=linear, params={"max_iter": 1}).remarks == (reason,)
    assert fitted(estimator=linear).remarks == ()
    with pytest.warns(UserWarning, match="look here"):
        assert fit(Model(build=f"{__name__}.Talkative"), FEATURES, data(), {}).remarks == ()


class Talkative(LogisticRegression):
    def fit(self, X, y):  # noqa: N803 - scikit-learn's names
        warnings.warn("look here", UserWarning, stacklevel=1)
        return super().fit(X, y)


@pytest.mark.unit
def test_lightgbm_prints_nothing_unless_it_is_told_to(capfd):
    fitted(estimator="lightgbm.LGBMClassifier", params={"n_estimators": 3})
    assert capfd.readouterr() == ("", "")
    fitted(estimator="lightgbm.LGBMClassifier", params={"n_estimators": 3, "verbose": 1})
    assert "[LightGBM] [Info]" in capfd.readouterr().out


@pytest.mark.unit
def test_key_time_and_excluded_columns_are_not_features():
    features = Features.model_validate(
        {"sql": "f.sql", "key": ["id"], "time": "ts", "columns": {"shop": {"feature": False}}}
    )
    assert feature_columns(features, dict.fromkeys(["id", "ts", "shop", "x"], pl.Int64())) == ["x"]


def test_a_cap_on_rows_keeps_the_share_of_each_class_and_is_recorded(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"train": {"max_rows": 200}, "refit": False})
    carry_out(pipeline, TRAINED)
    (version,) = pipeline.state().registry.versions
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    assert manifest.sampled == Sampled(max_rows=200, rows_before=860, rows_after=200, stratified=True, seed=0)
    assert manifest.training.rows == version.rows_trained == 200
    assert version.rows_evaluated > 200, "evaluation sees all rows"
    again = small_pipeline(tmp_path / "again", model={"train": {"max_rows": 200}, "refit": False})
    carry_out(again, TRAINED)
    (second,) = again.state().registry.versions
    assert second.metrics == version.metrics, "the same rows are drawn"


def test_an_empty_partition_in_the_window_changes_nothing(tmp_path):
    pipeline = small_pipeline(tmp_path, events=small_events().filter(LOCAL_DAY != "2024-01-10"))
    carry_out(pipeline, TRAINED)
    assert pipeline.state().features["2024-01-10"].rows == 0
    assert len(pipeline.state().registry.approved()) == 1


def weighted_data(weight: float, n: int = 400) -> TrainingData:
    """Rows whose label the features do not tell; those with a late one have a weight."""
    random = np.random.default_rng(1)
    late = random.random(n) < 0.3
    frame = pl.DataFrame({"x": random.normal(size=n), "z": random.normal(size=n), "late": late})
    frame = frame.with_columns(pl.Series(WEIGHT, np.where(late, weight, 1.0)))
    return TrainingData(fit=frame.head(300), evaluate=frame.tail(100), label="late")


def without(*columns: str, label: str | None = "late") -> TrainingData:
    parts = (part.drop(columns) for part in (data().fit, data().evaluate))
    return TrainingData(*parts, label)


LIGHTGBM, XGBOOST = "lightgbm.LGBMClassifier", "xgboost.XGBClassifier"
REFUSED = [
    (data(label=[True] * 200), HGB, {}, "All labels to learn from are True"),
    (data(label=["yes"] * 200), HGB, {}, "All labels to learn from are 'yes'"),
    (data(label=[2.5] * 200), "sklearn.linear_model.Ridge", {}, "a regression needs values that differ"),
    (data(label=["a", "b"] * 100), "sklearn.linear_model.Ridge", {}, "Ridge rejects the training data: could not conv"),
    (data(20), HGB, {}, f"There are 15 rows to learn from; at least {LEAST_ROWS}"),
    (without("late", label=None), HGB, {}, r"learns from labels.*add `labels`"),
    (without("x", "shop", "flag"), HGB, {}, "no feature column"),
    (data(), "sklearn.linear_model.RidgeClassifier", {}, r"does not return probabilities.*CalibratedClassifierCV"),
    (data(), "sklearn.preprocessing.StandardScaler", {}, "not a classifier, a regressor, or a clustering"),
    (data(), XGBOOST, {"booster": "gblinear"}, "data: `gblinear` doesn't support categorical features"),
    (data(), XGBOOST, {"n_estimators": 5, "missing": -999.0}, r"does not save that -999 .*NULLIF\(column, -999\)"),
    (data(), LIGHTGBM, {"num_leaves": 1}, r"rejects the training data: Check failed: \(num_leaves\) > \(1\)"),
    (
        data(),
        LIGHTGBM,
        {"n_estimators": 200, "verbose": -1, "pred_early_stop": True, "pred_early_stop_margin": 0.1},
        r"LGBMClassifier scores differently once it is saved in \d+ of 150 rows. Hint: ",
    ),
    (
        weighted_data(2),
        "sklearn.neighbors.KNeighborsClassifier",
        {},
        "labels.weight: KNeighborsClassifier cannot learn from",
    ),
]


@pytest.mark.unit
@pytest.mark.parametrize(("training", "estimator", "params", "message"), REFUSED)
def test_what_cannot_be_learned_is_refused_with_the_reason(training, estimator, params, message):
    with pytest.raises((TrainingRefusedError, WrongUseError), match=message):
        fitted(training, estimator, params)


@pytest.mark.unit
def test_rows_that_break_the_contract_are_named_where_too_few_are_left():
    """As with a value that polars tells from null, in every row."""
    message = (
        r"There are 0 rows to learn from, beside 150 that break the contract \(most often (\w+): NaN or infinite\)"
    )
    training = data()
    number = training.fit.select(pl.selectors.float()).columns[0]
    broken = TrainingData(training.fit.with_columns(pl.lit(math.nan).alias(number)), training.evaluate, training.label)
    with pytest.raises(TrainingRefusedError, match=message) as refused:
        fitted(broken)
    assert f"correct {number} in the features" in refused.value.hint


@pytest.mark.parametrize(
    ("estimator", "kernel", "reason"),
    [
        (HGB, "leaf masks of 32 bits", None),
        ("sklearn.ensemble.RandomForestClassifier", "leaf masks of 64 bits", None),
        (
            "sklearn.linear_model.LogisticRegression",
            None,
            "it is linear, and evaluated from the numbers in linear.json",
        ),
        ("sklearn.naive_bayes.GaussianNB", None, "GaussianNB is not a tree ensemble that can be compiled"),
    ],
)
def test_a_compiled_form_is_proven_on_held_out_and_generated_rows_or_the_reason_is_stated(estimator, kernel, reason):
    model = fitted(estimator=estimator)
    assert (model.proof.compiled.kernel, model.proof.compiled.reason) == (kernel, reason)
    assert model.proof.compiled.rows > model.rows_evaluated if kernel else model.proof.compiled.rows == 0


@pytest.mark.unit
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pl.Series([1, 0] * 100, dtype=pl.Int8), [0, 1]),
        (pl.Series(["yes", "no"] * 100, dtype=pl.Categorical), ["no", "yes"]),
        (pl.Series([Decimal("1.0"), Decimal("0.0")] * 100), [0.0, 1.0]),
    ],
    ids=["int", "categorical", "decimal"],
)
def test_labels_of_any_type_are_learned_and_evaluated(labels, classes):
    model = fitted(data(label=labels), params={"max_iter": 2})
    assert model.signature.classes == classes
    assert "accuracy" in model.metrics


@pytest.mark.unit
def test_evaluation_rows_of_a_class_never_seen_are_wrong_decisions_and_have_no_probability():
    model = fitted(data(label=["a", "b"] * 75 + ["c"] * 50), params={"max_iter": 2})
    assert model.signature.classes == ["a", "b"]
    assert model.metrics["accuracy"] == 0.0
    assert not {"roc_auc", "log_loss", "brier"} & set(model.metrics)
    assert "cannot be measured" in judge(Promote(), model.signature.task, model.metrics)


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        (HGB, {"max_iter": 60, "early_stopping": True, "n_iter_no_change": 2}),
        ("lightgbm.LGBMClassifier", {"n_estimators": 60, "early_stopping_round": 2, "verbose": -1}),
        ("xgboost.XGBClassifier", {"n_estimators": 60, "early_stopping_rounds": 2}),
    ],
)
def test_a_model_that_stops_early_watches_rows_that_it_learns_from_and_records_the_iteration(estimator, params):
    training = data()
    changed = TrainingData(training.fit, training.evaluate.with_columns(~pl.col("late")), "late")
    first, second = (fitted(rows, estimator, params).details for rows in (training, changed))
    assert first == second, "the evaluation rows have no say"
    assert 1 <= next(iter(first.values())) < 60
    endless = {name: value for name, value in params.items() if name in ("n_estimators", "verbose")}
    assert fitted(estimator=estimator, params=endless).details == {}


@pytest.mark.parametrize(
    ("estimator", "namings"),
    crossed(
        [
            ("sklearn.neural_network.MLPClassifier", {"max_iter": 20}),
            (HGB, {"max_iter": 60, "early_stopping": True, "n_iter_no_change": 3}),
            ("lightgbm.LGBMClassifier", {"n_estimators": 60, "early_stopping_round": 3, "verbose": -1}),
            ("xgboost.XGBClassifier", {"n_estimators": 60, "early_stopping_rounds": 3}),
        ],
        [[[0, 1], ["yes", "no"], [True, False]], [[0, 1, 2], ["b", "c", "a"], [30, 10, 20]]],
    ),
)
def test_renaming_or_reordering_labels_changes_no_probability(estimator, namings):
    path, params = estimator
    random = np.random.default_rng(1)
    x = random.normal(size=400)
    kinds = np.digitize(x + random.normal(size=400), [-0.5, 0.7][: len(namings[0]) - 1])
    probabilities, iterations = [], set()
    for names in namings:
        training = data(400, label=[names[kind] for kind in kinds], y=x)
        positive = Positive(names[1], None) if len(names) == 2 else None
        model = fit(Model(estimator=path), FEATURES, training, params, positive)
        columns = [model.signature.classes.index(name) for name in names]
        probabilities.append(model.predictor.predict(model.held_out)[:, columns])
        iterations.add(str(model.details))
    assert len(iterations) == 1
    for other in probabilities[1:]:
        assert np.allclose(other, probabilities[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        ("sklearn.linear_model.LogisticRegression", {}),
        (HGB, {"max_iter": 20, "early_stopping": True}),
        ("lightgbm.LGBMClassifier", {"n_estimators": 20, "early_stopping_round": 3, "verbose": -1}),
        ("xgboost.XGBClassifier", {"n_estimators": 20, "early_stopping_rounds": 3}),
    ],
)
def test_rows_of_more_weight_count_more_in_the_fit_in_the_trivial_model_and_in_the_metrics(estimator, params):
    alike, heavy = (fitted(weighted_data(weight), estimator, params) for weight in (1, 7 / 3))
    means = [model.predictor.predict(model.held_out)[:, 1].mean() for model in (alike, heavy)]
    assert means[0] == pytest.approx(0.3, abs=0.08)
    assert means[1] == pytest.approx(0.5, abs=0.08), "late rows weigh as much as the others together"
    scores = heavy.predictor.predict(heavy.held_out)[:, 1]
    rows = weighted_data(7 / 3).evaluate
    assert heavy.metrics["brier"] == pytest.approx(brier_score_loss(rows["late"], scores, sample_weight=rows[WEIGHT]))
    assert heavy.trivial.baseline.metrics["brier"] == pytest.approx(0.25, abs=0.01)
    kept = JudgedScores.from_parquet(heavy.judged.to_parquet(), "binary", heavy.signature.classes)
    assert np.array_equal(kept.outcomes.weights, rows[WEIGHT])


def test_stacking_works_with_its_default_and_columns_that_are_selected_by_name_are_refused_with_the_way_to_say_it():
    stacked = fit(Model(build=f"{__name__}.stacked"), FEATURES, data(), {})
    assert stacked.metrics["roc_auc"] > 0.5
    assert stacked.flavour.save(stacked.estimator)
    with pytest.raises(TrainingRefusedError) as refused:
        fit(Model(build=f"{__name__}.selecting"), FEATURES, data(), {})
    assert refused.value.hint.startswith("select columns by their positions, or check the features")
    assert "with the columns 0 x, 1 shop (text), 2 flag" in refused.value.hint


def stacked() -> StackingClassifier:
    return StackingClassifier(
        [("few", HistGradientBoostingClassifier(max_iter=3)), ("more", HistGradientBoostingClassifier(max_iter=9))]
    )


def selecting() -> Pipeline:
    numbers = make_column_selector(dtype_include=np.number)
    return make_pipeline(make_column_transformer((StandardScaler(), numbers)), LogisticRegression())


GATE = [
    ({}, {"roc_auc": 0.4}, None),
    ({"at_least": 0.6}, {"roc_auc": 0.6}, None),
    ({"at_least": 0.6}, {"roc_auc": 0.59}, "roc_auc 0.5900 is worse than the required 0.6"),
    ({"metric": "log_loss", "at_least": 0.6}, {"log_loss": 0.7}, "log_loss 0.7000 is worse than the required 0.6"),
    ({"metric": "brier"}, {"roc_auc": 0.9}, "brier cannot be measured"),
]


@pytest.mark.unit
@pytest.mark.parametrize(("gate", "metrics", "refusal"), GATE)
def test_the_rule_of_the_gate(gate, metrics, refusal):
    reason = judge(Promote.model_validate(gate), "binary", metrics)
    assert (reason is None) if refusal is None else (refusal in reason)


def test_features_of_an_earlier_sql_are_not_used_for_training(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, TRAINED)
    sql = "SELECT id, ts, amount FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    changed = small_pipeline(tmp_path, features_sql=sql)
    with pytest.raises(DataError, match="2024-01-01: the features were built by an earlier version"):
        changed.train(changed.spec.periods.serving.named("2024-02-01"), Stamp("again", NOW))


@pytest.mark.parametrize(
    ("estimator", "steps"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", []),
        ("sklearn.ensemble.GradientBoostingClassifier", ["simpleimputer"]),
        ("sklearn.linear_model.LogisticRegression", ["columntransformer"]),
        ("sklearn.cluster.KMeans", ["columntransformer"]),
    ],
)
def test_an_estimator_gets_the_preprocessing_that_it_needs(estimator, steps):
    made = make_estimator(Model(estimator=estimator), {}, fitted().signature.contract)
    assert [name for name, _ in getattr(made, "steps", [])][:-1] == steps


@pytest.mark.unit
def test_preprocessing_learns_only_from_the_beginning_of_the_window():
    training = data(big=[1.0] * 75 + [3.0] * 75 + [1000.0] * 50)
    model = fitted(training, "sklearn.linear_model.LogisticRegression")
    scaler = model.estimator[0].named_transformers_["scaled"][-1]
    assert scaler.mean_[-1] == 2.0


@pytest.mark.unit
@pytest.mark.parametrize(
    ("estimator", "params", "message"),
    [
        (HGB, {"max_itr": 3}, "has no parameter max_itr.*'max_itr': did you mean 'max_iter'"),
        ("sklearn.ensemble.HistGradientBoostingClasifier", {}, "did you mean 'HistGradientBoostingClassifier'"),
        ("sklearn.metrics.roc_auc_score", {}, "is not a scikit-learn-compatible estimator"),
        ("nowhere.at.all", {}, "cannot be imported"),
    ],
)
def test_a_misspelt_declaration_is_refused_with_the_nearest_match(estimator, params, message):
    with pytest.raises(WrongUseError, match=message):
        check_estimator_exists(Model(estimator=estimator, params=params))


@pytest.mark.unit
def test_every_value_that_scikit_learn_would_refuse_in_training_is_refused_before_with_what_it_takes():
    params = {"max_iter": "hundred", "loss": "poisson", "max_depth": None, "learning_rate": -1}
    with pytest.raises(WrongUseError) as refusal:
        make_estimator(Model(estimator=HGB), params, fitted().signature.contract)
    assert refusal.value.message.startswith(
        "model.params.learning_rate: -1 is not allowed; HistGradientBoostingClassifier takes a float in the range (0.0, inf). "
        "model.params.loss: 'poisson' is not allowed; HistGradientBoostingClassifier takes a str among {'log_loss'}"
    )
    assert refusal.value.message.endswith(
        " model.params.max_iter: 'hundred' is not allowed; HistGradientBoostingClassifier takes an int in the range [1, inf)."
    )


@pytest.mark.full
def test_boosted_trees_that_are_worse_than_class_shares_where_classes_are_rare_are_remarked_on():
    shares = 1 / np.arange(1, 31)
    label = [f"kind {at}" for at in np.random.default_rng(3).choice(30, 800, p=shares / shares.sum())]
    diverged = fitted(data(800, label))
    (remark,) = diverged.remarks
    figures = (diverged.metrics["log_loss"], diverged.trivial.baseline.metrics["log_loss"])
    assert figures[0] > figures[1]
    assert remark.startswith(
        f"its probabilities are worse than the shares of the classes (log_loss {figures[0]:.2f} against {figures[1]:.2f})"
    )
    assert remark.endswith("try a smaller learning_rate, or join rare classes in labels.sql")
    assert fitted(data(800, label), params={"learning_rate": 0.001, "max_iter": 5}).remarks == ()
