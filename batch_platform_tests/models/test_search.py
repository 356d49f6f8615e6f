"""The search for parameters: scikit-learn's trials and folds, inside the rows to learn from, the same however many cores there are."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GridSearchCV, ParameterSampler
from sklearn.pipeline import Pipeline as Steps
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.model import Model
from batch_platform.declaration.spec import Features
from batch_platform.features.history import ENTITY, PARTITION_START, TrainingData
from batch_platform.models.bundle import read_manifest
from batch_platform.models.declared_model import check_model, make_estimator
from batch_platform.models.fitting import fit
from batch_platform.models.search import FOLDS, folds_of
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.trainings import differences
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_spec

HGB = "sklearn.ensemble.HistGradientBoostingClassifier"
LINEAR = "sklearn.linear_model.LogisticRegression"
FEATURES = Features(sql="features.sql", key=["id"])
NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
DAYS, PER_DAY = 20, 40


def data(*, classes: int = 2, regression: bool = False, by_entity: bool = False) -> TrainingData:
    """Twenty days of forty rows each, of which the last five are for evaluation; eleven entities recur."""
    random = np.random.default_rng(0)
    count = DAYS * PER_DAY
    x, z = random.normal(size=(2, count))
    signal = np.sin(2 * x) + z + random.normal(scale=0.7, size=count)
    label = signal if regression else np.digitize(signal, [0.0, 0.8][: classes - 1])
    starts = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(DAYS)]
    frame = pl.DataFrame(
        {
            "x": x,
            "z": pl.Series(np.where(random.random(count) < 0.1, np.nan, z)).fill_nan(None),
            "shop": random.choice(["a", "b"], count),
            "label": label,
            PARTITION_START: [start for start in starts for _ in range(PER_DAY)],
            ENTITY: random.integers(0, 11, count).astype(np.uint64),
        }
    )
    return TrainingData(frame.head(15 * PER_DAY), frame.tail(5 * PER_DAY), "label", by_entity=by_entity)


def searched(training: TrainingData, estimator: str = HGB, *, trials: int = 20, metric=None, **values: list[object]):
    kind = "build" if estimator.startswith(__name__) else "estimator"
    search = {"params": values, "trials": trials}
    model = Model.model_validate({kind: estimator, "search": search, "promote": {"metric": metric}})
    return fit(model, FEATURES, training, {})


def steps(leaves: int) -> Steps:
    """A pipeline of a user's own."""
    columns = make_column_transformer((StandardScaler(), [0, 1]), (OneHotEncoder(), [2]))
    return Steps([("columns", columns), ("trees", HistGradientBoostingClassifier(max_leaf_nodes=leaves))])


def test_trials_and_scores_are_those_of_scikit_learn_on_the_same_folds():
    training, grid = data(), {"C": [0.001, 0.1, 10.0], "l1_ratio": [0, 1], "solver": ["liblinear"]}
    found = searched(training, LINEAR, trials=4, **grid).search
    contract = fit(Model(estimator=LINEAR), FEATURES, training, {}).signature.contract
    matrix, folds = contract.encode(training.fit), folds_of(training.fit, by_entity=False, apart=False)
    pipeline = make_estimator(Model(estimator=LINEAR), {}, contract)
    own = {f"logisticregression__{name}": values for name, values in grid.items()}
    splits = [(np.flatnonzero(fold.learned), np.flatnonzero(fold.scored)) for fold in folds]
    reference = GridSearchCV(pipeline, own, scoring="roc_auc", cv=splits).fit(matrix, training.fit["label"])
    scores = dict(
        zip(
            (json.dumps(each, sort_keys=True) for each in reference.cv_results_["params"]),
            reference.cv_results_["mean_test_score"],
            strict=True,
        )
    )
    declared, *drawn = found.trials
    assert declared.params == {}
    assert [trial.params for trial in drawn] == [*ParameterSampler(grid, 4, random_state=0)]
    for trial in drawn:
        named = json.dumps({f"logisticregression__{name}": trial.params[name] for name in trial.params}, sort_keys=True)
        assert trial.score == pytest.approx(scores[named], abs=1e-9)
        assert trial.score == pytest.approx(np.mean(trial.folds))
        assert len(trial.folds) == FOLDS


def test_fits_at_the_same_time_do_not_disturb_the_random_numbers_of_each_other():
    few = data()
    training = replace(few, fit=pl.concat([few.fit] * 10))
    same = searched(
        training, LINEAR, metric="log_loss", solver=["liblinear"], l1_ratio=[1], tol=[0.1], max_iter=[*range(90, 110)]
    )
    assert len({trial.score for trial in same.search.trials[1:]}) == 1


