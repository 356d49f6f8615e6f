import pytest

from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    did_you_mean,
    listed,
    merged,
    threads_explained,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (range(10), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("abcdefghijkl", "a, b, c, d, e, f, g, h, i, j and 2 more"),
    ],
)
def test_offenders_are_listed_sorted_and_at_most_ten(items, text):
    assert listed(items) == text


@pytest.mark.parametrize(
    ("word", "allowed", "question"),
    [
        ("evry", ["every", "start"], "did you mean 'every'?"),
        ("xyz", ["every"], None),
        ("customer.csv", ["const.csv"], None),
        ("customer.csv", ["const.csv", "customers.csv"], "did you mean 'customers.csv'?"),
    ],
)
def test_the_nearest_word_is_suggested_ignoring_case(word, allowed, question):
    assert did_you_mean(word, allowed) == question


def test_errors_of_partitions_are_merged_into_one_that_names_each_of_them():
    def failing(key: str, why: str) -> tuple[str, DataError]:
        return key, DataError(f"shop, partition {key}: {why}. Some more.", hint="mend it.")

    alone = merged("shop", [failing("2024-01-02", "5 of 40 rows break the contract")], 3)
    assert str(alone) == (
        "shop, partition 2024-01-02: 5 of 40 rows break the contract. Some more. "
        "The other 3 partitions of this run succeeded. Hint: mend it."
    )
    same = [failing(f"2024-01-{day:02}", f"{day} of 40 rows break the contract") for day in range(20, 0, -1)]
    assert merged("shop", same, 0).message == (
        "shop, partition 2024-01-01: 1 of 40 rows break the contract. Some more. 19 more partitions failed the same way: "
        "2024-01-02, 2024-01-03, 2024-01-04, 2024-01-05, 2024-01-06, 2024-01-07, 2024-01-08, 2024-01-09, 2024-01-10, "
        "2024-01-11 and 9 more."
    )
    mixed = merged(
        "shop", [*same[:2], failing("2024-01-03", "no file"), ("2024-01-04", DataError("The source is gone"))], 1
    )
    assert mixed.message == (
        "shop: 4 partitions failed. 2024-01-03: no file. 2024-01-04: The source is gone. 2024-01-19, 2024-01-20: 19 of 40 "
        "rows break the contract. The other 1 partition of this run succeeded."
    )
    assert mixed.hint == "batch-platform status shop shows each partition with its reason."
    assert mixed.set_apart == ("2024-01-03", "2024-01-04", "2024-01-19", "2024-01-20")


def test_a_thread_that_cannot_be_started_is_explained_and_other_errors_stay_as_they_are():
    with pytest.raises(BatchPlatformError, match="cannot start another thread") as raised, threads_explained():
        raise RuntimeError("can't start new thread")
    assert "limit of threads" in (raised.value.hint or "")
    with pytest.raises(RuntimeError, match="another"), threads_explained():
        raise RuntimeError("another")
