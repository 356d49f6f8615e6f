"""Score in memory: compiled trees against the library that grew them, both on one core in this process."""

import resource
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from batch_platform.models.contract import Contract, ContractColumn, Predictor, Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.forest.compiled import compile_predictor, same_outcome
from batch_platform.models.native_threads import one_thread
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn
from batch_platform_tests.benchmarks.options import Options

TITLE = "Scoring in memory, on one core"
LIBRARY = "its own library"
COLUMNS, CATEGORIES, TEXTS, TREES, LEAVES, DEPTH = 20, 50, 3, 100, 31, 10
TRAINING_ROWS, SHARE = 20_000, 50  # a fiftieth of the rows is enough: nothing else is timed


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model, compiled and not, in turn. The run ends if a bit differs."""
    rows = max(2, options.rows // SHARE)
    for name, make in KINDS.items():
        native = _fitted(name, make, min(TRAINING_ROWS, rows))
        compiled, matrix = compile_predictor(native), _matrix(rows, texts=name in WITH_TEXTS)
        if not same_outcome(native, compiled, matrix[: rows // 10]):
            msg = f"{name}: the compiled trees give other scores"
            raise SystemExit(msg)
        contenders = {
            contender: partial(_timed, name, contender, predictor, matrix)
            for contender, predictor in ((OURS, compiled), (LIBRARY, native))
        }
        yield from in_turn(contenders, options.repeat)


def _histogram(categorical: list[int]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, categorical_features=categorical or None, early_stopping=False
    )


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=TREES, max_depth=DEPTH)


def _lightgbm() -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, n_jobs=1, verbose=-1)


def _xgboost() -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=TREES, max_leaves=LEAVES, max_depth=0, grow_policy="lossguide", n_jobs=1)


KINDS: dict[str, Callable[[], Any]] = {
    "histogram trees": lambda: _histogram([]),
    "histogram trees, categories": lambda: _histogram(list(range(TEXTS))),
    "random forest": _forest,
    "LightGBM": _lightgbm,
    "XGBoost": _xgboost,
}
WITH_TEXTS = ("histogram trees, categories",)


def _fitted(name: str, make: Callable[[], Any], rows: int) -> Any:
    matrix = _matrix(rows, texts=name in WITH_TEXTS)
    random = np.random.default_rng(1)
    truth = np.sin(matrix[:, :6]).sum(axis=1) + random.normal(size=rows) > 0
    model = make().fit(matrix, truth)
    contract = Contract(tuple(ContractColumn(name=f"x{at}", type="float", nullable=True) for at in range(COLUMNS)))
    return flavour_of(model).reloaded(model, Signature("binary", [False, True], contract))


def _matrix(rows: int, *, texts: bool) -> np.ndarray:
    random = np.random.default_rng(rows)
    matrix = np.asfortranarray(random.normal(size=(rows, COLUMNS)))
    if texts:
        matrix[:, :TEXTS] = random.integers(0, CATEGORIES, (rows, TEXTS))
    return matrix


def _timed(name: str, contender: str, predictor: Predictor, matrix: np.ndarray) -> Result:
    with one_thread():
        began = perf_counter()
        predictor.predict(matrix)
        seconds = perf_counter() - began
    return Result(name, contender, seconds, len(matrix), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
