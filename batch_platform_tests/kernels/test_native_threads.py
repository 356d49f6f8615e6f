"""The limit of one thread per numeric library holds for libraries that are loaded after it was set."""

import json
import os
import subprocess
import sys

import pytest

from batch_platform.declaration.threads import SHORT_WAITS
from batch_platform.kernels.forest.compiled import prove
from batch_platform.models.bundle import write_bundle
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform.models.reference import ReferenceProfile
from batch_platform_tests.harness.command_line import COMMAND, run_program
from batch_platform_tests.models.bundles import manifest, rows, written

pytestmark = pytest.mark.full

LATE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from threadpoolctl import threadpool_info
from batch_platform.models.bundle import open_bundle
from batch_platform.kernels.native_threads import one_thread, one_thread_here
from batch_platform.models.reference import ReferenceProfile

def threads():
    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}

bundle = open_bundle(Path(sys.argv[1]), sys.argv[2])
few, single = np.zeros((9, 2)), np.zeros((1, 2))
with ThreadPoolExecutor(1, initializer=one_thread_here) as pool:
    with one_thread():
        predictor = bundle.for_rows(9)
        pool.submit(predictor.predict, few).result()
        before = set(threads())
        assert "sklearn" not in sys.modules, "compiled trees need no library"
        predictor.predict(single)  # left to the library, which is loaded here
        here = threads()
        pool.submit(predictor.predict, single).result()
        there = pool.submit(threads).result()
    after = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"}
print(json.dumps([len(set(here) - before), sorted({*here.values(), *there.values()}), sorted(after)]))
"""


def test_a_library_that_is_loaded_while_compiled_trees_score_uses_one_thread_on_every_thread(tmp_path):
    fitted, folder, _ = written(tmp_path, "sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 3})
    proof = prove(SklearnPredictor(fitted, "binary"), rows()[0])
    (tmp_path / "again").mkdir()
    version, sha256, _ = write_bundle(
        manifest(compiled=proof.compiled), fitted, tmp_path / "again", folder.parent, ReferenceProfile(()), proof.trees
    )
    command = [sys.executable, "-c", LATE, str(folder.parent / version), sha256]
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    loaded, during, after = json.loads(done.stdout)
    assert loaded > 0
    assert during == [1]
    assert after == [3]


@pytest.mark.parametrize(("own", "used"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_of_a_command_wait_busily_only_for_a_moment_unless_the_user_says_otherwise(
    fresh, monkeypatch, own, used
):
    for name in SHORT_WAITS:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    shown = run_program(fresh, COMMAND, "check", OMP_DISPLAY_ENV="VERBOSE")
    assert shown.code == 0
    assert f"GOMP_SPINCOUNT = '{used}'" in shown.err
