"""Laws that every flavour keeps: which scores come back, what cannot change them, and what is refused."""

import hashlib
import itertools
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from batch_platform.components.batch_inference import build_definitions
from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError
from batch_platform.kernels.forest.compiled import CompilablePredictor, prove
from batch_platform.models.bundle import ALLOW_VARIABLE, open_bundle
from batch_platform.models.contract import Contract, Signature
from batch_platform.models.flavours import keras
from batch_platform.models.flavours.flavour import as_scores
from batch_platform.models.flavours.known import flavour
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.flavour_cases import CASES, EXTRAS, Kept, keep, table
from batch_platform_tests.harness.small_pipeline import small_spec

pytestmark = pytest.mark.usefixtures("shop_extensions")
ROWS = table(257, seed=1)
FULL_CASES = {"onnx map", "keras file"}


@cache
def kept_in(folder: Path, case: str) -> Kept:
    files = folder / case.replace(" ", "-")
    files.mkdir(exist_ok=True)
    return keep(CASES[case](files), files)


@pytest.fixture(params=[pytest.param(it, marks=[pytest.mark.full] * (it in FULL_CASES)) for it in CASES])
def kept(request, tmp_path_factory) -> Kept:
    return kept_in(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture
def opened(kept):
    return open_bundle(kept.folder, kept.sha256, allow_pickle=True)


def both(expected: np.ndarray, task: str) -> np.ndarray:
    """The probabilities of both classes; a library may return only that of the second class."""
    raw = np.asarray(expected)
    only_second = task == "binary" and (raw.ndim == 1 or raw.shape[1] == 1)
    return np.column_stack([1 - raw.ravel(), raw.ravel()]) if only_second else raw


def predicted(bundle, rows: pl.DataFrame) -> np.ndarray:
    return bundle.predictor.predict(bundle.contract.encode(bundle.contract.split(rows).kept))


def test_a_loaded_model_predicts_what_its_own_library_predicts(kept, opened):
    scores, expected = predicted(opened, ROWS), both(kept.made.expected(ROWS), kept.made.signature.task)
    assert opened.contract == kept.made.signature.contract
    if kept.made.tolerance:
        np.testing.assert_allclose(scores, expected, rtol=0, atol=kept.made.tolerance)
    else:
        np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 3))])
def test_the_score_of_a_row_is_the_same_to_the_last_bit_whichever_rows_are_beside_it(opened, seed):
    choice = np.random.default_rng(seed)
    order = choice.permutation(ROWS.height)
    cuts = [0, *sorted(choice.choice(range(1, ROWS.height), size=9, replace=False)), 1 + seed, ROWS.height]
    batches = [ROWS[order[start:end].tolist()] for start, end in itertools.pairwise(sorted(cuts)) if start < end]
    parts = np.concatenate([predicted(opened, batch) for batch in batches])
    np.testing.assert_array_equal(parts, predicted(opened, ROWS.select(reversed(ROWS.columns)))[order])
    np.testing.assert_array_equal(predicted(opened, ROWS[[int(order[0])]]), parts[:1])


def test_several_threads_at_once_change_nothing(opened):
    alone = predicted(opened, ROWS)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: predicted(opened, ROWS), range(16)):
            np.testing.assert_array_equal(scores, alone)


def test_nulls_and_unknown_categories_are_scored_and_change_no_other_row(opened):
    blank = {column.name: None for column in opened.contract.columns if column.nullable}
    odd = ROWS.head(3).with_columns(pl.lit(value, dtype=ROWS.schema[name]).alias(name) for name, value in blank.items())
    if "shop" in opened.contract.names:
        odd = odd.with_columns(shop=pl.Series(["never seen", None, "'; DROP TABLE"]))
    scores = predicted(opened, pl.concat([odd, ROWS]))
    assert len(scores) == ROWS.height + 3
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[3:], predicted(opened, ROWS))


def test_a_changed_byte_of_any_file_is_refused_before_it_is_parsed(kept, tmp_path):
    folder = shutil.copytree(kept.folder, tmp_path / kept.folder.name)
    files = sorted(folder.iterdir())
    assert len(files) > 1, "a manifest and what it names"
    for path in files:
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"is not the one that was (registered|trained)"):
            open_bundle(folder, kept.sha256, allow_pickle=True)
        path.write_bytes(original)
    open_bundle(folder, kept.sha256, allow_pickle=True)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_error_for_a_missing_library_names_the_extra_that_installs_it(name, tmp_path_factory, monkeypatch):
    case = next(case for case in CASES if case.startswith(f"{name} ") and case not in FULL_CASES)
    kept = kept_in(tmp_path_factory.getbasetemp(), case)
    for module in [module for module in sys.modules if module.partition(".")[0] == EXTRAS[name]]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, EXTRAS[name], None)
    if name == "keras":
        keras._library.cache_clear()
    with pytest.raises(WrongUseError, match=rf"{EXTRAS[name]}.*pip install 'batch-platform\[{name}\]'"):
        open_bundle(kept.folder, kept.sha256, allow_pickle=True)


