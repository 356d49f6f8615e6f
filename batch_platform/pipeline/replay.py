"""Score again only the rows that were rejected, after a fix, and move them to the predictions in one transaction.

The fix may lie in the sources or in the declared rules, so the features are built once more beside the recorded ones.
A partition is replayed only where the rest of it stands as a whole scoring would leave it: same champion, same form of
the predictions, the scored rows unchanged and still within the rules. Otherwise it is left as it is, with the reason.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureFile, FeatureSession
from batch_platform.features.lake import BATCH_ROWS, aside_of, file_sha256
from batch_platform.models.bundle import Bundle
from batch_platform.models.contract import Contract
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import State
from batch_platform.scoring.challenger_runs import Challenged, Challengers, added, contenders, staged_challengers
from batch_platform.scoring.challenger_tables import ChallengerRun, read_challenger_runs, replace_challengers
from batch_platform.scoring.engines.local import stage
from batch_platform.scoring.partition import Order, Staged
from batch_platform.scoring.rejected_rows import rejected_keys, rows_as_json
from batch_platform.scoring.run import Committed
from batch_platform.warehouse.database import StagedScores
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.staging import staging_folder

OTHER_FORM = "the form of the predictions is declared otherwise now"
OTHER_FEATURES = "its features were built again since it was scored"
OTHER_RULES = "rows that were scored break the rules as they are declared now"
OTHER_ROWS = "rows that were scored are other ones in the features now"
FEWER_ROWS = "rows that were scored are no longer among the features"
OTHER_KEYS = "the recorded keys of its rejected rows are not those of its features"


def replay(pipeline: Pipeline, partitions: Sequence[Partition], stamp: Stamp) -> Iterator[Committed]:
    """Score the rejected rows of partitions again, oldest first; yields each partition as it is committed.

    Partitions without rejected rows, and those in which nothing was fixed, are passed over.

    Raises:
        DataError: Some partitions could not be replayed; raised after all others are committed, with the reasons.
        SourceError: A source cannot be read, or the SQL fails.
        IntegrityError: A feature file or a bundle is not what was recorded.
        WarehouseError: A newer run committed a partition meanwhile.
    """
    if not partitions:
        return
    state = pipeline.state()
    left: dict[str, list[str]] = {}
    with (
        staging_folder(pipeline.home, stamp.run_id) as folder,
        pipeline.builder.session(partitions[0], spill=folder / "spill") as session,
    ):
        one = _Replay(pipeline, state, session, folder, stamp)
        for partition in partitions:
            try:
                if (committed := one.replayed(partition)) is not None:
                    yield committed
            except _LeftAsItIsError as reason:
                left.setdefault(str(reason), []).append(partition.key)
    if left:
        reasons = "; ".join(f"{listed(keys)}: {reason}" for reason, keys in left.items())
        msg = f"{pipeline.spec.name}: partitions were left as they are: {reasons}."
        first, last = min(map(min, left.values())), max(map(max, left.values()))
        hint = f"batch-platform run {pipeline.spec.name} --from {first} --to {last} --force scores all their rows."
        raise DataError(msg, hint=hint)


class _LeftAsItIsError(Exception):
    """Why a partition cannot be replayed honestly."""


@dataclass(frozen=True)
class _Picked:
    """The rows of a partition's features that were rejected before, in a file of their own; and how many others."""

    file: Path
    rows: int
    others: int


