"""Requirements for features: unique keys, times inside the partition, no label or what it is made from, no row lost by a join.

Rows are checked batch by batch, so the memory of one batch is enough for a partition of any size.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import MOST_LISTED, DataError, SourceError, did_you_mean, listed, shortened
from batch_platform.declaration.inputs import PLACEHOLDERS, WEIGHT
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.fingerprints import DatedSources, instant
from batch_platform.features.origins import ROWS, SourceColumn
from batch_platform.warehouse.sql import literal, quoted

if TYPE_CHECKING:
    from batch_platform.features.build import FeatureBuilder

_DRIVING, _FEATURES = "__in_the_source", "__in_the_features"
_CALENDAR = (-62_135_596_800, 253_402_300_799)  # seconds from 1970 to the first and to the last of the years 1 to 9999
_PER_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_BEFORE_A_GAP = timedelta(days=1)  # no change of clocks skips more


class RepeatedKeysError(DataError):
    """A key occurs more than once in a partition."""


class OutOfOrderError(Exception):
    """Rows do not come in the order of their key."""


class RowChecks:
    """Checks the rows of a partition batch by batch; they must come in the order of their key."""

    def __init__(
        self, spec: PipelineSpec, partition: Partition, schema: pa.Schema, *, sorted_by_key: bool = True
    ) -> None:
        """Check the columns; raises DataError if key or time is missing, the label is present or a column cannot be stored."""
        self._spec, self._partition = spec, partition
        self._where = f"{spec.name}, partition {partition.key}"
        self._zone = ZoneInfo(spec.partitions.timezone)
        self._last: tuple[object, ...] | None = None
        self._sorted = sorted_by_key
        self._highest: pl.Series | None = None  # key of the last row, if rows were not sorted
        self._named = spec.features.key_and_time
        self._check_columns(schema.names)
        self._check_types(schema)
        self._temporal = [
            field.name for field in schema if pa.types.is_date(field.type) or pa.types.is_timestamp(field.type)
        ]

    def see(self, batch: pa.RecordBatch) -> None:
        """Check one batch; raises DataError for a null or repeated key and for a time that is null or out of range.

        Raises OutOfOrderError before that if rows that were not sorted do not ascend in the one column of their key.
        """
        named = list(dict.fromkeys([*self._named, *self._temporal]))
        frame = pl.DataFrame(pa.Table.from_batches([batch.select(named)]))
        if not self._sorted:
            self._require_order(frame[self._spec.features.key[0]])
        self._check_calendar(frame)
        self._check_keys(frame)
        if self._spec.features.time is not None:
            self._check_times(frame, self._spec.features.time)

    def _require_order(self, keys: pl.Series) -> None:
        """Raise OutOfOrderError unless keys ascend behind those before; only of types that Polars and DuckDB order alike."""
        alike = keys.dtype.is_integer() or isinstance(keys.dtype, pl.Datetime | pl.Date | pl.String)
        up_to_here = keys if self._highest is None else self._highest.append(keys)
        if not alike or keys.null_count() or not up_to_here.is_sorted():
            raise OutOfOrderError
        self._highest = keys.tail(1)

    def _check_columns(self, present: list[str]) -> None:
        spec = self._spec
        if missing := [name for name in self._named if name not in present]:
            msg = f"{self._where}: the features lack {listed(map(repr, missing))}; there are {listed(present)}."
            raise DataError(msg, hint=did_you_mean(missing[0], present) or "correct features.key or features.time.")
        late = {} if spec.labels is None else {name.lower(): name for name in spec.labels.too_late}
        if too_late := [late[name.lower()] for name in present if name.lower() in late]:
            what = "the label" if spec.labels is not None and too_late[0] == spec.labels.column else "the outcome"
            msg = f"{self._where}: {what} {too_late[0]!r} is among the features."
            raise DataError(msg, hint="leave it out: it is not known when a row is scored.")
        if patterns := [name for name in present if name == "*" or (name.startswith("^") and name.endswith("$"))]:
            msg = f"{self._where}: {listed(map(repr, patterns))} cannot name a column: Polars reads it as a pattern."
            raise DataError(msg, hint="give it another name with AS.")

    def _check_types(self, schema: pa.Schema) -> None:
        if wrong := [f"{field.name} ({field.type})" for field in schema if not _can_be_kept(field.type)]:
            msg = f"{self._where}: rows with these columns cannot be stored: {listed(wrong)}."
            raise DataError(msg, hint="cast them in the features to a number, text or time, or leave them out.")

    def _check_calendar(self, frame: pl.DataFrame) -> None:
        """Refuse times outside the years 1 to 9999, such as the infinity of databases: no date can show them."""
        for name in self._temporal:
            times = frame[name]
            if isinstance(times.dtype, pl.Datetime):
                seconds = times.to_physical() // _PER_SECOND[times.dtype.time_unit]
            else:
                seconds = times.to_physical().cast(pl.Int64) * 86_400
            if beyond := int((~seconds.is_between(*_CALENDAR)).sum()):
                outside = "before the year 1 or after the year 9999, such as infinity"
                msg = f"{self._where}: {beyond} rows have a {name!r} {outside}."
                raise DataError(msg, hint="replace such a time in the features by a null or by a real time.")

    def _check_keys(self, frame: pl.DataFrame) -> None:
        key = self._spec.features.key
        if nulls := [name for name in key if frame[name].null_count()]:
            msg = f"{self._where}: the key has nulls in {listed(nulls)}."
            raise DataError(msg, hint="filter such rows out in the features, or choose another key.")
        if not frame.height:
            return
        if self._last is not None and frame.select(key).row(0) == self._last:
            raise _not_unique(self._spec, self._partition, [self._last], "features")
        self._last = frame.select(key).row(-1)
        require_unique(self._spec, self._partition, frame, what="features")

    def _check_times(self, frame: pl.DataFrame, column: str) -> None:
        times = frame[column]
        if times.null_count():
            msg = f"{self._where}: {times.null_count()} rows have no {column!r}."
            raise DataError(msg, hint="a row without a time belongs to no partition; filter it out in the features.")
        if times.dtype == pl.Date:
            times = times.cast(pl.Datetime("us"))
        if not isinstance(times.dtype, pl.Datetime):
            msg = f"{self._where}: {column!r} is of type {times.dtype}, not a date or a timestamp."
            hint = "features.time must name a date or a timestamp; cast the column, or drop features.time."
            raise DataError(msg, hint=hint)
        start, end = self._partition.start, self._partition.end
        outside = frame.filter(~instants(times, self._zone).is_between(start, end, closed="left"))
        if outside.height:
            window = f"{start.astimezone(self._zone)} to {end.astimezone(self._zone)}"
            key = self._spec.features.key
            example = f"{_named(key, outside.select(key).row(0))} at {outside[column][0]}"
            msg = f"{self._where}: {outside.height} rows lie outside the partition ({window}) by {column!r}, for example {example}."
            hint = "filter on $partition_start and $partition_end in the features."
            if instants(times, self._zone, "earliest").is_between(start, end, closed="left").all():
                hint = f"give {column!r} a time zone, or read it so that a time which clocks repeat is the second of the two."
            raise DataError(msg, hint=hint)


def _can_be_kept(dtype: pa.DataType, *, nested: bool = False) -> bool:
    """Return whether Polars can read values of a type and JSON can show them; bytes only outside of lists and structs."""
    if isinstance(dtype, pa.BaseExtensionType) or pa.types.is_interval(dtype) or pa.types.is_union(dtype):
        return False
    if pa.types.is_nested(dtype):
        inner = (dtype.field(at).type for at in range(dtype.num_fields))
        return all(_can_be_kept(dtype, nested=True) for dtype in inner)
    if pa.types.is_fixed_size_binary(dtype):  # what Arrow makes of Python objects
        return False
    binary = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype)
    return not (nested and binary)


def require_unique(spec: PipelineSpec, partition: Partition, frame: pl.DataFrame, *, what: str) -> None:
    """Raise DataError, which names the keys, if a key occurs twice in a frame."""
    key = spec.features.key
    if frame.select(key).n_unique() == frame.height:
        return
    twice = frame.filter(frame.select(key).is_duplicated()).select(key).unique(maintain_order=True)
    raise _not_unique(spec, partition, twice.rows(), what)


def with_keys_of(  # noqa: PLR0913 - two frames, and where they are from
    rows: pl.DataFrame,
    spec: PipelineSpec,
    partition: Partition,
    frame: pl.DataFrame,
    *,
    what: str,
    key: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Cast the key columns of a frame to the types of the rows that it will be joined to, so that equal keys match.

    Equal are one instant in two zones or units, one number in two widths, one text in two encodings; DataError is raised for types in
    which no key can be equal. `what` says in messages what the frame holds; `key` names its key columns if it has only some.
    """
    casts: list[pl.Expr] = []
    for name in key or spec.features.key:
        wanted, present = rows.schema[name], frame.schema[name]
        if wanted == present or isinstance(present, pl.Null):
            casts += [] if wanted == present else [pl.col(name).cast(wanted)]
        elif _comparable(wanted, present):
            casts.append(_in_type(pl.col(name), wanted, present).alias(name))
        else:
            msg = f"{spec.name}, partition {partition.key}: key column {name!r} is {wanted} in the features, "
            msg += f"but {present} in the {what}; such keys are never equal."
            raise DataError(msg, hint=f"cast {name!r} in labels.sql or in the features, to one type in both.")
    return frame.with_columns(casts)


