"""Columns of the features that the SQL makes from what is known only with the label, and the lines that make them."""

from batch_platform.features.build import FeatureBuilder
from batch_platform.features.fingerprints import DatedSources
from batch_platform.features.lineage.records import ROWS, SourceColumn


def made_from_outcomes(builder: FeatureBuilder) -> dict[str, SourceColumn]:
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


def _is_of_partition(builder: FeatureBuilder, dated: DatedSources, read: SourceColumn) -> bool:
    """Return whether a query reads only the partition's own rows of a source."""
    whole = builder.spec.partitions.snapshot or builder.spec.sources[read.source].by_partition
    return whole or not dated.rows_read(read.source).looks_back


def place_in_sql(builder: FeatureBuilder, column: str) -> str:
    """The file and the lines of the SQL that make a column of the features; empty if the text does not name it."""
    from batch_platform.features.lineage.columns import lines_of

    lines = [] if builder.query is None else lines_of(builder.query.text, column)
    if builder.query is None or not lines:
        return ""
    first, last = min(lines), max(lines)
    return f"{builder.query.path.name}, {f'line {first}' if first == last else f'lines {first} to {last}'}"
