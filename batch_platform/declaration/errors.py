"""The errors of this project: each says what was wrong, where, what was expected, and what to do next.

The command line prints them as one paragraph, and Dagster shows them as the failure of a step. They are meant for the
person who declared the pipeline. Any other error that escapes is a defect of this project.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from batch_platform.declaration.redaction import redact

_LARGE = 1000  # smallest number without decimals


MOST_LISTED = 10
INTERRUPTED_QUERY = "Query interrupted"
LONGEST_SHOWN = 80
NEAR = 0.6  # similarity from which on a word is suggested
NO_OTHERS: Mapping[str, str] = {}
_NUMBER = re.compile(r"[0-9]+")
_ADDRESS = re.compile(r"(?:^|/)([A-Za-z][A-Za-z0-9+.-]+:)/(.*)")  # a path keeps one slash of s3://lake/x


class BatchPlatformError(Exception):
    """Work that could not be done."""

    exit_code = 1
    of_one_partition = False  # whether it is about one partition or serving period only, so that the others can go on

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message (what was wrong and where) apart from the hint (what to do). Secrets are redacted from both."""
        self.message = redact(message)
        self.hint = None if hint is None else redact(hint)
        self.set_apart: tuple[str, ...] = ()  # the partitions that failed while all others were done; see `merged`
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message and its hint as one paragraph."""
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


Failed = TypeVar("Failed", bound=BatchPlatformError)
Named = TypeVar("Named")


class WrongUseError(BatchPlatformError):
    """A request that cannot be met as it stands: an unknown name or key, an impossible date, contradicting options."""

    exit_code = 2


class DataError(BatchPlatformError):
    """The data break a declared rule: duplicate keys, rows outside their partition, too many rejected rows."""

    of_one_partition = True


class SourceError(BatchPlatformError):
    """A source cannot be read, or the SQL over it fails."""

    of_one_partition = True


class SharedSourceError(SourceError):
    """A source that every partition reads cannot be read."""

    of_one_partition = False


class TrainingRefusedError(BatchPlatformError):
    """The training data are not enough for a model: too few rows, a single class, missing labels."""

    of_one_partition = True


class RunFailedError(BatchPlatformError):
    """A run failed; the message is that of the failed step, or names everything that failed while the rest was done."""


class PublishingError(BatchPlatformError):
    """A registered version could not be published to another registry."""


class NoChampionError(BatchPlatformError):
    """No approved model serves the partition."""

    of_one_partition = True


class IntegrityError(BatchPlatformError):
    """A file on disk differs from what was recorded."""


class DamagedFeaturesError(IntegrityError):
    """The feature file of a partition is gone or differs from what was recorded."""

    of_one_partition = True


class DamagedRowsError(IntegrityError):
    """A file with the published rows of partitions is gone or differs from what was recorded."""

    of_one_partition = True


class WarehouseError(BatchPlatformError):
    """The warehouse cannot be opened, or has a format this version does not know."""


class NothingPublishedError(WarehouseError):
    """The home has no published copy yet."""


class EngineError(BatchPlatformError):
    """The engine could not do its work: its cluster cannot be reached, does not fit, or failed."""


class DeliveryError(BatchPlatformError):
    """A partition could not be delivered; the receiver holds what it held."""

    of_one_partition = True


class ReceiverDownError(DeliveryError):
    """A receiver cannot be reached, whichever partition is delivered."""


class OvertakenError(WarehouseError):
    """Another run committed the partition after this run began."""

    of_one_partition = True


class WarehouseBusyError(WarehouseError):
    """Another process holds the warehouse. The same call may succeed later."""


def listed(items: Iterable[object]) -> str:
    """List names sorted: at most ten, then how many more."""
    return first_few(sorted(str(item) for item in items))


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """List names in the given order: at most ten, then how many more."""
    shown = separator.join(names[:MOST_LISTED])
    return f"{shown} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 partition" or "2,000 entities"."""
    plural = f"{noun[:-1]}ies" if noun.endswith(("ty", "ry")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def in_short(pipeline: str, message: str) -> str:
    """The first sentence of a message, without the pipeline and the partition before it."""
    return sentence_of(without_place(pipeline, message).partition(". ")[0])


def sentence_of(text: str) -> str:
    """A text with a full stop at its end, unless it ends with a question or an exclamation mark."""
    text = text.rstrip(".")
    return text if text.endswith(("?", "!")) else f"{text}."


def alike(key: str, sentence: str) -> str:
    """The part that two sentences about two partitions share if they differ only in numbers and keys."""
    return _NUMBER.sub("#", sentence.replace(key, "#"))


@dataclass(frozen=True)
class Grouping:
    """How `merged` groups the errors of several keys."""

    name: Callable[[str, str], str] = alike  # name of the group for a key and its sentence
    keys: Callable[[Collection[str]], str] = listed  # the keys of a group in one phrase


BY_SENTENCE = Grouping()


def merged(  # noqa: PLR0913 - what failed, and how it is told
    pipeline: str,
    failed: Sequence[tuple[str, Failed]],
    succeeded: int,
    others: Mapping[str, str] = NO_OTHERS,
    noun: str = "partition",
    grouping: Grouping = BY_SENTENCE,
) -> Failed:
    """Merge the errors of some partitions, each with its key, into one that names every partition once all others are done.

    By default, errors that differ only in numbers and keys are one group. A single group shows its first error in full, each of several
    its first sentence. The merged error has the type of the first one. `noun` says what the keys are of, and `others` which of
    them are of something else, such as "model 2024-02-01": "model".
    """

    def count(keys: Iterable[str], more: str = "") -> str:
        nouns = Counter(others.get(key, noun) for key in keys)
        return " and ".join(counted(number, f"{more}{noun}") for noun, number in sorted(nouns.items(), reverse=True))

    groups: dict[str, list[tuple[str, str, Failed]]] = {}
    for key, error in sorted(failed, key=lambda item: item[0]):
        sentence = in_short(pipeline, error.message)
        groups.setdefault(grouping.name(key, sentence), []).append((key, sentence, error))
    (key, _, first), *later = next(iter(groups.values()))
    hint = first.hint
    if len(groups) == 1:
        message = first.message
        if not message.startswith(f"{pipeline}, "):
            place = key if key in others else f"{noun} {key}"
            message = f"{pipeline}, {place}: {without_place(pipeline, message)}"
        if later:
            keys = [key for key, *_ in later]
            same = len({alike(key, sentence) for key, sentence, _ in next(iter(groups.values()))}) == 1
            message += f" {count(keys, 'more ')} failed{' the same way' if same else ' too'}: {grouping.keys(keys)}."
    else:
        shown = list(groups.values())[:MOST_LISTED]
        lines = [f"{grouping.keys([key for key, *_ in members])}: {members[0][1]}" for members in shown]
        if rest := [key for members in list(groups.values())[MOST_LISTED:] for key, *_ in members]:
            lines.append(f"{count(rest, 'more ')} failed.")
        message = f"{pipeline}: {count(key for key, _ in failed)} failed. {' '.join(lines)}"
        hints = {members[0][2].hint for members in groups.values()}
        everywhere = f"{sentence_of(hint)} " if hint and len(hints) == 1 else ""
        hint = f"{everywhere}batch-platform status {pipeline} shows each partition with its reason."
    if succeeded:
        message += f" The other {counted(succeeded, noun)} of this run succeeded."
    error = type(first)(message, hint=hint)
    error.set_apart = tuple(sorted(key for key, _ in failed))
    return error


def all_of(errors: list[BatchPlatformError]) -> BatchPlatformError:
    """One error that tells all; a single one as it is."""
    if len(errors) == 1:
        return errors[0]
    numbered = " ".join(f"({number}) {error}" for number, error in enumerate(errors[:MOST_LISTED], start=1))
    more = f" And {len(errors) - MOST_LISTED} more." if len(errors) > MOST_LISTED else ""
    return BatchPlatformError(f"{len(errors)} problems. {numbered}{more}")


def without_place(pipeline: str, message: str) -> str:
    """A message without the pipeline and the partition or serving period at its beginning, which are said elsewhere."""
    return re.sub(rf"^{re.escape(pipeline)}(, (partition|serving period) \S+)?: ", "", message)


def shortened(value: object) -> str:
    """Shorten a value from the data to a printable line of bounded length."""
    text = str(value)
    text = redact(text)
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text):,} characters)"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word nearest to a misspelt word, ignoring case and a file suffix that both have; None if no word is near."""
    likeness = {name: _likeness(word.lower(), name.lower()) for name in allowed}
    best = max(likeness, key=lambda name: (likeness[name], name), default=None)
    return best if best is not None and likeness[best] >= NEAR else None


