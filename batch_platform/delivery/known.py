"""The kinds of sinks by name, and the delivery of one partition to any of them."""

import pyarrow as pa

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.delivery.delta import DELTA
from batch_platform.delivery.files import CSV_FILES, PARQUET
from batch_platform.delivery.sink import Sink, Target
from batch_platform.warehouse.home import Home

SINKS: dict[str, Sink] = {"parquet": PARQUET, "csv": CSV_FILES, "delta": DELTA}


def replace_at_receiver(home: Home, target: Target, rows: pa.RecordBatchReader) -> None:
    """Make rows the rows of a partition at its receiver, as `Sink.replace` says.

    Raises:
        DeliveryError: The receiver refuses them, or lies in the home.
    """
    sink = SINKS[target.delivery.kind]
    path = sink.path(target)
    if path is not None and path.is_relative_to(home.root.resolve()):
        problem = f"{path} lies in the home {home.root}."
        raise target.error(problem, "deliver to a folder outside of it.")
    try:
        sink.replace(target, rows)
    except BatchPlatformError as error:
        if error.of_one_partition:
            raise
        raise target.error(error.message, error.hint or sink.hint) from error
    except Exception as error:  # whatever the receiver raises is about this partition
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        problem = f"{type(error).__name__}: {reason}."
        raise target.error(problem, sink.hint) from error
