"""Every kind of bad input, by its number."""

import re
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.cases import CASES, ELSEWHERE
from batch_platform_tests.harness.checkout import defines

PAGE = Path("batch_platform/guide/faults.md")


def parameters() -> list[ParameterSet]:
    """All cases; of those of a number that differ only in what a function is given, the everyday tier has the first."""
    known = set[tuple[str, Case]]()
    marked: list[ParameterSet] = []
    for name, case in CASES.items():
        kind = (name.split()[0], case.func if isinstance(case, partial) else case)
        marked.append(pytest.param(case, id=name, marks=[pytest.mark.full] * (kind in known)))
        known.add(kind)
    return marked


@pytest.mark.parametrize("case", parameters())
def test_bad_input(case: Case, tmp_path: Path):
    case(tmp_path)


def test_every_number_of_the_guide_has_a_case():
    rows = re.findall(r"^\| (B\d+(?:\W+B\d+)*) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    bounds = [[int(number) for number in re.findall(r"\d+", row)] for row in rows]
    promised = [f"B{number}" for row in bounds for number in range(row[0], row[-1] + 1)]
    assert len(promised) == len(set(promised))
    assert [test for tests in ELSEWHERE.values() for test in tests if not defines(test)] == []
    assert {name.split()[0] for name in CASES} | {*ELSEWHERE} == {*promised}
