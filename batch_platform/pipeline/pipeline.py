"""The steps of one pipeline: build features, train, score and evaluate partitions.

Features, models, scoring, registry and warehouse meet here. Dagster's assets call these steps, and a notebook could. A
step takes many partitions, commits them in groups and yields the record of each partition as soon as it is committed.
What is up to date is skipped unless forced. A partition that fails does not hold up the others.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.history import History
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Promotion, Version, read_registry, record_decisions
from batch_platform.pipeline.build import Absent, Built, FeatureStep, state_to_build
from batch_platform.pipeline.evaluate import Evaluated, EvaluationStep
from batch_platform.pipeline.score import ScoringStep
from batch_platform.pipeline.state_keeper import StateKeeper
from batch_platform.pipeline.train import Trained, TrainedChallenger, TrainingStep
from batch_platform.planning.holds import awaited_labels
from batch_platform.planning.state import State, checked
from batch_platform.scoring.partition import BundleFolder, Watch
from batch_platform.scoring.run import Committed
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish

if TYPE_CHECKING:
    from batch_platform.planning.plan import Plan

SCORING_VERSION = 1  # raise it when the same features and model would give other rows


@dataclass(frozen=True)
class Pipeline:
    """One declared pipeline in one home."""

    spec: PipelineSpec
    folder: Path  # absolute path of the folder with the SQL files
    home: Home
    _bundles: dict[str, Bundle] = field(default_factory=dict[str, Bundle], init=False, repr=False, compare=False)

    @cached_property
    def warehouse(self) -> Warehouse:
        """The home's warehouse."""
        return Warehouse(self.home)

    @cached_property
    def builder(self) -> FeatureBuilder:
        """Builds the features and labels."""
        return FeatureBuilder(self.spec, Sources(self.spec, self.folder, self.home))

    @cached_property
    def history(self) -> History:
        """The recorded features and their labels."""
        return History(self.spec, self.home, self.builder)

    @cached_property
    def scoring_code_version(self) -> str:
        """Hashes of the form of the rows and of the rules on them, joined by a dash; scoring gives other rows if one changes.

        How many rows may be rejected is no such rule: it decides only whether a partition is published.
        """
        return self._code_version({"reasons"} if self.spec.predictions.reasons else set())

    def _code_version(self, asked: set[str]) -> str:
        """The same of the rules on rows and of what is `asked` under `predictions`."""
        form = self.spec.model_dump_json(include={"features": {"key", "time"}, "predictions": {"keep"}})
        bounds = {"columns": {"__all__": {"nullable", "min", "max"}}}
        rules = self.spec.model_dump_json(include={"features": bounds, **({"predictions": asked} if asked else {})})
        return "-".join(sha256(part.encode()).hexdigest()[:8] for part in (f"{SCORING_VERSION}\0{form}", rules))

    @cached_property
    def declared(self) -> str:
        """A hash of the whole declaration and its SQL: what failed may succeed once it changes."""
        labels = self.builder.labels_query
        parts = (self.spec.model_dump_json(), self.builder.code_version, "" if labels is None else labels.text)
        return sha256("\0".join(parts).encode()).hexdigest()[:12]

    @cached_property
    def _keeper(self) -> StateKeeper:
        versions = (self.scoring_code_version, self._code_version(set()))
        return StateKeeper(self.history, self.warehouse, *versions, self.declared)

    def carrying(self, work: str) -> AbstractContextManager[None]:
        """Carry one state through a piece of work; see `StateKeeper.carrying`."""
        return self._keeper.carrying(work)

    def state(self, *, recheck: bool = False) -> State:
        """The records now, compared with the files of features and sources; waits for the warehouse.

        With `recheck`, every partition is compared with its sources, also those that are older than `late` says.
        """
        return self._keeper.state(recheck=recheck)

    def published_state(self, *, recheck: bool = False, most_bytes: int | None = None) -> State:
        """The same as it was last published: waits for no writer and writes nothing; empty if nothing is published.

        Sources of more than `most_bytes` whose files changed are held to be as the last run found them.
        """
        return checked(self.history, self.published_ledgers(), recheck=recheck, most_bytes=most_bytes)

    def published_ledgers(self) -> State:
        """The same without a look at any file: every file is taken to be as recorded."""
        return self._keeper.published()

    def conclude(self, now: datetime) -> "tuple[State, Plan]":
        """End a step: bring `partition_status` and the published copy up to date; returns the state and the plan for it."""
        return self._keeper.conclude(self.state(), now)

    def decide(self, decision: Promotion, seen: State, *others: Promotion) -> None:
        """Record decisions on registered versions, made on a state that was `seen`, and publish what they mean for partitions."""
        with self.warehouse.transaction() as con:
            record_decisions(con, [decision, *others])
        self._keeper.conclude(self._keeper.renewed(seen), decision.decided_at)

    def build_features(
        self, partitions: Sequence[Partition], stamp: Stamp, *, force: bool = False, absent: Absent = lambda _: {}
    ) -> Iterator[Built]:
        """Build the features of partitions, oldest first; one that fails alone is set apart, see `setting_apart`.

        Each is compared with its sources, however old it is. `absent` gives the partitions of assets that it lacks, by source.

        Raises:
            SourceError: A source cannot be read, or the SQL fails.
            DataError: Keys are not unique, or a time is null or outside its partition.
        """
        if partitions:
            state = state_to_build(self.spec, self.state, partitions, stamp.at, force=force)
            yield from FeatureStep(self.history, self.warehouse, state, stamp, force, absent).recorded(partitions)

    def train(
        self, period: Partition, stamp: Stamp, *, params: dict[str, Any] | None = None, absent: Absent = lambda _: {}
    ) -> Trained:
        """Train or import the model of a serving period and its challengers, submit them to the gate and register them.

        They learn only from what is known at the start of the period; `params` replace or extend the declared parameters.
        If there is a version already, a failure with the declared parameters is recorded, so that the training
        is not repeated until the declaration changes; a failure of a machine is not. `absent` gives the partitions of assets
        with labels that a partition of the training window lacks, by source.

        Raises:
            TrainingRefusedError: No model can be trained on the data; nothing is registered.
            DataError: Features or files of labels of the training window are missing: no model learns from a window with gaps.
            SourceError: An asset with labels lacks a partition of the training window.
            PublishingError: The model is registered here, but not in MLflow.
        """
        return self._training_step(stamp, absent).train(period, params or {})

    def challenge(
        self, period: Partition, stamp: Stamp, absent: Absent = lambda _: {}
    ) -> tuple[TrainedChallenger, ...]:
        """Train the challengers that a serving period lacks; its model stays as it is. Labels must be there as for `train`."""
        return self._training_step(stamp, absent).challenge(period)

    def _training_step(self, stamp: Stamp, absent: Absent) -> TrainingStep:
        return TrainingStep(self.history, self.warehouse, self.state(), stamp, self.bundle, absent)

    def score(
        self,
        partitions: Sequence[Partition],
        stamp: Stamp,
        *,
        force: bool = False,
        version: str | None = None,
        watch: Watch | None = None,
    ) -> Generator[Committed]:
        """Score partitions, oldest first, with their champions or a named version; skipped partitions come first.

        Partitions that no model serves, or that fail on their own, are set apart; see `setting_apart`. With `force`,
        partitions that are up to date are scored too, and a partition may become empty.

        Raises:
            NoChampionError: No approved model serves a partition.
            IntegrityError: A feature file or a bundle is not what was recorded.
            DataError: More rows are rejected than max_rejected allows, or columns or features are missing.
            WarehouseError: A newer run committed a partition in the meantime.
            WrongUseError: Predictions hold partitions that are no longer declared.
        """
        step = ScoringStep(self.history, self.warehouse, self.state(), stamp, self.bundle_folder, self._bundles)
        yield from step.committed(partitions, force=force, version=version, watch=watch)

    def evaluate(
        self, partitions: Sequence[Partition], stamp: Stamp, absent: Absent = lambda _: {}
    ) -> Iterator[Evaluated]:
        """Compare scored partitions with their labels, oldest first; see `setting_apart` for those that fail.

        Those whose labels are awaited, as `awaited_labels` says, are left as they are. `absent` gives the partitions of assets
        with labels that it lacks, by source.

        Raises:
            DataError: Some partitions are not scored.
            SourceError: `labels.sql` fails, or an asset with labels lacks a partition.
        """
        awaited = self.awaited_labels(partitions, stamp.at)
        if known := [partition for partition in partitions if partition.key not in awaited]:
            yield from EvaluationStep(
                self.history, self.warehouse, self.declared, self._keeper.inputs.measured, stamp, absent
            ).committed(known)

    def awaited_labels(self, partitions: Sequence[Partition], now: datetime) -> dict[str, str]:
        """Say what the evaluation of partitions waits for at a time, by partition key; those that can be evaluated are left out."""
        sources = self.builder.awaited_label_sources
        reasons = {partition.key: awaited_labels(self.spec, partition, now, sources) for partition in partitions}
        return {key: reason for key, reason in reasons.items() if reason is not None}

    def publish(self) -> None:
        """Bring the published copy up to date."""
        publish(self.home)

    def bundle(self, version: Version) -> Bundle:
        """A version's bundle, loaded once, with the rules on its columns as they are declared now.

        Raises:
            IntegrityError: A byte differs from what was registered.
            WrongUseError: It is of other libraries or of an unknown flavour.
        """
        if version.version not in self._bundles:
            self._bundles[version.version] = self.bundle_folder(version).open(self.spec)
        return self._bundles[version.version]

    def bundle_folder(self, version: Version, rows: int = 0) -> BundleFolder:
        """The folder of a version's bundle, which scores so many rows."""
        folder = self.home.bundle(self.spec.name, version.version)
        return BundleFolder(version.version, folder, version.sha256, rows, self._trusts(version))

    def _trusts(self, version: Version) -> bool:
        """Return whether the declaration lets the files of a version run code, as the model's or as a challenger's."""
        trusted = [challenger for challenger in self.spec.challengers if challenger.allow_pickle]
        if self.spec.model.allow_pickle or not trusted:
            return self.spec.model.allow_pickle
        with self.warehouse.open() as con:
            name = read_registry(con, self.spec.name).challengers.get(version.version)
        return any(challenger.name == name or challenger.version == version.version for challenger in trusted)
