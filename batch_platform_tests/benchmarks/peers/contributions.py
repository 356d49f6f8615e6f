"""The contributions of columns to scores by a library's own code, on a matrix in memory and on one core.

    python contributions.py LIBRARY MODEL FILE ROWS

shap explains the exported model. LightGBM and XGBoost explain a model of their own, of as many trees and leaves, that learned to tell its
decisions. Prints the rows, the seconds and the core-seconds; nothing but the contributions counts.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from served import load

TREES, LEAVES, TRAINING_ROWS = 100, 31, 20_000


def main(library: str, model: str, file: str, rows: str) -> None:
    """Explain the first rows of a file once as a warm-up, and once for the clock."""
    served = load(model, all_cores=False)
    frame = pl.scan_parquet(file).select(served.columns).head(max(TRAINING_ROWS, int(rows))).collect()
    matrix = np.ascontiguousarray(served.matrix(frame))
    sample = matrix[: int(rows)]
    contributions = EXPLAINERS[library](served.estimator, matrix[:TRAINING_ROWS])
    contributions(sample[:100])
    began, used = time.perf_counter(), time.process_time()
    contributions(sample)
    spent = {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - used}
    print(json.dumps({"rows": len(sample), **spent}))


def _shap(estimator: Any, _: np.ndarray) -> Callable[[np.ndarray], Any]:
    from shap import TreeExplainer

    return TreeExplainer(estimator).shap_values


def _lightgbm(estimator: Any, matrix: np.ndarray) -> Callable[[np.ndarray], Any]:
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, n_jobs=1, verbose=-1)
    model.fit(matrix, estimator.predict(matrix))
    return lambda rows: model.predict(rows, pred_contrib=True, num_threads=1)


def _xgboost(estimator: Any, matrix: np.ndarray) -> Callable[[np.ndarray], Any]:
    from xgboost import DMatrix, XGBClassifier

    model = XGBClassifier(n_estimators=TREES, max_leaves=LEAVES, max_depth=0, grow_policy="lossguide", n_jobs=1)
    booster = model.fit(matrix, estimator.predict(matrix)).get_booster()
    return lambda rows: booster.predict(DMatrix(rows, nthread=1), pred_contribs=True)


EXPLAINERS = {"shap": _shap, "lightgbm": _lightgbm, "xgboost": _xgboost}


if __name__ == "__main__":
    main(*sys.argv[1:])
