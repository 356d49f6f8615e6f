"""Every fault that was promised to be survived, by its number."""

import re
from pathlib import Path

import pytest

from batch_platform_tests.faults import Case
from batch_platform_tests.faults.cases import CASES, ELSEWHERE
from batch_platform_tests.harness.checkout import defines

PAGE = Path("batch_platform/guide/faults.md")
# Cases of the later tiers; quicker ones of the same numbers are in the everyday tier.
LATER = {
    "full": {
        "F1 killed before every step of a write",
        "F2 a run of the daemon, without and with its code server",
        "F3 the daemon and its code server",
        "F4 then another run",
        "F7 a reader that looks all the time, with predictions in files",
        "F7 a reader that never closes, with predictions in files",
        "F24 hostile web pages",
        "F41 a run of the command line, by force",
        "F41 a run of dagster job execute",
    },
    "release": {
        "F1 killed before every step with files of predictions",
        "F1 a storm of competing processes",
        "F22 killed before every step of training",
        "F41 a run of dg, by force, whose steps are processes",
    },
}
PARAMETERS = [
    pytest.param(case, id=name, marks=[getattr(pytest.mark, tier) for tier, names in LATER.items() if name in names])
    for name, case in CASES.items()
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_fault(case: Case, tmp_path: Path):
    case(tmp_path)


def test_every_number_of_the_guide_has_a_case():
    rows = re.findall(r"^\| (F\d+(?:, F\d+)*) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    promised = [name for row in rows for name in row.split(", ")]
    assert len(promised) == len(set(promised))
    assert [test for tests in ELSEWHERE.values() for test in tests if not defines(test)] == []
    assert {name.split()[0] for name in CASES} | {*ELSEWHERE} == {*promised}
    assert {*CASES} >= set().union(*LATER.values())
