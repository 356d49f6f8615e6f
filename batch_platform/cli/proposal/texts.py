"""Find texts that are numbers or times beside words for a missing value, or that group their digits, in the view `seen`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb

from batch_platform.cli.proposal.instants import candidates
from batch_platform.cli.proposal.origin import COMMA_NUMBER
from batch_platform.warehouse.sql import literal, quoted

_AT_ONCE = 500  # columns about which one query asks
_NO_VALUE = ("", "na", "n/a", "n.a.", "#n/a", "nan", "null", "none", "-", "--", "?", ".")  # words for a missing value
_IS_NO_VALUE = f"lower(trim({{}})) IN ({', '.join(map(literal, _NO_VALUE))})"
_WHOLE, _NUMBER = "[-+]?[0-9]{1,18}", "[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?"  # regular expressions
_GROUPED = "CAST(replace(replace({}, '.', ''), ',', '.') AS DOUBLE)"


def numbers_in_texts(
    con: duckdb.DuckDBPyConnection, extremes: Mapping[str, tuple[object, object]], *, with_commas: bool
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The SQL that reads texts as numbers, such as 1.234,56, or without words for no value, and these words, by column.

    Texts that are times beside such words stay texts, without the words.
    """
    texts = [name for name, (low, _) in extremes.items() if low is not None]
    groups = (f"bool_and(regexp_full_match(trim({quoted(name)}), '{COMMA_NUMBER}'))" for name in texts if with_commas)
    grouped = zip(texts, ask(con, groups), strict=False)
    numbers: dict[str, tuple[str, tuple[str, ...]]] = {name: (_GROUPED, ()) for name, fits in grouped if fits}
    worded = [name for name in texts if {str(text).strip().lower() for text in extremes[name]} & {*_NO_VALUE}]
    facts = [fact for name in worded for fact in _worded_facts(name)]
    for name, (words, low, high, are_numbers, are_whole) in by_column(worded, ask(con, facts), 5).items():
        text = "{}"
        for word in (absent := tuple(sorted(words or ()))):
            text = f"nullif({text}, {literal(word)})"
        if are_numbers:
            numbers[name] = f"CAST({text} AS {'BIGINT' if are_whole else 'DOUBLE'})", absent
        elif low is not None and candidates("VARCHAR", name, low, high):
            numbers[name] = text, absent
    return numbers


def _worded_facts(name: str) -> tuple[str, ...]:
    """SQL for the words for no value in a column of texts, the extremes of the others, and whether these are numbers, or whole ones."""
    column = quoted(name)
    none = _IS_NO_VALUE.replace("{}", column)
    others = [
        f"min({column})",
        f"max({column})",
        *(f"bool_and(regexp_full_match(trim({column}), '{kind}'))" for kind in (_NUMBER, _WHOLE)),
    ]
    return f"list(DISTINCT {column}) FILTER ({none})", *(f"{fact} FILTER (NOT {none})" for fact in others)


def by_column(names: Iterable[str], answers: Sequence[Any], each: int = 4) -> dict[str, tuple[Any, ...]]:
    """So many facts on each column, where `answers` are those on all of them."""
    return dict(zip(names, zip(*(answers[fact::each] for fact in range(each)), strict=True), strict=True))


def ask(
    con: duckdb.DuckDBPyConnection, aggregates: Iterable[str], rows: str = "seen", at_once: int = _AT_ONCE
) -> list[Any]:
    """The value of each SQL aggregate over all rows, a number of them in each query."""
    asked = [*aggregates]
    parts = (asked[start : start + at_once] for start in range(0, len(asked), at_once))
    return [value for part in parts for value in con.execute(f"SELECT {', '.join(part)} FROM {rows}").fetchall()[0]]