def _comparable(left: pl.DataType, right: pl.DataType) -> bool:
    """Return whether values of two types can be equal keys."""
    if isinstance(left, pl.Datetime) and isinstance(right, pl.Datetime):
        return (left.time_zone is None) == (right.time_zone is None)
    text = pl.String | pl.Categorical | pl.Enum
    return (
        (left.is_integer() and right.is_integer())
        or (left.is_float() and right.is_float())
        or (isinstance(left, text) and isinstance(right, text))
    )


def _in_type(key: pl.Expr, wanted: pl.DataType, present: pl.DataType) -> pl.Expr:
    """Cast a key to a comparable type; null, which equals no key, if that type cannot hold the value."""
    if isinstance(wanted, pl.Datetime) and isinstance(present, pl.Datetime) and wanted.time_zone is not None:
        key, present = key.dt.convert_time_zone(wanted.time_zone), pl.Datetime(present.time_unit, wanted.time_zone)
    cast = key.cast(wanted, strict=False)
    return pl.when(cast.cast(present, strict=False) == key).then(cast)


def require_every_row(
    spec: PipelineSpec, partition: Partition, con: duckdb.DuckDBPyConnection, features: Path, rows: int
) -> None:
    """Check that a feature file has as many rows as the driving source, if one is declared, has in the partition.

    Raises DataError otherwise, which names the keys that a join lost or multiplied if the source has key columns.
    """
    driving = spec.features.driving
    if driving is None:
        return
    where = f"{spec.name}, partition {partition.key}"
    source = con.sql(f"FROM {quoted(driving.source)}")
    columns = dict(zip(source.columns, map(str, source.types), strict=True))
    if driving.time not in columns:
        msg = f"{where}: the source {driving.source!r} has no column {driving.time!r}; it has {listed(columns)}."
        raise SourceError(msg, hint=did_you_mean(driving.time, columns) or "correct features.driving.time.")
    time = quoted(driving.time)
    inside = f"FROM {quoted(driving.source)} WHERE {time} >= $start AND {time} < $end"
    window = {"start": partition.start, "end": partition.end}
    try:
        ((expected,),) = con.execute(f"SELECT count(*) {inside}", window).fetchall()
        if expected == rows:
            return
        differing = ""
        if shared := [name for name in spec.features.key if name in columns]:
            rows_in = con.sql(f"SELECT {', '.join(map(quoted, shared))} {inside}", params=window).pl()
            built = pl.read_parquet(features, columns=shared)
            rows_in = with_keys_of(built, spec, partition, rows_in, what=f"source {driving.source!r}", key=shared)
            differing = _differing_keys(built, rows_in, shared)
    except duckdb.Error as error:
        msg = f"{where}: the rows of {driving.source!r} cannot be counted by {driving.time!r}: {' '.join(str(error).split())}."
        raise SourceError(msg, hint="features.driving.time must name a column with a date or a timestamp.") from error
    msg = f"{where}: {driving.source!r} has {expected} rows by {driving.time!r}, but {rows} rows of features came out{differing}."
    hint = "no join in the features may lose rows or multiply them: use LEFT JOIN, and join on unique columns."
    raise DataError(msg, hint=hint)


