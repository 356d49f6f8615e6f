"""One model of each kind that users bring, kept in a bundle. `models/test_flavours.py` holds all of them to the same laws."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from batch_platform.declaration.model import Model
from batch_platform.declaration.spec import Features
from batch_platform.features.history import TrainingData
from batch_platform.kernels.forest.compiled import NOT_TREES
from batch_platform.models.bundle import Evaluation, Manifest, Window, write_bundle
from batch_platform.models.contract import Signature, infer_contract
from batch_platform.models.declared_model import read_import
from batch_platform.models.fitting import fit
from batch_platform.models.flavours.known import FLAVOURS, flavour_of
from batch_platform.models.reference import ReferenceProfile

Expected = Callable[[pl.DataFrame], Any]
SUMS = 1e-12  # linear algebra over all rows at once adds up in another order than over blocks


@dataclass(frozen=True)
class Made:
    """A model to be kept in a bundle, and its own library's predictions."""

    flavour: str
    model: object  # what the flavour saves
    signature: Signature
    expected: Expected  # the library's own answer for rows of the table, in the form of scoring
    tolerance: float = 0.0  # between its library on its own and here


@dataclass(frozen=True)
class Kept:
    """A made model in its bundle."""

    made: Made
    folder: Path
    sha256: str


def table(n: int = 300, seed: int = 0) -> pl.DataFrame:
    """Rows with numbers, whole numbers, flags and text, some of them null; `late` follows them."""
    random = np.random.default_rng(seed)
    x, shop = random.normal(size=n), random.choice(["a", "b", "c"], n)
    late = (x + (shop == "b") + random.normal(size=n) / 2) > 0.3
    return pl.DataFrame(
        {
            "x": pl.Series(np.where(random.random(n) < 0.1, np.nan, x)).fill_nan(None),
            "items": pl.Series(random.integers(1, 9, n), dtype=pl.Int64),
            "known": random.random(n) < 0.5,
            "shop": pl.Series(
                [None if lost else name for name, lost in zip(shop, random.random(n) < 0.1, strict=True)]
            ),
            "late": late,
            "grade": np.where(late, "late", np.where(x < -0.5, "early", "punctual")),
            "delay": x * 10 + 3 * (shop == "b"),
        }
    )


COLUMNS = ["x", "items", "known", "shop"]
NUMBERS = ["x", "items", "known"]
FEATURES = Features(sql="features.sql", key=["id"])


def trained(label: str, tolerance: float = 0.0, **declared: Any) -> Made:
    """A model that the platform trains."""
    rows = table().select(*COLUMNS, label)
    params = declared.pop("params", {})
    fitted = fit(Model(**declared), FEATURES, TrainingData(rows.head(250), rows.tail(50), label), params)
    estimator, signature = fitted.estimator, fitted.signature

    def expected(rows: pl.DataFrame) -> Any:
        matrix = signature.contract.encode(signature.contract.split(rows).kept)
        if hasattr(estimator, "predict_proba"):
            return estimator.predict_proba(matrix)
        return estimator.decision_function(matrix) if signature.classes else estimator.predict(matrix)

    name = flavour_of(estimator).name
    return Made(name, estimator, signature, expected, tolerance)


def imported(
    reference: object,
    expected: Expected,
    *,
    folder: Path,
    columns: list[str] = NUMBERS,
    tolerance: float = 0.0,
    **declared: Any,
) -> Made:
    """A model that the platform imports."""
    model = Model.model_validate({"import": str(reference), **declared})
    read = read_import(model, folder, model.params)
    contract = infer_contract(table().select(columns), {}, most_categories=None)
    signature = read.signature(contract)
    return Made(read.flavour.name, read.source.model, signature, expected, tolerance)


def keep(made: Made, folder: Path) -> Kept:
    """Write a bundle below a folder."""
    window = Window("2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00", 31, 250, 0, "ab")
    manifest = Manifest(
        pipeline="small",
        serving_period="2024-02-01",
        serving_start="2024-02-01T00:00:00+00:00",
        flavour=made.flavour,
        task=made.signature.task,
        classes=made.signature.classes,
        estimator="e",
        params={},
        contract=made.signature.contract.to_json(),
        training=window,
        evaluation=Evaluation(window.start, window.end, 50, {}),
        features_code_version="f",
        created_at="2024-02-01T00:00:00+00:00",
        run_id="run",
        compiled=NOT_TREES.compiled,
    )
    staging = folder / "staging"
    staging.mkdir(parents=True)
    version, sha256, _ = write_bundle(manifest, made.model, staging, folder / "models", ReferenceProfile(()))
    return Kept(made, folder / "models" / version, sha256)


