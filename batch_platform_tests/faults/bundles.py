"""Bundles that are not what was trained, and training that is killed."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sklearn.preprocessing import FunctionTransformer
from skops import io

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, WrongUseError
from batch_platform.kernels.forest.ensembles import TREES_FILE
from batch_platform.models import bundle
from batch_platform.models.flavours import sklearn
from batch_platform.models.registry import Version
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import SCORED, STAMP, assert_survived, days, held, prepared, rewrite
from batch_platform_tests.faults.killed_writers import KilledWriters

KEY = SCORED[2]


def fresh(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with no model loaded yet."""
    return Pipeline(pipeline.spec, pipeline.folder, pipeline.home)


def folder_of(pipeline: Pipeline) -> tuple[Path, Version]:
    (version,) = pipeline.state().registry.versions
    return pipeline.home.bundle("small", version.version), version


def assert_refused(pipeline: Pipeline, error: type[BatchPlatformError], match: str) -> None:
    """Scoring fails with the error, and the warehouse stays as it was."""
    before = held(pipeline)
    with pytest.raises(error, match=match):
        list(fresh(pipeline).score(days(pipeline, KEY), STAMP, force=True))
    assert held(pipeline) == before


def changed_file(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """A changed file is refused before its bytes are parsed; with the file put back, scoring works again."""
    pipeline = prepared(folder)
    before = held(pipeline)
    path = folder_of(pipeline)[0] / name
    intact = path.read_bytes()
    path.write_bytes(change(intact))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "loads", lambda *_, **__: pytest.fail("deserialised"))
        patch.setattr(io, "get_untrusted_types", lambda *_, **__: pytest.fail("parsed"))
        assert_refused(pipeline, IntegrityError, r"the bundle|The bundle|The manifest of .* is not the one")
    path.write_bytes(intact)
    assert_survived(pipeline, before, {KEY})


def smuggled(folder: Path, model: Callable[[bytes, Path], bytes], match: str) -> None:
    """Another model with all hashes adjusted, by somebody who can write everywhere, is still not loaded."""
    pipeline = prepared(folder)
    before = held(pipeline)
    kept = folder / "kept"
    path, version = folder_of(pipeline)
    shutil.copytree(path, kept)
    canary = folder / "canary"
    data = model((path / sklearn.MODEL_FILE).read_bytes(), canary)
    (path / sklearn.MODEL_FILE).write_bytes(data)

    def without_trees(manifest: dict[str, Any]) -> None:  # with them, scoring does not touch the file at all
        del manifest["files"][TREES_FILE]
        manifest["files"][sklearn.MODEL_FILE] = sha256(data)

    rewrite_manifest(pipeline, without_trees)
    assert_refused(pipeline, IntegrityError, match)
    assert not canary.exists()
    assert not list(folder.rglob("canary*")), "nothing was unpacked anywhere"
    shutil.rmtree(path)
    shutil.copytree(kept, path)
    register_as(pipeline, version.sha256)
    shutil.rmtree(kept)
    assert_survived(pipeline, before, {KEY})


def rewrite_manifest(pipeline: Pipeline, change: Callable[[dict[str, Any]], None]) -> None:
    path, _ = folder_of(pipeline)
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    (path / bundle.MANIFEST).write_bytes(text)
    register_as(pipeline, sha256(text))


def register_as(pipeline: Pipeline, digest: str) -> None:
    with pipeline.warehouse.transaction() as con:
        con.execute("UPDATE batch_platform.model_versions SET sha256 = $digest", {"digest": digest})
        con.execute("UPDATE batch_platform.score_runs SET model_sha256 = $digest", {"digest": digest})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def a_foreign_type(_: bytes, canary: Path) -> bytes:
    return io.dumps(FunctionTransformer(func=canary.touch))


def an_entry_outside(model: bytes, canary: Path) -> bytes:
    """The model itself, with more entries whose names lead out of the folder that it would be unpacked into."""
    changed = BytesIO(model)
    with zipfile.ZipFile(changed, "a") as archive:
        for name in (f"../{canary.name}", f"../../{canary.name}", str(canary)):
            archive.writestr(name, "x")
    return changed.getvalue()


def only_entries_outside(_: bytes, canary: Path) -> bytes:
    changed = BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        archive.writestr(f"../{canary.name}", "x")
    return changed.getvalue()


def other_libraries(folder: Path) -> None:
    """The bundle is refused with both versions named; where the environment allows it, the ledger records that."""
    pipeline = prepared(folder)
    before = held(pipeline)
    path, version = folder_of(pipeline)
    intact = (path / bundle.MANIFEST).read_bytes()
    rewrite_manifest(pipeline, lambda manifest: manifest["libraries"].update({"scikit-learn": "1.2.0"}))
    assert_refused(pipeline, WrongUseError, r"scikit-learn 1\.2\.0 \(here 1\.\d.*ALLOW_OTHER_LIBRARIES")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES", "yes")
        with pytest.raises(WrongUseError, match=r"BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES is 'yes'.*set it to 1 or 0"):
            list(fresh(pipeline).score(days(pipeline, KEY), STAMP, force=True))
        patch.setenv("BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES", "1")
        rewrite(fresh(pipeline), KEY)
    run = pipeline.state().scores[KEY]
    assert run.engine.startswith("local; allowed other libraries than in training: scikit-learn 1.2.0 (here 1.")
    assert pipeline.state().scores[SCORED[0]].engine == "local"
    (path / bundle.MANIFEST).write_bytes(intact)
    register_as(pipeline, version.sha256)
    assert_survived(pipeline, before, {KEY})


def killed_at_steps_of_training(folder: Path, kinds: Collection[str] | None = None) -> None:
    """Training is killed before steps of these kinds, or before every step."""
    with KilledWriters(folder) as writers:
        steps = writers.steps_of_a_training()
        assert {"replace bundle", "COMMIT"} <= set(steps)
        for number, kind in enumerate(steps):
            if kinds is None or kind in kinds:
                writers.kill_training(number)


CASES: dict[str, Case] = {
    "F11 one bit of the model": lambda folder: changed_file(
        folder, sklearn.MODEL_FILE, lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    ),
    "F11 a changed manifest": lambda folder: changed_file(
        folder, bundle.MANIFEST, lambda data: data.replace(b'"max_iter": 5', b'"max_iter": 6')
    ),
    "F11 a manifest that is no JSON": lambda folder: changed_file(folder, bundle.MANIFEST, lambda _: b"{"),
    "F12 a type outside the list": lambda folder: smuggled(
        folder, a_foreign_type, "asks for types that are not trusted"
    ),
    "F12 entries outside beside the model": lambda folder: smuggled(folder, an_entry_outside, r"holds entries"),
    "F12 nothing but an entry outside": lambda folder: smuggled(folder, only_entries_outside, r"holds entries"),
    "F13 other libraries": other_libraries,
    "F22 killed before the bundle and the commit of a training": lambda folder: killed_at_steps_of_training(
        folder, kinds=("replace bundle", "COMMIT")
    ),
    "F22 killed before every step of training": killed_at_steps_of_training,
}