def test_the_declared_parameters_stay_unless_a_trial_is_better_beyond_chance():
    alike = searched(data(), LINEAR, verbose=[0, 0]).search
    assert (alike.best, alike.trials[0].score) == ({}, alike.trials[1].score)
    assert alike.remark == "the declared parameters stay, since no trial of model.search scores better"
    chance = searched(data(), LINEAR, C=[1e-4, 1e-3])
    assert max(chance.search.trials, key=lambda trial: trial.score).params == {"C": 1e-4}
    assert (chance.search.best, chance.estimator[-1].C) == ({}, 1.0)
    assert chance.remarks[-1].startswith(
        "the declared parameters stay, since the best trial of model.search is not clearly better or worse than they are: "
        "roc_auc 0.877 against 0.876 on 360 rows"
    )
    slow = {"estimator": HGB, "params": {"max_iter": 1}, "promote": {"metric": "log_loss"}}
    model = Model.model_validate({**slow, "search": {"params": {"learning_rate": [0.01, 1.0]}}})
    found = fit(model, FEATURES, data(), {"max_iter": 1})
    assert (found.search.best, found.search.remark) == ({"learning_rate": 1.0}, "")
    assert found.estimator.learning_rate == 1.0


@pytest.mark.unit
@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=3)])
def test_a_fold_scores_whole_partitions_and_learns_from_those_whose_labels_were_known_when_they_begin(late):
    rows, day = data().fit, timedelta(days=1)
    starts = rows[PARTITION_START]
    known_from = {start: start + day + late for start in starts.unique()}
    folds = folds_of(rows, by_entity=False, apart=False, known_from=known_from)
    assert len(folds) == FOLDS
    for fold in folds:
        learned, scored = (set(starts.filter(pl.Series(mask))) for mask in (fold.learned, fold.scored))
        assert learned == {start for start in starts if start + day + late <= min(scored)}
        assert starts.is_in(list(scored)).to_list() == fold.scored.tolist()


