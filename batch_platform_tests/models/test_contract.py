import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.inputs import ColumnRule
from batch_platform.models.contract import (
    MAX_CATEGORIES,
    MAX_EXACT_INTEGER,
    OFFENDER,
    REASON,
    Contract,
    ContractColumn,
    Split,
    infer_contract,
)

pytestmark = pytest.mark.unit

ODD_NAMES = ['say "hi"', "O'Brien", "größe", "count", "value", "literal", "{x}", "a.b"]
CONTRACT = Contract(
    (
        ContractColumn("amount", "float", nullable=True, min=0, max=1000),
        ContractColumn("items", "integer", nullable=False, min=1),
        ContractColumn("known", "boolean", nullable=True),
        ContractColumn("shop", "category", nullable=True, categories=("a", "b", "c")),
    )
)
floats = st.one_of(st.none(), st.floats(width=64), st.sampled_from([-1.0, 0.0, 1000.0, 1000.5]))
ROWS = st.lists(
    st.tuples(
        floats,
        st.one_of(st.none(), st.integers(-2, 3), st.just(2**60)),
        st.one_of(st.none(), st.booleans()),
        st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d", "", "null"])),
    ),
    max_size=30,
)
SCHEMA = {"amount": pl.Float64, "items": pl.Int64, "known": pl.Boolean, "shop": pl.String}


def frame(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    """The rows with their number as a further column."""
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").with_row_index("row")


def breaks_the_contract(row: tuple[object, ...]) -> bool:
    amount, items, _, _ = row
    wrong_amount = amount is not None and not 0 <= amount <= 1000  # NaN is not between, either
    return wrong_amount or items is None or items < 1


def unseen(contract: Contract, split: Split) -> dict[str, int]:
    """How many of the kept rows have a category that the model does not know."""
    return contract.unseen(split.kept, contract.encode(split.kept))


def of_type(type_: str, *, nullable: bool = True, **rules) -> Contract:
    return Contract((ContractColumn("x", type_, nullable=nullable, **rules),))


@given(rows=ROWS)
def test_every_row_is_either_kept_or_rejected_in_order(rows):
    split = CONTRACT.split(frame(rows))
    assert split.kept["row"].to_list() == [at for at, row in enumerate(rows) if not breaks_the_contract(row)]
    assert split.rejected["row"].to_list() == [at for at, row in enumerate(rows) if breaks_the_contract(row)]
    assert split.rejected[REASON].null_count() == 0
    assert split.rejected[OFFENDER].is_in(["amount", "items"]).all()


@given(rows=ROWS, order=st.permutations([*SCHEMA, "row", "unused"]))
def test_the_order_of_columns_and_further_columns_do_not_matter(rows, order):
    rows = frame(rows)
    plain, shuffled = CONTRACT.split(rows), CONTRACT.split(rows.with_columns(unused=pl.lit("x")).select(order))
    assert_frame_equal(plain.kept, shuffled.kept.select(plain.kept.columns))
    assert_frame_equal(plain.rejected, shuffled.rejected.select(plain.rejected.columns))
    np.testing.assert_array_equal(CONTRACT.encode(plain.kept), CONTRACT.encode(shuffled.kept))


@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_where_batches_end_does_not_matter(rows, cuts):
    rows = frame(rows)
    bounds = sorted({0, rows.height, *(cut for cut in cuts if cut < rows.height)})
    batches = [rows[low:high] for low, high in pairwise(bounds)] or [rows]
    whole, parts = CONTRACT.split(rows), [CONTRACT.split(batch) for batch in batches]
    assert_frame_equal(whole.kept, pl.concat(part.kept for part in parts))
    assert_frame_equal(whole.rejected, pl.concat(part.rejected for part in parts))
    np.testing.assert_array_equal(
        CONTRACT.encode(whole.kept), np.vstack([CONTRACT.encode(part.kept) for part in parts])
    )
    assert unseen(CONTRACT, whole).get("shop", 0) == sum(unseen(CONTRACT, part).get("shop", 0) for part in parts)


@given(rows=ROWS)
def test_a_matrix_is_float64_in_fortran_order_without_infinities(rows):
    kept = CONTRACT.split(frame(rows)).kept
    matrix = CONTRACT.encode(kept)
    assert matrix.dtype == np.float64
    assert matrix.flags.f_contiguous
    assert matrix.shape == (kept.height, 4)
    assert not np.isinf(matrix).any()
    for at, name in enumerate(["amount", "items", "known"]):
        expected = [np.nan if value is None else float(value) for value in kept[name]]
        np.testing.assert_array_equal(matrix[:, at], np.array(expected))
    codes = {"a": 0.0, "b": 1.0, "c": 2.0}
    np.testing.assert_array_equal(matrix[:, 3], np.array([codes.get(value, np.nan) for value in kept["shop"]]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "NaN or infinite"),
        (float("-inf"), "NaN or infinite"),
        (None, "no value where training always had one"),
        (-1e-9, "below the minimum 0"),
        (1000000.1, "above the maximum 1000000"),
    ],
)
def test_a_number_that_breaks_a_rule_is_rejected_with_the_rule(value, reason):
    contract = of_type("float", nullable=False, min=0, max=1000000)
    split = contract.split(pl.DataFrame({"x": [1.0, value, 2.0]}))
    assert split.kept["x"].to_list() == [1.0, 2.0]
    assert split.rejected.select(REASON, OFFENDER).rows() == [(reason, "x")]


