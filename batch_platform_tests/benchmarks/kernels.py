"""Score in memory, on one core: compiled trees against the library that grew them, one model of each kind, in this process."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.contract import Contract, ContractColumn, Predictor, Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.forest.compiled import compile_predictor, same_outcome
from batch_platform.models.native_threads import one_thread
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians, spent
from batch_platform_tests.benchmarks.options import Options

TITLE = "Scoring in memory, on one core"
LIBRARY = "its own library"
COLUMNS, CATEGORIES, TEXTS, TREES, LEAVES, DEPTH = 20, 50, 3, 100, 31, 10
TRAINING_ROWS, SHARE = 20_000, 50  # a fiftieth of the rows is enough: nothing else is timed


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model, compiled and not, in turn. The run ends if a bit of ours differs."""
    rows = max(2, options.rows // SHARE)
    for name, make in KINDS.items():
        native = _fitted(make(), _matrix(min(TRAINING_ROWS, rows), texts=name in WITH_TEXTS))
        compiled, matrix = compile_predictor(native), _matrix(rows, texts=name in WITH_TEXTS)
        _require_same(name, native, compiled, matrix)
        contenders = {
            contender: partial(_timed, name, contender, predictor, matrix)
            for contender, predictor in ((OURS, compiled), (LIBRARY, native))
        }
        yield from in_turn(contenders, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """What compiled trees and the library score for each core-second."""
    lines = ["| model | evaluated by | million rows/core-s |", "| --- | --- | ---: |"]
    for (name, rows, contender), median in medians(results).items():
        if median.core_seconds:
            lines.append(f"| {name} | {contender} | {rows / median.core_seconds / 1e6:.2f} |")
    return "\n".join(lines)


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


def _fitted(model: Any, matrix: NDArray[np.float64]) -> Any:
    """The predictor of a model's own library, fitted to these rows."""
    random = np.random.default_rng(1)
    truth = np.sin(matrix[:, :6]).sum(axis=1) + random.normal(size=len(matrix)) > 0
    model.fit(matrix, truth)
    columns = tuple(ContractColumn(name=f"x{at}", type="float", nullable=True) for at in range(matrix.shape[1]))
    return flavour_of(model).reloaded(model, Signature("binary", [False, True], Contract(columns)))


def _require_same(name: str, native: Predictor, compiled: Predictor, matrix: NDArray[np.float64]) -> None:
    if not same_outcome(native, compiled, matrix[: max(2, len(matrix) // 10)]):
        sys.exit(f"{name}: the compiled trees give other scores")


def _matrix(rows: int, *, texts: bool) -> NDArray[np.float64]:
    random = np.random.default_rng(rows)
    matrix = np.asfortranarray(random.normal(size=(rows, COLUMNS)))
    if texts:
        matrix[:, :TEXTS] = random.integers(0, CATEGORIES, (rows, TEXTS))
    return matrix


def _timed(name: str, contender: str, predictor: Predictor, matrix: NDArray[np.float64]) -> Result:
    with one_thread():
        return spent(lambda: predictor.predict(matrix)).result(name, contender, len(matrix))
