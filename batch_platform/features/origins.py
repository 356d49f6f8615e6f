"""The known origin of columns, and which of them are made from what is known only with the label."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batch_platform.features.build import FeatureBuilder
    from batch_platform.features.fingerprints import DatedSources

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


def made_from_outcomes(builder: "FeatureBuilder") -> dict[str, SourceColumn]:
    """The columns of the features that the SQL makes from an outcome of the same partition, with that outcome.

    An outcome is a source column that `labels.outcomes` names, or what the label is made from. What looks back reads
    earlier outcomes too, which may be known, and is left out.
    """
    labels = builder.spec.labels
    if labels is None or builder.query is None:
        return {}
    label = builder.labels_lineage.of(labels.column)
    times = {
        (builder.dated.rows_read(read.source).time, builder.dated_labels.rows_read(read.source).time)
        for read in label.reads
    }
    reads = {
        read for read in label.reads if read.column != ROWS and _is_of_partition(builder, builder.dated_labels, read)
    }
    same_rows = label.known and len(reads) == len(label.reads) and all(left == right for left, right in times)
    named = {name.lower() for name in labels.outcomes}
    made = dict[str, SourceColumn]()
    for column in builder.lineage.columns:
        own = [read for read in column.reads if _is_of_partition(builder, builder.dated, read)]
        outcomes = [read for read in own if read.column.lower() in named]
        if same_rows and reads and reads <= {*own}:
            outcomes += sorted(reads)
        if outcomes:
            made[column.column] = outcomes[0]
    return made


def _is_of_partition(builder: "FeatureBuilder", dated: "DatedSources", read: SourceColumn) -> bool:
    """Return whether a query reads only the partition's own rows of a source."""
    whole = builder.spec.partitions.snapshot or builder.spec.sources[read.source].by_partition
    return whole or not dated.rows_read(read.source).looks_back


def place_in_sql(builder: "FeatureBuilder", column: str) -> str:
    """The file and the lines of the SQL that make a column of the features; empty if the text does not name it."""
    from batch_platform.features.lineage import lines_of

    lines = [] if builder.query is None else lines_of(builder.query.text, column)
    if builder.query is None or not lines:
        return ""
    first, last = min(lines), max(lines)
    return f"{builder.query.path.name}, {f'line {first}' if first == last else f'lines {first} to {last}'}"
