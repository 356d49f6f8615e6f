"""Fixtures and settings of all tests, those of the unit tier included: no test fails for being slow."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scipy.special
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from batch_platform.declaration import redaction
from batch_platform.declaration.engine import Spark
from batch_platform.kernels.native_threads import let_waiting_threads_sleep
from batch_platform.spark.session import is_stopped, spark_session
from batch_platform_tests.harness.processor_time import ProcessorTime, loop_seconds
from batch_platform_tests.harness.tiers import PROFILES, UNIT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from batch_platform_tests.harness.spark_cluster import SparkCluster

# Before Dagster: to name SciPy's functions, skops searches all modules imported before them, which takes 2 s of CPU.
IMPORTED_FIRST = scipy.special
NEW_OBJECTS = 20_000  # after which garbage is searched for; 700 by default
WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = (
    False  # while tests are collected: rewriting their assertions takes each process 5 to 10 s of CPU
)
let_waiting_threads_sleep()  # in this process too: the workers share the cores
pytest.register_assert_rewrite("batch_platform_tests.bad_input")
for tier, number in PROFILES.items():
    settings.register_profile(tier, deadline=None, max_examples=number)
ON_SPARK = ("spark", "test_engines.py")  # a folder and a file that share a cluster, and so a worker
SPREAD = ("test_faults.py", "test_bad_input.py")  # the longest first
LONG = ("test_dg_launch.py", "test_acting.py", "test_postgres.py")  # a single test each, as long as many others


class FilesAndCases(LoadFileScheduling):
    """A file stays with one worker, since its tests may share what its fixtures made; cases go to any worker.

    Files with many tests come first, then single tests and cases in order of collection.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if not {*ON_SPARK}.isdisjoint(file.split("/")):
            return "the cluster of Spark"
        return nodeid if file.endswith(SPREAD) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesAndCases | None:
    return FilesAndCases(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Draw fewer examples in the tiers that run more often, and say in CI what each of them takes.

    Dagster, which takes 7 s of CPU to import, is left to the tiers that use it.
    """
    tier = config.getoption("markexpr")
    if tier != UNIT:
        config.pluginmanager.import_plugin("batch_platform_tests.harness.projects")
    settings.load_profile(tier if tier in PROFILES else "release")
    if "CI" in os.environ:
        config.pluginmanager.register(ProcessorTime(0.0 if hasattr(config, "workerinput") else loop_seconds()))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without a test of the unit tier: to import them would take half of its minute."""
    if config.getoption("markexpr") != UNIT or collection_path.suffix != ".py":
        return None
    return "mark.unit" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests and cases, so that no worker waits for one at the end."""
    first = {name: place for place, name in enumerate((*LONG, *SPREAD, *ON_SPARK))}
    items.sort(key=lambda item: first.get(item.path.name, first.get(item.path.parent.name, len(first))))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Search for garbage seldom, and not in what has been imported: both together took a fifth of the tests' CPU time."""
    sys.dont_write_bytecode = WRITES_NO_BYTECODE
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS)


@pytest.fixture(autouse=True)
def no_secrets_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short password would be replaced wherever it stands alone in a message."""
    for name in ("_named", "_values"):
        monkeypatch.setattr(redaction, name, set(getattr(redaction, name)))


@pytest.fixture(autouse=True)
def captured_output_stays_open() -> Iterator[None]:
    """Keras brings absl, whose log handler would close pytest's captured standard error when Dagster sets up its logs."""
    yield
    if (absl := sys.modules.get("absl.logging")) is not None:
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SparkCluster"]:
    """The cluster that all tests of Spark share."""
    from batch_platform_tests.harness.spark_cluster import spark_cluster  # imports Spark, which few tests need

    with spark_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="session")
def held_session(cluster: "SparkCluster") -> Iterator[Callable[[], None]]:
    """Hold a session on the cluster open, which would otherwise be started for each user; called again, start one where a test ended it."""
    with ExitStack() as sessions:
        held: list[SparkSession] = []

        def hold() -> None:
            if not held or is_stopped(held[-1]):
                declared = Spark.model_validate(cluster.declared()["spark"])
                held.append(sessions.enter_context(spark_session(declared, "tests")))

        yield hold


@pytest.fixture
def spark(cluster: "SparkCluster", held_session: Callable[[], None]) -> "SparkCluster":
    """The cluster with a session of this process."""
    held_session()
    return cluster