def test_another_minor_version_of_its_library_but_no_patch_is_refused_unless_the_user_allows_it(
    kept, opened, tmp_path, monkeypatch
):
    name, *_ = flavour(kept.made.flavour).libraries
    folder = shutil.copytree(kept.folder, tmp_path / kept.folder.name)
    written, installed = json.loads((folder / "manifest.json").read_text()), opened.manifest.libraries

    def trained_with(version: str) -> str:
        text = json.dumps(written | {"libraries": {**installed, name: version}}).encode()
        (folder / "manifest.json").write_bytes(text)
        return hashlib.sha256(text).hexdigest()

    patch = ".".join([*installed[name].split(".")[:2], "99"])
    open_bundle(folder, trained_with(patch), allow_pickle=True)
    sha256 = trained_with("0.0.1")
    with pytest.raises(WrongUseError, match=rf"trained with {name} 0\.0\.1 \(here .*{ALLOW_VARIABLE}=1"):
        open_bundle(folder, sha256, allow_pickle=True)
    monkeypatch.setenv(ALLOW_VARIABLE, "1")
    allowed = open_bundle(folder, sha256, allow_pickle=True)
    assert allowed.other_libraries == f"{name} 0.0.1 (here {installed[name]})"


def test_what_may_run_code_is_loaded_only_where_that_is_declared_and_says_so(kept, caplog):
    manifest = open_bundle(kept.folder, kept.sha256, allow_pickle=True).manifest
    assert (
        manifest.pickle
        == ("may run code" in caplog.text)
        == (kept.made.flavour == "mlflow" or "model.pkl" in manifest.files)
    )
    if manifest.pickle:
        with pytest.raises(WrongUseError, match=r"may run code.*model\.allow_pickle: true"):
            open_bundle(kept.folder, kept.sha256)
    else:
        open_bundle(kept.folder, kept.sha256)


def test_boosters_are_compiled_to_the_same_bits_and_other_manifests_say_what_evaluates_the_model(kept, opened):
    boosted = kept.made.flavour in ("lightgbm", "xgboost")
    assert ("evaluated" in opened.manifest.details) == (not boosted and kept.made.flavour != "sklearn")
    if isinstance(opened.predictor, CompilablePredictor):
        proof = prove(opened.predictor, opened.contract.encode(opened.contract.split(ROWS).kept)).compiled
        assert (proof.kernel is None) == bool(proof.reason)
        assert proof.kernel or not boosted
    else:
        assert not boosted


def test_a_flavour_that_does_not_exist_is_refused_when_the_pipeline_loads():
    spec = small_spec(challengers=[{"name": "other", "import": "rule.ini", "flavour": "sklaern"}])
    with pytest.raises(WrongUseError, match=r"small: challengers\.0\.flavour: 'sklaern' is not a flavour.*'sklearn'"):
        build_definitions(spec, Path())


def test_probabilities_that_rounding_led_out_of_their_range_are_brought_back_and_masked_values_are_none():
    signature = Signature("binary", [False, True], Contract(()))
    raw = np.array([[-1e-7, 1.0000001], [0.25, 0.75], [np.inf, 0.5]])
    scores = as_scores(raw, 3, signature)
    np.testing.assert_array_equal(scores[:2], [[0, 1], [0.25, 0.75]])
    assert not np.isfinite(scores[2]).all(), "such a row is rejected"
    masked = np.ma.MaskedArray([0.5, 0.25], mask=[True, False])
    np.testing.assert_array_equal(as_scores(masked, 2, signature), [[np.nan, np.nan], [0.75, 0.25]])
    with pytest.raises(DataError, match="which are not probabilities"):
        as_scores(np.array([[-0.1, 1.1]]), 1, signature)
    with pytest.raises(DataError, match="a regression must return one number per row"):
        as_scores(np.zeros((3, 2)), 3, replace(signature, task="regression"))
    with pytest.raises(DataError, match="returned float64"):
        as_scores(np.ma.MaskedArray([1, 2], mask=[True, False]), 2, replace(signature, task="clustering"))