def _differing_keys(features: pl.DataFrame, source: pl.DataFrame, key: list[str]) -> str:
    """Name the keys that have fewer rows of features than rows in the source, and those that have more."""
    both = (
        source.group_by(key)
        .len(_DRIVING)
        .join(features.group_by(key).len(_FEATURES), on=key, how="full", coalesce=True, nulls_equal=True)
        .with_columns(pl.col(_DRIVING, _FEATURES).fill_null(0))
    )
    text = ""
    missing, too_many = pl.col(_FEATURES) < pl.col(_DRIVING), pl.col(_FEATURES) > pl.col(_DRIVING)
    for what, differs in (("missing", missing), ("too many", too_many)):
        keys = both.filter(differs).select(key).sort(key)
        if keys.height:
            shown = ", ".join(_named(key, values) for values in keys.head(MOST_LISTED).rows())
            more = f" and {keys.height - MOST_LISTED} more" if keys.height > MOST_LISTED else ""
            text += f"; {what}: {shown}{more}"
    return text


def keys_repeated_in(
    con: duckdb.DuckDBPyConnection, name: str, key: list[str], inside: str, window: dict[str, object]
) -> str | None:
    """Count repeated keys in the rows of a source that meet an SQL condition; returns a sentence with an example.

    Empty if none does; None if the source lacks a column of the key or the condition fails.
    """
    columns = {column.lower() for column in con.sql(f"FROM {quoted(name)}").columns}
    if any(column.lower() not in columns for column in key):
        return None
    named = ", ".join(map(quoted, key))
    repeated = (
        f"SELECT {named}, count(*) AS __rows, count(DISTINCT hash(__row)) AS __kinds FROM {quoted(name)} AS __row "
        f"WHERE {inside} GROUP BY {named} HAVING count(*) > 1"
    )
    query = f"SELECT count(*) OVER (), sum(__rows) OVER (), * FROM ({repeated}) ORDER BY {named} LIMIT 1"
    try:
        repeated = con.execute(query, window).fetchall()
    except duckdb.Error:
        return None
    if not repeated:
        return ""
    keys, rows, *example, copies, kinds = repeated[0]
    alike = "equal rows" if kinds == 1 else "different rows"
    return (
        f"Source {name!r} holds {keys:,} key{'s' if keys > 1 else ''} more than once there, in {rows:,} rows: "
        f"{_named(key, tuple(example))}, for example, in {copies:,} {alike}."
    )


