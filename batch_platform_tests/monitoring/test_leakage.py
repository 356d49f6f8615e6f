import numpy as np
import pytest

from batch_platform.monitoring.leakage import MAX_ROWS, nearly_deciding

N = 400
RANDOM = np.random.default_rng(1)
NOISE = RANDOM.normal(size=N)
BINARY = RANDOM.random(N) < 0.3
THREE = RANDOM.integers(0, 3, N)
AMOUNT = RANDOM.gamma(2.0, 40.0, N)


def is_flagged(column: np.ndarray, truth: np.ndarray, *, categorical: bool = False, classes: bool = True) -> bool:
    """Whether a column is flagged beside one of noise, which never is."""
    matrix = np.column_stack([NOISE, column.astype(np.float64)])
    flagged = nearly_deciding(matrix, [False, categorical], truth, classes=classes)
    assert flagged in ([], [1])
    return flagged == [1]


def test_a_number_that_separates_two_classes_is_flagged_in_either_direction():
    assert is_flagged(BINARY * 1.0, BINARY)
    assert is_flagged(5 - BINARY * 3 + np.abs(NOISE) / 10, BINARY)
    assert is_flagged(BINARY * 1.0, np.where(BINARY, "yes", "no"))


def test_a_category_that_gives_the_class_away_is_flagged():
    assert is_flagged(np.where(BINARY, RANDOM.integers(0, 3, N), RANDOM.integers(3, 6, N)), BINARY, categorical=True)
    assert is_flagged((THREE + 1) % 3, THREE, categorical=True)


def test_a_number_that_stands_for_one_of_many_classes_is_flagged():
    assert is_flagged(THREE, THREE)
    assert is_flagged((THREE * 7) % 3, np.array(["a", "b", "c"])[THREE])


def test_a_column_that_separates_only_one_of_many_classes_is_not_flagged():
    assert not is_flagged(THREE == 0, THREE)


def test_a_column_that_has_a_value_only_after_the_outcome_is_flagged():
    assert is_flagged(np.where(BINARY, NOISE, np.nan), BINARY)
    assert is_flagged(np.where(BINARY, np.nan, RANDOM.integers(0, 3, N)), BINARY, categorical=True)


@pytest.mark.parametrize("column", [AMOUNT, -3 * AMOUNT, np.log(AMOUNT), AMOUNT**3, np.where(BINARY, np.nan, AMOUNT)])
def test_a_number_in_the_order_of_the_label_is_flagged(column):
    assert is_flagged(column, AMOUNT, classes=False)


def test_a_category_that_gives_the_number_away_is_flagged():
    kinds = RANDOM.integers(0, 4, N)
    assert is_flagged(kinds, kinds * 10.0, categorical=True, classes=False)


@pytest.mark.parametrize("categorical", [True, False])
@pytest.mark.parametrize(
    "column",
    [
        np.arange(N),
        np.zeros(N),
        np.full(N, np.nan),
        np.where(RANDOM.random(N) < 0.1, 1 - BINARY, BINARY),
        RANDOM.integers(0, 200, N),
    ],
    ids=["names that never come back", "constant", "all null", "right nine times of ten", "noise of many kinds"],
)
def test_an_honest_column_is_not_flagged(column, categorical):
    assert not is_flagged(column, BINARY, categorical=categorical)
    assert not is_flagged(column, AMOUNT, categorical=categorical, classes=False)


def test_too_few_rows_agree_by_chance():
    few = np.array([[0.0]] * 4 + [[1.0]] * 4)
    assert nearly_deciding(few, [False], few[:, 0] > 0, classes=True) == []
    assert nearly_deciding(few, [True], few[:, 0], classes=False) == []


def test_evenly_spaced_rows_of_many_are_used():
    many = np.arange(3.0 * MAX_ROWS + 1)
    assert nearly_deciding(many[:, None], [False], many > MAX_ROWS, classes=True) == [0]
