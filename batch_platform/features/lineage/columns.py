"""The source columns that each column of the user's SQL is made from, found in its text; nothing is run.

Follows values through WITH tables, subqueries, joins, stars, windows and unions by DuckDB's rules of scope. Where the
text does not tell (a name that two tables could hold, a star over a table of unknown columns, syntax that the parser
does not know), the result says so and never guesses.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batch_platform.features.lineage.records import ColumnLineage, Lineage

if TYPE_CHECKING:
    from batch_platform.features.lineage.scopes import Reads, Table


def column_lineage(sql: str, sources: Mapping[str, Sequence[str]], columns: Sequence[str] | None = None) -> Lineage:
    """Follow the columns of one SELECT back to the sources.

    Args:
        sql: One SELECT of DuckDB's dialect.
        sources: The columns of each source by name; empty if they are not known.
        columns: The columns of the result as DuckDB names them; None if DuckDB was not asked.
    """
    import sqlglot
    from sqlglot.errors import SqlglotError

    from batch_platform.features.lineage.following import Follower

    try:
        tree = sqlglot.parse_one(sql, dialect="duckdb")
        follower = Follower(sources)
        table = follower.query(tree)
    except (SqlglotError, RecursionError) as error:
        reason = f"the parser of lineage does not understand the SQL: {str(error).splitlines()[0]}"
        unknown = tuple(ColumnLineage(name, (), known=False) for name in columns or ())
        return Lineage(columns=unknown, sources=tuple(sources), reason=reason)
    written = [_column(name, reads) for name, reads in table.outputs]
    outputs = written if columns is None else _as_named(table, columns)
    named = columns is not None or (table.rest is None and all(output.column for output in outputs))
    return Lineage(
        columns=tuple(output for output in outputs if output.column),
        complete=named and all(output.known for output in outputs),
        deciders=tuple(sorted(follower.deciders)),
        sources=tuple(name for name in sources if name in follower.sources),
    )


def _as_named(table: "Table", columns: Sequence[str]) -> list[ColumnLineage]:
    """Match the columns that DuckDB names with those that were followed: by position, else by name."""
    from batch_platform.features.lineage.scopes import UNKNOWN

    if table.rest is not None:
        return [_column(name, table.output(name) or UNKNOWN) for name in columns]
    if len(table.outputs) != len(columns):
        return [_column(name, UNKNOWN) for name in columns]
    pairs = zip(columns, table.outputs, strict=True)
    return [_column(name, reads if text.lower() in ("", name.lower()) else UNKNOWN) for name, (text, reads) in pairs]


def _column(name: str, reads: "Reads") -> ColumnLineage:
    return ColumnLineage(name, tuple(sorted(reads.columns)), known=reads.known, copy_of=reads.copy)
