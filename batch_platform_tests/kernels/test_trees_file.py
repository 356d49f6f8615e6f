"""Trees stored beside a model give the same bits without the library that grew them; in doubt, the library scores."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest

from batch_platform.kernels.forest.compiled import (
    CompilablePredictor,
    CompiledPredictor,
    Proof,
    plain_from_file,
    prove,
    proven_from_file,
)
from batch_platform.kernels.forest.ensembles import TREES_FILE, NotCompilableError, read_trees, trees_file
from batch_platform.kernels.forest.plain import MOST_VISITS, PlainPredictor
from batch_platform.models.bundle import Bundle, open_bundle, write_bundle
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform.models.reference import ReferenceProfile
from batch_platform_tests.kernels import random_boosters
from batch_platform_tests.kernels.random_trees import CLASSIFIERS, REGRESSORS, Shape, learned, table
from batch_platform_tests.models.bundles import manifest

MODELS = [
    *(("classes", name) for name in CLASSIFIERS),
    *(("values", name) for name in REGRESSORS),
    *(("boosters", name) for name in random_boosters.BOOSTERS),
]
NEEDED = ("imputed", "scaled", "scaler", "from a model", "xgboost")  # what only a library knows how to evaluate
FORMS = pytest.mark.parametrize("load", [proven_from_file, plain_from_file])
SHAPE = Shape(rows=400, classes=3, missing=0.1, categories=70)


def native_of(kind: str, name: str, shape: Shape = SHAPE) -> CompilablePredictor:
    if kind == "boosters":
        return random_boosters.learned(name, shape)
    if kind == "classes":
        return learned(name, CLASSIFIERS[name], shape, "multiclass")
    return learned(name, REGRESSORS[name], shape, "regression")


class Unused:
    """A library that must not be needed."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        raise AssertionError(len(matrix))


@FORMS
@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_stored_trees_return_the_bits_of_the_library_without_it_or_are_not_stored(kind: str, name: str, load):
    native = native_of(kind, name)
    proof = prove(native, table(SHAPE, 200))
    assert proof.compiled.kernel
    assert bool(proof.trees) == (not any(word in name for word in NEEDED))
    if not proof.trees:
        return
    rows = table(SHAPE, 500, missing=not name.startswith("boosted"))
    kept = load(proof.trees, Unused())
    assert kept.predict(rows).tobytes() == native.predict(rows).tobytes()
    again = read_trees(proof.trees)
    assert trees_file(again.parts, again.digests) == proof.trees, "a file is the same whenever it is written"


@FORMS
def test_rows_that_the_trees_refuse_and_single_rows_go_to_the_library(load):
    native = native_of("classes", "random forest")
    proof = prove(native, table(SHAPE, 200))
    kept = load(proof.trees, native)
    assert kept.predict(table(SHAPE, 1)).tobytes() == native.predict(table(SHAPE, 1)).tobytes()
    with pytest.raises(ValueError, match="infinity"):
        kept.predict(np.full((5, SHAPE.columns), np.inf))


@FORMS
def test_stored_trees_that_score_differently_from_the_library_do_not_serve(load):
    proof = prove(native_of("classes", "histogram"), table(SHAPE, 200))
    kept = read_trees(proof.trees)
    wrong = kept.parts.ensemble.trees[-1]
    trees = [*kept.parts.ensemble.trees[:-1], replace(wrong, value=np.nextafter(wrong.value, 9))]
    parts = replace(kept.parts, ensemble=replace(kept.parts.ensemble, trees=trees))
    with pytest.raises(NotCompilableError, match="differs from the library's own result"):
        load(trees_file(parts, kept.digests), Unused())


def test_an_outlier_forest_is_compiled_but_not_stored():
    matrix = table(Shape(), 200)
    proof = prove(SklearnPredictor(IsolationForest(n_estimators=5, random_state=0).fit(matrix), "outliers"), matrix)
    assert (proof.compiled.kernel is not None, proof.trees) == (True, b"")


def written(folder: Path) -> tuple[SklearnPredictor, Proof, Path, str]:
    matrix = table(Shape(columns=3), 300)
    native = SklearnPredictor(HistGradientBoostingClassifier(max_iter=3).fit(matrix, matrix[:, 0] > 0), "binary")
    proof = prove(native, matrix)
    (folder / "staging").mkdir()
    described = manifest("binary", compiled=proof.compiled)
    version, sha256, _ = write_bundle(
        described, native.estimator, folder / "staging", folder / "models", ReferenceProfile(()), proof.trees
    )
    return native, proof, folder / "models" / version, sha256


def loaded(bundle: Bundle) -> bool:
    return bundle.native._loaded is not None


@pytest.mark.parametrize(("count", "form"), [(1, PlainPredictor), (MOST_VISITS, CompiledPredictor)])
def test_a_bundle_with_trees_scores_without_loading_its_library_until_a_row_needs_it(tmp_path, count, form):
    native, _, folder, sha256 = written(tmp_path)
    bundle = open_bundle(folder, sha256)
    rows = table(Shape(columns=3), 50)
    predictor = bundle.for_rows(count)
    assert isinstance(predictor, form)
    assert bundle.for_rows(count) is predictor
    assert predictor.predict(rows).tobytes() == native.predict(rows).tobytes()
    assert not loaded(bundle)
    assert predictor.predict(rows[:1]).tobytes() == native.predict(rows[:1]).tobytes()
    assert loaded(bundle)
    assert bundle.predictor is bundle.predictor


def test_if_the_stored_proof_fails_the_library_proves_its_trees_again(tmp_path):
    native, proof, folder, _ = written(tmp_path)
    kept = read_trees(proof.trees)
    # As if another processor had rounded differently.
    elsewhere = trees_file(kept.parts, [digest[::-1] for digest in kept.digests])
    (folder / TREES_FILE).write_bytes(elsewhere)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"][TREES_FILE] = hashlib.sha256(elsewhere).hexdigest()
    text = json.dumps(values).encode()
    (folder / "manifest.json").write_bytes(text)
    bundle = open_bundle(folder, hashlib.sha256(text).hexdigest())
    predictor = bundle.for_rows(1)
    assert isinstance(predictor, CompiledPredictor)
    assert isinstance(predictor.native, SklearnPredictor)
    assert not bundle.not_compiled
    rows = table(Shape(columns=3), 50)
    assert predictor.predict(rows).tobytes() == native.predict(rows).tobytes()
