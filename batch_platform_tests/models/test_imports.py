"""Imports skip training, but not the contract, the hash, the registry and the gate; a model that does not fit is refused."""

import pickle
import sys
from datetime import UTC, datetime

import lightgbm
import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import BatchPlatformError, DataError, IntegrityError, WrongUseError
from batch_platform.declaration.model import Model
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.contract import Input, matched_contract
from batch_platform.models.declared_model import check_estimator_exists, read_import
from batch_platform.pipeline.train import UNJUDGED
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.flavour_cases import COLUMNS, infer_contract, table
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
NUMBERS_SQL = "SELECT id, ts, amount, items, known FROM events WHERE ts >= $partition_start AND ts < $partition_end"
FEW_DAYS = {"start": "2024-01-17", "end": "2024-02-12"}
BOOSTER = {"import": "returns.txt", "estimator": None, "params": None}
RULE = """\
class Rule:
    def __init__(self, above=80.0):
        self.above = above

    def predict(self, batch):
        return (batch["amount"].fill_null(0.0) > self.above).cast(float) * 0.8 + 0.1
"""


def booster(folder, *, good: bool = True):
    """A file that LightGBM wrote somewhere else; a bad one has learned the opposite."""
    rows = small_events().filter(pl.col("returned").is_not_null())
    matrix = rows.select(pl.col("amount", "items", "known").cast(pl.Float64)).to_numpy()
    truth = rows["returned"].to_numpy() == good
    data = lightgbm.Dataset(matrix, truth, feature_name=["amount", "items", "known"])
    model = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 10)
    folder.mkdir(exist_ok=True)
    model.save_model(folder / "returns.txt")
    return model


def pipeline_of(tmp_path, *, model=BOOSTER, **overrides):
    declared = {"features_sql": NUMBERS_SQL, "partitions": FEW_DAYS, "predictions": None, **overrides}
    return small_pipeline(tmp_path, model=model, **declared)


def test_a_file_serves_every_period_without_training_and_is_judged_by_the_gate(tmp_path):
    made = booster(tmp_path / "project")
    pipeline = pipeline_of(tmp_path)
    carry_out(pipeline, NOW)
    registry = pipeline.state().registry
    assert [version.serving_period for version in registry.approved()] == ["2024-02-01"]
    version = registry.approved()[0]
    assert (version.flavour, version.estimator, version.rows_trained) == ("lightgbm", "returns.txt", 0)
    assert version.metric_values["roc_auc"] > 0.8
    assert registry.last_decision(version.version).reason == "meets the gate"
    bundle = pipeline.bundle(version)
    rows = small_events().tail(50)
    matrix = rows.select(pl.col("amount", "items", "known").cast(pl.Float64)).to_numpy()
    np.testing.assert_array_equal(bundle.predictor.predict(bundle.contract.encode(rows))[:, 1], made.predict(matrix))
    assert pipeline.state().scores["2024-02-10"].model_version == version.version