@dataclass(frozen=True)
class _Replay:
    """What the partitions of one replay share."""

    pipeline: Pipeline
    state: State
    session: FeatureSession
    folder: Path
    stamp: Stamp

    def replayed(self, partition: Partition) -> Committed | None:
        standing = self.state.scores.get(partition.key)
        if standing is None or not standing.rows_rejected:
            return None
        bundle = self._bundle(partition, standing)
        sources = self.pipeline.builder.sources.versions(partition)
        recorded = self.pipeline.history.file(partition)
        built = self.session.write(partition, aside_of(recorded))
        try:
            if built.sha256 == standing.input_hash and standing.code_version == self.pipeline.scoring_code_version:
                return None
            picked = self._picked(partition, standing, built, bundle.contract)
            beside = self._beside(partition, standing)
            staged = self._staged(partition, picked, bundle, beside)
            if built.sha256 != standing.input_hash:
                built = replace(built, path=built.path.replace(recorded))
                build = self.pipeline.built(partition, built, sources, self.stamp)
                self.pipeline.warehouse.record_features([build])
        finally:
            if built.path != recorded:
                built.path.unlink(missing_ok=True)
        return self._committed(standing, picked, staged, built, beside)

    def _bundle(self, partition: Partition, standing: ScoreRun) -> Bundle:
        """The champion's, which must be what scored the partition, in the form that is declared now."""
        champion = self.state.registry.champion(partition.start)
        if champion is None or champion.version != standing.model_version:
            served_by = "no model serves it" if champion is None else f"the champion is {champion.version}"
            reason = f"scored by {standing.model_version}, {served_by}"
            raise _LeftAsItIsError(reason)
        form = self.pipeline.scoring_code_version.partition("-")[0]
        if standing.code_version.partition("-")[0] != form:
            raise _LeftAsItIsError(OTHER_FORM)
        (build,) = self.pipeline.history.require(self.state.features, partition)
        if build.sha256 != standing.input_hash:
            raise _LeftAsItIsError(OTHER_FEATURES)
        return self.pipeline.bundle(champion)

    def _picked(self, partition: Partition, standing: ScoreRun, built: FeatureFile, contract: Contract) -> _Picked:
        """Take the rows apart, and hold the others against what was scored."""
        spec = self.pipeline.spec
        with self.pipeline.warehouse.open() as con:
            rejected = rejected_keys(con, spec.name, partition.key)
        same_rules = standing.code_version == self.pipeline.scoring_code_version
        scored = _Unchanged(None if built.sha256 == standing.input_hash else self._scored(partition, rejected))
        file, counts = self.folder / f"{partition.key}.picked.parquet", Counter[str]()
        with pq.ParquetFile(built.path) as features, pq.ParquetWriter(file, features.schema_arrow) as writer:
            for rows in _batches(features):
                again = _was_rejected(rows, spec.features.key, rejected)
                writer.write_table(rows.filter(again).to_arrow().cast(features.schema_arrow))
                others = rows.filter(~again)
                counts["picked"] += rows.height - others.height
                counts["others"] += others.height
                if not same_rules and contract.split(others).rejected.height:
                    raise _LeftAsItIsError(OTHER_RULES)
                scored.require(others)
        scored.require_end()
        if counts["others"] != standing.rows_scored:
            raise _LeftAsItIsError(OTHER_KEYS)
        return _Picked(file, counts["picked"], counts["others"])

    def _scored(self, partition: Partition, rejected: frozenset[str]) -> Iterator[pl.DataFrame]:
        """The rows of the recorded features that were scored, in their order."""
        self.pipeline.history.require_unchanged(self.state.features[partition.key], partition)
        with pq.ParquetFile(self.pipeline.history.file(partition)) as features:
            for rows in _batches(features):
                yield rows.filter(~_was_rejected(rows, self.pipeline.spec.features.key, rejected))

    def _beside(self, partition: Partition, standing: ScoreRun) -> "_Beside":
        """The challengers that scored the partition with the champion, by the versions that did."""
        with self.pipeline.warehouse.open() as con:
            runs = read_challenger_runs(con, standing.pipeline, partition.key)
        runs = [run for run in runs if run.run_id == standing.run_id]
        known = Challengers(self.pipeline.spec, self.state.registry, self.pipeline.bundle)
        return _Beside(tuple(known.again(run) for run in runs), {run.challenger: run for run in runs})

    def _staged(self, partition: Partition, picked: _Picked, bundle: Bundle, beside: "_Beside") -> Staged:
        """The picked rows, scored; the partition was within its budget before, and no row is rejected that was not."""
        spec = self.pipeline.spec
        unbounded = spec.features.model_copy(update={"max_rejected": 1.0})
        predictor = bundle.for_rows(picked.rows)
        rows = Counter({one.bundle.version: picked.rows for one in beside.challenged if one.bundle is not None})
        order = Order(
            partition=partition,
            features=picked.file,
            sha256=file_sha256(picked.file),
            rows=picked.rows,
            bundle=bundle,
            predictor=predictor,
            contenders=contenders(beside.challenged, rows),
        )
        return stage(order, spec.model_copy(update={"features": unbounded}), self.folder, self.stamp)

    def _committed(
        self, standing: ScoreRun, picked: _Picked, staged: Staged, built: FeatureFile, beside: "_Beside"
    ) -> Committed:
        run = replace(
            standing,
            input_hash=built.sha256,
            code_version=self.pipeline.scoring_code_version,
            rows_in=picked.others + staged.rows_in,
            rows_scored=picked.others + staged.rows_scored,
            rows_rejected=staged.rows_rejected,
            started_at=staged.started_at,
            run_id=self.stamp.run_id,
        )
        new = staged_challengers(beside.challenged, staged, standing.model_version, self.stamp)
        if picked.others:
            new = tuple(
                added(one, beside.runs[one.run.challenger], self.pipeline.spec, self.state.registry) for one in new
            )
        scores = StagedScores(staged.predictions, staged.rejected, run, standing.seq, kept=picked.others)
        (committed,) = self.pipeline.warehouse.commit_scores(
            standing.pipeline,
            [scores],
            may_empty=True,
            clock=self.stamp.now,
            in_transaction=partial(replace_challengers, challengers={run.partition_key: new}),
        )
        distributions = self.pipeline.distributions([committed.partition_key])
        return Committed(
            staged.partition,
            committed,
            skipped=False,
            reasons=staged.reasons,
            unseen=staged.unseen,
            scores=distributions.get(committed.partition_key),
            challengers=self._challengers(committed) if new else (),
        )

    def _challengers(self, committed: ScoreRun) -> tuple[ChallengerRun, ...]:
        """What the challengers made of all of the partition."""
        with self.pipeline.warehouse.open() as con:
            runs = read_challenger_runs(con, committed.pipeline, committed.partition_key)
        return tuple(run for run in runs if run.run_id == committed.run_id)


