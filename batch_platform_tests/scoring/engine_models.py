"""Declared models that every engine scores with."""

from typing import Any

import polars as pl

from batch_platform_tests.harness.small_pipeline import LABELS_SQL, LOCAL_DAY, small_events

MODELS: dict[str, dict[str, Any]] = {
    "trees": {"model": {"refit": False}},  # so that its score has a reference
    "linear": {
        "model": {"estimator": "sklearn.linear_model.LogisticRegression", "params": None},
        "features": {"max_rejected": "50%"},
    },
    "network": {
        "model": {
            "estimator": "sklearn.neural_network.MLPClassifier",
            "params": {
                "max_leaf_nodes": None,
                "hidden_layer_sizes": [4],
                "max_iter": 400,
                "tol": 0.01,
                "random_state": 1,
            },
        }
    },
}
OF_SKLEARN = ("max_iter", "max_leaf_nodes", "early_stopping")  # parameters of the small pipeline's model
for name, of_library in {
    "lightgbm": {"estimator": "lightgbm.LGBMClassifier", "params": {"n_estimators": 5, "num_leaves": 7, "verbose": -1}},
    "xgboost": {"estimator": "xgboost.XGBClassifier", "params": {"n_estimators": 5, "max_depth": 3}},
    "keras": {
        "build": "batch_platform_tests.harness.flavour_cases.network",
        "params": {"hidden": 8, "epochs": 20},
        "estimator": None,
    },
}.items():
    params = {**dict.fromkeys(OF_SKLEARN), **of_library["params"]}
    MODELS[name] = {"model": {**of_library, "params": params}}
MODELS["onnx"] = {
    "model": {
        "import": "model.onnx",
        "task": "binary",
        "classes": [False, True],
        "train": {"every": None, "window": None, "evaluate": None},
        "estimator": None,
        "params": dict.fromkeys(OF_SKLEARN),
    },
    "partitions": {"start": "2024-01-31"},  # it serves from the next day on, so that no challenger can learn before
    "challengers": None,
    "labels": None,
}
OWN = "batch_platform_tests.harness.own_refinements"
MODELS["refined"] = {
    "model": {"calibrate": "sigmoid", "train": {"evaluate": "14 days"}},
    "predictions": {"refine": [f"{OWN}.BOUNDED", f"{OWN}.BANDED"]},
}
MODELS["explained"] = {"predictions": {"reasons": 2, "decide": {"costs": {"false_positive": 1, "false_negative": 2}}}}
OF_THE_HIGHEST = "explained, of the highest"  # no batch can tell which these are
MODELS[OF_THE_HIGHEST] = {"predictions": {"reasons": {"count": 2, "of": "decisions"}, "decide": {"top": 3}}}
MODELS["interval"] = {
    "model": {
        "estimator": "sklearn.ensemble.HistGradientBoostingRegressor",
        "train": {"evaluate": "14 days"},
        "promote": {"baseline": False},
    },
    "labels_sql": LABELS_SQL.replace("id, returned", "id, (hash(id) % 100)::DOUBLE AS returned"),
    "predictions": {"interval": "50%", "reasons": 2},
    "challengers": None,
}
CHALLENGERS = [
    {"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 3}},
    {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"},
]


def events() -> pl.DataFrame:
    """Some amounts of 2 and 3 February are negative, which the declared rules reject; nobody ordered on the 4th."""
    broken = pl.col("id").is_in([1290, 1300, 1330])
    amount = pl.when(broken).then(-1.0).otherwise(pl.col("amount").fill_null(20.0))
    return small_events().with_columns(amount=amount).filter(LOCAL_DAY != "2024-02-04")


def declared(model: str) -> dict[str, Any]:
    """A pipeline with a text column, by which it is broken down, two challengers and rules that some rows break."""
    features = {"columns": {"amount": {"min": 0}}, "max_rejected": "50%"}
    monitoring = {"segments": ["shop"]}
    return {
        "events": events(),
        "challengers": CHALLENGERS,
        "monitoring": monitoring,
        **MODELS[model],
        "features": features,
    }