def numbers(rows: pl.DataFrame, columns: list[str] = NUMBERS) -> np.ndarray:
    """A plain matrix as anybody would make it of a table."""
    return rows.select(pl.col(columns).cast(pl.Float64)).to_numpy().astype(np.float64)


def network(hidden: int = 4, epochs: int = 2):
    """A small network behind the interface of scikit-learn, made as a user would."""
    import keras

    keras.utils.set_random_seed(0)

    def layers(X, y):  # noqa: N803 - Keras calls it so
        model = keras.Sequential(
            [
                keras.layers.Input((X.shape[1],)),
                keras.layers.Dense(hidden, activation="relu"),
                keras.layers.Dense(y.shape[1], activation="softmax"),
            ]
        )
        model.compile(loss="categorical_crossentropy", optimizer="adam")
        return model

    return keras.wrappers.SKLearnClassifier(layers, fit_kwargs={"epochs": epochs, "verbose": 0})


class Rule:
    """A model of the user's own."""

    def __init__(self, shop: str = "b") -> None:
        self.shop = shop

    def predict(self, batch: pl.DataFrame) -> pl.Series:
        odds = batch["x"].fill_nan(None).fill_null(0.0).tanh() / 4 + 0.5
        return odds + pl.Series(batch["shop"].fill_null("") == self.shop).cast(pl.Float64) / 5


def _lightgbm_file(folder: Path) -> Made:
    import lightgbm

    known = ["c", "b", "a"]
    rows = table()
    data = lightgbm.Dataset(pandas(rows, known), rows["late"].to_numpy())
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 5)
    booster.save_model(folder / "model.txt")
    return imported("model.txt", lambda rows: booster.predict(pandas(rows, known)), folder=folder, columns=COLUMNS)


def pandas(rows: pl.DataFrame, known: list[str]):
    """The table as a user of pandas has it, with categories in an order of their own."""
    import pandas as pd

    frame = {"shop": pd.Categorical(rows["shop"].to_list(), categories=known), "x": numbers(rows)[:, 0]}
    return pd.DataFrame(frame)


def _xgboost_file(folder: Path) -> Made:
    import xgboost

    known = ["c", "b", "a"]
    rows = table()
    data = xgboost.DMatrix(pandas(rows, known), rows["late"].to_numpy(), enable_categorical=True)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 5)
    booster.save_model(folder / "model.ubj")

    def expected(rows: pl.DataFrame) -> Any:
        return booster.predict(xgboost.DMatrix(pandas(rows, known), enable_categorical=True))

    return imported("model.ubj", expected, folder=folder, columns=COLUMNS)


def _keras_file(folder: Path) -> Made:
    import keras

    keras.utils.set_random_seed(1)
    dense = [keras.layers.Dense(5, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.layers.Input((2,)), *dense])
    model.save(folder / "net.keras")

    def expected(rows: pl.DataFrame) -> Any:
        return np.asarray(model(numbers(rows, ["items", "known"]).astype(np.float32)))

    return imported(
        "net.keras", expected, folder=folder, columns=["items", "known"], tolerance=1e-6, classes=[False, True]
    )


def _pipeline():
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = table()
    return make_pipeline(SimpleImputer(), LogisticRegression()).fit(numbers(rows), rows["late"].to_numpy())


def _skops_file(folder: Path) -> Made:
    from skops import io

    model = _pipeline()
    io.dump(model, folder / "model.skops")
    return imported("model.skops", lambda rows: model.predict_proba(numbers(rows)), folder=folder, tolerance=SUMS)


class Doubled:
    """A transformer that skops does not trust."""

    def fit(self, X, y=None):  # noqa: ARG002, N803 - scikit-learn's names
        self.fitted_ = True
        return self

    def transform(self, X):  # noqa: N803
        return np.nan_to_num(X) * 2


def _pickle_file(folder: Path) -> Made:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = table()
    model = make_pipeline(Doubled(), LogisticRegression()).fit(numbers(rows), rows["late"].to_numpy())
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    return imported(
        "model.pkl", lambda rows: model.predict_proba(numbers(rows)), folder=folder, allow_pickle=True, tolerance=SUMS
    )


def _onnx(folder: Path, options: dict[str, Any], **declared: Any) -> Made:
    """One tensor of numbers."""
    import onnxruntime
    from skl2onnx import to_onnx

    converted = to_onnx(_pipeline(), numbers(table())[:1].astype(np.float32), options=options, target_opset=18)
    (folder / "model.onnx").write_bytes(converted.SerializeToString())
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])

    def expected(rows: pl.DataFrame) -> Any:
        raw = session.run(None, {"X": numbers(rows).astype(np.float32)})[1]
        return np.array([[row[False], row[True]] for row in raw]) if isinstance(raw, list) else raw

    return imported("model.onnx", expected, folder=folder, tolerance=1e-6, **declared)


