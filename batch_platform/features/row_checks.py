"""Rows of features as they pass: unique keys in their order, times inside the partition, no label among the columns.

Sees one batch at a time, so that a partition of any size is checked in the memory of a batch.
"""

from collections.abc import Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, did_you_mean, listed, shortened
from batch_platform.declaration.spec import PipelineSpec

_CALENDAR = (-62_135_596_800, 253_402_300_799)  # seconds from 1970 to the first and to the last of the years 1 to 9999
_PER_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_BEFORE_A_GAP = timedelta(hours=3)  # no change to summer time skips more


class RowChecks:
    """Checks the rows of a partition as they pass, in the order of their key."""

    def __init__(self, spec: PipelineSpec, partition: Partition, schema: pa.Schema) -> None:
        """Check the columns.

        Raises:
            DataError: Key or time is missing, the label is there, a name is none, or a type can be kept nowhere.
        """
        self._spec, self._partition = spec, partition
        self._zone = ZoneInfo(spec.partitions.timezone)
        self._last: tuple[object, ...] | None = None
        self._named = [*spec.features.key, *([spec.features.time] if spec.features.time else [])]
        self._check_columns(schema.names)
        self._check_types(schema)
        self._temporal = [
            field.name for field in schema if pa.types.is_date(field.type) or pa.types.is_timestamp(field.type)
        ]

    def see(self, batch: pa.RecordBatch) -> None:
        """Check one batch.

        Raises:
            DataError: A key occurs twice or is null, or a time is null, outside the partition or beyond any calendar.
        """
        named = list(dict.fromkeys([*self._named, *self._temporal]))
        frame = pl.DataFrame(pa.Table.from_batches([batch.select(named)]))
        self._check_calendar(frame)
        self._check_keys(frame)
        if self._spec.features.time is not None:
            self._check_times(frame, self._spec.features.time)

    def _check_columns(self, present: list[str]) -> None:
        spec = self._spec
        if missing := [name for name in self._named if name not in present]:
            msg = f"{spec.name}, partition {self._partition.key}: the features lack {listed(map(repr, missing))};"
            msg += f" there are {listed(present)}."
            raise DataError(msg, hint=did_you_mean(missing[0], present) or "correct features.key or features.time.")
        late = {} if spec.labels is None else {name.lower(): name for name in spec.labels.too_late}
        if found := [late[name.lower()] for name in present if name.lower() in late]:
            what = "the label" if spec.labels is not None and found[0] == spec.labels.column else "the outcome"
            msg = f"{spec.name}, partition {self._partition.key}: {what} {found[0]!r} is among the features."
            raise DataError(msg, hint="leave it out: it is not known when a row is scored.")
        if patterns := [name for name in present if name == "*" or (name.startswith("^") and name.endswith("$"))]:
            msg = f"{spec.name}, partition {self._partition.key}: {listed(map(repr, patterns))} cannot name a column: Polars reads it as a pattern."
            raise DataError(msg, hint="give it another name with AS.")

    def _check_types(self, schema: pa.Schema) -> None:
        if wrong := [f"{field.name} ({field.type})" for field in schema if not _can_be_kept(field.type)]:
            msg = f"{self._spec.name}, partition {self._partition.key}: no row can be kept with the columns {listed(wrong)}."
            raise DataError(msg, hint="cast them in the features to a number, a text or a time, or leave them out.")

    def _check_calendar(self, frame: pl.DataFrame) -> None:
        """Refuse what databases write as infinity: it lies in no year that a date can be shown in."""
        for name in self._temporal:
            times = frame[name]
            if isinstance(times.dtype, pl.Datetime):
                seconds = times.to_physical() // _PER_SECOND[times.dtype.time_unit]
            else:
                seconds = times.to_physical().cast(pl.Int64) * 86_400
            if beyond := int((~seconds.is_between(*_CALENDAR)).sum()):
                msg = f"{self._spec.name}, partition {self._partition.key}: {beyond} rows have a {name!r} before the "
                msg += "year 1 or after the year 9999, such as infinity."
                raise DataError(msg, hint="make a null or a real time of it in the features.")

    def _check_keys(self, frame: pl.DataFrame) -> None:
        key = self._spec.features.key
        if nulls := [name for name in key if frame[name].null_count()]:
            msg = f"{self._spec.name}, partition {self._partition.key}: the key has nulls in {listed(nulls)}."
            raise DataError(msg, hint="leave such rows out in the features or choose another key.")
        if not frame.height:
            return
        if self._last is not None and frame.select(key).row(0) == self._last:
            raise _not_unique(self._spec, self._partition, [self._last], "features")
        self._last = frame.select(key).row(-1)
        require_unique(self._spec, self._partition, frame, what="features")

    def _check_times(self, frame: pl.DataFrame, column: str) -> None:
        where = f"{self._spec.name}, partition {self._partition.key}: "
        times = frame[column]
        if times.null_count():
            msg = f"{where}{times.null_count()} rows have no {column!r}."
            raise DataError(msg, hint="a row without a time belongs to no partition; leave it out in the features.")
        if times.dtype == pl.Date:
            times = times.cast(pl.Datetime("us"))
        if not isinstance(times.dtype, pl.Datetime):
            msg = f"{where}{column!r} is of type {times.dtype}, not a date or a timestamp."
            raise DataError(msg, hint="features.time names a column with the row's time; cast it or leave it out.")
        instants = times if times.dtype.time_zone else _local_instants(times, self._zone)
        outside = frame.filter(
            ~instants.dt.convert_time_zone("UTC").is_between(self._partition.start, self._partition.end, closed="left")
        )
        if outside.height:
            sample = outside.select(self._spec.features.key).row(0)
            window = f"{self._partition.start.astimezone(self._zone)} to {self._partition.end.astimezone(self._zone)}"
            msg = (
                f"{where}{outside.height} rows lie outside the partition ({window}) by {column!r}, "
                f"for example {_named(self._spec, sample)} at {outside[column][0]}."
            )
            raise DataError(msg, hint="filter on $partition_start and $partition_end in the features.")


