"""The steps of one pipeline on plain data: build features, train, score and evaluate partitions.

The one place where features, models, scoring, registry and warehouse meet; what a notebook could call and what
Dagster's assets do call. Each step takes many partitions, commits them in groups and yields each one's record as soon
as it is committed; what is already as asked is skipped unless forced.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, NoChampionError, memory_explained, told_of_all
from batch_platform.declaration.learners import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureBuilder, FeatureSession
from batch_platform.features.history import History
from batch_platform.features.sources.opening import Sources
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Version, read_registry, record_failure, register
from batch_platform.monitoring.scores import committed_distributions
from batch_platform.pipeline.challenger_training import train_challengers, trusted
from batch_platform.pipeline.evaluate import Evaluated, evaluated, measure_tables, not_scored
from batch_platform.pipeline.plan import State, features_due, untrained
from batch_platform.pipeline.staleness import relabelled
from batch_platform.pipeline.train import Trained, TrainedChallenger, publish_version, train_version
from batch_platform.scoring.challengers import challengers_of
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.orders import BundleFolder, Watch
from batch_platform.scoring.run import Committed, Due, ScoringRun, is_full
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun, read_latest
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.staging import staging_folder

SCORING_VERSION = 1  # raise it when the same features and model would give other rows


@dataclass(frozen=True)
class Built:
    """A partition of features, as recorded."""

    partition: Partition
    build: FeatureBuild
    skipped: bool  # it was already as asked
    columns: dict[str, str] = field(default_factory=dict[str, str])  # Arrow types; empty where skipped


@dataclass(frozen=True)
class Pipeline:
    """One declared pipeline, in one home.

    Args:
        spec: As declared.
        folder: Absolute path of the folder with its SQL.
        home: Where its data lie.
    """

    spec: PipelineSpec
    folder: Path
    home: Home
    _bundles: dict[str, Bundle] = field(default_factory=dict[str, Bundle], init=False, repr=False, compare=False)

    @cached_property
    def warehouse(self) -> Warehouse:
        """The home's warehouse."""
        return Warehouse(self.home)

    @cached_property
    def builder(self) -> FeatureBuilder:
        """What makes its features and labels."""
        return FeatureBuilder(self.spec, Sources(self.spec, self.folder))

    @cached_property
    def history(self) -> History:
        """Its recorded features and their labels."""
        return History(self.spec, self.home, self.builder)

    @cached_property
    def scoring_code_version(self) -> str:
        """Changes when the same features and model would give other rows: of their form, then of the rules on them."""
        form = self.spec.model_dump_json(include={"features": {"key", "time"}, "predictions": {"keep"}})
        bounds = {"columns": {"__all__": {"nullable", "min", "max"}}, "max_rejected": True}
        rules = self.spec.model_dump_json(include={"features": bounds})
        return "-".join(sha256(part.encode()).hexdigest()[:8] for part in (f"{SCORING_VERSION}\0{form}", rules))

    def state(self) -> State:
        """What is recorded, held against the files that lie in the lake."""
        with self.warehouse.open() as con:
            features = read_latest(con, FeatureBuild, self.spec.name)
            scores = read_latest(con, ScoreRun, self.spec.name)
            evaluations = read_latest(con, EvaluationRun, self.spec.name)
            registry = read_registry(con, self.spec.name)
        return State(
            features=self.history.recorded(features),
            scores=scores,
            evaluations=evaluations,
            registry=registry,
            features_code_version=self.builder.code_version,
            scoring_code_version=self.scoring_code_version,
            source_versions=self.history.source_versions(features),
            label_versions=self.history.label_versions(evaluations),
            relabelled=relabelled(
                self.history, [registry.named(version) for version in {run.model_version for run in scores.values()}]
            ),
        )

    def build_features(self, partitions: Sequence[Partition], stamp: Stamp, *, force: bool = False) -> Iterator[Built]:
        """Build the features of partitions, oldest first.

        Raises:
            SourceError: A source cannot be read, or the SQL fails.
            DataError: Keys are not unique, or a time is null or outside its partition.
        """
        if not partitions:
            return
        state = self.state()
        due = {one.key: one for one in partitions if force or features_due(state, one) is not None}
        superseded = self.history.superseded(state.features, due.values())
        group: list[Built] = []
        with (
            staging_folder(self.home, stamp.run_id) as folder,
            self.builder.session(partitions[0], spill=folder / "spill") as session,
        ):
            for partition in partitions:
                if partition.key not in due:
                    yield Built(partition, state.features[partition.key], skipped=True)
                    continue
                try:
                    with memory_explained(self.spec.name, partition.key):
                        group.append(self._build(session, partition, stamp))
                except Exception:
                    yield from self._record(group, superseded)
                    raise
                if is_full(len(group), sum(built.build.rows for built in group)):
                    yield from self._record(group, superseded)
                    group = []
        yield from self._record(group, superseded)

    def train(self, period: Partition, stamp: Stamp, *, params: dict[str, Any] | None = None) -> Trained:
        """Train or import the model of a serving period, register it, approve it if it passes the gate; then its challengers.

        Args:
            period: The model learns only from what is known at its start.
            stamp: Of the run.
            params: Replace or add to the declared parameters.

        Raises:
            TrainingRefusedError: The data cannot give a model; nothing is registered.
            PublishingError: It is registered here, but not in MLflow.
        """
        given, state = {**self.spec.model.params, **(params or {})}, self.state()
        trained = train_version(
            self.history, state=state, period=period, params=given, stamp=stamp, open_version=self.bundle
        )
        register(self.warehouse, trained.version, trained.decision)
        due = [one for one in self.spec.challengers if one.version is None]
        challengers = self._challenge(due, state, period, stamp, trained)
        trained = replace(trained, data=None, challengers=challengers)
        if self.spec.model.publish is not None:
            publish_version(self.spec, self.home, trained)
        return trained

    def challenge(self, period: Partition, stamp: Stamp) -> tuple[TrainedChallenger, ...]:
        """Train the challengers of a serving period that were not trained with its model; the model stays as it is."""
        state = self.state()
        return self._challenge(untrained(self.spec, state.registry, period.key), state, period, stamp)

    def _challenge(
        self, due: list[Challenger], state: State, period: Partition, stamp: Stamp, model: Trained | None = None
    ) -> tuple[TrainedChallenger, ...]:
        """Train challengers and register each as soon as it is trained."""
        done: list[TrainedChallenger] = []
        for one in train_challengers(
            self.history, due, state=state, period=period, stamp=stamp, open_version=self.bundle, model=model
        ):
            if one.version is not None and one.decision is not None:
                register(self.warehouse, one.version, one.decision, one.training)
            else:
                record_failure(self.warehouse, one.training)
            done.append(one)
        return tuple(done)

    def score(
        self,
        partitions: Sequence[Partition],
        stamp: Stamp,
        *,
        force: bool = False,
        version: str | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Committed]:
        """Score partitions, oldest first, each by its champion or by a given version; what is skipped comes first.

        Those that no model serves do not hold up the others; they fail once the others are committed.

        Args:
            partitions: What to score; their features are built.
            stamp: Of the run.
            force: Score even what the warehouse holds already, and let a partition become empty.
            version: Score by this one instead of the champion.
            watch: Is told how far a partition has come, while it is scored.

        Raises:
            NoChampionError: No approved model serves a partition.
            IntegrityError: A feature file or a bundle is not what was recorded.
            DataError: More rows are rejected than the budget allows, or columns are missing.
            WarehouseError: A newer run committed a partition meanwhile.
        """
        state = self.state()
        due, unserved, failure = list[Due](), list[tuple[str, BatchPlatformError]](), None
        for partition in partitions:
            try:
                due.append(self._due(state, partition, version))
            except NoChampionError as error:
                unserved.append((partition.key, error))
            except BatchPlatformError as error:
                failure = error  # once those before it are committed
                break
        code_version = self.scoring_code_version
        yield from self._skipped([one for one in due if not force and one.is_held(code_version)])
        make_engine = engine_of(self.spec.engine.name)
        with (
            staging_folder(self.home, stamp.run_id) as folder,
            make_engine(self.spec, folder, stamp, watch=watch, bundles=self._bundles) as engine,
        ):
            run = ScoringRun(self.history, self.warehouse, engine, self.bundle_folder, code_version, stamp, force)
            asked = (one for one in due if force or not one.is_held(code_version))
            yield from run.committed(
                [
                    replace(one, challengers=challengers_of(self.spec, state.registry, one.partition, one.model))
                    for one in asked
                ]
            )
        if failure is not None:
            raise failure
        if unserved:
            raise told_of_all(unserved, len(due))

    def evaluate(self, partitions: Sequence[Partition], stamp: Stamp) -> Iterator[Evaluated]:
        """Hold scored partitions against the labels known now, oldest first.

        Raises:
            DataError: Partitions are not scored; the others are evaluated by then.
            SourceError: `labels.sql` fails.
        """
        if not partitions:
            return
        group, left = list[Evaluated](), dict.fromkeys(partition.key for partition in partitions)
        publish(self.home)
        for one in evaluated(self.history, partitions, stamp):
            group.append(one)
            left.pop(one.partition.key, None)
            if is_full(len(group), sum(done.run.rows_scored for done in group)):
                yield from self._commit_evaluations(group)
                group = []
        yield from self._commit_evaluations(group)
        if left:
            unscored = [(key, not_scored(self.spec.name, key)) for key in left]
            raise told_of_all(unscored, len(partitions) - len(left))

    def publish(self) -> None:
        """Bring the readers' copy up to date."""
        publish(self.home)

    def _build(self, session: FeatureSession, partition: Partition, stamp: Stamp) -> Built:
        sources = self.builder.sources.versions(partition)
        file = session.write(partition, self.home.features(self.spec.name))
        build = FeatureBuild(
            pipeline=self.spec.name,
            partition_key=partition.key,
            rows=file.rows,
            sha256=file.sha256,
            file_bytes=file.path.stat().st_size,
            code_version=self.builder.code_version,
            sources=json.dumps(sources, sort_keys=True),
            built_at=stamp.now(),
            run_id=stamp.run_id,
            xxh3=file.xxh3,
        )
        return Built(partition, build, skipped=False, columns=file.columns)

    def _record(self, group: list[Built], superseded: Mapping[str, list[Path]]) -> Iterator[Built]:
        """Record builds; then remove the files of earlier ones, but for the last before: a run may be reading it."""
        if group:
            self.warehouse.record_features([built.build for built in group])
        for built in group:
            for file in superseded.get(built.partition.key, ()):
                if file != self.history.file(built.build):  # the sources may be as they were once
                    file.unlink(missing_ok=True)
        yield from group

    def _due(self, state: State, partition: Partition, version: str | None) -> Due:
        """What scores a partition, from what: the champion or a given version, and the recorded features."""
        registry = state.registry
        model = registry.present(version) if version else registry.require_champion(partition.start, partition.key)
        (build,) = self.history.require(state.features, partition)
        return Due(partition, model, build, state.scores.get(partition.key))

    def _skipped(self, held: Sequence[Due]) -> Iterator[Committed]:
        if not held:
            return
        with self.warehouse.open() as con:
            distributions = committed_distributions(con, self.spec.name, [one.partition.key for one in held])
        for one in held:
            if one.standing is not None:
                scores = distributions.get(one.partition.key)
                yield Committed(one.partition, one.standing, skipped=True, scores=scores)

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
        """Where a version's bundle lies, which scores so many rows."""
        folder = self.home.bundle(self.spec.name, version.version)
        return BundleFolder(version.version, folder, version.sha256, rows, self._trusts(version))

    def _trusts(self, version: Version) -> bool:
        """Whether the files of a version may run code; the registry is asked only where it matters."""
        if self.spec.model.allow_pickle or not any(one.allow_pickle for one in self.spec.challengers):
            return self.spec.model.allow_pickle
        with self.warehouse.open() as con:
            return trusted(self.spec, read_registry(con, self.spec.name), version)

    def _commit_evaluations(self, group: Sequence[Evaluated]) -> Iterator[Evaluated]:
        if group:
            self.warehouse.commit_evaluations(self.spec.name, [one.run for one in group], measure_tables(group))
        yield from group
