"""Frames that are kept in memory from one reading to the next, within bounds: labels of partitions, and rows to learn from."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

MOST_LABEL_BYTES = 256 << 20
MOST_ROW_BYTES = 512 << 20


class RecentLabels:
    """Label frames by any key, at most MOST_LABEL_BYTES in total; the oldest are dropped first."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._frames: dict[tuple[str, ...], pl.DataFrame] = {}
        self._bytes = 0

    def get(self, key: tuple[str, ...], read: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """The frame of a key, which is read unless it is kept."""
        if key in self._frames:
            return self._frames[key]
        frame = self._frames[key] = read()
        self._bytes += frame.estimated_size()
        while self._bytes > MOST_LABEL_BYTES:
            self._bytes -= self._frames.pop(next(iter(self._frames))).estimated_size()
        return frame


@dataclass(frozen=True)
class Learnable:
    """The rows of a partition whose label is known, and a count of the others."""

    read_from: tuple[str, str]  # digest of the feature file, and the versions of the label sources
    keyed: pl.DataFrame  # key, time, features and label
    # The same rows as a model learns from them: without key and time, and with the columns beside the features.
    rows: pl.DataFrame
    unlabelled: int
    nulls_unlabelled: Counter[str]  # nulls of the others by column


class LearnableRows:
    """The rows of partitions by key, which trainings that follow each other share: the first ones that MOST_ROW_BYTES hold."""

    def __init__(self) -> None:
        """Keep nothing outside of `kept`."""
        self._partitions: dict[str, Learnable] = {}
        self._bytes = self._users = 0

    @contextmanager
    def kept(self) -> Generator[None]:
        """Keep rows until the end of the outermost block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._partitions, self._bytes = {}, 0

    def get(self, key: str, read_from: tuple[str, str]) -> Learnable | None:
        """The rows of a partition, if they are kept and were read from the same files."""
        held = self._partitions.get(key)
        return held if held is not None and held.read_from == read_from else None

    def add(self, key: str, learnable: Learnable) -> None:
        """Keep the rows of a partition, if there is room."""
        size = int(learnable.keyed.estimated_size())
        if self._users and key not in self._partitions and self._bytes + size <= MOST_ROW_BYTES:
            self._partitions[key], self._bytes = learnable, self._bytes + size