def _likeness(word: str, other: str) -> float:
    """Similarity of two words, from 0 to 1."""
    if (suffix := PurePath(word).suffix) == PurePath(other).suffix:
        word, other = word.removesuffix(suffix), other.removesuffix(suffix)
    return difflib.SequenceMatcher(None, other, word).ratio()


def require_local(path: Path, hint: str, *, key: str = "") -> None:
    """Raise WrongUseError if a path that a user named is an address, which would be taken for folders of this machine."""
    if address := _ADDRESS.search(str(path)):
        msg = f"{key}{address[1]}//{address[2]} is an address, and not a path on this machine."
        raise WrongUseError(msg, hint=hint)


def did_you_mean(word: str, allowed: Iterable[str]) -> str | None:
    """Suggest the allowed word nearest to a misspelt word; None if no word is near."""
    near = nearest(word, allowed)
    return None if near is None else f"did you mean {near!r}?"


def nearest_names(unknown: Iterable[str], allowed: Collection[str]) -> str:
    """Suggest the nearest allowed name for each unknown one; empty if none is near."""
    return " ".join(f"{name!r}: {guess}" for name in unknown if (guess := did_you_mean(name, allowed)))


def named(name: str, items: Mapping[str, Named], refusal: str, *, hint: str | None = None) -> Named:
    """Look up an item by its name.

    Raises:
        WrongUseError: There is no such item. The message is the refusal, followed by the names that there are; the hint is
            the nearest of them, else the given one. A refusal that ends with "there are" suits a single name too.
    """
    if name in items:
        return items[name]
    if len(items) == 1 and refusal.endswith("there are"):
        refusal = f"{refusal.removesuffix('are')}is only"
    msg = f"{refusal} {listed(items) or 'none'}."
    raise WrongUseError(msg, hint=did_you_mean(name, items) or hint)


