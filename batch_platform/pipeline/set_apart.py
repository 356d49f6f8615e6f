"""Partitions of a step that fail on their own: they are set apart, all others are done, and then the step fails."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from batch_platform.declaration.errors import BatchPlatformError


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