def test_a_value_on_a_bound_is_allowed():
    split = of_type("integer", min=1, max=3).split(pl.DataFrame({"x": [0, 1, 3, 4]}))
    assert split.kept["x"].to_list() == [1, 3]
    assert split.rejected[REASON].to_list() == ["below the minimum 1", "above the maximum 3"]


@pytest.mark.parametrize(
    ("type_", "values", "read"),
    [
        ("float", ["12", "-1.5e3", "x", "", " 1", "inf", "nan", "1e400"], [12.0, -1500.0]),
        ("float", [MAX_EXACT_INTEGER, -MAX_EXACT_INTEGER, MAX_EXACT_INTEGER + 2, 2**62], [2.0**53 - 1, -(2.0**53 - 1)]),
        ("float", [date(2024, 1, 1)], []),
        ("integer", ["12", "12.0", "12.5", "9007199254740993"], [12, 12]),
        ("integer", [1.0, 1.5, float("nan"), float("inf"), 1e300, -2.0], [1, -2]),
        ("integer", [Decimal("7.00"), Decimal("7.10")], [7]),
        ("boolean", ["true", "False", "yes", "1", ""], [True, False]),
        ("boolean", [0, 1, 2, -1], [False, True]),
        ("category", [1, 23], ["1", "23"]),
        ("category", [True, False], ["true", "false"]),
    ],
)
def test_only_what_loses_nothing_is_read_as_another_type(type_, values, read):
    split = of_type(type_).split(pl.DataFrame({"x": values}))
    assert split.kept["x"].to_list() == read
    assert split.kept.height + split.rejected.height == len(values)
    assert set(split.rejected[REASON]) <= {f"not a value of type {type_}", "NaN or infinite"}
    assert all(value in values or np.isnan(value) for value in split.rejected["x"]), "as they came"


@pytest.mark.parametrize("type_", ["float", "category"])
@pytest.mark.parametrize("values", [[datetime(2024, 1, 1, 12)], [timedelta(days=1)], [[1]], [b"12"]])  # noqa: DTZ001
def test_times_and_lists_are_neither_numbers_nor_text(type_, values):
    split = of_type(type_).split(pl.DataFrame({"x": values}))
    assert split.rejected[REASON].to_list() == [f"not a value of type {type_}"]


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["a", "b", "z"])])
def test_text_is_text_however_it_is_stored(dtype):
    contract = of_type("category", categories=("a", "b"))
    split = contract.split(pl.DataFrame({"x": pl.Series(["b", "z", None], dtype=dtype)}))
    np.testing.assert_array_equal(contract.encode(split.kept)[:, 0], [1, np.nan, np.nan])
    assert unseen(contract, split) == {"x": 1}


def test_a_missing_column_is_named_with_the_nearest_one():
    rows = frame([]).rename({"amount": "amuont"})
    with pytest.raises(DataError, match=r"lack the columns amount; there are .*'amount': did you mean 'amuont'\?"):
        CONTRACT.split(rows)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_may_have_any_name(name):
    training = pl.DataFrame({name: ["a", "b", "a", None], f"{name}2": [1.0, 2.0, 3.0, 4.0]})
    contract = Contract.from_json(json.loads(json.dumps(infer_contract(training, {}).to_json())))
    assert contract.columns[0].categories == ("a", "b")
    split = contract.split(pl.DataFrame({name: ["b", "x"], f"{name}2": [1.0, None]}))
    assert split.kept[name].to_list() == ["b"]
    assert split.rejected[OFFENDER].to_list() == [f"{name}2"]


