"""Trees stored beside a model give the same bits without the library that grew them; in doubt, the library scores."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from batch_platform.kernels.forest.compiled import MOST_VISITS, PlainTrees, TreePredictor, predictor_from_file, prove
from batch_platform.kernels.forest.ensembles import TREES_FILE, NotCompilableError, read_trees, trees_file
from batch_platform.models.bundle import open_bundle, write_bundle
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform.models.reference import ReferenceProfile
from batch_platform_tests.kernels.random_trees import MODELS, Shape, learned, table
from batch_platform_tests.models.bundles import manifest

NEEDED = ("imputed", "scaled", "isolation", "xgboost")  # what only a library knows how to evaluate
FORMS = pytest.mark.parametrize("compiled", [True, False])
SHAPE = Shape(rows=400, classes=3, missing=0.1, categories=70)


class Unused:
    """A library that must not be needed."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        raise AssertionError(len(matrix))


@FORMS
@pytest.mark.parametrize("name", MODELS)
def test_stored_trees_return_the_bits_of_the_library_without_it_or_are_not_stored(name: str, compiled: bool):
    native = learned(name, SHAPE)
    proof = prove(native, table(SHAPE, 200))
    assert proof.compiled.kernel
    assert bool(proof.trees) == (not any(word in name for word in NEEDED))
    if not proof.trees:
        return
    rows = table(SHAPE, 500, missing=not name.startswith("boosted"))
    kept = predictor_from_file(proof.trees, Unused(), compiled=compiled)
    assert kept.predict(rows).tobytes() == native.predict(rows).tobytes()
    again = read_trees(proof.trees)
    assert trees_file(again.parts, again.digests) == proof.trees, "a file is the same whenever it is written"


@FORMS
def test_rows_that_the_trees_refuse_and_single_rows_go_to_the_library(compiled: bool):
    native = learned("random forest, classes", SHAPE)
    kept = predictor_from_file(prove(native, table(SHAPE, 200)).trees, native, compiled=compiled)
    assert kept.predict(table(SHAPE, 1)).tobytes() == native.predict(table(SHAPE, 1)).tobytes()
    with pytest.raises(ValueError, match="infinity"):
        kept.predict(np.full((5, SHAPE.columns), np.inf))


@FORMS
def test_stored_trees_that_score_differently_from_the_library_do_not_serve(compiled: bool):
    kept = read_trees(prove(learned("histogram, classes", SHAPE), table(SHAPE, 200)).trees)
    wrong = kept.parts.ensemble.trees[-1]
    trees = [*kept.parts.ensemble.trees[:-1], replace(wrong, value=np.nextafter(wrong.value, 9))]
    parts = replace(kept.parts, ensemble=replace(kept.parts.ensemble, trees=trees))
    with pytest.raises(NotCompilableError, match="differs from the library's own result"):
        predictor_from_file(trees_file(parts, kept.digests), Unused(), compiled=compiled)


@pytest.fixture
def written(tmp_path):
    """A predictor, the file of its trees, and the folder and hash of its bundle."""
    native = learned("histogram, classes", Shape(columns=3))
    proof = prove(native, table(Shape(columns=3), 300))
    (tmp_path / "staging").mkdir()
    described = manifest("binary", compiled=proof.compiled)
    version, sha256, _ = write_bundle(
        described, native.estimator, tmp_path / "staging", tmp_path / "models", ReferenceProfile(()), proof.trees
    )
    return native, proof.trees, tmp_path / "models" / version, sha256


@pytest.mark.parametrize(("count", "plain"), [(1, True), (MOST_VISITS, False)])
def test_a_bundle_with_trees_scores_without_loading_its_library_until_a_row_needs_it(written, count, plain):
    native, _, folder, sha256 = written
    bundle = open_bundle(folder, sha256)
    rows = table(Shape(columns=3), 50)
    predictor = bundle.for_rows(count)
    assert isinstance(predictor, TreePredictor)
    assert isinstance(predictor.flat, PlainTrees) == plain
    assert bundle.for_rows(count) is predictor
    assert predictor.predict(rows).tobytes() == native.predict(rows).tobytes()
    assert bundle.native._loaded is None
    assert predictor.predict(rows[:1]).tobytes() == native.predict(rows[:1]).tobytes()
    assert bundle.native._loaded is not None


def test_if_the_stored_proof_fails_the_library_proves_its_trees_again(written):
    native, file, folder, _ = written
    kept = read_trees(file)
    # As if another processor had rounded differently.
    elsewhere = trees_file(kept.parts, [digest[::-1] for digest in kept.digests])
    (folder / TREES_FILE).write_bytes(elsewhere)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"][TREES_FILE] = hashlib.sha256(elsewhere).hexdigest()
    text = json.dumps(values).encode()
    (folder / "manifest.json").write_bytes(text)
    bundle = open_bundle(folder, hashlib.sha256(text).hexdigest())
    predictor = bundle.for_rows(1)
    assert isinstance(predictor, TreePredictor)
    assert isinstance(predictor.native, SklearnPredictor)
    assert not bundle.not_compiled
    rows = table(Shape(columns=3), 50)
    assert predictor.predict(rows).tobytes() == native.predict(rows).tobytes()
