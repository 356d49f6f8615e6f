"""Texts that few keys have may name a person, and so no table names them."""

import polars as pl
import pytest

from batch_platform.monitoring.segments import OTHERS, frequent_texts, named_texts

pytestmark = pytest.mark.unit


def test_a_text_is_named_from_ten_different_keys_on_however_many_rows_it_has():
    values = pl.Series("shop", ["one key"] * 30 + ["nine keys"] * 9 + ["ten keys"] * 10 + [None])
    keys = pl.DataFrame({"id": [0] * 30 + [*range(9)] + [*range(10)] + [0]})
    assert frequent_texts(values, keys) == {"ten keys"}
    assert named_texts(values, keys).to_list() == [OTHERS] * 39 + ["ten keys"] * 10 + [None]
    assert frequent_texts(values) == {"one key", "ten keys"}, "each row has a key of its own"