def test_without_a_known_label_it_is_approved_and_says_so(tmp_path):
    booster(tmp_path / "project")
    pipeline = pipeline_of(tmp_path, labels={"delay": "90 days"})
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    list(pipeline.build_features([item.partition for item in plan.of("features")], Stamp("run", NOW)))
    (period, *_) = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).of("model")
    trained = pipeline.train(period.partition, Stamp("run", NOW))
    assert (trained.decision.action, trained.decision.reason) == ("approved", UNJUDGED)


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """A module of the user's own."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "my_rules.py").write_text(RULE)
    monkeypatch.syspath_prepend(folder)
    yield folder / "my_rules.py"
    sys.modules.pop("my_rules", None)


def test_a_changed_source_is_refused_until_it_is_imported_again(tmp_path, rule):
    model = {"import": "my_rules.Rule", "task": "binary", "classes": [False, True], "estimator": None}
    model |= {"params": None, "train": {"every": None}}
    pipeline = pipeline_of(tmp_path, model=model)
    carry_out(pipeline, NOW)
    rule.write_text(RULE.replace("0.8", "0.7"))
    again = pipeline_of(tmp_path, model=model)
    day = again.spec.partitions.calendar.named("2024-02-10")
    with pytest.raises(IntegrityError, match=r"source of my_rules\.Rule has changed since it was imported"):
        list(again.score([day], Stamp("again", NOW), force=True))
    later = again.spec.partitions.calendar.named("2024-02-01")
    imported = again.train(later, Stamp("again", NOW)).version
    (scored,) = again.score([day], Stamp("again", NOW), force=True)
    assert scored.run.model_version == imported.version


@pytest.mark.unit
@pytest.mark.usefixtures("rule")
def test_only_a_python_class_takes_parameters(tmp_path):
    model = {"import": "my_rules.Rule", "task": "binary", "classes": [False, True]}
    read = read_import(Model.model_validate(model), tmp_path, {"above": 10.0})
    assert read.source.model.params == {"above": 10.0}
    with pytest.raises(WrongUseError, match=r"cannot be built with abov: TypeError.*'abov'"):
        read_import(Model.model_validate(model), tmp_path, {"abov": 10.0})
    booster(tmp_path)
    with pytest.raises(WrongUseError, match="above cannot be given to an imported lightgbm model"):
        read_import(Model.model_validate({"import": "returns.txt"}), tmp_path, {"above": 1})


@pytest.mark.unit
def test_a_pickle_is_not_touched_unless_the_declaration_allows_it(tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(WrongUseError, match=r"may run code.*model\.allow_pickle: true"):
        read_import(Model.model_validate({"import": "model.pkl"}), tmp_path, {})
    assert not (tmp_path / "canary").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("declared", "error", "message"),
    [
        ({"import": "return.txt"}, WrongUseError, "there is no file .*return.txt.*did you mean 'returns.txt'"),
        ({"import": "./returns.bin"}, WrongUseError, r"does not show what kind of model.*model\.flavour"),
        ({"import": "returns.txt", "flavour": "xgboost"}, DataError, "XGBoost cannot read the model"),
        ({"import": "rubbish.txt"}, DataError, "LightGBM cannot read the model"),
        ({"import": "rubbish.onnx"}, DataError, "ONNX Runtime cannot read the model"),
        ({"import": "rubbish.skops"}, IntegrityError, "rubbish.skops was not written by skops"),
        ({"import": "returns.txt", "task": "regression"}, DataError, "is 'regression', but .* is a binary model"),
        ({"import": "returns.txt", "classes": [1, 2, 3]}, DataError, "model.classes lists 3 classes, but .* has 2"),
        ({"import": "batch_platform.declaration.errors.DataError"}, WrongUseError, "has no method `predict"),
        ({"import": "models:/churn@champion", "allow_pickle": True}, WrongUseError, "MLFLOW_TRACKING_URI is not set"),
        ({"import": "models:/churn@champion"}, WrongUseError, "allow_pickle"),
    ],
)
def test_an_import_that_cannot_work_is_refused_with_the_reason(tmp_path, monkeypatch, declared, error, message):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    booster(tmp_path)
    for name in ("returns.bin", "rubbish.txt", "rubbish.onnx", "rubbish.skops"):
        (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(error, match=message):
        read_import(Model.model_validate(declared), tmp_path, {})


@pytest.mark.unit
@pytest.mark.usefixtures("rule")
def test_the_task_and_the_classes_of_a_python_class_must_be_declared(tmp_path):
    for declared, message in (({}, r"does not state its task"), ({"task": "binary"}, r"does not state its classes")):
        with pytest.raises(WrongUseError, match=message):
            read_import(Model.model_validate({"import": "my_rules.Rule", **declared}), tmp_path, {})
    model = Model.model_validate({"import": "my_rules.Rule", "task": "multiclass", "classes": ["a", "A", "b"]})
    with pytest.raises(DataError, match="the classes 'A', 'a' differ only by case"):
        read_import(model, tmp_path, {})


def test_a_model_that_does_not_return_what_is_declared_is_refused(tmp_path, rule):
    rule.write_text(RULE.replace("* 0.8 + 0.1", "* 8"))
    model = {"import": "my_rules.Rule", "task": "binary", "classes": [False, True], "estimator": None, "params": None}
    with pytest.raises(DataError, match="numbers from -7 to 8, which are not probabilities"):
        carry_out(pipeline_of(tmp_path, model=model), NOW)


CONTRACT = infer_contract(table().select(COLUMNS), {})


@pytest.mark.unit
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([Input("", "number")] * 3, "takes 3 columns, but the features have 4"),
        ([Input("shops", "text")], "takes the columns shops.*did you mean 'shop'"),
        ([Input("x", "text")], "is of type float, but the model takes text"),
        ([Input("shop", "code")], "holds text, but the model takes numbers"),
    ],
)
def test_features_that_do_not_fit_the_signature_are_refused_with_the_column(inputs, message):
    with pytest.raises(DataError, match=message):
        matched_contract(CONTRACT, inputs)


@pytest.mark.unit
def test_whole_numbers_are_never_null_and_categories_are_those_of_the_model():
    held = matched_contract(CONTRACT, [Input("shop", "code", ("c", "a")), Input("x", "whole")])
    assert [column.nullable for column in held.columns] == [True, False]
    assert held.columns[0].categories == ("c", "a")


def given_too_little(depth: int):
    return depth


def broken():
    raise RuntimeError("no network today")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"build": f"{__name__}.given_too_little"}, "takes depth, but got none: missing a required argument"),
        ({"build": f"{__name__}.given_too_little", "params": {"deph": 1}}, "'deph': did you mean 'depth'"),
        ({"build": f"{__name__}.broken"}, "raised RuntimeError: no network today"),
        ({"estimator": "xgboost.XGBClassifier", "params": {"max_dept": 1}}, "did you mean 'max_depth'"),
        ({"estimator": "sklearn.ensemble.VotingClassifier"}, "cannot be built with no parameters"),
    ],
)
def test_a_declaration_that_builds_no_estimator_is_refused_with_the_reason(model, message):
    with pytest.raises(WrongUseError, match=message):
        check_estimator_exists(Model.model_validate(model))


@pytest.mark.unit
def test_the_error_for_an_estimator_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BatchPlatformError, match=r"pip install 'batch-platform\[xgboost\]'"):
        check_estimator_exists(Model(estimator="xgboost.XGBClassifier"))
