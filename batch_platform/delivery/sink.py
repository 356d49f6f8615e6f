"""The contract of a kind of sink: replace the rows of one partition at a receiver."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batch_platform.declaration.deliveries import Delivery
from batch_platform.declaration.errors import DeliveryError


@dataclass(frozen=True)
class Target:
    """One partition at a receiver."""

    pipeline: str
    partition_key: str
    delivery: Delivery
    folder: Path  # absolute folder at which relative paths start

    @property
    def path(self) -> Path:
        """The declared folder, without symbolic links."""
        return (self.folder / Path(str(self.delivery.to)).expanduser()).resolve()

    @property
    def column(self) -> str:
        """Name of the column with the partition key at the receiver."""
        return self.delivery.partition_column

    def error(self, problem: str, hint: str) -> DeliveryError:
        """The error that the partition cannot be delivered."""
        msg = (
            f"{self.pipeline}, partition {self.partition_key}: it is not delivered to {self.delivery.name!r}: {problem}"
        )
        return DeliveryError(msg, hint=hint)


@dataclass(frozen=True)
class Sink:
    """The functions that deliver to receivers of one kind.

    Deliveries of different partitions may be made at the same time, those of one partition one after the other.
    """

    # Makes the given rows, one of whose columns is `Target.column`, the rows of the partition: all of them at once, so that a
    # reader, an error or a kill at any moment leaves the former rows or the new ones. Called again with the same rows, it
    # leaves one copy of them. Without rows the partition is empty afterwards. Reads the rows once, in batches. May raise anything.
    replace: Callable[[Target, pa.RecordBatchReader], None]
    # The local folder that it writes to, which must not lie in the home; None if it writes elsewhere.
    path: Callable[[Target], Path | None] = lambda target: target.path
    hint: str = "see the message; the next run delivers it."  # shown when the receiver refuses
