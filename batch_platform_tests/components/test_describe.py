import pytest

from batch_platform.components.describe import docstring_of, opening_comment

pytestmark = pytest.mark.unit

SQL = [
    ("-- What is known\n-- at midnight.\n--\n-- More.\nSELECT 1", "What is known at midnight.", "-- More.\nSELECT 1"),
    ("-- One line.\nSELECT 1", "One line.", "SELECT 1"),
    ("SELECT 1 -- not at the beginning", "", "SELECT 1 -- not at the beginning"),
    ("-- Only words.", "Only words.", ""),
]


@pytest.mark.parametrize(("sql", "words", "rest"), SQL)
def test_the_first_paragraph_of_the_comment_is_separated_from_the_query(sql, words, rest):
    assert opening_comment(sql) == (words, rest)


def test_a_docstring_is_read_without_an_import():
    assert (docstring_of("batch_platform.defs.flight_delays.sources.planes") or "").startswith("Planes by `tailnum`")


@pytest.mark.parametrize(
    "function", ["no_such_module.f", "batch_platform.declaration.errors.no_such_function", "sys.exit", "", "f"]
)
def test_a_function_that_is_not_found_has_no_docstring(function):
    assert docstring_of(function) is None
