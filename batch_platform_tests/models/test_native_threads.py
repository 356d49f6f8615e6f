"""The limit of one thread per numeric library holds for libraries that are loaded after it was set."""

import json
import os
import subprocess
import sys

import pytest

from batch_platform.models.bundle import write_bundle
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform.models.forest.compiled import prove
from batch_platform.models.native_threads import WAIT_ASLEEP
from batch_platform_tests.command_line import run_command
from batch_platform_tests.models.test_bundle import manifest, rows, written

LATE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from threadpoolctl import threadpool_info
from batch_platform.models.bundle import open_bundle
from batch_platform.models.native_threads import one_thread, one_thread_here

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
        manifest(compiled=proof.compiled), fitted, tmp_path / "again", folder.parent, proof.trees
    )
    command = [sys.executable, "-c", LATE, str(folder.parent / version), sha256]
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    loaded, during, after = json.loads(done.stdout)
    assert loaded > 0
    assert during == [1]
    assert after == [3]


@pytest.mark.parametrize(("policy", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_command_wait_asleep_unless_the_user_says_otherwise(fresh, monkeypatch, policy, used):
    for name in WAIT_ASLEEP:
        monkeypatch.delenv(name)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    shown = run_command(fresh, "check", OMP_DISPLAY_ENV="TRUE")
    assert shown.code == 0
    assert f"OMP_WAIT_POLICY = '{used}'" in shown.err