def failure_of(error: Exception) -> str:
    """The reason why something failed that may raise anything, in one line without secrets."""
    if isinstance(error, BatchPlatformError):
        return str(error)
    return redact(f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))


def is_interruption(error: BaseException) -> bool:
    """Tell whether an error stands for what the handler of a signal raised: DuckDB replaces it by a RuntimeError of this text."""
    return isinstance(error, RuntimeError) and str(error) == INTERRUPTED_QUERY


@contextmanager
def threads_explained() -> Generator[None]:
    """Say that the process cannot start another thread, for which Python raises a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        msg = "This process cannot start another thread."
        raise BatchPlatformError(
            msg, hint="give it more memory, or raise its limit of threads; what was committed stays."
        ) from error


@contextmanager
def memory_explained(pipeline: str, partition_key: str) -> Generator[None]:
    """Say which partition does not fit into memory."""
    try:
        yield
    except MemoryError as error:
        msg = f"{pipeline}, partition {partition_key}: it does not fit into the memory of this process ({error})."
        raise BatchPlatformError(
            msg, hint="give the process more memory, or declare shorter partitions; the partition is unchanged."
        ) from error


def number(value: Any, form: str = ".4g") -> str:  # noqa: ANN401 - a cell of any table
    """Format a number with thousands separators and, if it is small, four digits; None becomes a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        text, sign = format(value, form), "+" if form.startswith("+") else ""
        if abs(value) >= _LARGE or "e+" in text:
            return format(value, f"{sign},.0f")
        return format(value, f"{sign}.{3 - math.floor(math.log10(abs(value)))}f") if "e-" in text else text
    return str(value)