def rows_outside(
    spec: PipelineSpec, con: duckdb.DuckDBPyConnection, name: str, time: str | None, partition: Partition
) -> list[str]:
    """Say how many rows in the file of a partition are dated outside of what the file is named for; nothing if none is.

    Without a `time`, an SQL expression, that of the features is taken if the source has it.
    """
    time = time or (spec.features.time and quoted(spec.features.time))
    if time is None:
        return []
    location, at = spec.sources[name].location, instant(time)
    inside, named = f"{at} >= $start AND {at} < $end", "the partition"
    of_a_day = "{partition_date}" in location
    if "{partition_key}" not in location and spec.partitions.every in ("hour", *(() if of_a_day else ("day",))):
        # Several partitions read this file.
        placeholder, style = ("{partition_date}", "%Y%m%d") if of_a_day else ("{partition_month}", "%Y-%m")
        named = PLACEHOLDERS[placeholder](partition.key)
        inside = f"strftime({at}, {literal(style)}) = {literal(named)}"
    query = f"SELECT count(*), CAST(min({at}) AS VARCHAR) FROM {quoted(name)} WHERE ({inside}) IS NOT TRUE"
    window = {"start": partition.start, "end": partition.end} if "$start" in query else {}
    try:
        ((count, earliest),) = con.execute(query, window).fetchall()
    except duckdb.Error:  # the source has no such column
        return []
    rows = "1 row" if count == 1 else f"{count:,} rows"
    lie = "lies" if count == 1 else "lie"
    example = "without a time" if earliest is None else f"such as one at {earliest}"
    return [f"{rows} in the file of source {name!r} {lie} outside {named}, {example}"] if count else []


