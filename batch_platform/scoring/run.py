"""One run of scoring: what is due goes through the stream, and is committed in groups of partitions.

A group is committed on a thread of its own while the next one is scored, one group at a time and in order. Decides
nothing about what is due or by which model.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import History
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Version
from batch_platform.monitoring.scores import ScoreDistribution, staged_distributions
from batch_platform.scoring.challenger_runs import Challenged, contenders, staged_challengers
from batch_platform.scoring.challenger_tables import ChallengerRun, replace_challengers
from batch_platform.scoring.engines.local import Stream
from batch_platform.scoring.partition import Order, Spent, Staged
from batch_platform.warehouse.database import StagedScores, Warehouse
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun

GROUP_PARTITIONS = 50
GROUP_ROWS = 1_000_000
LOCAL = "local"  # what the ledger says of the engine where nothing was out of the ordinary


@dataclass(frozen=True)
class Committed:
    """A partition of predictions, as committed."""

    partition: Partition
    run: ScoreRun
    skipped: bool  # the warehouse already held these rows
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    ignored: tuple[str, ...] = ()  # feature columns that nobody asked for
    spent: Spent = field(default_factory=Spent)  # nothing where skipped
    scores: ScoreDistribution | None = None  # None where it has no predictions
    challengers: tuple[ChallengerRun, ...] = ()  # what they made of it; nothing where skipped


_NOTHING = Future[list[Committed]]()  # has been committed
_NOTHING.set_result([])


@dataclass(frozen=True)
class Due:
    """A partition that is to be scored."""

    partition: Partition
    model: Version
    build: FeatureBuild
    standing: ScoreRun | None  # what the warehouse holds of it
    challengers: tuple[Challenged, ...] = ()  # that score it too

    def is_held(self, code_version: str) -> bool:
        """Whether the warehouse holds already what scoring it would give."""
        made_of = (self.model.sha256, self.build.sha256, code_version)
        held = self.standing
        return held is not None and (held.model_sha256, held.input_hash, held.code_version) == made_of


@dataclass(frozen=True)
class ScoringRun:
    """What the partitions of one run share.

    Args:
        history: Where the features lie.
        warehouse: Where the predictions go.
        bundle: Loads a version.
        code_version: Of the scoring.
        stamp: Of the run.
        force: Whether a partition may become empty.
    """

    history: History
    warehouse: Warehouse
    bundle: Callable[[Version], Bundle]
    code_version: str
    stamp: Stamp
    force: bool

    def committed(self, stream: Stream, due: Sequence[Due]) -> Generator[Committed]:
        """Score what is due, and commit it in groups; also what was scored before something fails."""
        rows = Counter[str]()
        for one in due:
            for version in (one.model, *(each.version for each in one.challengers)):
                rows[version.version if version else ""] += one.build.rows
        orders = (self._order(one, rows) for one in due)
        with ThreadPoolExecutor(1, "commit") as committer, closing(stream.staged(orders)) as results:
            yield from self._in_groups(committer, zip(due, results, strict=True))

    def _in_groups(self, committer: Executor, scored: Iterable[tuple[Due, Staged]]) -> Generator[Committed]:
        """Commit a group while the next one is scored; after a failure, what is staged is committed before it is raised."""
        group, behind = list[tuple[Due, Staged]](), _NOTHING
        try:
            try:
                for one in scored:
                    group.append(one)
                    full = is_full(len(group), sum(staged.rows_in for _, staged in group))
                    if full or behind.done():
                        ended, behind = behind, _NOTHING
                        yield from ended.result()
                    if full:
                        behind, group = committer.submit(self._commit, group), []
            except Exception:
                yield from behind.result()
                raise
            yield from behind.result()
        except Exception:
            yield from committer.submit(self._commit, group).result()
            raise
        yield from committer.submit(self._commit, group).result()

    def _order(self, due: Due, rows: Mapping[str, int]) -> Order:
        bundle = self.bundle(due.model)
        return Order(
            partition=due.partition,
            features=self.history.file(due.partition),
            sha256=due.build.sha256,
            rows=due.build.rows,
            bundle=bundle,
            predictor=bundle.for_rows(rows[bundle.version]),
            xxh3=due.build.xxh3,
            contenders=contenders(due.challengers, rows),
        )

    def _run(self, due: Due, staged: Staged) -> ScoreRun:
        """The ledger row of a scored partition."""
        partition, model = due.partition, due.model
        return ScoreRun(
            pipeline=self.history.spec.name,
            partition_key=partition.key,
            partition_start=partition.start,
            partition_end=partition.end,
            model_version=model.version,
            model_sha256=model.sha256,
            input_hash=due.build.sha256,
            code_version=self.code_version,
            engine=_engine(self.bundle(model)),
            rows_in=staged.rows_in,
            rows_scored=staged.rows_scored,
            rows_rejected=staged.rows_rejected,
            in_sample=model.has_seen(partition),
            started_at=staged.started_at,
            committed_at=staged.started_at,  # until it is committed
            run_id=self.stamp.run_id,
        )

    def _commit(self, group: Sequence[tuple[Due, Staged]]) -> list[Committed]:
        if not group:
            return []
        distributions = staged_distributions([staged.predictions for _, staged in group])
        began = perf_counter()
        challengers = {
            due.partition.key: staged_challengers(due.challengers, staged, due.model.version, self.stamp)
            for due, staged in group
        }
        scores = [
            StagedScores(
                predictions=staged.predictions,
                rejected=staged.rejected,
                run=self._run(due, staged),
                seen_seq=0 if due.standing is None else due.standing.seq,
                beside=tuple(one.file for one in challengers[due.partition.key] if one.file is not None),
            )
            for due, staged in group
        ]
        runs = self.warehouse.commit_scores(
            self.history.spec.name,
            scores,
            may_empty=self.force,
            clock=self.stamp.now,
            in_transaction=partial(replace_challengers, challengers=challengers),
        )
        each = (perf_counter() - began) / len(group)
        for one in scores:
            one.unlink()
        return [
            Committed(
                due.partition,
                run,
                skipped=run.run_id != self.stamp.run_id,  # another run committed just these rows meanwhile
                reasons=staged.reasons,
                unseen=staged.unseen,
                ignored=staged.ignored,
                spent=replace(staged.spent, commit=each, clock=staged.spent.clock + each),
                scores=distributions.get(due.partition.key),
                challengers=tuple(one.run for one in challengers[due.partition.key] if run.run_id == self.stamp.run_id),
            )
            for (due, staged), run in zip(group, runs, strict=True)
        ]


def _engine(bundle: Bundle) -> str:
    """What computed the scores, with what it should not have, and without what it should have."""
    others, native = bundle.other_libraries, bundle.not_compiled
    told = [f"allowed other libraries than in training: {others}"] if others else []
    told += [f"not compiled, since on this machine {native}"] if native else []
    return "; ".join([LOCAL, *told])


def is_full(partitions: int, rows: int) -> bool:
    """Whether a group is large enough to be committed."""
    return partitions >= GROUP_PARTITIONS or rows >= GROUP_ROWS
