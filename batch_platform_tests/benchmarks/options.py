"""Options of a run of the benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batch_platform_tests.benchmarks.environments import Environments


@dataclass(frozen=True)
class Options:
    """Options that every workload is measured with.

    Args:
        rows: Rows of the large case of each workload.
        repeat: Number of measurements of each contender.
        only: Names of contenders and of kinds of models; empty for all.
        environments: Where peers are installed.
        folder: Folder for data, projects and outputs. Empty at first, removed at the end.
        partitions: Numbers of partitions that `growth` measures.
        at: Commits that `history` measures; empty for its default.
    """

    rows: int
    repeat: int
    only: frozenset[str]
    environments: Environments
    folder: Path
    partitions: Sequence[int] = ()
    at: Sequence[str] = ()

    def chosen(self, names: list[str]) -> list[str]:
        """Select the names that are in `only`; all of them if none is."""
        return [name for name in names if name in self.only] or names
