"""One family of errors: each says what was wrong, where, what was allowed, and what to do next.

The command line prints them as one paragraph, Dagster shows them as the failure of a step. An error raised from here
is meant for the person who declared the pipeline; anything else that escapes is a defect of this project.
"""

import difflib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TypeVar

from batch_platform.declaration.redaction import redact

MOST_LISTED = 10
LONGEST_SHOWN = 80


class BatchPlatformError(Exception):
    """Work that could not be done.

    Args:
        message: What was wrong and where: pipeline, partition, column and rule, as far as they are known.
        hint: The command to run or the key to change.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message and the hint apart, so that a caller may add where it happened; neither holds a secret."""
        self.message = redact(message)
        self.hint = None if hint is None else redact(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        """Give the message with its hint, as one paragraph."""
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


Failed = TypeVar("Failed", bound=BatchPlatformError)


class WrongUseError(BatchPlatformError):
    """Something was asked for that does not exist or cannot be meant: a name, a key, a date, an option."""

    exit_code = 2


class DataError(BatchPlatformError):
    """The data break a declared rule: duplicate keys, rows outside their partition, too many rejected rows."""


class SourceError(BatchPlatformError):
    """A source cannot be read, or the SQL over it fails."""


class TrainingRefusedError(BatchPlatformError):
    """The training data cannot give a model: too few rows, one class, labels missing."""


class PublishingError(BatchPlatformError):
    """A version that is registered here could not be registered elsewhere as well."""


class NoChampionError(BatchPlatformError):
    """No approved model serves the partition."""


class IntegrityError(BatchPlatformError):
    """Bytes on disk are not those that were recorded."""


class WarehouseError(BatchPlatformError):
    """The warehouse cannot be opened or holds what this version does not understand."""


class NothingPublishedError(WarehouseError):
    """The home has no published copy yet."""


class WarehouseBusyError(WarehouseError):
    """Another process holds the warehouse; the same call may succeed later."""


def listed(items: Iterable[object]) -> str:
    """Every offender, sorted, at most ten, then how many more."""
    names = sorted(str(item) for item in items)
    shown = ", ".join(names[:MOST_LISTED])
    return f"{shown} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else shown


def told_of_all(failed: Sequence[tuple[str, Failed]], done: int) -> Failed:
    """The error of the first of some partitions that failed alike, with how many more did and how many did not.

    Args:
        failed: Key and error of each, in order.
        done: How many partitions were done all the same.
    """
    (_, first), *others = failed
    more = [f"So it is with {len(others)} more, the last of them {others[-1][0]}."] if others else []
    rest = [f"The other {done} of this run {'are' if done > 1 else 'is'} done."] if done else []
    return type(first)(" ".join([first.message, *more, *rest]), hint=first.hint)


def shortened(value: object) -> str:
    """A value from the data as a message can show it: a line of bounded length, whatever it holds."""
    text = str(value)
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text):,} characters)"
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in shown)


def did_you_mean(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word nearest to a misspelt one, as a question; None where none is near. Case does not matter."""
    by_letters = {other.lower(): other for other in allowed}
    near = difflib.get_close_matches(word.lower(), by_letters, n=1, cutoff=0.6)
    return f"did you mean {by_letters[near[0]]!r}?" if near else None


@contextmanager
def memory_explained(pipeline: str, partition_key: str) -> Generator[None]:
    """Say which partition it is that does not fit into memory."""
    try:
        yield
    except MemoryError as error:
        msg = f"{pipeline}, partition {partition_key}: the memory that this process may use does not suffice ({error})."
        raise BatchPlatformError(
            msg, hint="allow it more, or take shorter partitions; it was left as it was."
        ) from error
