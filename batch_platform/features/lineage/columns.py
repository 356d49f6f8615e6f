"""Which source columns each column of the user's SQL is made from, read off its text; nothing is run.

Follows values through WITH tables, subqueries, joins, stars, windows and unions by DuckDB's rules of scope. Where the
text does not tell (a name that two tables could hold, a star over a table of unknown columns, syntax that the parser
does not know) it says so and never guesses. Knows nothing of partitions or of what the columns are for.
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
        sources: The columns of each source by its name; none where they are not known.
        columns: The names of the query's columns as DuckDB gives them; None where DuckDB was not asked.
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
    found = _as_written(table) if columns is None else _as_given(table, columns)
    named = columns is not None or (table.rest is None and all(one.column for one in found))
    return Lineage(
        columns=tuple(one for one in found if one.column),
        complete=named and all(one.known for one in found),
        deciders=tuple(sorted(follower.deciders)),
        sources=tuple(name for name in sources if name in follower.sources),
    )


def _as_written(table: "Table") -> list[ColumnLineage]:
    return [_column(name, reads) for name, reads in table.outputs]


def _as_given(table: "Table", columns: Sequence[str]) -> list[ColumnLineage]:
    """The columns that DuckDB gives, each held against what was followed: by position, else by name."""
    from batch_platform.features.lineage.scopes import UNKNOWN

    if table.rest is not None:
        return [_column(name, table.output(name) or UNKNOWN) for name in columns]
    if len(table.outputs) != len(columns):
        return [_column(name, UNKNOWN) for name in columns]
    pairs = zip(columns, table.outputs, strict=True)
    same = ((name, reads if found.lower() in ("", name.lower()) else UNKNOWN) for name, (found, reads) in pairs)
    return [_column(name, reads) for name, reads in same]


def _column(name: str, reads: "Reads") -> ColumnLineage:
    return ColumnLineage(name, tuple(sorted(reads.columns)), known=reads.known, copy_of=reads.copy)
