"""Laws that every refinement keeps, on every path that scores: the platform's own, and those that a pipeline names."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, IntegrityError, TrainingRefusedError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle
from batch_platform.models.refinements.known import REFINEMENTS, declared
from batch_platform.models.refinements.refinement import REFINEMENTS_FILE, Refinement
from batch_platform.models.registry import Version
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.trainings import declared_now
from batch_platform.scoring.batch import score_batch
from batch_platform_tests.harness import own_refinements
from batch_platform_tests.harness.small_pipeline import (
    FILES,
    carry_out,
    finished_pipeline,
    small_declaration,
    small_pipeline,
    small_spec,
)

NOW = datetime(2024, 2, 4, 12, tzinfo=UTC)  # the model of February is due, and three days that it serves
OWN = "batch_platform_tests.harness.own_refinements"
LINEAR = "sklearn.linear_model.LogisticRegression"
PARAMS = dict.fromkeys(("max_iter", "max_leaf_nodes", "early_stopping"))  # of the small pipeline's model
VALUES = "SELECT id, amount AS returned FROM events WHERE ts >= $partition_start AND ts < $partition_end AND amount IS NOT NULL"
GRADES = VALUES.replace("amount AS", "shop AS").replace(" AND amount IS NOT NULL", "")
REGRESSION: dict[str, Any] = {
    "labels_sql": VALUES,
    "features": {"columns": {"amount": {"feature": False}}},
    "model": {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor", "promote": {"baseline": False}},
}
MULTICLASS: dict[str, Any] = {
    "labels_sql": GRADES,
    "features": {"columns": {"shop": {"feature": False}}},
    "model": {"promote": {"baseline": False}},
    "predictions": {"keep": None},
}
BALANCED = {"train": {"sample": "balanced", "max_rows": 200}}


def changed(*overrides: dict[str, Any]) -> dict[str, Any]:
    """Several overrides of the small pipeline as one; blocks of the same name are merged."""
    merged: dict[str, Any] = {}
    for each in overrides:
        for key, value in each.items():
            held = merged.get(key)
            merged[key] = changed(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return merged


def of_flavour(estimator: str, **params: Any) -> dict[str, Any]:
    return {"model": {"estimator": estimator, "params": {**PARAMS, **params}}}


OWN_REFINEMENTS = {"predictions": {"refine": [f"{OWN}.BANDED", f"{OWN}.BOUNDED"]}}
CALIBRATED: dict[str, Any] = {"model": {"calibrate": "sigmoid"}}
REASONS: dict[str, Any] = {"predictions": {"reasons": 3}}
PROBABILITIES = changed({"model": BALANCED}, CALIBRATED, REASONS, OWN_REFINEMENTS)
VALUES_WITH_RANGES = changed(REGRESSION, {"predictions": {"interval": "50%"}}, OWN_REFINEMENTS)
RULE: dict[str, Any] = {
    "estimator": None,
    "params": None,
    "import": f"{__name__}.Rule",
    "task": "binary",
    "classes": [False, True],
}
UNLABELLED: dict[str, Any] = changed({"labels": None}, OWN_REFINEMENTS)
# Each refinement meets each task and flavour that it is for. Every case has all of them that go together.
CASES: dict[str, dict[str, Any]] = {
    "trees": changed(PROBABILITIES, {"predictions": {"reasons": {"count": 2, "above": 0.4}}}),
    "forest": changed(PROBABILITIES, of_flavour("sklearn.ensemble.RandomForestClassifier", n_estimators=5)),
    "linear": changed(PROBABILITIES, of_flavour(LINEAR)),
    "lightgbm": changed(PROBABILITIES, of_flavour("lightgbm.LGBMClassifier", n_estimators=5, num_leaves=7, verbose=-1)),
    "xgboost": changed(
        PROBABILITIES, of_flavour("xgboost.XGBClassifier", n_estimators=5, max_depth=6, learning_rate=1.0)
    ),
    "network": changed(
        PROBABILITIES,
        of_flavour("sklearn.neural_network.MLPClassifier", hidden_layer_sizes=[4], max_iter=300, tol=0.01),
        {"predictions": {"reasons": None}},
    ),
    "import": changed(CALIBRATED, OWN_REFINEMENTS, {"model": RULE}),
    "multiclass": changed(MULTICLASS, PROBABILITIES),
    "regression": changed(VALUES_WITH_RANGES, REASONS),
    "clusters": changed(UNLABELLED, of_flavour("sklearn.cluster.KMeans", n_clusters=3)),
    "outliers": changed(UNLABELLED, of_flavour("sklearn.ensemble.IsolationForest", n_estimators=5)),
}
EVERYDAY = {"trees", "import", "regression"}


class Rule:
    """A model of the user's own, which is far from calibrated."""

    def __init__(self, highest: float = 0.6) -> None:
        self.highest = highest

    def predict(self, batch: pl.DataFrame) -> pl.Series:
        return (batch["amount"].fill_null(50.0) / 400).clip(0.01, self.highest)


