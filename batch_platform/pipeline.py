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

from batch_platform.errors import SourceError, WrongUseError
from batch_platform.evaluation import Evaluated, evaluated, metric_rows
from batch_platform.features import FeatureBuilder, FeatureFile, FeatureSession
from batch_platform.history import History
from batch_platform.home import Home
from batch_platform.learning import Trained, train_version
from batch_platform.ledger import EvaluationRun, FeatureBuild, ScoreRun, read_latest
from batch_platform.models.bundle import Bundle, open_bundle
from batch_platform.partitions import Partition
from batch_platform.plan import State, features_due
from batch_platform.publish import publish
from batch_platform.registry import Registry, Version, read_registry, register
from batch_platform.scoring import Stamp, stage
from batch_platform.sources import Sources
from batch_platform.spec import PipelineSpec
from batch_platform.staging import staging_folder
from batch_platform.warehouse import StagedScores, Warehouse

SCORING_VERSION = 1  # raise it when the same features and model would give other rows
GROUP_PARTITIONS = 50
GROUP_ROWS = 1_000_000


@dataclass(frozen=True)
class Built:
    """A partition of features, as recorded."""

    partition: Partition
    build: FeatureBuild
    skipped: bool  # it was already as asked
    columns: dict[str, str] = field(default_factory=dict[str, str])  # Arrow types; empty where skipped


