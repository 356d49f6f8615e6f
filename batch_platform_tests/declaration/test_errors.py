import pytest

from batch_platform.declaration.errors import (
    BatchPlatformError,
    WarehouseBusyError,
    WrongUseError,
    did_you_mean,
    listed,
)


def test_an_error_is_its_message_and_its_hint_in_one_paragraph():
    assert str(BatchPlatformError("It failed.", hint="try again.")) == "It failed. Hint: try again."
    assert str(BatchPlatformError("It failed.")) == "It failed."


@pytest.mark.parametrize(("error", "code"), [(BatchPlatformError, 1), (WarehouseBusyError, 1), (WrongUseError, 2)])
def test_wrong_use_and_failed_work_have_different_exit_codes(error, code):
    assert error("x").exit_code == code


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["b", "a"], "a, b"),
        ([3, "x"], "3, x"),
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
        ("ID", ["id", "ts"], "did you mean 'id'?"),
        ("flights", ["FLIGHTS"], "did you mean 'FLIGHTS'?"),
        ("xyz", ["every"], None),
        ("", [], None),
    ],
)
def test_the_nearest_word_is_suggested_ignoring_case(word, allowed, question):
    assert did_you_mean(word, allowed) == question
