"""Score in memory, on one core: compiled trees against the library that grew them, and against other libraries made for that.

The first five lines are one model of each kind, in this process. The others are models of LightGBM and XGBoost of growing size;
there, lignum (`pylignum` on the registry), lleaves, tl2cgen and ONNX Runtime score the same rows, each in an environment of its
own. A library that cannot be installed or does not read a model is named with the reason.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.compiled import compile_predictor, same_outcome
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Contract, ContractColumn, Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform_tests.benchmarks.contenders import PEERS
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import OURS, Result, Spent, in_turn, medians, run, spent

TITLE = "Scoring in memory, on one core"
LIBRARY = "its own library"
COLUMNS, CATEGORIES, TEXTS, TREES, LEAVES, DEPTH = 20, 50, 3, 100, 31, 10
TRAINING_ROWS, SHARE = 20_000, 50  # a fiftieth of the rows is enough: nothing else is timed
SIZES = [(trees, columns) for trees in (10, 100, 1000) for columns in (20, 100)]
OTHERS = {  # the environment of each
    "lignum": "lignum",
    "lignum_compiled": "lignum",
    "lleaves": "lleaves",
    "tl2cgen": "tl2cgen",
    "onnxruntime": "onnxruntime",
}
NAMES = [OURS, LIBRARY, *OTHERS]


@dataclass(frozen=True)
class Evaluated(Result):
    """Rows that a library scored, and how far its scores are from those of the booster's own code at most."""

    distance: float = 0.0
    failure: str = ""  # reason for which nothing was measured


@dataclass(frozen=True)
class Case:
    """A booster of one size, and the rows that it scores."""

    name: str
    family: str
    rows: int
    columns: int
    folder: Path

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The model as its library writes it, the rows, and the scores that the library gives them."""
        ending = "txt" if self.family == "LightGBM" else "json"
        return self.folder / f"model.{ending}", self.folder / "matrix.npy", self.folder / "scores.npy"


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model, compiled and not, in turn. The run ends if a bit of ours differs."""
    rows = max(2, options.rows // SHARE)
    for name, make in KINDS.items():
        native = _fitted(make(), _matrix(min(TRAINING_ROWS, rows), COLUMNS, texts=name in WITH_TEXTS))
        compiled, matrix = compile_predictor(native), _matrix(rows, COLUMNS, texts=name in WITH_TEXTS)
        _require_same(name, native, compiled, matrix)
        contenders = {
            contender: partial(_timed, name, contender, predictor, matrix)
            for contender, predictor in ((OURS, compiled), (LIBRARY, native))
        }
        yield from in_turn(contenders, options.repeat)
    for trees, columns in SIZES:
        for family, make in BOOSTERS.items():
            case = Case(f"{family}, {trees} x {columns}", family, rows, columns, options.folder)
            yield from _sized(options, case, make(trees))


def conclude(results: Sequence[Result]) -> str:
    """A table of the rows that each library scores for each core-second, and whether its results are the bits of the booster's own code."""
    lines = [
        "| model, trees x columns | library | million rows/core-s | same bits as the booster |",
        "| --- | --- | ---: | --- |",
    ]
    farthest = {(result.workload, result.contender): result for result in results if isinstance(result, Evaluated)}
    for (name, rows, contender), median in medians(results).items():
        evaluated = farthest.get((name, contender))
        if evaluated and evaluated.failure:
            lines.append(f"| {name} | {contender} | not measured | {evaluated.failure} |")
        elif median.core_seconds:
            distance = evaluated.distance if evaluated else 0.0
            same = "yes" if distance == 0 else f"no, up to {distance:.0e} apart"
            lines.append(f"| {name} | {contender} | {rows / median.core_seconds / 1e6:.2f} | {same} |")
    return "\n".join(lines)


def _sized(options: Options, case: Case, model: Any) -> Iterator[Result]:
    """Measure one booster with every library that can be had."""
    native = _fitted(model, _matrix(min(TRAINING_ROWS, case.rows), case.columns))
    compiled, matrix = compile_predictor(native), _matrix(case.rows, case.columns)
    _require_same(case.name, native, compiled, matrix)
    file, rows, scores = case.files
    (model.booster_ if case.family == "LightGBM" else model).save_model(file)
    np.save(rows, np.ascontiguousarray(matrix))
    with one_thread():
        np.save(scores, native.predict(matrix)[:, 1].astype(np.float64))
    contenders: dict[str, Callable[[], Result]] = {}
    for contender in options.chosen(NAMES):
        if contender in OTHERS:
            contenders[contender] = partial(_by_another, options, case, contender)
        else:
            predictor = compiled if contender == OURS else native
            contenders[contender] = partial(_timed, case.name, contender, predictor, matrix)
    yield from in_turn(contenders, options.repeat)


def _by_another(options: Options, case: Case, contender: str) -> Result:
    try:
        python = options.environments.python(OTHERS[contender])
        command = [str(python), str(PEERS / "kernel.py"), contender, case.family.lower(), *map(str, case.files)]
        cost = run(command, options.folder)
    except SystemExit as failure:
        reason = str(failure.code).strip().splitlines()[-1][-200:]
        print(f"{contender} does not score {case.name}: {reason}", file=sys.stderr, flush=True)
        return Evaluated(case.name, contender, 0.0, case.rows, 0.0, 0.0, failure=reason)
    printed = json.loads(cost.output.splitlines()[-1])
    distance = printed.pop("distance")
    measured = Spent(**printed).result(case.name, contender, case.rows, cost.peak_mib)
    return Evaluated(**vars(measured), distance=distance)


def _histogram(categorical: list[int]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, categorical_features=categorical or None, early_stopping=False
    )


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=TREES, max_depth=DEPTH)


def _lightgbm(trees: int = TREES) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=trees, num_leaves=LEAVES, n_jobs=1, verbose=-1)


def _xgboost(trees: int = TREES) -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=trees, max_leaves=LEAVES, max_depth=0, grow_policy="lossguide", n_jobs=1)


BOOSTERS: dict[str, Callable[[int], Any]] = {"LightGBM": _lightgbm, "XGBoost": _xgboost}
KINDS: dict[str, Callable[[], Any]] = {
    "histogram trees": lambda: _histogram([]),
    "histogram trees, categories": lambda: _histogram(list(range(TEXTS))),
    "random forest": _forest,
    **BOOSTERS,
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


def _matrix(rows: int, columns: int, *, texts: bool = False) -> NDArray[np.float64]:
    random = np.random.default_rng(rows)
    matrix = np.asfortranarray(random.normal(size=(rows, columns)))
    if texts:
        matrix[:, :TEXTS] = random.integers(0, CATEGORIES, (rows, TEXTS))
    return matrix


def _timed(name: str, contender: str, predictor: Predictor, matrix: NDArray[np.float64]) -> Result:
    with one_thread():
        return spent(lambda: predictor.predict(matrix)).result(name, contender, len(matrix))
