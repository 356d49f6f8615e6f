"""Two files instead of one: rows with a label to learn from, and rows to score."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from shlex import quote

import duckdb

from batch_platform.cli.proposal.instants import DateOrder
from batch_platform.cli.proposal.origin import Origin, unreadable
from batch_platform.cli.proposal.survey import IN_PARTS, PART, Survey, look
from batch_platform.declaration.errors import WrongUseError, listed, named
from batch_platform.declaration.inputs import ROW_IN_FILE
from batch_platform.features.sources.opening import create_view_of
from batch_platform.warehouse.sql import connect, literal, quoted

TRAIN, SCORE = "train", "score"  # values of the column that tells whose row it is


@dataclass(frozen=True)
class Pair:
    """Where the rows are, and what the two files have in common."""

    train: Origin
    score: Origin
    columns: tuple[str, ...]  # of both
    label: str  # of the first
    left_out: dict[str, str]  # columns of one file only, with the reason

    def rows(self, train: str, score: str, *, numbered: bool) -> str:
        """SQL for the rows of both, given the names of two tables as SQL identifiers."""
        place = f"row_number() OVER () AS {ROW_IN_FILE}, " if numbered else ""
        shared = ", ".join(map(quoted, self.columns))
        return (
            f"SELECT {literal(TRAIN)} AS {PART}, {place}{shared}, {quoted(self.label)} FROM {train}\n"
            f"    UNION ALL BY NAME SELECT {literal(SCORE)} AS {PART}, {place}{shared} FROM {score}"
        )


@contextmanager
def survey_of_two(
    train: Origin, score: Origin, label: str | None, timezone: str, date_order: DateOrder | None
) -> Generator[tuple[Survey, Pair]]:
    """Open two files and survey the rows of both; those of the second have no label.

    Raises:
        SourceError: A file cannot be read.
        WrongUseError: It is not clear which column is the label, or the files have no other columns in common.
    """
    try:
        with connect() as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            columns: list[Sequence[str]] = []
            for name, origin in ((TRAIN, train), (SCORE, score)):
                create_view_of(con, origin.as_table(name))
                columns.append(con.sql(f"FROM {name}").columns)
            pair = _paired(train, score, label, *columns)
            con.execute(f"CREATE TEMP VIEW {IN_PARTS} AS {pair.rows(TRAIN, SCORE, numbered=False)}")
            con.execute(f"CREATE TEMP VIEW seen AS SELECT * EXCLUDE ({PART}) FROM {IN_PARTS}")
            yield look(con, train, date_order, in_parts=True), pair
    except duckdb.Error as error:
        raise unreadable(train.path, error) from error


def _paired(train: Origin, score: Origin, label: str | None, first: Sequence[str], second: Sequence[str]) -> Pair:
    have = {name.lower() for name in second}
    alone = [name for name in first if name.lower() not in have]
    if label is not None:
        named(label, dict.fromkeys(first), f"{train.path} has no column {label!r}; it has")
    elif len(alone) != 1:
        msg = f"It is not clear which column of {train.path} to predict: {score.path.name} lacks {listed(alone) or 'none'} of them."
        raise WrongUseError(msg, hint=f"name it, such as --label {quote((alone or first)[-1])}.")
    label = label or alone[0]
    shared = tuple(name for name in first if name.lower() in have and name != label)
    if not shared:
        msg = f"{train.path} and {score.path} have no columns in common to learn from."
        raise WrongUseError(msg, hint="name two files with the same columns, of which only the first has the label.")
    if taken := {name for name in (*shared, label) if name.lower() in (PART, ROW_IN_FILE)}:
        msg = f"{train.path} has a column {listed(map(repr, taken))}, which the pipeline would add."
        raise WrongUseError(msg, hint="rename the column.")
    known = {name.lower() for name in first}
    left_out = {name: f"only {train.path.name} has it" for name in alone if name != label}
    left_out |= {name: f"only {score.path.name} has it" for name in second if name.lower() not in known}
    return Pair(train, score, shared, label, left_out)
