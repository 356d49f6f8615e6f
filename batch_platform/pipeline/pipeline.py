"""The steps of one pipeline: build features, train, score and evaluate partitions.

Features, models, scoring, registry and warehouse meet here. Dagster's assets call these steps, and a notebook could. A
step takes many partitions, commits them in groups and yields the record of each partition as soon as it is committed.
What is up to date is skipped unless forced. A partition that fails does not hold up the others.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.history import History
from batch_platform.features.sources.opening import Sources
from batch_platform.models.bundle import Bundle
from batch_platform.models.native_threads import one_thread
from batch_platform.models.registry import Promotion, Version, read_registry, record_decisions
from batch_platform.monitoring.catalogue import is_table, settle_measures
from batch_platform.monitoring.measure import Commits
from batch_platform.monitoring.pooled import forget_periods, pool
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.build import Built, FeatureStep
from batch_platform.pipeline.evaluate import Evaluated, evaluated, measure_tables, rows_beside
from batch_platform.pipeline.former_partitions import require_no_former_partitions
from batch_platform.pipeline.plan import Plan, awaited_labels, make_plan
from batch_platform.pipeline.reading import StateReader, changed_since, record_fingerprints
from batch_platform.pipeline.set_apart import SetApart, setting_apart
from batch_platform.pipeline.state import State, checked, features_due
from batch_platform.pipeline.status import committed_status, status_rows
from batch_platform.pipeline.train import Trained, TrainedChallenger, TrainingStep
from batch_platform.pipeline.wanted import PlanRequest, require_takeable, with_snapshots_over
from batch_platform.scoring.challengers import challengers_of
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.orders import BundleFolder, Watch
from batch_platform.scoring.run import Committed, Due, ScoringRun, Unscored, is_full, read_committed
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.dropping import drop_scores
from batch_platform.warehouse.failures import FailedStep
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun, read_latest, replace_statuses
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.staging import staging_folder

BACKTEST_TABLES = ("backtests", "backtest_scores")  # tables of `backtest`, which says how a model would have done
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
        form = self.spec.model_dump_json(include={"features": {"key", "time"}, "predictions": {"keep"}})
        bounds = {"columns": {"__all__": {"nullable", "min", "max"}}}
        rules = self.spec.model_dump_json(include={"features": bounds})
        return "-".join(sha256(part.encode()).hexdigest()[:8] for part in (f"{SCORING_VERSION}\0{form}", rules))

    @cached_property
    def declared(self) -> str:
        """A hash of the whole declaration and its SQL: what failed may succeed once it changes."""
        labels = self.builder.labels_query
        parts = (self.spec.model_dump_json(), self.builder.code_version, "" if labels is None else labels.text)
        return sha256("\0".join(parts).encode()).hexdigest()[:12]

    @cached_property
    def _reader(self) -> StateReader:
        return StateReader(self.history, self.warehouse, self.scoring_code_version, self.declared)

    def carrying(self, work: str) -> AbstractContextManager[None]:
        """Carry one state through a piece of work; see `StateReader.carrying`."""
        return self._reader.carrying(work)

    def state(self, *, recheck: bool = False) -> State:
        """The records now, compared with the files of features and sources; waits for the warehouse.

        With `recheck`, every partition is compared with its sources, also those that are older than `late` says.
        """
        return self._reader.state(recheck=recheck)

    def published_state(self, *, recheck: bool = False, most_bytes: int | None = None) -> State:
        """The same as it was last published: waits for no writer and writes nothing; empty if nothing is published.

        Sources of more than `most_bytes` whose files changed are held to be as the last run found them.
        """
        return checked(self.history, self.published_ledgers(), recheck=recheck, most_bytes=most_bytes)

    def published_ledgers(self) -> State:
        """The same without a look at any file: every file is taken to be as recorded."""
        return self._reader.published()

    def conclude(self, now: datetime) -> tuple[State, Plan]:
        """End a step: bring `partition_status` and the published copy up to date; returns the state and the plan for it."""
        return self._conclude(self.state(), now)

    def _conclude(self, state: State, now: datetime) -> tuple[State, Plan]:
        """Write how every partition stands, except those that another run committed since the state was read."""
        name, plan = self.spec.name, make_plan(self.spec, state, PlanRequest(now))
        rows = {row.partition_key: row for row in status_rows(state, plan, now)}
        with self.warehouse.transaction() as con:
            others = changed_since(con, name, state)
            if others is not None:
                record_fingerprints(con, name, state)
                own = [row for key, row in rows.items() if key not in others]
                replace_statuses(con, name, own, rows.keys() - others if others else None)
        if others is None:  # what was planned is out of date
            return self.conclude(now)
        publish(self.home)
        return state, plan

    def decide(self, decision: Promotion, seen: State, *others: Promotion) -> None:
        """Record decisions on registered versions, made on a state that was `seen`, and publish what they mean for partitions."""
        with self.warehouse.transaction() as con:
            record_decisions(con, [decision, *others])
        self._conclude(self._reader.renewed(seen), decision.decided_at)

    def build_features(self, partitions: Sequence[Partition], stamp: Stamp, *, force: bool = False) -> Iterator[Built]:
        """Build the features of partitions, oldest first; one that fails alone is set apart, see `setting_apart`.

        Each is compared with its sources, however old it is.

        Raises:
            SourceError: A source cannot be read, or the SQL fails.
            DataError: Keys are not unique, or a time is null or outside its partition.
        """
        if not partitions:
            return
        state = with_snapshots_over(self.spec, self.state(), stamp.at)
        if not force and any(features_due(state, partition) is None for partition in partitions):
            state = with_snapshots_over(self.spec, self.state(recheck=True), stamp.at)
        due = {partition.key for partition in partitions if force or features_due(state, partition) is not None}
        require_takeable(self.spec, [partition for partition in partitions if partition.key in due], stamp.at)
        group: list[Built] = []
        with (
            self.setting_apart("features", stamp, len(partitions)) as apart,
            staging_folder(self.home, stamp.run_id) as folder,
            closing(
                FeatureStep(self.history, state, stamp, apart, force).builds(partitions, due, folder / "spill")
            ) as builds,
        ):
            try:
                for built in builds:
                    if built.skipped:
                        yield built
                        continue
                    group.append(built)
                    if is_full(len(group), sum(member.build.rows for member in group)):
                        full, group = group, []
                        yield from self._record(full)
            except Exception:
                yield from self._record(group)
                raise
            yield from self._record(group)

    def train(self, period: Partition, stamp: Stamp, *, params: dict[str, Any] | None = None) -> Trained:
        """Train or import the model of a serving period and its challengers, submit them to the gate and register them.

        They learn only from what is known at the start of the period; `params` replace or extend the declared parameters.
        If there is a version already, a failure with the declared parameters is recorded, so that the training
        is not repeated until the declaration changes; a failure of a machine is not.

        Raises:
            TrainingRefusedError: No model can be trained on the data; nothing is registered.
            DataError: Features of the training window are missing: no model learns from a window with gaps.
            PublishingError: The model is registered here, but not in MLflow.
        """
        return self._training_step(stamp).train(period, params or {})

    def challenge(self, period: Partition, stamp: Stamp) -> tuple[TrainedChallenger, ...]:
        """Train the challengers that a serving period lacks; its model stays as it is."""
        return self._training_step(stamp).challenge(period)

    def _training_step(self, stamp: Stamp) -> TrainingStep:
        return TrainingStep(self.history, self.warehouse, self.state(), stamp, self.bundle)

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
        state, code_version, due = self.state(), self.scoring_code_version, list[Due]()
        require_no_former_partitions(self.spec, state.scores.values())
        named = state.registry.present(version) if version else None
        make_engine = engine_of(self.spec.engine.name)

        def settle(con: duckdb.DuckDBPyConnection, runs: Sequence[ScoreRun]) -> None:
            decided = replace(state, registry=read_registry(con, self.spec.name))
            rows = [committed_status(self.spec, decided, run, stamp.now()) for run in runs]
            replace_statuses(con, self.spec.name, rows, [run.partition_key for run in runs])

        def clear(con: duckdb.DuckDBPyConnection) -> None:
            self._clear(con, state.scored_by_retired)

        with (
            staging_folder(self.home, stamp.run_id) as folder,
            make_engine(self.spec, folder, stamp, watch=watch, bundles=self._bundles) as engine,
            self.setting_apart("predictions", stamp, len(partitions)) as apart,
        ):  # what is set apart is recorded while the staged files of rejected rows still exist
            for partition in partitions:
                with apart.attempt(partition.key, tried=False):
                    due.append(self._due(state, partition, named, stamp))
            again = {
                item.partition.key for item in due if force or not item.is_held(code_version)
            } | state.incomplete.keys()
            held = [item for item in due if item.partition.key not in again]
            apart.up_to_date.update(
                item.partition.key for item in held if ("predictions", item.partition.key) in state.failures
            )
            commits = self.commits(state, [item.standing for item in held if item.standing is not None])
            yield from self._skipped(commits)
            asked = [
                replace(item, challengers=challengers_of(self.spec, state.registry, item.partition, item.model))
                for item in due
                if item.partition.key in again
            ]
            run = ScoringRun(
                self.history,
                self.warehouse,
                engine,
                self.bundle_folder,
                code_version,
                stamp,
                force,
                commits,
                settle,
                clear if state.scored_by_retired else None,
            )
            for outcome in run.committed(asked):
                if isinstance(outcome, Unscored):
                    apart.add(outcome.partition.key, outcome.error, outcome.refused)
                else:
                    yield outcome

    def _clear(self, con: duckdb.DuckDBPyConnection, partition_keys: Collection[str]) -> None:
        """Delete what retired versions scored of some partitions: their predictions are of another type than the next ones."""
        name = self.spec.name
        retired = read_registry(con, name).retired
        runs = read_latest(con, ScoreRun, name, partition_keys)
        if outdated := [key for key, run in runs.items() if run.model_version in retired]:
            drop_scores(con, name, outdated, but=BACKTEST_TABLES)
            forget_periods(con, self.spec, outdated)

    def _due(self, state: State, partition: Partition, version: Version | None, stamp: Stamp) -> Due:
        """A partition to score with a version, by default its champion.

        Raises:
            NoChampionError: No approved model serves it.
            DataError: Its features are not built, or could not be built by this run.
        """
        model = version or state.registry.require_champion(partition.start, partition.key)
        failure = state.failures.get(("features", partition.key))
        if failure is not None and (failure.run_id == stamp.run_id or partition.key not in state.features):
            raise DataError(failure.reason, hint=failure.hint)
        (build,) = self.history.require(state.features, partition)
        standing, stretch = state.scores.get(partition.key), state.registry.timeline.at(partition.start)
        return Due(partition, model, build, standing, stretch if stretch and stretch.version == model else None)

    def evaluate(self, partitions: Sequence[Partition], stamp: Stamp) -> Iterator[Evaluated]:
        """Compare scored partitions with their labels, oldest first; see `setting_apart` for those that fail.

        Those whose labels are awaited, as `awaited_labels` says, are left as they are.

        Raises:
            DataError: Some partitions are not scored.
            SourceError: `labels.sql` fails.
        """
        awaited = self.awaited_labels(partitions, stamp.at)
        partitions = [partition for partition in partitions if partition.key not in awaited]
        if not partitions:
            return
        group = list[Evaluated]()
        publish(self.home)
        with self.setting_apart("performance", stamp, len(partitions)) as apart:
            try:
                for evaluation in evaluated(self.history, partitions, stamp, apart):
                    group.append(evaluation)
                    if is_full(len(group), sum(member.run.rows_scored for member in group)):
                        full, group = group, []
                        yield from self._commit_evaluations(full)
            except Exception:
                yield from self._commit_evaluations(group)
                raise
            yield from self._commit_evaluations(group)
            with one_thread():
                pool(self.spec, self.warehouse, stamp)

    def awaited_labels(self, partitions: Sequence[Partition], now: datetime) -> dict[str, str]:
        """Say what the evaluation of partitions waits for at a time, by partition key; those that can be evaluated are left out."""
        sources = self.builder.awaited_label_sources
        reasons = {partition.key: awaited_labels(self.spec, partition, now, sources) for partition in partitions}
        return {key: reason for key, reason in reasons.items() if reason is not None}

    def setting_apart(self, step: FailedStep, stamp: Stamp, total: int) -> AbstractContextManager[SetApart]:
        """A step over so many partitions, in which a partition that fails alone does not hold up the others.

        At the end the failures are recorded, and if there are any, raised as one error that names each partition. An error
        that is not about one partition ends the step at once.
        """
        return setting_apart(self.spec, self.warehouse, self.declared, step, stamp, total)

    def publish(self) -> None:
        """Bring the published copy up to date."""
        publish(self.home)

    def _record(self, group: list[Built]) -> Iterator[Built]:
        """Record builds. The files of earlier builds stay for the runs that may be reading them; `gc` removes them."""
        if group:
            self.warehouse.record_features([built.build for built in group])
        yield from group

    def commits(self, state: State, runs: Sequence[ScoreRun]) -> Commits:
        """Committed partitions, and what is known beside them by the state of the pipeline."""
        past = Past(self.spec.partitions.calendar, state.scores.values())
        return Commits(
            self.spec, self.home, runs, past, {version.version: version for version in state.registry.versions}
        )

    def _skipped(self, commits: Commits) -> list[Committed]:
        if not commits.runs:
            return []
        with self.warehouse.open() as con:
            return read_committed(con, commits, skipped=True)

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

    def _commit_evaluations(self, group: Sequence[Evaluated]) -> Iterator[Evaluated]:
        if group:
            name, runs = self.spec.name, [evaluation.run for evaluation in group]
            keys, further = [run.partition_key for run in runs], rows_beside(group)
            tables = measure_tables(group) | {table: rows for table, rows in further.items() if is_table(table)}
            self.warehouse.commit_evaluations(name, runs, tables, lambda con: settle_measures(con, name, keys, further))
        yield from group
