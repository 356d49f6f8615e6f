"""What a run of the benchmark was asked for."""

from dataclasses import dataclass
from pathlib import Path

from batch_platform_tests.benchmarks.environments import Environments


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Args:
        rows: Of the large case of each workload.
        repeat: How often each contender is measured.
        only: Names of contenders and of kinds of models; empty for all.
        environments: Where peers are installed.
        folder: Where data, projects and outputs go; empty, and removed at the end.
    """

    rows: int
    repeat: int
    only: frozenset[str]
    environments: Environments
    folder: Path

    def chosen(self, names: list[str]) -> list[str]:
        """Which of some alternatives are asked for: those that `only` names, or all where it names none of them."""
        return [name for name in names if name in self.only] or names
