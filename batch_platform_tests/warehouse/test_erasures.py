"""Rows of erased subjects are left out of what a build reads, by whatever columns each subject was named."""

import pyarrow as pa
import pytest

from batch_platform.warehouse.deletion import ErasedSubjects, subject_hash
from batch_platform.warehouse.home import Home

pytestmark = pytest.mark.unit


def test_subjects_that_were_erased_by_different_columns_are_all_left_out(tmp_path):
    home, subjects = Home(tmp_path / "home").create(), dict[tuple[str, ...], list[str]]()
    for named in ({"customer": "7"}, {"id": "1", "shop": "a"}):
        subjects[tuple(sorted(named))] = [subject_hash(home, named)]
    batch = pa.record_batch({"customer": [7, 8, 9, 9], "shop": ["a", "a", "a", "b"], "id": [3, 1, 2, 1]})
    left_out = list[int]()
    remaining = [*ErasedSubjects(home, subjects).without(iter([batch, batch.slice(2)]), left_out)]
    assert [rows["customer"].to_pylist() for rows in remaining] == [[9, 9], [9, 9]]
    assert left_out == [2, 0]