LEARNER = ("estimator", "import", "task", "classes", "params", "calibrate")


def made(tmp_path: Path, case: str) -> Pipeline:
    """A pipeline that declares refinements, with a challenger like its model and rules that some rows break; it has scored three days."""
    rules = {"features": {"max_rejected": "50%", "columns": {"items": {"max": 7}}}}
    whole = changed({"model": {"train": {"evaluate": "14 days"}}}, rules, CASES[case])
    model = small_declaration(**{name: value for name, value in whole.items() if name not in FILES})["model"]
    twin = {"name": "twin", **{key: model[key] for key in LEARNER if key in model}}
    if "import" in model:
        twin["params"] = {"highest": 0.5}
    elif model["estimator"].startswith(("xgboost.", "lightgbm.")):  # an equal model would be the same version
        twin["params"] = {**model["params"], "max_depth": 2}
    return finished_pipeline(tmp_path, NOW, **whole, challengers=[twin])


@pytest.fixture(params=[pytest.param(case, marks=() if case in EVERYDAY else pytest.mark.full) for case in CASES])
def refining(request, tmp_path) -> Pipeline:
    return made(tmp_path, request.param)


def champion(pipeline: Pipeline) -> Version:
    (version,) = pipeline.state().registry.of_model
    return version


def stored(pipeline: Pipeline, query: str) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        return con.sql(query).pl()


def quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def features(pipeline: Pipeline) -> pl.DataFrame:
    """The features of the scored days, in order."""
    state = pipeline.state()
    return pl.concat(pipeline.history.features(state.features[key]) for key in sorted(state.scores))


def in_parts(pipeline: Pipeline, bundle: Bundle, rows: pl.DataFrame, size: int, run: int) -> pl.DataFrame:
    """Predictions of batches of a size, by the form of the model that suits a number of rows in the whole run."""
    parts = [rows[at : at + size] for at in range(0, rows.height, size)]
    return pl.concat(score_batch(part, bundle, pipeline.spec, bundle.for_rows(run)).predictions for part in parts)


def same(first: pl.DataFrame, second: pl.DataFrame) -> None:
    """Compare columns, types, and every bit."""
    assert first.schema == second.schema
    assert first.equals(second, null_equal=True)
    for name in first.select(pl.selectors.float()).columns:
        assert first[name].to_numpy().tobytes() == second[name].to_numpy().tobytes()


def test_every_refinement_has_cases_and_one_of_them_is_an_everyday_test():
    declaring = {
        case: {
            each.refinement.name for each in declared(small_spec(**{k: v for k, v in given.items() if k not in FILES}))
        }
        for case, given in CASES.items()
    }
    names = {*REFINEMENTS, f"{OWN}.BANDED", f"{OWN}.BOUNDED"}
    assert set().union(*(declaring[case] for case in EVERYDAY)) == names


def test_law_4_batches_of_any_size_and_native_or_compiled_models_give_the_same_bits(refining):
    registry, bundle, rows = refining.state().registry, refining.bundle(champion(refining)), features(refining)
    assert bundle.refinements, bundle.manifest.remarks
    whole = score_batch(rows, bundle, refining.spec)
    assert 0 < whole.rejected.height < rows.height
    for size, run in ((1, 1), (7, 1), (1_000, 1), (7, 10**12), (1_000, 10**12)):
        same(in_parts(refining, bundle, rows, size, run), whole.predictions)
    for few in (rows.clear(), rows.filter(pl.col("items") > 7)):
        scored = score_batch(few, bundle, refining.spec)
        assert scored.predictions.schema == whole.predictions.schema
        assert (scored.predictions.height, scored.rejected.height) == (0, few.height)
    for version, table in (
        (champion(refining), "predictions"),
        (registry.challenger_at("twin", NOW), "challenger_scores"),
    ):
        expected = score_batch(rows, refining.bundle(version), refining.spec, keep=[]).predictions.drop("ts")
        columns = ", ".join(quoted(name) for name in expected.columns)
        same(stored(refining, f"SELECT {columns} FROM small.{table} ORDER BY id"), expected.sort("id"))


