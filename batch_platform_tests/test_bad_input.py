"""Every kind of bad input, by its number."""

from pathlib import Path

import pytest

from batch_platform_tests.bad_input import Case, columns, declarations, rows, values

CASES: dict[str, Case] = columns.CASES | values.CASES | rows.CASES | declarations.CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(case: Case, tmp_path: Path):
    case(tmp_path)


def test_every_number_has_a_case():
    assert {name.split()[0] for name in CASES} == {f"B{number}" for number in (*range(1, 22), 27)}
