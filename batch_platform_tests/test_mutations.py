"""The table of mutations is in step with the package, and the everyday tests see each of them."""

import subprocess
import sys

import pytest

from batch_platform_tests.mutations.table import MUTATIONS, ROOT, Mutation

of_each = pytest.mark.parametrize("mutation", [pytest.param(mutation, id=mutation.name) for mutation in MUTATIONS])


@pytest.mark.unit
def test_there_are_forty_mutations_each_with_a_name_of_its_own():
    assert len(MUTATIONS) == len({mutation.name for mutation in MUTATIONS}) == 40


@pytest.mark.unit
@of_each
def test_a_mutation_finds_its_source_once_and_compiles_and_its_tests_exist(mutation: Mutation):
    compile(mutation.applied(ROOT), mutation.file, "exec")
    tests = [test.partition("::")[::2] for test in mutation.tests]
    texts = {file: (ROOT / "batch_platform_tests" / file).read_text(encoding="utf-8") for file, _ in tests}
    assert [name for file, name in tests if name and f"def {name}(" not in texts[file]] == []


@pytest.mark.release
@of_each
def test_the_everyday_tests_see_a_mutation(mutation: Mutation):
    command = [sys.executable, "-m", "batch_platform_tests.mutations", mutation.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
