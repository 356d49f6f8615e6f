"""Values of PostgreSQL that its ADBC driver changes: infinite times are restored, and what is lost is named.

The driver moves times from the epoch of PostgreSQL, 2000, to that of Arrow, 1970, also infinite ones, which are the largest and the
smallest number: they overflow to times long past. An array of arrays arrives as one list.
"""

from dataclasses import dataclass

import pyarrow as pa
from pyarrow.compute import call_function

from batch_platform.warehouse.sql import quoted

_MOST_DIGITS = 38  # a DECIMAL of DuckDB has no more


@dataclass(frozen=True)
class _Infinite:
    """Infinite times of one type, as numbers: as they arrive, and as DuckDB has them."""

    number: pa.DataType
    past: int  # what PostgreSQL's smallest number became; its largest number became one less
    largest: int


_SECONDS = _Infinite(pa.int64(), -(2**63) + 946_684_800_000_000, 2**63 - 1)  # times in microseconds
_DAYS = _Infinite(pa.int32(), -(2**31) + 10_957, 2**31 - 1)


@dataclass(frozen=True)
class Refusal:
    """A column with values that cannot be taken over."""

    column: str
    problem: str
    instead: str  # SQL to read in its place


def decimal_of(field: pa.Field) -> tuple[int, int] | None:
    """The digits and the scale that a column `numeric` declares; None if DuckDB has no such DECIMAL."""
    modifier = int((field.metadata or {}).get(b"POSTGRESQL:typmod", -1)) - 4  # 16 bits for each
    digits, scale = modifier >> 16, modifier & 0x7FF
    return (digits, scale) if 0 < digits <= _MOST_DIGITS and scale <= digits else None


def with_dimensions(text: str, schema: pa.Schema) -> str:
    """A SELECT that also gives the dimensions of its arrays, in further columns in their order."""
    dimensions = [f", array_ndims({quoted(field.name)})" for field in schema if pa.types.is_list(field.type)]
    return f"SELECT *{''.join(dimensions)} FROM ({text}) AS declared" if dimensions else text


def refused(batch: pa.RecordBatch, schema: pa.Schema) -> Refusal | None:
    """The first column of what `with_dimensions` gives that cannot be taken over."""
    arrays = [field.name for field in schema if pa.types.is_list(field.type)]
    for at, name in enumerate(arrays, start=len(schema)):
        if (call_function("max", [batch.column(at)]).as_py() or 1) > 1:
            return Refusal(name, "holds arrays of arrays", f"to_json({name}) AS {name}")
    for at, field in enumerate(schema):
        exact = isinstance(field.type, pa.OpaqueType) and field.type.type_name == "numeric" and decimal_of(field)
        if (
            exact
            and call_function("any", [call_function("equal", [batch.column(at).storage, pa.scalar("nan")])]).as_py()
        ):
            digits, scale = exact
            problem = f"holds NaN, which a DECIMAL({digits}, {scale}) cannot"
            return Refusal(field.name, problem, f"CAST({field.name} AS double precision) AS {field.name}")
    return None


def meant(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of a schema with their infinite times."""
    columns = [_with_infinity(batch.column(at)) for at in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _with_infinity(column: pa.Array) -> pa.Array:
    dtype = column.type
    if pa.types.is_list(dtype):
        values = _with_infinity(column.values)
        return pa.ListArray.from_arrays(column.offsets, values, type=dtype, mask=column.is_null())
    infinite = _SECONDS if pa.types.is_timestamp(dtype) else _DAYS if pa.types.is_date32(dtype) else None
    if infinite is None:
        return column
    numbers = column.view(infinite.number)
    if (call_function("min", [numbers]).as_py() or 0) > infinite.past:
        return column
    for arrived, number in ((infinite.past - 1, infinite.largest), (infinite.past, -infinite.largest)):
        same = call_function("equal", [numbers, pa.scalar(arrived, infinite.number)])
        numbers = call_function("if_else", [same, pa.scalar(number, infinite.number), numbers])
    return numbers.view(dtype)