def _can_be_kept(dtype: pa.DataType, *, nested: bool = False) -> bool:
    """Whether Polars reads values of a type and JSON can show them; bytes only as a column of their own."""
    if isinstance(dtype, pa.BaseExtensionType) or pa.types.is_interval(dtype) or pa.types.is_union(dtype):
        return False
    if pa.types.is_nested(dtype):
        inner = (dtype.field(at).type for at in range(dtype.num_fields))
        return all(_can_be_kept(one, nested=True) for one in inner)
    if pa.types.is_fixed_size_binary(dtype):  # what Arrow makes of Python objects
        return False
    return not (
        nested and (pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype))
    )


def require_unique(spec: PipelineSpec, partition: Partition, frame: pl.DataFrame, *, what: str) -> None:
    """Check that no key occurs twice in a frame.

    Raises:
        DataError: One does; the message names them.
    """
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
    """A frame with its key columns in the types of the rows that it is joined to: the same keys, and no others, meet.

    The same instant in another zone or unit is the same key, as is the same number in another width and the same text
    stored in another way.

    Args:
        rows: What the frame is joined to.
        spec: The pipeline.
        partition: The partition that both are of.
        frame: Holds the key columns too.
        what: What the frame is, for the message.
        key: The key columns that it holds, if not all.

    Raises:
        DataError: A key column has a type with which no key can be the same.
    """
    casts: list[pl.Expr] = []
    for name in key or spec.features.key:
        wanted, found = rows.schema[name], frame.schema[name]
        if wanted == found or isinstance(found, pl.Null):
            casts += [] if wanted == found else [pl.col(name).cast(wanted)]
        elif _same_kind(wanted, found):
            casts.append(_in_type(pl.col(name), wanted, found).alias(name))
        else:
            msg = f"{spec.name}, partition {partition.key}: key column {name!r} is {wanted} in the features, "
            msg += f"but {found} in the {what}, so that no key can be the same."
            raise DataError(msg, hint=f"cast {name!r} in labels.sql or in the features, so that both have one type.")
    return frame.with_columns(casts)


def _same_kind(one: pl.DataType, other: pl.DataType) -> bool:
    if isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime):
        return (one.time_zone is None) == (other.time_zone is None)
    pairs = (
        (one.is_integer(), other.is_integer()),
        (one.is_float(), other.is_float()),
        (_is_text(one), _is_text(other)),
    )
    return any(all(pair) for pair in pairs)


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _in_type(key: pl.Expr, wanted: pl.DataType, found: pl.DataType) -> pl.Expr:
    """A key in another type of the same kind; null where that one cannot hold it, which meets no key."""
    if isinstance(wanted, pl.Datetime) and isinstance(found, pl.Datetime) and wanted.time_zone is not None:
        key, found = key.dt.convert_time_zone(wanted.time_zone), pl.Datetime(found.time_unit, wanted.time_zone)
    cast = key.cast(wanted, strict=False)
    return pl.when(cast.cast(found, strict=False) == key).then(cast)


def _not_unique(spec: PipelineSpec, partition: Partition, keys: list[tuple[object, ...]], what: str) -> DataError:
    msg = f"{spec.name}, partition {partition.key}: keys occur more than once in the {what}: "
    msg += listed(_named(spec, key) for key in keys) + "."
    return DataError(msg, hint="features.key must be unique within a partition; mend the SQL or extend the key.")


def _named(spec: PipelineSpec, key: tuple[object, ...]) -> str:
    return " ".join(f"{name}={shortened(value)}" for name, value in zip(spec.features.key, key, strict=True))


def _local_instants(times: pl.Series, zone: ZoneInfo) -> pl.Series:
    """Naive times as the zone's clocks show them: the first of two where they repeat; past a gap, as if not moved yet."""
    instants = times.dt.replace_time_zone(zone.key, ambiguous="earliest", non_existent="null")
    if not instants.null_count():
        return instants
    before = (times - _BEFORE_A_GAP).dt.replace_time_zone(zone.key, ambiguous="earliest", non_existent="null")
    return instants.zip_with(instants.is_not_null(), before + _BEFORE_A_GAP)
