"""Every fault that was promised to be survived, by its number."""

from pathlib import Path

import pytest

from batch_platform_tests.faults import Case, attacks, bundles, calendar, processes, resuming, storage, writes

CASES: dict[str, Case] = {
    **writes.CASES,
    **processes.CASES,
    **resuming.CASES,
    **storage.CASES,
    **bundles.CASES,
    **calendar.CASES,
    **attacks.CASES,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fault(case: Case, tmp_path: Path):
    case(tmp_path)


def test_every_number_has_a_case():
    assert {name.split()[0] for name in CASES} == {f"F{number}" for number in (*range(1, 30), 31)}
