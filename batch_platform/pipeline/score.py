"""The step that scores partitions: which of them are due, by which models, and what a commit changes beside the scores."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import History
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Version, read_registry
from batch_platform.pipeline.former_partitions import require_no_former_partitions
from batch_platform.pipeline.set_apart import setting_apart
from batch_platform.planning.artifacts import code_version_of
from batch_platform.planning.state import State
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.partition import Watch
from batch_platform.scoring.run import BundleOf, Committed, Due, ScoringRun, Unscored, challengers_of, read_committed
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import drop_scores
from batch_platform.warehouse.ledger import ScoreRun, read_latest
from batch_platform.warehouse.lock import staging_folder

BACKTEST_TABLES = ("backtests", "backtest_scores")  # tables of `backtest`, which says how a model would have done


@dataclass(frozen=True)
class ScoringStep:
    """The scoring of partitions in one run; they are committed in groups."""

    history: History
    warehouse: Warehouse
    state: State
    stamp: Stamp
    bundle_folder: BundleOf
    bundles: dict[str, Bundle]  # bundles that are open, by version; those that the step opens are added

    def committed(
        self, partitions: Sequence[Partition], *, force: bool, version: str | None, watch: Watch | None
    ) -> Generator[Committed]:
        """Score partitions, oldest first, and yield those that are up to date before all others; see `Pipeline.score`."""
        spec, state, stamp = self.history.spec, self.state, self.stamp
        require_no_former_partitions(spec, state.scores.values())
        named = state.registry.present(version) if version else None
        due, held = list[Due](), list[Due]()
        make_engine = engine_of(spec.engine.name)
        with (
            staging_folder(self.history.home, stamp.run_id) as folder,
            make_engine(spec, folder, stamp, watch=watch, bundles=self.bundles) as engine,
            setting_apart(spec, self.warehouse, state.declared.text, "predictions", stamp, len(partitions)) as apart,
        ):  # what is set apart is recorded while the staged files of rejected rows still exist
            for partition in partitions:
                with apart.attempt(partition.key, tried=False):
                    item = self._due(partition, named)
                    is_held = (
                        not force
                        and partition.key not in state.incomplete
                        and item.is_held(code_version_of(state, item.model.version), state.declared.decision_rule)
                    )
                    (held if is_held else due).append(item)
            apart.up_to_date.update(
                item.partition.key for item in held if ("predictions", item.partition.key) in state.failures
            )
            standing = [item.standing for item in held if item.standing is not None]
            commits = state.commits(spec, self.history.home, standing)
            if standing:
                with self.warehouse.open() as con:
                    skipped = read_committed(con, commits, skipped=True)
                yield from skipped
            run = ScoringRun(
                self.history,
                self.warehouse,
                engine,
                self.bundle_folder,
                partial(code_version_of, state),
                stamp,
                force,
                commits,
                self._clear if state.scored_by_retired else None,
                state.declared.decision_rule,
            )
            due = [
                replace(item, challengers=challengers_of(spec, state.registry, item.partition, item.model))
                for item in due
            ]
            for outcome in run.committed(due):
                if isinstance(outcome, Unscored):
                    apart.add(outcome.partition.key, outcome.error, outcome.refused)
                else:
                    yield outcome

    def _due(self, partition: Partition, version: Version | None) -> Due:
        """A partition to score with a version, by default its champion.

        Raises:
            NoChampionError: No approved model serves it.
            DataError: Its features are not built, or could not be built by this run.
        """
        state = self.state
        model = version or state.registry.require_champion(partition.start, partition.key)
        failure = state.failures.get(("features", partition.key))
        if failure is not None and (failure.run_id == self.stamp.run_id or partition.key not in state.features):
            raise DataError(failure.reason, hint=failure.hint)
        (build,) = self.history.require(state.features, partition)
        standing, stretch = state.scores.get(partition.key), state.registry.timeline.at(partition.start)
        return Due(partition, model, build, standing, stretch if stretch and stretch.version == model else None)

    def _clear(self, con: duckdb.DuckDBPyConnection) -> None:
        """Delete what retired versions scored: their predictions are of another type than the next ones."""
        spec = self.history.spec
        retired = read_registry(con, spec.name).retired
        runs = read_latest(con, ScoreRun, spec.name, self.state.scored_by_retired)
        if outdated := [key for key, run in runs.items() if run.model_version in retired]:
            drop_scores(con, spec.name, outdated, but=BACKTEST_TABLES)