def _not_unique(
    spec: PipelineSpec, partition: Partition, keys: list[tuple[object, ...]], what: str
) -> RepeatedKeysError:
    msg = f"{spec.name}, partition {partition.key}: keys occur more than once in the {what}: "
    msg += listed(_named(spec.features.key, key) for key in keys) + "."
    hint = "features.key must be unique within a partition; correct the SQL or extend the key."
    zone = spec.partitions.calendar.zone
    if partition.start.astimezone(zone).utcoffset() != partition.end.astimezone(zone).utcoffset():
        hint = f"clocks in {zone} change within the partition, where two local times can be one instant. If that is it, use the time as it stands in the source as the key, or another time zone; else {hint}"
    return RepeatedKeysError(msg, hint=hint)


def _named(names: Sequence[str], key: tuple[object, ...]) -> str:
    return " ".join(f"{name}={shortened(value)}" for name, value in zip(names, key, strict=True))


def instants(times: pl.Series, zone: ZoneInfo, repeated: Literal["earliest", "latest"] = "latest") -> pl.Series:
    """Times as instants (UTC). Those without a zone are local, and are read as DuckDB casts them to TIMESTAMPTZ.

    That is: the second of two if clocks repeat an hour, and in a gap as if clocks had not moved.
    """
    if isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone is not None:
        return times.dt.convert_time_zone("UTC")

    def read(local: pl.Series) -> pl.Series:
        zoned = local.dt.replace_time_zone(zone.key, ambiguous=repeated, non_existent="null")
        return zoned.dt.convert_time_zone("UTC")

    at = read(times)
    return at.zip_with(at.is_not_null(), read(times - _BEFORE_A_GAP) + _BEFORE_A_GAP) if at.null_count() else at


def with_weights(labels: pl.DataFrame, column: str, where: str) -> pl.DataFrame:
    """Labels with their weights as WEIGHT; raises DataError for a weight that is none, and if all are 0."""
    weights = labels[column].cast(pl.Float64, strict=False)
    wrong = labels.height - int((weights.is_finite() & (weights >= 0)).sum())
    if wrong or (labels.height and not weights.sum()):
        counted_rows = (
            f"null, negative or not a number in {wrong:,} of {labels.height:,} rows" if wrong else "0 in all rows"
        )
        msg = f"{where}: the weight {column!r} (labels.weight) is {counted_rows}."
        raise DataError(msg, hint="give each label a weight of 0 or more in labels.sql, and some a weight above 0.")
    return labels.with_columns(weights).rename({column: WEIGHT})


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


def _is_of_partition(builder: "FeatureBuilder", dated: DatedSources, read: SourceColumn) -> bool:
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
    place = builder.query.place if builder.query.file is None else builder.query.file.name
    return f"{place}, {f'line {first}' if first == last else f'lines {first} to {last}'}"
