"""What is known of where columns come from: frozen values, without behaviour but look-ups."""

from dataclasses import dataclass

ROWS = "*"  # in place of a column's name: the rows themselves, as count(*) reads them


@dataclass(frozen=True, order=True)
class SourceColumn:
    """A column of a source, or its rows (`*`)."""

    source: str
    column: str


@dataclass(frozen=True)
class ColumnLineage:
    """What one column is made from.

    Args:
        column: Its name.
        reads: The source columns whose values go into it, sorted; where `known` is False, those that could be followed.
        known: Whether `reads` is all.
        copy_of: The source column that it repeats unchanged, if it does.
    """

    column: str
    reads: tuple[SourceColumn, ...]
    known: bool
    copy_of: SourceColumn | None = None


@dataclass(frozen=True)
class Lineage:
    """What the columns of a query are made from.

    Args:
        columns: In order; without `complete`, those whose name the text tells.
        complete: Whether `columns` are all, each of them known.
        deciders: The source columns that decide which rows there are: by filters, joins and groups.
        sources: The sources that the query names.
        reason: Why nothing could be followed; empty where the text could be read.
    """

    columns: tuple[ColumnLineage, ...] = ()
    complete: bool = False
    deciders: tuple[SourceColumn, ...] = ()
    sources: tuple[str, ...] = ()
    reason: str = ""

    def of(self, column: str) -> ColumnLineage:
        """What a column is made from; unknown where it is not among the columns."""
        wanted = column.lower()
        found = (one for one in self.columns if one.column.lower() == wanted)
        return next(found, ColumnLineage(column, (), known=False))

    def read_of(self, source: str) -> list[str]:
        """The columns of a source that the query is known to read, for values or for rows, sorted."""
        reads = [*self.deciders, *(read for one in self.columns for read in one.reads)]
        return sorted({read.column for read in reads if read.source == source and read.column != ROWS})
