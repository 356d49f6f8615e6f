"""The contract of a kind of sink: replace the rows of one partition at a receiver."""

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batch_platform.declaration.errors import DeliveryError, ReceiverDownError, counted
from batch_platform.declaration.predictions import Delivery
from batch_platform.sources.objects import FilePath, file_path
from batch_platform.warehouse.descriptions import OF_PIPELINES, Description
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.tables_in_files import CHALLENGER_SCORES, PREDICTIONS

TABLE_OF = {"predictions": PREDICTIONS.view, "challengers": CHALLENGER_SCORES.view, "rejected_rows": "rejected_rows"}
BATCH_ROWS = 100_000
NESTED = {"list", "array", "struct", "map"}  # types of DuckDB that tables elsewhere and CSV lack

_SIGNED = {  # lakes have no unsigned numbers
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
}


@dataclass(frozen=True)
class Target:
    """One partition at a receiver."""

    pipeline: str
    partition_key: str
    delivery: Delivery
    folder: Path  # absolute folder at which relative paths start
    home: Home
    rows: int  # that are sent

    @property
    def path(self) -> FilePath:
        """The declared folder, without symbolic links, or its address."""
        declared = file_path(str(self.delivery.to))
        return (self.folder / declared).resolve() if isinstance(declared, Path) else declared

    @property
    def column(self) -> str:
        """Name of the column with the partition key at the receiver."""
        return self.delivery.partition_column

    @property
    def meaning(self) -> Description:
        """The meaning of a row and of its columns, by their names at the receiver."""
        own, renamed = OF_PIPELINES[TABLE_OF[self.delivery.of]], self.delivery.renamed
        columns = {
            renamed.get(name, name): text for name, text in own.columns.items() if not renamed or name in renamed
        }
        return Description(own.row, columns | {self.column: own.columns["partition_key"]})

    def require_whole(self, there: int) -> None:
        """Raise DeliveryError if the receiver does not have as many rows of the partition as are sent; asked before its commit."""
        if there != self.rows:
            problem = f"{counted(self.rows, 'row')} were sent and {there:,} arrived, so nothing was changed there."
            raise self.error(problem, "look for triggers and rules of the table that drop, move or add rows.")

    def error(self, problem: str, hint: str, *, down: bool = False) -> DeliveryError:
        """The error that the partition cannot be delivered; `down` if no other one can be either."""
        msg = (
            f"{self.pipeline}, partition {self.partition_key}: it is not delivered to {self.delivery.name!r}: {problem}"
        )
        return (ReceiverDownError if down else DeliveryError)(msg, hint=hint)


@dataclass(frozen=True)
class Sink:
    """The functions that deliver to receivers of one kind.

    Deliveries of different partitions may be made at the same time, those of one partition one after the other.
    """

    # Makes the given rows, one of whose columns is `Target.column`, the rows of the partition: all of them at once, so that a
    # reader, an error or a kill at any moment leaves the former rows or the new ones. Called again with the same rows, it
    # leaves one copy of them. Without rows the partition is empty afterwards. Reads the rows once, in batches. May raise anything.
    # Before its commit it counts the rows of the partition where they arrived, and calls `Target.require_whole`.
    replace: Callable[[Target, pa.RecordBatchReader], None]
    # The local folder or file that it writes to, which must not lie in the home; anything else if it writes elsewhere.
    path: Callable[[Target], FilePath | None] = lambda target: target.path
    # Tells whether `replace` raised because another commit came first, so that it can succeed when it is called again.
    is_conflict: Callable[[Exception], bool] = lambda _: False
    value_type: type = str  # of the YAML key that declares a receiver, for a kind without a field in `Delivery`
    hint: str = "see the message; the next run delivers it."  # shown when the receiver refuses
    # Raises WrongUseError if a library that the delivery needs is not installed. Connects to nothing.
    require: Callable[[Delivery], object] = lambda _: None


def storable(rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The rows in types that Delta and Iceberg have, without columns that have no type because they have no value."""
    typed = [field for field in rows.schema if not pa.types.is_null(field.type)]
    schema = pa.schema([field.with_type(_SIGNED.get(field.type, field.type)) for field in typed])
    batches = (batch.select(schema.names).cast(schema) for batch in rows)
    return pa.RecordBatchReader.from_batches(schema, batches)


@contextmanager
def alone(home: Home, name: str) -> Generator[None]:
    """Let one process of a home at a time, and one of its threads, be in the block of a name."""
    descriptor = os.open(home.create().staging / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