@dataclass(frozen=True)
class _Beside:
    """The challengers that scored a partition, and what they made of it, by name."""

    challenged: tuple[Challenged, ...]
    runs: dict[str, ChallengerRun]


class _Unchanged:
    """Holds frames against others, row by row, wherever the frames of either side end."""

    def __init__(self, expected: Iterator[pl.DataFrame] | None) -> None:
        """Take what is expected; None where there is nothing to hold anything against."""
        self._expected = expected
        self._ahead: pl.DataFrame | None = None

    def require(self, rows: pl.DataFrame) -> None:
        """Check that these rows are the next of the expected ones."""
        if self._expected is None:
            return
        while rows.height:
            ahead = self._next()
            shared = min(rows.height, 0 if ahead is None else ahead.height)
            if ahead is None or ahead.schema != rows.schema or not ahead.head(shared).equals(rows.head(shared)):
                raise _LeftAsItIsError(OTHER_ROWS)
            self._ahead, rows = ahead.slice(shared), rows.slice(shared)

    def require_end(self) -> None:
        """Check that no row is expected any more."""
        if self._expected is not None and self._next() is not None:
            raise _LeftAsItIsError(FEWER_ROWS)

    def _next(self) -> pl.DataFrame | None:
        while self._expected is not None and (self._ahead is None or not self._ahead.height):
            self._ahead = next(self._expected, None)
            if self._ahead is None:
                return None
        return self._ahead


def _batches(features: pq.ParquetFile) -> Iterator[pl.DataFrame]:
    for batch in features.iter_batches(batch_size=BATCH_ROWS):
        yield pl.DataFrame(batch)


def _was_rejected(rows: pl.DataFrame, key: Sequence[str], rejected: frozenset[str]) -> pl.Series:
    return rows_as_json(rows.select(key)).is_in(pl.Series(sorted(rejected), dtype=pl.String).implode())
