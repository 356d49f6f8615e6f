import pytest

from batch_platform.components.describe import opening_comment

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