@pytest.mark.unit
@pytest.mark.parametrize("by_entity", [True, False])
def test_no_entity_is_on_both_sides_of_a_fold_of_snapshots_or_of_groups(by_entity):
    rows = data().fit.with_columns((pl.int_range(pl.len()) // 7 % 83).cast(pl.UInt64).alias(ENTITY))
    folds = folds_of(rows, by_entity=by_entity, apart=not by_entity)
    assert len(folds) == FOLDS
    for fold in folds:
        learned, scored = (set(rows.filter(pl.Series(mask))[ENTITY]) for mask in (fold.learned, fold.scored))
        assert scored
        assert not learned & scored
    assert by_entity == all((fold.learned | fold.scored).all() for fold in folds)


@pytest.mark.unit
def test_too_few_partitions_or_entities_are_refused():
    rows = data().fit.head(2 * PER_DAY)
    with pytest.raises(TrainingRefusedError, match=r"model\.search needs at least 3 partitions with labels .* are 2"):
        folds_of(rows, by_entity=False, apart=False)
    with pytest.raises(TrainingRefusedError, match=r"at least 3 entities"):
        folds_of(rows.with_columns(pl.lit(1, pl.UInt64).alias(ENTITY)), by_entity=True, apart=False)


@pytest.mark.parametrize(
    ("estimator", "training", "grid"),
    [
        (HGB, data(), {"learning_rate": [0.001, 0.2], "max_leaf_nodes": [3, 7]}),
        (HGB, data(by_entity=True), {"learning_rate": [0.001, 0.2], "max_leaf_nodes": [3]}),
        ("sklearn.linear_model.Ridge", data(regression=True), {"alpha": [1e6, 1.0]}),
        ("lightgbm.LGBMClassifier", data(), {"learning_rate": [0.001, 0.2], "n_estimators": [20], "verbose": [-1]}),
        ("xgboost.XGBClassifier", data(classes=3), {"learning_rate": [0.001, 0.2], "early_stopping_rounds": [3]}),
        (f"{__name__}.steps", data(), {"leaves": [7], "trees__learning_rate": [0.001, 0.2], "trees__max_iter": [20]}),
    ],
    ids=["trees", "snapshots", "preprocessing", "lightgbm", "xgboost", "a pipeline of one's own"],
)
def test_the_best_parameters_are_fitted(estimator, training, grid):
    model = searched(training, estimator, trials=3, metric="rmse" if "alpha" in grid else "log_loss", **grid)
    best = {name.rpartition("__")[2]: value for name, value in model.search.best.items()}
    assert best.get("learning_rate", 0.2) == 0.2
    assert best.get("alpha", 1.0) == 1.0
    fitted = {name.rpartition("__")[2]: value for name, value in model.estimator.get_params().items()}
    assert {name: fitted[name] for name in best if name != "leaves"} == {
        name: value for name, value in best.items() if name != "leaves"
    }


def test_the_number_of_cores_changes_no_score(monkeypatch):
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("BATCH_PLATFORM_THREADS", threads)
        found.append(searched(data(), trials=5, max_leaf_nodes=[3, 7, 15], max_iter=[5, 10]).search)
    assert found[0] == found[1]


def test_evaluation_rows_are_never_seen_and_weights_count():
    training = data()
    other = TrainingData(training.fit, training.evaluate.with_columns(label=1 - pl.col("label")), "label")
    search = {"max_leaf_nodes": [3, 7, 15], "max_iter": [10]}
    assert searched(training, **search).search == searched(other, **search).search
    weighted = [
        part.with_columns((pl.col("label") * 9.0 + 1).alias(WEIGHT)) for part in (training.fit, training.evaluate)
    ]
    assert searched(TrainingData(*weighted, "label"), **search).search != searched(training, **search).search


def test_a_combination_that_cannot_be_fitted_is_refused_by_name():
    with pytest.raises(
        TrainingRefusedError, match=r"LogisticRegression with \{'l1_ratio': 1\} rejects the training data"
    ):
        searched(data(), LINEAR, l1_ratio=[0, 1])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"search": {"params": {"learning_rate": []}}}, r"model\.search\.params\.learning_rate"),
        ({"search": {"params": {"max_iter": [5]}}}, "'max_iter' is in `params` and in `search.params`"),
        (
            {"estimator": None, "params": None, "import": "a.onnx", "search": {"params": {"C": [1]}}},
            "`search` needs an `estimator` or a `build`",
        ),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_at_load(model, says):
    with pytest.raises(ValueError, match=says):
        small_spec(model=model)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("declared", "says", "hint"),
    [
        (
            {"estimator": HGB, "search": {"params": {"learnig_rate": [0.1]}}},
            r"model\.search\.params: HistGradientBoostingClassifier has no parameter learnig_rate",
            "did you mean 'learning_rate'?",
        ),
        (
            {"estimator": HGB, "search": {"params": {"learning_rate": [0.1, -1.0]}}},
            r"model\.search\.params\.learning_rate: -1\.0 is not allowed",
            "correct the values",
        ),
        (
            {"build": f"{__name__}.steps", "search": {"params": {"leafs": [3]}}},
            r"model\.search\.params: .*steps takes leaves, but got leafs",
            "did you mean 'leaves'?",
        ),
    ],
)
def test_unknown_parameters_and_values_are_refused_with_the_nearest_name(tmp_path, declared, says, hint):
    with pytest.raises(WrongUseError, match=says) as refused:
        check_model(Model.model_validate(declared), tmp_path)
    assert hint in refused.value.hint


SEARCH = {"params": {"learning_rate": [0.01, 0.3], "max_iter": [5, 20]}, "trials": 3}
DECLARED = {
    "model": {"params": {"max_leaf_nodes": 7, "max_iter": None}, "search": SEARCH},
    "challengers": [{"name": "linear", "estimator": LINEAR, "search": {"params": {"C": [0.001, 1.0]}}}],
}


@pytest.mark.full
def test_a_search_is_recorded_and_its_parameters_are_no_other_declaration(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, **DECLARED)
    state = pipeline.state()
    for version in state.registry.of_model:
        manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
        assert (manifest.search["metric"], len(manifest.search["trials"])) == ("roc_auc", 4)
        assert manifest.params == {"max_leaf_nodes": 7, "early_stopping": False, **manifest.search["best"]}
        assert manifest.params == json.loads(version.params)
        assert differences(pipeline.spec, state, version) == []
    training = state.registry.challenger_trainings[-1]
    challenger = state.registry.named(training.version)
    assert json.loads(challenger.params) == {}, "1.0 is what the library takes itself"
    assert carry_out(Pipeline(pipeline.spec, pipeline.folder, pipeline.home), NOW).items == []