@dataclass(frozen=True)
class Committed:
    """A partition of predictions, as committed."""

    partition: Partition
    run: ScoreRun
    skipped: bool  # the warehouse already held these rows
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    ignored: tuple[str, ...] = ()


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
            features={key: build for key, build in features.items() if self.history.is_recorded(build)},
            scores=scores,
            evaluations=evaluations,
            registry=registry,
            features_code_version=self.builder.code_version,
            scoring_code_version=self.scoring_code_version,
            source_versions=self._source_versions(features),
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
        group: list[Built] = []
        with self.builder.session(partitions[0]) as session:
            for partition in partitions:
                if not force and features_due(state, partition) is None:
                    yield Built(partition, state.features[partition.key], skipped=True)
                    continue
                try:
                    group.append(self._build(session, partition, stamp))
                except Exception:
                    yield from self._record(group)
                    raise
                if _full(len(group), sum(built.build.rows for built in group)):
                    yield from self._record(group)
                    group = []
        yield from self._record(group)

    def train(self, period: Partition, stamp: Stamp, *, params: dict[str, Any] | None = None) -> Trained:
        """Train the model of a serving period, register it, and approve it if it passes the gate.

        Args:
            period: The model learns only from what is known at its start.
            stamp: Of the run.
            params: Replace or add to the declared parameters.

        Raises:
            TrainingRefusedError: The data cannot give a model; nothing is registered.
        """
        parameters = {**self.spec.model.params, **(params or {})}
        trained = train_version(
            self.history,
            state=self.state(),
            period=period,
            params=parameters,
            stamp=stamp,
            open_version=self.bundle,
        )
        register(self.warehouse, trained.version, trained.decision)
        return trained

    def score(
        self, partitions: Sequence[Partition], stamp: Stamp, *, force: bool = False, version: str | None = None
    ) -> Iterator[Committed]:
        """Score partitions, oldest first, each by its champion or by a given version.

        Args:
            partitions: What to score; their features are built.
            stamp: Of the run.
            force: Score even what the warehouse holds already, and let a partition become empty.
            version: Score by this one instead of the champion.

        Raises:
            NoChampionError: No approved model serves a partition.
            IntegrityError: A feature file or a bundle is not what was recorded.
            DataError: More rows are rejected than the budget allows, or columns are missing.
            WarehouseError: A newer run committed a partition meanwhile.
        """
        state = self.state()
        group: list[tuple[Committed, StagedScores]] = []
        with staging_folder(self.home, stamp.run_id) as folder:
            for partition in partitions:
                try:
                    model = self._model_for(state.registry, partition, version)
                    build = self.history.require(state.features, partition)
                    standing = state.scores.get(partition.key)
                    if standing and not force and self._holds(standing, model, build):
                        yield Committed(partition, standing, skipped=True)
                        continue
                    group.append(self._stage(partition, build, model, standing, folder=folder, stamp=stamp))
                except Exception:
                    yield from self._commit(group, stamp, force=force)
                    raise
                if _full(len(group), sum(scored.run.rows_in for scored, _ in group)):
                    yield from self._commit(group, stamp, force=force)
                    group = []
            yield from self._commit(group, stamp, force=force)

    def evaluate(self, partitions: Sequence[Partition], stamp: Stamp) -> Iterator[Evaluated]:
        """Hold scored partitions against the labels known now, oldest first.

        Raises:
            DataError: A partition is not scored.
            SourceError: `labels.sql` fails.
        """
        if not partitions:
            return
        group: list[Evaluated] = []
        for one in evaluated(self.history, publish(self.home), partitions, stamp):
            group.append(one)
            if _full(len(group), sum(done.run.rows_scored for done in group)):
                yield from self._commit_evaluations(group)
                group = []
        yield from self._commit_evaluations(group)

    def publish(self) -> None:
        """Bring the readers' copy up to date."""
        publish(self.home)

    def _build(self, session: FeatureSession, partition: Partition, stamp: Stamp) -> Built:
        sources = self.builder.sources.versions(partition)
        file = session.write(partition, self.history.file(partition))
        return Built(partition, self.built(partition, file, sources, stamp), skipped=False, columns=file.columns)

    def built(self, partition: Partition, file: FeatureFile, sources: Mapping[str, str], stamp: Stamp) -> FeatureBuild:
        """The record of a written feature file; the versions of its sources were read before it was."""
        stat = file.path.stat()
        return FeatureBuild(
            pipeline=self.spec.name,
            partition_key=partition.key,
            rows=file.rows,
            sha256=file.sha256,
            file_bytes=stat.st_size,
            file_mtime_ns=stat.st_mtime_ns,
            code_version=self.builder.code_version,
            sources=json.dumps(sources, sort_keys=True),
            built_at=stamp.now(),
            run_id=stamp.run_id,
        )

    def _record(self, group: list[Built]) -> Iterator[Built]:
        if group:
            self.warehouse.record_features([built.build for built in group])
        yield from group

    def _source_versions(self, builds: Mapping[str, FeatureBuild]) -> dict[str, str]:
        """As recorded in builds, but with the versions now of the sources that have a file for each partition.

        A build whose source files are gone is left out: they cannot give anything newer.
        """
        own = [name for name, source in self.spec.sources.items() if source.by_partition]
        if not own:
            return {}
        calendar = self.spec.partitions.calendar
        found: dict[str, str] = {}
        for key, build in builds.items():
            try:
                now = self.builder.sources.versions(calendar.named(key))
            except (SourceError, WrongUseError):
                continue
            found[key] = json.dumps(json.loads(build.sources) | {name: now[name] for name in own}, sort_keys=True)
        return found

    def _model_for(self, registry: Registry, partition: Partition, version: str | None) -> Version:
        return registry.present(version) if version else registry.require_champion(partition.start, partition.key)

    def bundle(self, version: Version) -> Bundle:
        """A version's bundle, loaded once, with the rules on its columns as they are declared now.

        Raises:
            IntegrityError: A byte differs from what was registered.
            WrongUseError: It is of other libraries or of an unknown flavour.
        """
        if version.version not in self._bundles:
            bundle = open_bundle(self.home.bundle(self.spec.name, version.version), version.sha256)
            self._bundles[version.version] = replace(bundle, contract=bundle.contract.under(self.spec.features.columns))
        return self._bundles[version.version]

    def _holds(self, standing: ScoreRun, model: Version, build: FeatureBuild) -> bool:
        """Whether the warehouse holds what scoring these features by this model would give."""
        return (standing.model_sha256, standing.input_hash, standing.code_version) == (
            model.sha256,
            build.sha256,
            self.scoring_code_version,
        )

    def _stage(  # noqa: PLR0913 - each is one fact of the partition
        self,
        partition: Partition,
        build: FeatureBuild,
        model: Version,
        standing: ScoreRun | None,
        *,
        folder: Path,
        stamp: Stamp,
    ) -> tuple[Committed, StagedScores]:
        staged = stage(
            spec=self.spec,
            partition=partition,
            features=self.history.file(partition),
            sha256=build.sha256,
            bundle=self.bundle(model),
            folder=folder,
            stamp=stamp,
        )
        run = ScoreRun(
            pipeline=self.spec.name,
            partition_key=partition.key,
            partition_start=partition.start,
            partition_end=partition.end,
            model_version=model.version,
            model_sha256=model.sha256,
            input_hash=build.sha256,
            code_version=self.scoring_code_version,
            engine="local",
            rows_in=staged.rows_in,
            rows_scored=staged.rows_scored,
            rows_rejected=staged.rows_rejected,
            in_sample=model.trained_from < partition.end and partition.start < model.trained_until,
            started_at=staged.started_at,
            committed_at=staged.started_at,  # until it is committed
            run_id=stamp.run_id,
        )
        scores = StagedScores(staged.predictions, staged.rejected, run, 0 if standing is None else standing.seq)
        return Committed(partition, run, False, staged.reasons, staged.unseen, staged.ignored), scores

    def _commit(
        self, group: Sequence[tuple[Committed, StagedScores]], stamp: Stamp, *, force: bool
    ) -> Iterator[Committed]:
        if not group:
            return
        staged = [scores for _, scores in group]
        runs = self.warehouse.commit_scores(self.spec.name, staged, may_empty=force, clock=stamp.now)
        for (scored, scores), run in zip(group, runs, strict=True):
            scores.predictions.unlink()
            scores.rejected.unlink()
            yield replace(scored, run=run)

    def _commit_evaluations(self, group: Sequence[Evaluated]) -> Iterator[Evaluated]:
        if group:
            self.warehouse.commit_evaluations(self.spec.name, [one.run for one in group], metric_rows(group))
        yield from group


def _full(partitions: int, rows: int) -> bool:
    """Whether a group is large enough to be committed."""
    return partitions >= GROUP_PARTITIONS or rows >= GROUP_ROWS
