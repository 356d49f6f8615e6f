"""A linear model is kept as plain numbers, which score every row alike whatever lies beside it, within 1e-12 of scikit-learn."""

import hashlib
import math
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)

from batch_platform.kernels.linear import (
    BLOCK,
    LINEAR_FILE,
    TOLERANCE,
    Linear,
    LinearPredictor,
    as_linear,
    exponentials,
    linear_file,
    read_linear,
)
from batch_platform.models.bundle import open_bundle, write_bundle
from batch_platform.models.contract import Contract, Signature
from batch_platform.models.flavours.sklearn import FLAVOUR, PICKLE_FILE, Pickled, SklearnPredictor
from batch_platform.models.reference import ReferenceProfile
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.models.bundles import manifest

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Found unknown categories"),
]
ROWS, COLUMNS, CODES = 2 * BLOCK + 333, 7, (5, 6)  # the columns of codes are the last


def one_hot(**options):
    return OneHotEncoder(handle_unknown="ignore", **options)


def by_kind(scaler, encoder):
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), scaler)
    return ColumnTransformer([("numbers", numbers, slice(0, 5)), ("codes", encoder, list(CODES))])


FILLED = {
    "filled": SimpleImputer,
    "with marks of what is missing": lambda: make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
    "scaled and one-hot": lambda: by_kind(StandardScaler(), one_hot(sparse_output=False)),
    "one-hot, then scaled": lambda: make_pipeline(by_kind(RobustScaler(), one_hot(drop="first")), MaxAbsScaler()),
    "most frequent, then one-hot": lambda: ColumnTransformer(
        [
            ("codes", make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot()), list(CODES)),
            ("numbers", SimpleImputer(strategy="constant", fill_value=-1.5), [4, 0, 2]),
        ]
    ),
    "some columns only": lambda: ColumnTransformer([("kept", "passthrough", [3, 0])], remainder="drop"),
}
WHOLE = {  # these leave missing values to the model, which refuses them
    "as they are": lambda: None,
    "standardised": StandardScaler,
    "held in a range": lambda: MinMaxScaler(clip=True),
    "twice": lambda: make_pipeline(MinMaxScaler(), FunctionTransformer(), StandardScaler()),
}
PREPARED = FILLED | WHOLE
MODELS = {
    "logistic": (LogisticRegression, "binary"),
    "logistic of four classes": (LogisticRegression, "multiclass"),
    "stochastic of four classes": (lambda: SGDClassifier(loss="log_loss", random_state=0), "multiclass"),
    "discriminant": (LinearDiscriminantAnalysis, "multiclass"),
    "least squares": (LinearRegression, "regression"),
    "poisson": (PoissonRegressor, "counts"),
}


@cache
def table(*, missing: bool) -> np.ndarray:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(ROWS, COLUMNS)) * np.geomspace(1e-3, 1e3, COLUMNS) + 5
    matrix[:, CODES] = random.integers(0, (4, 30), (ROWS, 2))
    if missing:
        matrix[random.random(matrix.shape) < 0.1] = np.nan
    return np.asfortranarray(matrix)