@pytest.mark.full
@pytest.mark.parametrize("case", ["multiclass", "regression"])
def test_a_backtest_of_the_version_gives_what_is_stored(tmp_path, case):
    pipeline = made(tmp_path, case)
    days = [day for day in pipeline.spec.partitions.calendar.due(NOW) if day.key in pipeline.state().scores]
    model = BacktestModel(version=champion(pipeline).version)
    backtest(pipeline, days, model, Stamp("again", NOW), keep_scores=True)
    columns = set(stored(pipeline, "DESCRIBE small.predictions")["column_name"]) - {"run_id", "scored_at"}
    names = ", ".join(quoted(name) for name in sorted(columns))
    first, second = (
        stored(pipeline, f"SELECT {names} FROM small.{table} ORDER BY id")
        for table in ("predictions", "backtest_scores")
    )
    same(first, second)


def test_what_was_learned_is_plain_text_in_the_bundle_in_the_order_of_the_list_and_protected_by_its_hash(tmp_path):
    pipeline = made(tmp_path, "linear")
    file = pipeline.home.bundle("small", champion(pipeline).version) / REFINEMENTS_FILE
    names = [each["name"] for each in json.loads(file.read_text())]
    assert names == ["prior", "calibration", f"{OWN}.BANDED", f"{OWN}.BOUNDED", "reasons"]
    file.write_text(file.read_text().replace("0", "1", 1))
    with pytest.raises(IntegrityError, match=f"{REFINEMENTS_FILE} of the bundle"):
        small_again(pipeline).bundle(champion(pipeline))


def small_again(pipeline: Pipeline) -> Pipeline:
    """The same pipeline as another process opens it."""
    return Pipeline(pipeline.spec, pipeline.folder, pipeline.home)


def test_a_changed_module_of_a_refinement_makes_a_training_due_and_is_not_used_until_then(tmp_path, monkeypatch):
    pipeline = made(tmp_path, "linear")
    version, before = champion(pipeline), declared_now(pipeline.spec, pipeline.state())
    copy = tmp_path / "changed.py"
    copy.write_text("# changed\n" + Path(own_refinements.__file__).read_text())
    monkeypatch.setattr(own_refinements, "__file__", str(copy))
    assert declared_now(pipeline.spec, pipeline.state()) != before
    with pytest.raises(
        IntegrityError, match=r"The source of .*BANDED has changed since the model was trained; it is not used\."
    ):
        small_again(pipeline).bundle(version)


def broken(monkeypatch, **parts: Any) -> dict[str, Any]:
    monkeypatch.setattr(own_refinements, "BROKEN", Refinement("broken", **parts), raising=False)
    return {"predictions": {"refine": [f"{OWN}.BROKEN"]}, "model": {"train": {"evaluate": "14 days"}}}


def raises(*_: object) -> Any:
    msg = "no such price"
    raise KeyError(msg)


def test_a_refinement_that_fails_or_returns_another_shape_is_refused_at_training_with_its_name(tmp_path, monkeypatch):
    cases = {
        r"BROKEN raised KeyError: 'no such price'\.": {"fit": raises},
        r"BROKEN returned \[\d+\] in place of \[\d+, 2\]\.": {
            "refine": lambda _, predictor, matrix: predictor.predict(matrix)[:, 1]
        },
    }
    for at, (message, parts) in enumerate(cases.items()):
        pipeline = small_pipeline(tmp_path / str(at), **broken(monkeypatch, **parts))
        with pytest.raises(TrainingRefusedError, match=rf"predictions\.refine: .*{message}"):
            carry_out(pipeline, NOW)


@pytest.mark.parametrize("column", [pl.Series("Score", [1.0] * 40), pl.Series("odd", [1.0])])
def test_a_column_that_exists_or_has_too_few_values_stops_the_scoring_and_names_it(tmp_path, monkeypatch, column):
    overrides = broken(monkeypatch, columns=lambda *_: [column])
    with pytest.raises(DataError, match=f"a refinement adds the columns {column.name}, which exist already or"):
        carry_out(small_pipeline(tmp_path, **overrides), NOW)


@pytest.mark.unit
def test_a_refinement_that_does_not_exist_is_refused_with_its_key():
    for path, message in {
        f"{OWN}.BANDS": rf"predictions\.refine: '{OWN}' has no class or function 'BANDS'",
        f"{OWN}.described": "is not a Refinement",
        "shop.pricing.rounded": r"predictions\.refine: the module 'shop.pricing' cannot be imported",
    }.items():
        with pytest.raises(WrongUseError, match=message):
            declared(small_spec(predictions={"refine": [path]}))
