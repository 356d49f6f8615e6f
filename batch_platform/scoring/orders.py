"""Orders for engines to score partitions, as plain data, and the models that it opens for it.

Plain data, so that an engine may send an order to other processes and machines and open there what the order names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import failure_of
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.bundle import Bundle, Predictor, open_bundle
from batch_platform.sources.objects import FilePath

Watch = Callable[[Partition, int, int], None]  # a partition, how many of its rows are staged, and how many it has


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk."""

    version: str
    folder: FilePath  # while it is in a store, it cannot be opened
    sha256: str  # registered hash
    rows: int  # rows that it scores in the whole run, which decides whether compiling its trees is worthwhile
    allow_pickle: bool = False  # whether its files may run code when they are loaded

    def open(self, spec: PipelineSpec) -> Bundle:
        """Load the bundle, with the rules on its columns as they are declared now.

        Raises:
            IntegrityError: A byte differs from what was registered.
            WrongUseError: It needs other libraries, is of an unknown flavour, or may run code without permission.
        """
        bundle = open_bundle(Path(self.folder), self.sha256, allow_pickle=self.allow_pickle)
        return replace(bundle, contract=bundle.contract.under(spec.features.columns))


@dataclass(frozen=True)
class ScoringOrder:
    """A partition to score: its feature file, the model whose scores are published, and the challengers by name."""

    partition: Partition
    features: FilePath
    sha256: str  # hash of the bytes of the file
    rows: int  # rows in the file
    model: BundleFolder
    xxh3: str = ""  # XXH3 of the same bytes; checked instead because it is faster, unless it was not recorded
    # For each challenger its model, or why it cannot score.
    challengers: Mapping[str, BundleFolder | str] = field(default_factory=dict[str, BundleFolder | str])


@dataclass(frozen=True)
class OpenModel:
    """A bundle, and what evaluates it fastest for the rows of a run; safe to use on several threads."""

    bundle: Bundle
    predictor: Predictor

    @property
    def remarks(self) -> tuple[str, ...]:
        """The remark for the ledger on how this model is evaluated; empty if nothing is unusual."""
        libraries, reason = self.bundle.other_libraries, self.bundle.not_compiled
        remarks = [f"allowed other libraries than in training: {libraries}"] if libraries else []
        return (*remarks, *([f"not compiled, since on this machine {reason}"] if reason else []))


@dataclass(frozen=True)
class OpenOrder:
    """An order with its models open; a challenger that cannot be opened is replaced by the reason."""

    order: ScoringOrder
    model: OpenModel
    challengers: Mapping[str, OpenModel | str]


class OpenModels:
    """The models of a run in one process, each opened once."""

    def __init__(self, spec: PipelineSpec, bundles: dict[str, Bundle] | None = None) -> None:
        """Open nothing yet; `bundles` are open already, by version, and those that are opened here are added to them."""
        self._spec = spec
        self._bundles = {} if bundles is None else bundles
        self._failures: dict[str, str] = {}  # failures of challengers, by version

    def opened(self, order: ScoringOrder) -> OpenOrder:
        """Open the models of an order; see `BundleFolder.open` for what is raised if the published model cannot be opened."""
        challengers = {name: self._challenger(model) for name, model in order.challengers.items()}
        return OpenOrder(order, self._model(order.model), challengers)

    def _model(self, folder: BundleFolder) -> OpenModel:
        bundle = self._bundles.get(folder.version)
        if bundle is None:
            bundle = self._bundles[folder.version] = folder.open(self._spec)
        return OpenModel(bundle, bundle.for_rows(folder.rows))

    def _challenger(self, folder: BundleFolder | str) -> OpenModel | str:
        if isinstance(folder, str):
            return folder
        if folder.version not in self._failures:
            try:
                return self._model(folder)
            except Exception as error:  # noqa: BLE001 - loading runs users' code: it is recorded, and production goes on
                self._failures[folder.version] = failure_of(error)
        return self._failures[folder.version]
