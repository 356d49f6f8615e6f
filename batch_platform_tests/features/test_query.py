"""When two texts of SQL are the same statement: comments and white space do not count, everything else does."""

import duckdb
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batch_platform.features.query import statement_of
from batch_platform_tests.harness.tiers import examples

pytestmark = pytest.mark.unit

CONNECTION = duckdb.connect()
# What a text may hold between two pieces of a statement, and pieces that look like it.
GAPS = st.lists(
    st.sampled_from([" ", "\n", "\t", "\r\n", "-- it's a \"comment\n", "/* ; ' */", "/* a /* b */ c */"]), min_size=1
).map("".join)
LITERALS = ["'-- no comment'", "'it''s'", "E'a\\'-- b'", "$t$ /* d */ $t$", "'a  b'", "'a b'"]
NAMES = ["a", "A", '"a"', '"-- e"', '"/* f */"', '"g  h"', '"g h"', '"i""j"', "t.k", "$partition_key"]
VALUES = ["1", "1.00", "- 1", "- -1", "2*3", "x::INTEGER", "CAST(x AS INTEGER)", "[1, 2]"]
EVERY_PIECE = LITERALS + NAMES + VALUES
PIECES = st.lists(st.sampled_from(EVERY_PIECE), min_size=1, max_size=4)


def select(pieces: list[str], gaps: list[str]) -> str:
    """A SELECT of some pieces, with a gap around each."""
    words = [word for piece in pieces for word in (",", piece)][1:]
    return "SELECT" + "".join(gap + word for gap, word in zip(gaps, [*words, "FROM", "t"], strict=False))


def tree(text: str) -> str:
    """The statement as DuckDB prints it from what it parsed."""
    printed = "SELECT json_deserialize_sql(json_serialize_sql($sql))"
    return str(CONNECTION.execute(printed, {"sql": text}).fetchall()[0][0])


GAPS_OF_ONE = st.lists(GAPS, min_size=20, max_size=20)


@examples(40)
@given(PIECES, GAPS_OF_ONE, GAPS_OF_ONE)
def test_comments_and_white_space_make_no_other_statement(pieces, gaps, others):
    assert statement_of(select(pieces, gaps)) == statement_of(select(pieces, others))


@examples(40)
@given(PIECES, st.sampled_from(EVERY_PIECE), GAPS_OF_ONE, GAPS_OF_ONE)
def test_two_statements_are_never_taken_for_one(pieces, replaced, gaps, other_gaps):
    one, other = select(pieces, gaps), select([*pieces[:-1], replaced], other_gaps)
    assume(tree(one) != tree(other))
    assert statement_of(one) != statement_of(other)


def test_what_duckdb_cannot_parse_is_compared_as_text():
    assert statement_of("SELEKT  1") == "SELEKT  1"
    assert statement_of("SELECT '-- open") == "SELECT '-- open"
    assert statement_of("PIVOT  t ON a USING sum(b)") == "PIVOT  t ON a USING sum(b)"


def test_adjacent_texts_on_two_lines_stay_one_text():
    with duckdb.connect() as con:
        assert con.execute(statement_of("SELECT 'a' -- and\n 'b'")).fetchall() == [("ab",)]