def _onnx_of_columns(folder: Path) -> Made:
    """One tensor per column, one of them text."""
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = table().with_columns(pl.col("shop").fill_null(""))
    picked = ColumnTransformer(
        [("shop", OneHotEncoder(handle_unknown="ignore"), ["shop"]), ("items", "passthrough", ["items"])]
    )
    model = make_pipeline(picked, LogisticRegression()).fit(rows.select("items", "shop"), rows["late"].to_numpy())
    types = [("shop", StringTensorType([None, 1])), ("items", FloatTensorType([None, 1]))]
    converted = to_onnx(model, initial_types=types, target_opset=18).SerializeToString()
    (folder / "model.onnx").write_bytes(converted)
    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])

    def expected(rows: pl.DataFrame) -> Any:
        shop = np.array(rows["shop"].fill_null("").to_list(), dtype=object)[:, None]
        raw = session.run(None, {"shop": shop, "items": numbers(rows, ["items"]).astype(np.float32)})[1]
        return np.array([[row[0], row[1]] for row in raw])

    return imported("model.onnx", expected, folder=folder, columns=COLUMNS, tolerance=1e-6, classes=[False, True])


def _mlflow_folder(folder: Path) -> Made:
    from batch_platform.models.flavours.mlflow import library

    mlflow = library()
    saved = folder / "churn"
    types = mlflow.types
    inputs = [types.ColSpec("double", "x", required=False), types.ColSpec("string", "shop", required=False)]
    outputs = [types.ColSpec("double", "probability")]
    signature = mlflow.models.ModelSignature(types.Schema(inputs), types.Schema(outputs))
    mlflow.pyfunc.save_model(
        saved,
        loader_module="batch_platform_tests.harness.flavour_cases",
        signature=signature,
        pip_requirements=["batch-platform"],
    )
    return imported(
        "churn/",
        lambda rows: Rule().predict(rows).to_numpy(),
        folder=folder,
        columns=COLUMNS,
        task="binary",
        classes=["stays", "leaves"],
        allow_pickle=True,
    )


class _Loaded:
    def predict(self, frame, params=None):  # noqa: ARG002 - MLflow calls it so
        columns = {name: frame[name].to_list() for name in frame.columns}
        return Rule().predict(pl.DataFrame(columns, strict=False)).to_numpy()


def _load_pyfunc(path):  # noqa: ARG001 - MLflow calls it so
    return _Loaded()


def _python_class(folder: Path) -> Made:
    return imported(
        "batch_platform_tests.harness.flavour_cases.Rule",
        lambda rows: Rule("b").predict(rows).to_numpy(),
        folder=folder,
        columns=COLUMNS,
        task="binary",
        classes=[False, True],
    )


def _rule_file(folder: Path) -> Made:
    (folder / "rule.ini").write_text("x > 0.5")
    probability = pl.when(pl.col("x").fill_null(0) > 0.5).then(0.75).otherwise(0.25)
    return imported(
        "rule.ini", lambda rows: rows.select(probability).to_series().to_numpy(), folder=folder, columns=["x"]
    )


HGB = "sklearn.ensemble.HistGradientBoosting"
BOOSTED = {"n_estimators": 5, "n_jobs": 1}
CASES: dict[str, Callable[[Path], Made]] = {
    "sklearn trees": lambda _: trained("late", estimator=f"{HGB}Classifier", params={"max_iter": 5}),
    "sklearn linear": lambda _: trained("delay", estimator="sklearn.linear_model.Ridge", tolerance=SUMS),
    "sklearn skops file": _skops_file,
    "sklearn pickle file": _pickle_file,
    "lightgbm grades": lambda _: trained("grade", estimator="lightgbm.LGBMClassifier", params=BOOSTED),
    "lightgbm file": _lightgbm_file,
    "xgboost grades": lambda _: trained("grade", estimator="xgboost.XGBClassifier", params=BOOSTED),
    "xgboost file": _xgboost_file,
    "onnx map": lambda folder: _onnx(folder, {}),
    "onnx tensor": lambda folder: _onnx(folder, {"zipmap": False}, task="binary", classes=[False, True]),
    "onnx columns": _onnx_of_columns,
    "keras classes": lambda _: trained("grade", build=f"{__name__}.network", tolerance=1e-6),
    "keras file": _keras_file,
    "mlflow folder": _mlflow_folder,
    "python class": _python_class,
    "rule file": _rule_file,  # of the distribution of the guide
}
EXTRAS = {
    "onnx": "onnxruntime",
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "keras": "tensorflow",
    "mlflow": "mlflow",
}
assert {case.partition(" ")[0] for case in CASES} == {*FLAVOURS.own, "rule"}, "every flavour has a case"