@cache
def fitted(prepared: str, model: str) -> SklearnPredictor:
    matrix = table(missing=prepared in FILLED and prepared != "some columns only")[:400]
    plain = np.nan_to_num(matrix)
    values = (plain - plain.mean(axis=0)) / plain.std(axis=0) @ [1, -1, 2, 0.5, -2, 1, 1]
    make, task = MODELS[model]
    truths = {
        "binary": values > 0,
        "multiclass": np.digitize(values, [-2, 0, 2]),
        "regression": 1e4 * values,
        "counts": np.exp(values / 4),
    }
    preparation = PREPARED[prepared]()
    estimator = make() if preparation is None else make_pipeline(preparation, make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(matrix, truths[task])
    return SklearnPredictor(estimator, "regression" if task == "counts" else task)


def scored(linear: Linear, rows: np.ndarray) -> np.ndarray:
    scores = linear.predict(rows)
    assert scores is not None
    return scores


@cache
def kept(prepared: str, model: str) -> Linear:
    native = fitted(prepared, model)
    linear = as_linear(native.estimator, native)
    assert linear is not None
    return linear


PAIRS = [
    *((prepared, "logistic of four classes") for prepared in PREPARED),
    *(("standardised", model) for model in MODELS),
]


@pytest.mark.parametrize(("prepared", "model"), PAIRS)
def test_the_numbers_give_the_scores_of_scikit_learn_within_1e_12(prepared, model):
    rows = table(missing=prepared in FILLED and prepared != "some columns only")
    scores, expected = scored(kept(prepared, model), rows), fitted(prepared, model).predict(rows)
    assert (scores.shape, scores.dtype) == (expected.shape, np.float64)
    # Of a probability absolutely, of a value relative to the largest term of a sum.
    largest = 1.0 if scores.ndim == 2 else max(1.0, np.abs(expected).max())
    assert np.abs(scores - expected).max() <= TOLERANCE * largest


@pytest.mark.parametrize(("prepared", "model"), PAIRS)
@examples(10)
@given(
    seed=st.integers(0, 2**32), size=st.sampled_from([0, 1, 2, 100, BLOCK, 10_000, ROWS]), order=st.sampled_from("CF")
)
def test_law_4_neither_neighbours_nor_layout_nor_threads_change_a_bit_of_a_row(prepared, model, seed, size, order):
    linear, rows = kept(prepared, model), table(missing=prepared in FILLED and prepared != "some columns only")
    chosen = np.random.default_rng(seed).permutation(ROWS)[:size]
    whole = scored(linear, rows)
    with ThreadPoolExecutor(3) as threads:
        part = np.array(rows[chosen], order=order)
        for scores in threads.map(lambda _: scored(linear, part), range(3)):
            assert scores.tobytes() == whole[chosen].tobytes()


@pytest.mark.parametrize("prepared", PREPARED)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_scikit_learn_refuses_is_refused_in_its_words(prepared, odd):
    native = fitted(prepared, "least squares")
    predictor = LinearPredictor(kept(prepared, "least squares"), lambda: native)
    for column in range(COLUMNS):
        rows = table(missing=False)[:5].copy()
        rows[3, column] = odd
        try:
            expected = native.predict(rows)
        except ValueError as error:
            assert predictor.linear.predict(rows) is None
            with pytest.raises(ValueError, match=re.escape(str(error))):
                predictor.predict(rows)
        else:
            assert scored(predictor.linear, rows) == pytest.approx(expected, rel=TOLERANCE)


UNKNOWN = {
    "products": make_pipeline(PolynomialFeatures(), Ridge()),
    "one-hot that refuses": make_pipeline(OneHotEncoder(), Ridge()),
    "rare categories together": make_pipeline(one_hot(max_categories=2), Ridge()),
    "other missing values": make_pipeline(SimpleImputer(missing_values=0.0), Ridge()),
    "other probabilities": SGDClassifier(loss="modified_huber"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_here_stays_with_scikit_learn(name):
    random = np.random.default_rng(0)
    rows, truth = np.abs(random.integers(0, 3, (200, 1)).astype(float)), random.integers(0, 2, 200)
    estimator = UNKNOWN[name].fit(rows, truth)
    signature = Signature("binary" if hasattr(estimator, "predict_proba") else "regression", [], Contract(()))
    assert isinstance(FLAVOUR.predictor(estimator, signature), SklearnPredictor)
    assert LINEAR_FILE not in FLAVOUR.save(estimator)


def test_several_outputs_sparse_weights_and_numbers_that_do_not_give_the_scores_of_their_estimator_are_not_kept():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    ridge, sparse = Ridge().fit(rows, rows[:, :2]), LogisticRegression().fit(rows, rows[:, 0] > 0).sparsify()
    assert as_linear(ridge, SklearnPredictor(ridge, "regression")) is None
    assert as_linear(sparse, SklearnPredictor(sparse, "binary")) is None
    first, second = (Ridge().fit(rows, rows[:, 0] + shift) for shift in (0, 1e-11))
    assert as_linear(first, SklearnPredictor(first, "regression")) is not None
    assert as_linear(first, SklearnPredictor(second, "regression")) is None


@pytest.mark.parametrize("prepared", PREPARED)
def test_the_file_holds_every_number_exactly(prepared):
    linear = kept(prepared, "logistic of four classes")
    again = read_linear(linear_file(linear))
    assert linear_file(again) == linear_file(linear)
    rows = table(missing=False)[:50]
    assert scored(again, rows).tobytes() == scored(linear, rows).tobytes()


def test_exponentials_are_right_within_one_unit_in_the_last_place_and_the_same_on_every_processor():
    values = np.concatenate([np.linspace(-760, 720, 20_001), [0.0, -0.0, 1e-300, np.inf, -np.inf, 709.782712893384]])
    with np.errstate(all="ignore"):
        results = exponentials(values)
        expected = np.array([math.exp(value) if value < 709.7827128933841 else np.inf for value in values])
        assert np.isnan(exponentials(np.array([np.nan]))).all()
    finite = np.isfinite(expected)
    assert (np.abs(results[finite] - expected[finite]) <= np.spacing(expected[finite])).all()
    assert (results[~finite] == np.inf).all()
    assert (
        hashlib.sha256(results.tobytes()).hexdigest()
        == "b86573a1263553523f30dd3bc7687fe1db1a2447cec8d166f0617fca26e5e38f"
    )


def written(folder, model):
    staging = folder / "staging"
    staging.mkdir()
    version, sha256, _ = write_bundle(manifest(), model, staging, folder / "models", ReferenceProfile(()))
    return folder / "models" / version, sha256


SCORE = """
import sys
import numpy as np
from pathlib import Path
from batch_platform.models.bundle import open_bundle
bundle = open_bundle(Path(sys.argv[1]), sys.argv[2])
assert bundle.for_rows(1) is bundle.for_rows(10**12)
scores = bundle.predictor.predict(np.linspace(-1, 1, 20).reshape(10, 2))
print(scores.tobytes().hex(), *({"sklearn", "skops", "scipy", "numba"} & sys.modules.keys()))
"""


def test_a_bundle_scores_with_the_bits_of_training_without_importing_scikit_learn(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 2))
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, rows[:, 0] > 0)
    signature = Signature("binary", [False, True], Contract(()))
    trained = FLAVOUR.predictor(estimator, signature).predict(np.linspace(-1, 1, 20).reshape(10, 2))
    folder, sha256 = written(tmp_path, estimator)
    command = [sys.executable, "-c", SCORE, str(folder), sha256]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [trained.tobytes().hex()]


def test_a_pickled_model_keeps_its_numbers_too(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 2))
    estimator = LogisticRegression().fit(rows, rows[:, 0] > 0)
    estimator.note = Fraction(1, 3)  # a type that is not trusted
    pickled = FLAVOUR.pickled(estimator)
    assert isinstance(pickled, Pickled)
    folder, sha256 = written(tmp_path, pickled)
    assert {PICKLE_FILE, LINEAR_FILE} <= {path.name for path in folder.iterdir()}
    assert isinstance(open_bundle(folder, sha256, allow_pickle=True).predictor, LinearPredictor)
