"""The tiers of the tests: the everyday tier, though it leaves out the tests marked `full` or `release`, tests every promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from batch_platform.models.flavours.known import FLAVOURS
from batch_platform.scoring.engines.known import ENGINES
from batch_platform.sources.known import SOURCE_KINDS
from batch_platform_tests.bad_input import cases as bad_input
from batch_platform_tests.faults import cases as faults
from batch_platform_tests.harness.checkout import ROOT
from batch_platform_tests.harness.tiers import EVERYDAY, TIERS

pytestmark = pytest.mark.full
RELEASE_FILE = "pipeline/test_model_year.py"
ON_SPARK = "table_of_the_catalog"  # in the names of the tests of the source kind that only Spark reads


def collected(*arguments: str) -> list[str]:
    """The ids of the tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "-p", "no:cacheprovider", *arguments]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [line.partition("/")[2] for line in shown.splitlines() if "::" in line]


@pytest.fixture(scope="module")
def everyday() -> list[str]:
    """The ids of the tests of the everyday tier."""
    return collected("-m", EVERYDAY)


def test_the_everyday_tier_tests_every_law(everyday):
    laws = {
        *re.findall(r"^def test_law_(\d+)_", (ROOT / "batch_platform_tests" / "test_laws.py").read_text(), re.MULTILINE)
    }
    assert len(laws) > 15
    tested = {number for test in everyday for number in re.findall(r"^test_laws\.py::test_law_(\d+)_", test)}
    assert tested == laws


@pytest.mark.parametrize("of", [faults, bad_input], ids=["faults", "bad input"])
def test_the_everyday_tier_tests_every_number_of_faults_and_bad_input(everyday, of):
    numbered = {number for test in everyday for number in re.findall(r"::test_(?:fault|bad_input)\[([FB]\d+) ", test)}
    names = {test.partition("[")[0] for test in everyday}
    elsewhere = {number for number, tests in of.ELSEWHERE.items() if names & {*tests}}
    assert {name.split()[0] for name in of.CASES} | {*of.ELSEWHERE} <= numbered | elsewhere


def test_the_everyday_tier_tests_every_engine_flavour_and_kind_of_source(everyday):
    files = {test.partition("::")[0] for test in everyday}
    assert {Path(file).name for file in files} >= {f"test_{engine}_engine.py" for engine in ENGINES}
    flavours = {flavour for test in everyday for flavour in re.findall(r"models/test_flavours\.py::\w+\[(\w+) ", test)}
    assert flavours >= {*FLAVOURS}
    kinds = {kind for test in everyday for kind in re.findall(r"sources/test_source_kinds\.py::\w+\[(\w+)", test)}
    assert kinds >= {name for name, kind in SOURCE_KINDS.items() if not kind.only_on_spark}
    assert any(ON_SPARK in test for test in everyday)


def test_a_tier_takes_its_tests_and_pytest_by_itself_takes_what_is_named(everyday):
    file = f"batch_platform_tests/{RELEASE_FILE}"
    assert [test for test in everyday if test.startswith(RELEASE_FILE)] == collected(*TIERS["--full"], file) == []
    assert TIERS["--release"] == [], "what pytest takes by itself"
    assert collected(file) != []
