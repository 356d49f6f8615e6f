"""What is known of the origin of columns, as frozen values with look-ups."""

from dataclasses import dataclass

ROWS = "*"  # in place of a column's name: the rows themselves, as count(*) reads them


@dataclass(frozen=True, order=True)
class SourceColumn:
    """A column of a source, or its rows (`*`)."""

    source: str
    column: str


@dataclass(frozen=True)
class ColumnLineage:
    """What a column is made from.

    Args:
        column: Name of the column.
        reads: The source columns whose values go into it, sorted; if `known` is False, only those that could be followed.
        known: Whether `reads` is complete.
        copy_of: The source column that is repeated unchanged, if there is one.
    """

    column: str
    reads: tuple[SourceColumn, ...]
    known: bool
    copy_of: SourceColumn | None = None


@dataclass(frozen=True)
class Lineage:
    """What the columns of a query are made from.

    Args:
        columns: In order; if not `complete`, those whose name the text tells.
        complete: Whether `columns` holds all columns, and each is known.
        deciders: The source columns that select the rows: by filters, joins and groups.
        sources: The sources that the query names.
        reason: Why nothing could be followed; empty if the text could be parsed.
    """

    columns: tuple[ColumnLineage, ...] = ()
    complete: bool = False
    deciders: tuple[SourceColumn, ...] = ()
    sources: tuple[str, ...] = ()
    reason: str = ""

    def of(self, column: str) -> ColumnLineage:
        """Look up a column; one that is not among the columns is unknown."""
        matches = (match for match in self.columns if match.column.lower() == column.lower())
        return next(matches, ColumnLineage(column, (), known=False))

    def read_of(self, source: str) -> list[str]:
        """List the columns of a source that the query is known to read, for values or for rows, sorted."""
        reads = [*self.deciders, *(read for column in self.columns for read in column.reads)]
        return sorted({read.column for read in reads if read.source == source and read.column != ROWS})
