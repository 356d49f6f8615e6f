"""The kinds of sinks by name, and the delivery of one partition to any of them."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.extensions import Registry
from batch_platform.declaration.predictions import Delivery
from batch_platform.declaration.redaction import redact
from batch_platform.delivery.sink import Sink, Target
from batch_platform.sources.objects import StoreError, hint_for

SINKS: Registry[Sink] = extensions.SINKS

_DRAWN = re.compile(r"\x1b\[\d*m|↳")  # colours and arrows in messages of deltalake
_LONGEST_REASON = 300  # characters
_MOST_CONFLICTS = 5  # with other commits, after which a delivery is tried again


def require_sinks(deliveries: Iterable[Delivery]) -> None:
    """Raise WrongUseError, with the extra to install, if a library that one of some deliveries needs is not installed."""
    for delivery in deliveries:
        SINKS[delivery.kind].require(delivery)


def replace_at_receiver(target: Target, read: Callable[[], pa.RecordBatchReader]) -> None:
    """Make rows the rows of a partition at its receiver, as `Sink.replace` says.

    `read` begins to read them; it is called again if another commit to the receiver came first. Raises DeliveryError if the
    receiver refuses them, or lies in the home.
    """
    sink = SINKS[target.delivery.kind]
    path, home = sink.path(target), target.home.root
    if isinstance(path, Path) and path.is_relative_to(home.resolve()):
        problem = f"{path} lies in the home {home}."
        raise target.error(problem, "deliver to a folder outside of it.")
    try:
        _replace(sink, target, read)
    except BatchPlatformError as error:
        if error.of_one_partition:
            raise
        raise target.error(error.message, error.hint or sink.hint) from error
    except StoreError as error:
        problem = f"{error}."
        raise target.error(problem, hint_for(problem), down=True) from error
    except Exception as error:  # whatever the receiver raises is about this partition
        reason = " ".join(_DRAWN.sub(" ", redact(str(error))).split())[:_LONGEST_REASON].rstrip(". ")
        problem = f"{type(error).__name__}: {reason}."
        if isinstance(error, OSError) and error.filename and error.strerror:
            problem = f"{error.filename} cannot be used ({error.strerror})."
        raise target.error(problem, sink.hint) from error


def _replace(sink: Sink, target: Target, read: Callable[[], pa.RecordBatchReader]) -> None:
    for _ in range(_MOST_CONFLICTS):
        try:
            return sink.replace(target, read())
        except Exception as error:
            if not sink.is_conflict(error):
                raise
    return sink.replace(target, read())