@given(rows=ROWS)
def test_a_contract_survives_json(rows):
    contract = infer_contract(frame(rows), {"amount": ColumnRule(nullable=True, min=0)})
    written = json.loads(json.dumps(contract.to_json(), allow_nan=False))
    assert written == contract.to_json()
    assert Contract.from_json(written) == contract


@given(rows=ROWS)
def test_training_rows_satisfy_their_own_contract_except_for_nan_and_infinity(rows):
    training = frame(rows)
    contract = infer_contract(training, {})
    split = contract.split(training)
    assert set(split.rejected[REASON]) <= {"NaN or infinite"}
    assert split.kept.height == sum(row[0] is None or bool(np.isfinite(row[0])) for row in rows)
    assert unseen(contract, split) == {}


def test_a_contract_holds_what_training_saw():
    training = pl.DataFrame(
        {
            "a": [1.5, float("inf"), float("nan"), -2.0],
            "b": [3, None, 1, 2],
            "c": [True, False, True, True],
            "d": ["y", "x", "y", None],
            "e": [None, None, None, None],
            "f": [Decimal(1), Decimal(2), Decimal(3), Decimal(4)],
        }
    )
    assert infer_contract(training, {}).columns == (
        ContractColumn("a", "float", nullable=False, lowest=-2.0, highest=1.5),
        ContractColumn("b", "integer", nullable=True, lowest=1, highest=3),
        ContractColumn("c", "boolean", nullable=False, lowest=0, highest=1),
        ContractColumn("d", "category", nullable=True, categories=("x", "y")),
        ContractColumn("e", "float", nullable=True),
        ContractColumn("f", "float", nullable=False, lowest=1, highest=4),
    )


@pytest.mark.parametrize("many", [MAX_CATEGORIES, MAX_CATEGORIES + 1])
def test_the_most_frequent_categories_are_known_and_never_more_than_254(many):
    values = [f"{at:04}" for at in range(many)]
    contract = infer_contract(pl.DataFrame({"x": values + values[-10:]}), {})
    known = contract.columns[0].categories
    assert len(known) == min(many, MAX_CATEGORIES)
    assert set(values[-10:]) <= set(known)
    assert list(known) == sorted(known)
    codes = contract.encode(contract.split(pl.DataFrame({"x": list(known)})).kept)
    assert codes[:, 0].tolist() == list(range(len(known)))


def test_a_declaration_overrides_what_would_be_inferred():
    training = pl.DataFrame({"x": ["1", "2", "x"], "y": [1, 2, 3]})
    declared = {"x": ColumnRule(type="integer", nullable=True, min=0.0), "y": ColumnRule(type="category")}
    assert infer_contract(training, declared).columns == (
        ContractColumn("x", "integer", nullable=True, min=0.0, lowest=1, highest=2),
        ContractColumn("y", "category", nullable=False, categories=("1", "2", "3")),
    )


def test_a_declared_column_that_is_not_there_is_named_with_the_nearest_one():
    with pytest.raises(DataError, match=r"features.columns names distnace, .* did you mean 'distance'\?"):
        infer_contract(pl.DataFrame({"distance": [1.0]}), {"distnace": ColumnRule()})


@pytest.mark.parametrize("dtype", [pl.Datetime("us"), pl.List(pl.Int8)])
def test_a_column_that_cannot_be_a_feature_is_refused(dtype):
    with pytest.raises(DataError, match=r"Column 'x' is of type .* cannot be a feature") as refused:
        infer_contract(pl.DataFrame({"x": pl.Series([None], dtype=dtype)}), {})
    assert "features.columns.<name>.feature: false" in str(refused.value)


@pytest.mark.parametrize(
    ("dtype", "declared", "message"),
    [
        (pl.Datetime("us"), {"type": "float"}, "features.columns.x.type is 'float', but the column holds Datetime"),
        (pl.String(), {"min": 0.0}, "features.columns.x declares bounds, but the column is a category"),
    ],
)
def test_a_declaration_that_does_not_suit_the_column_is_refused(dtype, declared, message):
    with pytest.raises(DataError, match=message):
        infer_contract(pl.DataFrame({"x": pl.Series([None], dtype=dtype)}), {"x": ColumnRule(**declared)})
