"""Models of scikit-learn in bundles."""

from pathlib import Path

import numpy as np

from batch_platform.declaration.model import Model
from batch_platform.kernels.forest.compiled import NOT_TREES
from batch_platform.models.bundle import Evaluation, Manifest, Window, write_bundle
from batch_platform.models.contract import Contract, ContractColumn
from batch_platform.models.declared_model import make_estimator
from batch_platform.models.reference import ReferenceProfile

CONTRACT = Contract(
    (
        ContractColumn("x", "float", nullable=True),
        ContractColumn("shop", "category", nullable=True, categories=("a", "b", "c")),
    )
)
ESTIMATORS = {
    "sklearn.ensemble.HistGradientBoostingClassifier": ("binary", {"max_iter": 3}),
    "sklearn.ensemble.HistGradientBoostingRegressor": ("regression", {"max_iter": 3}),
    "sklearn.ensemble.RandomForestClassifier": ("binary", {"n_estimators": 3}),
    "sklearn.ensemble.GradientBoostingClassifier": ("binary", {"n_estimators": 3}),
    "sklearn.tree.DecisionTreeClassifier": ("binary", {"max_depth": 3}),
    "sklearn.linear_model.LogisticRegression": ("binary", {}),
    "sklearn.linear_model.Ridge": ("regression", {}),
    "sklearn.calibration.CalibratedClassifierCV": ("binary", {"cv": 2}),
    "sklearn.neural_network.MLPClassifier": ("binary", {"max_iter": 2000, "hidden_layer_sizes": [4]}),
    "sklearn.naive_bayes.GaussianNB": ("binary", {}),
    "sklearn.cluster.KMeans": ("clustering", {"n_clusters": 2}),
    "sklearn.ensemble.IsolationForest": ("outliers", {"n_estimators": 5}),
}


def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    matrix = np.column_stack([random.normal(size=120), random.integers(0, 3, 120).astype(float)])
    matrix[::17, 0] = np.nan
    return np.asfortranarray(matrix), np.nan_to_num(matrix[:, 0]) > 0


def manifest(task: str = "binary", **changes) -> Manifest:
    window = Window("2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00", 31, 120, 0, "ab")
    values = {
        "pipeline": "small",
        "serving_period": "2024-02-01",
        "serving_start": "2024-02-01T00:00:00+00:00",
        "flavour": "sklearn",
        "task": task,
        "classes": [False, True] if task == "binary" else [],
        "estimator": "e",
        "params": {"max_iter": 3},
        "contract": CONTRACT.to_json(),
        "training": window,
        "evaluation": Evaluation(window.start, window.end, 20, {"roc_auc": 0.75}),
        "features_code_version": "f",
        "created_at": "2024-02-01T00:00:00+00:00",
        "run_id": "run",
        "compiled": NOT_TREES.compiled,
    }
    return Manifest(**(values | changes))


def written(tmp_path: Path, estimator="sklearn.tree.DecisionTreeClassifier", params=None, **changes):
    """A fitted estimator, and its bundle's folder and hash."""
    matrix, truth = rows()
    task = ESTIMATORS[estimator][0]
    fitted = make_estimator(Model(estimator=estimator), params or {}, CONTRACT)
    fitted.fit(matrix, {"regression": truth.astype(float), "clustering": None, "outliers": None}.get(task, truth))
    staging = tmp_path / "staging"
    staging.mkdir()
    version, sha256, _ = write_bundle(
        manifest(task, **changes), fitted, staging, tmp_path / "models", ReferenceProfile(())
    )
    return fitted, tmp_path / "models" / version, sha256
