"""Partitions of a step that fail on their own: they are set apart, all others are done, and then the step fails."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from batch_platform.declaration.errors import (
    BatchPlatformError,
    Grouping,
    RunFailedError,
    alike,
    first_few,
    listed,
    merged,
)
from batch_platform.declaration.predictions import PREFIX
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.planning.state import State
from batch_platform.planning.steps import ranges
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.failures import FailedStep, Failure

_LABELS: Mapping[FailedStep, str] = {
    "features": "",
    "model": "model ",
    "predictions": "",
    "performance": "evaluation of ",
}
_NOUNS: Mapping[FailedStep, str] = {"model": "model", "performance": "evaluation"}


@dataclass(frozen=True)
class SetApart:
    """The partitions that failed so far in one step."""

    failed: list[tuple[str, BatchPlatformError]] = field(default_factory=list[tuple[str, BatchPlatformError]])
    tried: set[str] = field(default_factory=set[str])  # those of them whose failure is to be recorded
    refused: dict[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])  # their rejected rows
    up_to_date: set[str] = field(default_factory=set[str])  # failed before, and need not be tried again

    def add(
        self, partition_key: str, error: BatchPlatformError, refused: tuple[Path, ...] = (), *, tried: bool = True
    ) -> None:
        """Set a partition apart; it was not `tried` if it lacks what an earlier step makes."""
        if self.failed:  # only the first error keeps its traceback, which holds on to what was at work
            error = type(error)(error.message, hint=error.hint)
        self.failed.append((partition_key, error))
        if tried:
            self.tried.add(partition_key)
        if refused:
            self.refused[partition_key] = refused

    @contextmanager
    def attempt(self, partition_key: str, *, tried: bool = True) -> Generator[None]:
        """Set a partition apart if an error is about it only; any other error is raised."""
        try:
            yield
        except BatchPlatformError as error:
            if not error.of_one_partition:
                raise
            self.add(partition_key, error, tried=tried)

    def recorded(self) -> Mapping[str, BatchPlatformError]:
        """The errors to be recorded, by partition key."""
        return {key: error for key, error in self.failed if key in self.tried}


@contextmanager
def setting_apart(  # noqa: PLR0913 - the step, and where its failures are recorded
    spec: PipelineSpec, warehouse: Warehouse, declared: str, step: FailedStep, stamp: Stamp, total: int
) -> Generator[SetApart]:
    """A step over so many partitions, in which a partition that fails alone does not hold up the others.

    At the end the failures are recorded, and if there are any, raised as one error that names each partition. An error
    that is not about one partition ends the step at once. `declared` is the hash of the declaration.
    """
    apart = SetApart()

    def record() -> None:
        failures = [
            Failure(step, key, error.message, error.hint, declared, stamp.now(), stamp.run_id)
            for key, error in apart.recorded().items()
        ]
        warehouse.record_failures(spec.name, step, failures, refused=apart.refused, mended=apart.up_to_date)

    try:
        yield apart
    except Exception:
        with suppress(BatchPlatformError):  # the first error is the one to show
            record()
        raise
    record()
    if apart.failed:
        noun = "serving period" if step == "model" else "partition"
        done, grouping = total - len(apart.failed), _grouping(spec, step)
        raise merged(spec.name, apart.failed, done, noun=noun, grouping=grouping) from apart.failed[0][1]


def failures_of(state: State, run_ids: Collection[str]) -> list[Failure]:
    """The recorded failures of some runs, which did everything else; no delivery holds up or fails another step."""
    return [failure for failure in _all_failures_of(state, run_ids) if not failure.of_delivery]


def _all_failures_of(state: State, run_ids: Collection[str]) -> list[Failure]:
    return [failure for failure in state.failures.values() if failure.run_id in run_ids]


def error_of(
    spec: PipelineSpec, state: State, run_ids: Collection[str], *, deliveries: bool = False
) -> RunFailedError | None:
    """One error that names everything that failed in some runs, on demand also deliveries; None if nothing did."""
    failures = (_all_failures_of if deliveries else failures_of)(state, run_ids)
    labels = [_LABELS.get(item.step, f"{item.step} ") + item.partition_key for item in failures]
    errors = [RunFailedError(item.reason, hint=item.hint) for item in failures]
    nouns = [_NOUNS.get(item.step, "delivery" if item.of_delivery else "") for item in failures]
    others = {label: noun for label, noun in zip(labels, nouns, strict=True) if noun}
    failed = list(zip(labels, errors, strict=True))
    return merged(spec.name, failed, 0, others, grouping=_grouping(spec)) if errors else None


def _grouping(spec: PipelineSpec, step: str = "") -> Grouping:
    """Group the failed deliveries to each receiver, whatever their causes, and write their partitions as ranges.

    Errors of other steps are grouped by their sentences. `step` is the step of keys that do not name theirs.
    """

    def delivery_of(key: str) -> str:
        name = key.rpartition(" ")[0] or step
        return name if name.startswith(PREFIX) else ""

    def in_ranges(keys: Collection[str]) -> str:
        if not all(map(delivery_of, keys)):
            return listed(keys)
        labels = {key.rpartition(" ")[0] for key in keys}
        joined = ranges(spec.partitions.calendar.named(key.rpartition(" ")[2]) for key in keys)
        ends = [(members[0].key, members[-1].key) for members in joined]
        spans = first_few([first if first == last else f"{first} to {last}" for first, last in ends])
        return " ".join([*filter(None, labels), spans])

    return Grouping(lambda key, sentence: delivery_of(key) or alike(key, sentence), in_ranges)
