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
        "F5 a small file system, full",
        "F5 no file may exceed 1 kB",
        "F5 no file may exceed 200 kB",
        "F5 no file may exceed 2000 kB",
        "F5 no room for the records of Dagster",
        "F6 held for five seconds by a run",
        "F6 held for good by a run",
        "F7 a reader that looks all the time",
        "F7 a reader that looks all the time, with predictions in files",
        "F7 a reader that never closes, with predictions in files",
        "F9 a bit of the log",
        "F10 a bit anywhere in a feature file",
        "F14 other rows from two runs at once",
        "F17 any zone and date",
        "F18 backward",
        "F19 20 MB of memory to spare",
        "F19 220 MB of memory to spare",
        "F19 1000 MB of memory to spare",
        "F21 corrected labels",
        "F21 corrected labels in a shared source",
        "F24 hostile web pages",
        "F25 a copy changed by a program that ended",
        "F25 a copy held for writing",
        "F27 SQL without an end, interrupted",
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
