"""Work on threads: results in order, errors in their turn, few items at once, and no work goes on afterwards."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.scoring.engines.local import in_order, read_ahead

pytestmark = pytest.mark.unit


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5), st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items, at_once, threads):
    with ThreadPoolExecutor(threads) as pool:
        assert list(in_order(pool, lambda item: item * 2, items, at_once=at_once)) == [item * 2 for item in items]


def test_no_more_items_are_taken_than_may_be_on_their_way():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken = item + 1
            yield item

    with ThreadPoolExecutor(2) as pool, closing(in_order(pool, lambda item: item, items(), at_once=4)) as results:
        for number, _ in enumerate(results, start=1):
            assert taken - number < 4
    assert taken == number == 100


def fail_at_three(item: int) -> int:
    if item == 3:
        msg = "three"
        raise ValueError(msg)
    return item


@pytest.mark.parametrize("in_work", [True, False], ids=["by the work", "by the items"])
def test_an_error_comes_after_the_results_before_it(in_work):
    work, items = (fail_at_three, range(10)) if in_work else (lambda item: item, map(fail_at_three, range(10)))
    with ThreadPoolExecutor(2) as pool:
        coming = in_order(pool, work, items, at_once=4)
        assert [next(coming) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(coming)


def test_no_work_goes_on_after_the_caller_leaves():
    begun: list[int] = []

    def note(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    with ThreadPoolExecutor(2) as pool:
        coming = in_order(pool, note, range(100), at_once=4)
        next(coming)
        coming.close()
        after = list(begun)
        time.sleep(0.05)
        assert begun == after
        assert len(begun) <= 4


def test_items_are_read_ahead_in_order_on_another_thread():
    where: set[int] = set()

    def items() -> Iterator[int]:
        for item in range(10):
            where.add(threading.get_ident())
            yield item

    with ThreadPoolExecutor(1) as reader:
        assert list(read_ahead(reader, items(), at_once=2)) == list(range(10))
    assert len(where) == 1
    assert threading.get_ident() not in where
