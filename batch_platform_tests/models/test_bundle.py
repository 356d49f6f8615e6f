"""A bundle gives back exactly the model that was trained; a changed byte or a foreign type is never loaded."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from batch_platform.declaration.errors import IntegrityError, TrainingRefusedError, WrongUseError
from batch_platform.kernels.forest import arrays
from batch_platform.kernels.forest.compiled import Compilation
from batch_platform.kernels.linear import LINEAR_FILE
from batch_platform.models.bundle import FORMAT, WITHOUT_PRIOR, Sampled, libraries, open_bundle, write_bundle
from batch_platform.models.flavours.known import FLAVOURS
from batch_platform.models.flavours.sklearn import MODEL_FILE
from batch_platform.models.reference import ReferenceProfile
from batch_platform_tests.models.bundles import CONTRACT, ESTIMATORS, manifest, rows, written

INSTALLED = libraries(FLAVOURS["sklearn"], [MODEL_FILE])


def restated(folder: Path, **changes) -> str:
    """Change the manifest as if it had been registered that way; return the bundle's hash."""
    values = json.loads((folder / "manifest.json").read_text()) | changes
    text = json.dumps(values).encode()
    (folder / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def rehashed(folder: Path, name: str, data: bytes) -> str:
    """Change a file and every hash above it, as somebody who may write anything could; gives the bundle's hash."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return restated(folder, files=files | {name: hashlib.sha256(data).hexdigest()})


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_loaded_estimator_predicts_exactly_what_was_trained_and_a_linear_one_within_1e_12(tmp_path, estimator):
    task, params = ESTIMATORS[estimator]
    fitted, folder, sha256 = written(tmp_path, estimator, params)
    opened = open_bundle(folder, sha256)
    matrix, _ = rows()
    expected = fitted.predict_proba(matrix) if task == "binary" else fitted.predict(matrix)
    expected = -fitted.decision_function(matrix) if task == "outliers" else expected
    is_linear = ".linear_model." in estimator
    np.testing.assert_allclose(opened.predictor.predict(matrix), expected, rtol=0, atol=1e-12 if is_linear else 0)
    assert (LINEAR_FILE in opened.manifest.files) == is_linear
    assert opened.contract == CONTRACT
    assert opened.manifest == replace(
        manifest(task), files=opened.manifest.files, libraries=INSTALLED, contract=opened.manifest.contract
    )
    assert opened.version == f"2024-02-01-{sha256[:8]}"
    if opened.manifest.compiled.kernel is None:
        assert opened.for_rows(10**12) is opened.predictor


class Canary(BaseEstimator):
    """Leaves a file behind when a pickle of it is loaded."""

    def __init__(self, path: str = "canary") -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.unit
def test_a_pickle_in_place_of_the_model_is_refused_and_never_run(tmp_path):
    _, folder, _ = written(tmp_path)
    canary = tmp_path / "canary"
    sha256 = rehashed(folder, MODEL_FILE, pickle.dumps(Canary(str(canary))))
    with pytest.raises(IntegrityError, match="not written by skops"):
        open_bundle(folder, sha256)
    assert not canary.exists()


@pytest.mark.unit
def test_a_file_that_asks_for_a_foreign_type_is_refused_and_never_built(tmp_path):
    _, folder, _ = written(tmp_path)
    canary = tmp_path / "canary"
    with zipfile.ZipFile(folder / MODEL_FILE) as archive:
        schema = json.loads(archive.read("schema.json"))
    schema |= {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "content": f"touch {canary}"}
    evil = tmp_path / "evil.skops"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    sha256 = rehashed(folder, MODEL_FILE, evil.read_bytes())
    with pytest.raises(IntegrityError, match=r"asks for types that are not trusted: os\.system"):
        open_bundle(folder, sha256)
    assert not canary.exists()


class Homemade(BaseEstimator):
    """An estimator that skops does not trust."""


@pytest.mark.unit
def test_an_estimator_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(TrainingRefusedError, match="Homemade"):
        write_bundle(manifest(), Homemade(), tmp_path, tmp_path / "models", ReferenceProfile(()))
    assert list((tmp_path / "models").iterdir()) == []


BALANCED = {
    "max_rows": 100,
    "rows_before": 200,
    "rows_after": 100,
    "stratified": False,
    "seed": 1,
    "rates": [1.0, 0.5],
}  # a record of the former format


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}.*use the version that wrote it"),
        ({"format": WITHOUT_PRIOR - 1}, f"has format {WITHOUT_PRIOR - 1}.*train the serving period again"),
        ({"format": WITHOUT_PRIOR, "sampled": BALANCED}, f"has format {WITHOUT_PRIOR}.*train the serving period again"),
        ({"flavour": "magic"}, "'magic' is not a flavour.*upgrade batch-platform"),
    ],
)
def test_a_bundle_that_another_version_wrote_is_refused(tmp_path, changes, message):
    _, folder, _ = written(tmp_path)
    sha256 = restated(folder, **changes)
    with pytest.raises(WrongUseError, match=message):
        open_bundle(folder, sha256)


@pytest.mark.unit
def test_a_bundle_of_the_former_format_scores_as_it_did(tmp_path):
    _, folder, sha256 = written(tmp_path)
    matrix, _ = rows()
    now = open_bundle(folder, sha256).predictor.predict(matrix)
    former = open_bundle(folder, restated(folder, format=WITHOUT_PRIOR, sampled={**BALANCED, "rates": []}))
    assert former.manifest.sampled == Sampled(100, 200, 100, stratified=False, seed=1)
    assert former.predictor.predict(matrix).tobytes() == now.tobytes()


@pytest.mark.unit
def test_a_model_that_differs_on_this_machine_is_served_natively_and_says_so(tmp_path, monkeypatch, caplog):
    _, folder, sha256 = written(tmp_path, compiled=Compilation("leaf masks of 32 bits", trees=1, rows=9, reason=None))
    flatten = arrays.flatten

    def wrong(ensemble):
        flat = flatten(ensemble)
        flat.trees.value[:] = np.nextafter(flat.trees.value, 2)
        return flat

    monkeypatch.setattr(arrays, "flatten", wrong)
    opened = open_bundle(folder, sha256)
    assert opened.for_rows(1000) is opened.predictor
    assert (opened.not_compiled, caplog.text) == ("", "")
    assert opened.for_rows(10**12) is opened.for_rows(10**12) is opened.predictor
    assert "differs from the library's own result" in opened.not_compiled
    assert caplog.text.count(f"{opened.version} is scored by its library's own code on this machine") == 1


@pytest.mark.unit
def test_a_path_in_the_manifest_cannot_leave_the_bundle(tmp_path):
    _, folder, _ = written(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("secret")
    sha256 = restated(folder, files={"../../outside": hashlib.sha256(b"secret").hexdigest()})
    with pytest.raises(IntegrityError):
        open_bundle(folder, sha256)


KILLED = """
import os, signal, sys
from pathlib import Path
from batch_platform.models.flavours.sklearn import MODEL_FILE
from batch_platform_tests.models.bundles import written
write_bytes = Path.write_bytes
def write_and_die(path, data):
    write_bytes(path, data)
    if path.name == MODEL_FILE:
        os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = write_and_die
written(Path(sys.argv[1]))
"""


@pytest.mark.full
def test_a_half_written_bundle_is_never_visible(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "models").iterdir()) == []
    assert [path.name for path in (tmp_path / "staging" / "bundle").iterdir()] == [MODEL_FILE]
