"""The engines by name, and the contract that each of them keeps.

To add an engine, add its class to `ENGINES`, or the import path of its class, and its name to `declaration.engine.ENGINES`.
The tests in `test_engines.py` check the contract for every engine.
"""

from collections.abc import Generator, Iterable
from importlib import import_module
from pathlib import Path
from typing import Protocol, Self

from batch_platform.declaration.engine import LOCAL, SPARK
from batch_platform.declaration.errors import named
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle
from batch_platform.scoring.engines.local import LocalEngine
from batch_platform.scoring.partition import ScoringOrder, Staged, Watch


class Engine(Protocol):
    """Scores the partitions of one pipeline into files. Use it in a `with` statement, whose end ends all its work."""

    name: str  # name in the ledger

    def __enter__(self) -> Self:
        """Return the engine."""
        ...

    def __exit__(self, *_: object) -> None:
        """End all work."""
        ...

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
        ...


class EngineFactory(Protocol):
    """Makes an engine."""

    def __call__(
        self,
        spec: PipelineSpec,
        folder: Path,
        stamp: Stamp,
        *,
        watch: Watch | None = None,
        bundles: dict[str, Bundle] | None = None,
    ) -> Engine:
        """Make an engine that has not begun to work.

        Args:
            spec: The pipeline.
            folder: An existing folder for the files, whose names begin with the partition's key and a dot.
            stamp: Stored with every row; its clock says when the scoring of a partition begins.
            watch: Called with the progress of a partition, on the thread that takes the results.
            bundles: Bundles that are open in this process, by version; an engine that opens more here adds them.
        """
        ...


# By name; a path is imported when the engine is asked for, as for one in a room above this one.
ENGINES: dict[str, EngineFactory | str] = {LOCAL: LocalEngine, SPARK: "batch_platform.spark.scoring.SparkEngine"}


def engine_of(name: str) -> EngineFactory:
    """The engine of that name; raises a WrongUseError if there is none."""
    refusal = f"engine: {name!r} is not an engine; allowed are"
    engine = named(name, ENGINES, refusal, hint="correct `engine` in the YAML file.")
    if isinstance(engine, str):
        module, _, attribute = engine.rpartition(".")
        return getattr(import_module(module), attribute)
    return engine
