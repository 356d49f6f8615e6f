"""The known origin of columns, as frozen values with look-ups."""

from dataclasses import dataclass

ROWS = "*"  # stands for a column's name where the rows themselves are read, as by count(*)


@dataclass(frozen=True, order=True)
class SourceColumn:
    """A column of a source, or its rows (`*`)."""

    source: str
    column: str


@dataclass(frozen=True)
class ColumnLineage:
    """The origin of a column: the source columns whose values it depends on, sorted."""

    column: str
    reads: tuple[SourceColumn, ...]
    known: bool  # True if `reads` is complete
    copy_of: SourceColumn | None = None  # the source column that is repeated unchanged


@dataclass(frozen=True)
class Lineage:
    """The origin of the columns of a query."""

    columns: tuple[
        ColumnLineage, ...
    ] = ()  # order of the query; if not `complete`, only columns whose name the text tells
    complete: bool = False  # True if `columns` holds all columns, and each is known
    deciders: tuple[SourceColumn, ...] = ()  # the source columns that filters, joins and groups read
    sources: tuple[str, ...] = ()  # the sources that the query names
    reason: str = ""  # reason why the text could not be parsed; empty if it could

    def of(self, column: str) -> ColumnLineage:
        """Look up a column; any other column is unknown."""
        matches = (match for match in self.columns if match.column.lower() == column.lower())
        return next(matches, ColumnLineage(column, (), known=False))

    def read_of(self, source: str) -> list[str]:
        """List the columns of a source that the query is known to read, for values or for rows, sorted."""
        reads = [*self.deciders, *(read for column in self.columns for read in column.reads)]
        return sorted({read.column for read in reads if read.source == source and read.column != ROWS})


@dataclass(frozen=True)
class RowsRead:
    """The rows and columns of a source that a query can read for a partition; by default any."""

    time: str | None = None  # SQL of what the query compares with the bounds of a partition; None if nothing
    looks_back: bool = True  # True if rows dated before the partition may be read
    names: frozenset[str] | None = None  # every name in the query, in lower case; None if any column may be read
