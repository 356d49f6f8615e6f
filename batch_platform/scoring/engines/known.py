"""The base class of engines, and the engines by name. The tests in `test_engines.py` check the contract for every engine."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Self

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import named
from batch_platform.declaration.extensions import Registry
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle
from batch_platform.scoring.partition import ScoringOrder, Staged, Watch, unwatched


class Engine(ABC):
    """Scores the partitions of one pipeline into files. Use it in a `with` statement, whose end ends all its work."""

    name: str  # name in the ledger

    def __init__(
        self,
        spec: PipelineSpec,
        folder: Path,
        stamp: Stamp,
        *,
        watch: Watch | None = None,
        bundles: dict[str, Bundle] | None = None,
    ) -> None:
        """Make an engine that has not begun to work.

        Args:
            spec: The pipeline.
            folder: An existing folder for the files, whose names begin with the partition's key and a dot.
            stamp: Stored with every row; its clock says when the scoring of a partition begins.
            watch: Called with the progress of a partition, on the thread that takes the results.
            bundles: Bundles that are open in this process, by version; an engine that opens more here adds them.
        """
        self.spec, self.folder, self.stamp, self.bundles = spec, folder, stamp, bundles
        self.watch: Watch = watch or unwatched

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - an engine that holds nothing open has nothing to end
        """End all work."""

    @abstractmethod
    def staged(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        """Score partitions into files, and yield them in the order of their orders.

        Orders are taken a few at a time. A failure is raised when its partition is due, after all partitions before it
        were yielded, and leaves no file of that partition. Predictions equal those of `score_batch`: bit for bit for trees
        and linear models, within 1e-9 for networks.

        Raises:
            IntegrityError: A feature file or a bundle is not what was recorded.
            DataError: Columns are missing.
            WarehouseError: A file cannot be read or written.
            EngineError: The engine's cluster cannot be reached, does not fit, or failed.
        """


ENGINES: Registry[type[Engine]] = extensions.ENGINES


def engine_of(name: str) -> type[Engine]:
    """The engine of that name; raises a WrongUseError if there is none."""
    refusal = f"engine: {name!r} is not an engine; allowed are"
    return named(name, ENGINES, refusal, hint="correct `engine` in the YAML file.")
