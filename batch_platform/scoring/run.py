"""One scoring run: an engine scores the partitions that are due, and they are committed in groups.

A group is committed on a thread of its own while the next one is scored, one group at a time and in order. What is due,
and which model scores it, is decided elsewhere.
"""

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    WrongUseError,
    counted,
    failure_of,
    listed,
    threads_explained,
)
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import History
from batch_platform.models.bundle import read_reference
from batch_platform.models.contract import UNSEEN_NULL
from batch_platform.models.registry import Registry, Stretch, Version, is_in_sample
from batch_platform.monitoring.catalogue import (
    Subject,
    read_values,
    replace_judgements,
    replace_measures,
    staged_values,
)
from batch_platform.monitoring.measure import ChallengerRun, Commits, ScoredPart, StagedChallenger
from batch_platform.monitoring.measures.scored import REJECTIONS
from batch_platform.monitoring.reference import ReferenceProfile
from batch_platform.scoring.deciding import with_whole
from batch_platform.scoring.engines.known import Engine
from batch_platform.scoring.partition import BundleFolder, ScoringOrder, Spent, Staged
from batch_platform.warehouse.database import StagedScores, Warehouse
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun
from batch_platform.warehouse.tables_in_files import CHALLENGER_SCORES, PREDICTIONS, staged_files

GROUP_PARTITIONS = 50
GROUP_ROWS = 1_000_000
BundleOf = Callable[[Version, int], BundleFolder]  # takes a version, and how many rows it scores in the whole run
Member = TypeVar("Member")
Outcome = TypeVar("Outcome")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committed:
    """A partition of predictions, as committed."""

    partition: Partition
    run: ScoreRun
    skipped: bool  # the warehouse already held these rows
    measures: Mapping[str, Any] = field(default_factory=dict[str, Any])  # value of each measure that it has, by name
    task: str = ""  # task of the model
    # Known only while it is scored:
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    ignored: tuple[str, ...] = ()  # feature columns that nothing uses
    spent: Spent = field(default_factory=Spent)  # zero where skipped
    link: str = ""  # page on which the engine shows its work as long as it lasts

    @property
    def reasons(self) -> dict[str, int]:
        """The rejected rows by column and reason."""
        return REJECTIONS.of(self.measures) or {}


def read_committed(con: duckdb.DuckDBPyConnection, commits: Commits, *, skipped: bool) -> list[Committed]:
    """Read partitions back as the run that committed them returned them, but for what is known only while it scores."""
    values, calendar = read_values(con, commits), commits.spec.partitions.calendar
    return [
        Committed(
            calendar.named(run.partition_key),
            run,
            skipped=skipped,
            measures=values[run.partition_key],
            task=version.task if (version := commits.versions.get(run.model_version)) else "",
        )
        for run in commits.runs
    ]


@dataclass(frozen=True)
class Unscored:
    """A partition that failed, while the others go on; it stays as it was."""

    partition: Partition
    error: BatchPlatformError
    refused: tuple[Path, ...] = ()  # files of its rejected rows, if they are too many


@dataclass(frozen=True)
class Due:
    """A partition to score."""

    partition: Partition
    model: Version  # its scores are published
    build: FeatureBuild
    standing: ScoreRun | None  # what the warehouse holds of the partition
    service: Stretch | None = None  # stretch in which the model serves the partition; None if it was named for the run
    # The versions that score it too, by name of the challenger; or why a challenger cannot.
    challengers: Mapping[str, Version | str] = field(default_factory=dict[str, Version | str])

    def is_held(self, code_version: str, decision_rule: str | None) -> bool:
        """Return whether the warehouse already holds what scoring would give."""
        inputs = (self.model.sha256, self.build.sha256, code_version, decision_rule)
        run = self.standing
        return run is not None and (run.model_sha256, run.input_hash, run.code_version, run.decision_rule) == inputs


def challengers_of(
    spec: PipelineSpec, registry: Registry, partition: Partition, champion: Version
) -> dict[str, Version | str]:
    """The versions that score a partition beside its champion, by name of the challenger; or why a declared one cannot.

    A challenger without a version for the partition is left out, and so is the champion itself.
    """
    versions: dict[str, Version | str] = {}
    for challenger in spec.challengers:
        name = challenger.version
        if name is None:
            trained = registry.challenger_at(challenger.name, partition.start)
            name = None if trained is None else trained.version
        if name is None or name == champion.version:
            continue
        try:
            versions[challenger.name] = registry.present(name)
        except WrongUseError as error:
            versions[challenger.name] = failure_of(error)
    return versions


@dataclass(frozen=True)
class ScoringRun:
    """The context that the partitions of one run share."""

    history: History
    warehouse: Warehouse
    engine: Engine
    bundle_folder: BundleOf
    code_version: Callable[[str], str]  # version of the scoring and of the declared rules, by model version
    stamp: Stamp
    force: bool  # whether a partition may become empty
    commits: Commits  # the pipeline as it was committed before
    clear: Callable[[duckdb.DuckDBPyConnection], None] | None = None  # called first in the transaction of each commit
    decision_rule: str | None = None  # rule by which rows are decided, as the ledger holds it

    def committed(self, due: Sequence[Due]) -> Generator[Committed | Unscored]:
        """Score partitions and commit them in groups, except those that fail alone.

        After any other failure, what was scored before it is still committed.
        """
        with closing(self._scored(due)) as scored:
            yield from in_groups(
                scored, lambda it: it if isinstance(it, Unscored) else it[1].counts.rows_in, self._commit
            )

    def _scored(self, due: Sequence[Due]) -> Generator[tuple[Due, Staged] | Unscored]:
        """Score partitions, in order; behind one that fails alone the engine begins again."""
        orders, at = list(orders_of(due, self.history, self.bundle_folder)), 0
        while at < len(due):
            try:
                with closing(staged_whole(self.engine, orders[at:], self.history)) as results:
                    for item, staged in zip(due[at:], results, strict=True):
                        at += 1
                        yield self._refused(staged) or (item, staged)
            except BatchPlatformError as error:
                if not error.of_one_partition:
                    raise
                failed, at = due[at], at + 1
                yield Unscored(failed.partition, error)

    def _refused(self, staged: Staged) -> Unscored | None:
        """The failure of a partition with too many rejected rows; None if it is within its budget."""
        try:
            require_within_budget(self.history.spec, staged)
        except DataError as error:
            for file in set(staged.files) - set(staged.rejected):
                file.unlink()
            return Unscored(staged.partition, error, staged.rejected)
        return None

    def _prepared(self, due: Due, staged: Staged) -> tuple[StagedScores, ScoredPart]:
        """A scored partition as the warehouse commits it, and as measures look at it; failures of challengers are logged."""
        partition, model, counts, spec = due.partition, due.model, staged.counts, self.history.spec
        run = ScoreRun(
            pipeline=spec.name,
            partition_key=partition.key,
            partition_start=partition.start,
            partition_end=partition.end,
            model_version=model.version,
            model_sha256=model.sha256,
            input_hash=due.build.sha256,
            code_version=self.code_version(model.version),
            engine="; ".join([self.engine.name, *staged.remarks]),
            rows_in=counts.rows_in,
            rows_scored=counts.rows_scored,
            rows_rejected=counts.rows_rejected,
            in_sample=is_in_sample(spec, model, partition),
            started_at=staged.started_at,
            committed_at=staged.started_at,  # replaced when it is committed
            run_id=self.stamp.run_id,
            decision_seq=None if due.service is None else due.service.decision.seq,
            hindsight=due.service is None or due.service.is_hindsight(partition),
            decision_rule=self.decision_rule,
        )
        published = partial(staged_files, run) if spec.predictions.in_files else lambda *_, **__: None
        seen_seq = 0 if due.standing is None else due.standing.seq
        files = published(PREDICTIONS, staged.predictions, staged.hashes)
        challengers = list[StagedChallenger]()
        for scores in staged.challengers:
            version, agreed = due.challengers[scores.name], scores.agreement.result()
            if scores.failure:
                msg = "%s, partition %s: challenger %r could not score beside the champion: %s"
                _log.warning(msg, run.pipeline, run.partition_key, scores.name, scores.failure)
            made = ChallengerRun(
                partition_key=run.partition_key,
                challenger=scores.name,
                model_version=version.version if isinstance(version, Version) else None,
                champion_version=run.model_version,
                rows_in=run.rows_scored,
                rows_scored=scores.rows_scored,
                rows_rejected=0 if scores.failure else scores.rows_in - scores.rows_scored,
                reasons=json.dumps(scores.reasons),
                rank_correlation=agreed.rank_correlation,
                decisions_flipped=agreed.decisions_flipped,
                failure=scores.failure or None,
                in_sample=isinstance(version, Version) and is_in_sample(spec, version, partition),
                scored_at=run.started_at,
                run_id=run.run_id,
            )
            own = published(CHALLENGER_SCORES, scores.files, scores.hashes, challenger=scores.name)
            challengers.append(StagedChallenger(made, scores.files, own, staged.decided))
        return (
            StagedScores(staged.predictions, staged.rejected, run, seen_seq, files, staged.decided),
            ScoredPart(
                staged.predictions, counts.profiles, counts.by_segment, counts.reasons, challengers, counts.sketch
            ),
        )

    def _reference(self, run: ScoreRun) -> ReferenceProfile:
        """The reference profile of the version that scored a partition."""
        return _read_once(self.history.home.bundle(run.pipeline, run.model_version), run.model_sha256)

    def _commit(self, group: Sequence[tuple[Due, Staged] | Unscored]) -> list[Committed | Unscored]:
        """Commit a group; if one of its partitions cannot be committed, each by itself."""
        members = [member for member in group if not isinstance(member, Unscored)]
        try:
            return [*self._commit_together(members)] if members else []
        except BatchPlatformError as error:
            if not error.of_one_partition:
                raise
            if len(members) == 1:
                return [Unscored(members[0][0].partition, error)]
        return [outcome for member in members for outcome in self._commit([member])]

    def _commit_together(self, group: Sequence[tuple[Due, Staged]]) -> list[Committed]:
        """Commit staged rows and what is measured of them in one transaction."""
        began, values = perf_counter(), dict[str, dict[str, Any]]()
        prepared = [self._prepared(due, staged) for due, staged in group]
        parts = {scores.run.partition_key: part for scores, part in prepared}

        def commits_of(runs: Sequence[ScoreRun]) -> Commits:
            return replace(self.commits, runs=runs, reference_of=self._reference)

        def in_transaction(con: duckdb.DuckDBPyConnection, runs: Sequence[ScoreRun]) -> None:
            commits = commits_of(runs)
            replace_measures(con, commits, parts)
            values.update(read_values(con, commits, staged_values(parts)))
            replace_judgements(con, commits.spec, ("predictions", "drift"), [judged(commits, run) for run in runs])

        def judged(commits: Commits, run: ScoreRun) -> Subject:
            version = commits.versions.get(run.model_version)
            made = run.model_version, run.run_id, run.committed_at
            return Subject(run.partition_key, values[run.partition_key], version.task if version else "", *made)

        runs = self.warehouse.commit_scores(
            self.history.spec.name,
            [scores for scores, _ in prepared],
            may_empty=self.force,
            clock=self.stamp.now,
            clear=self.clear,
            in_transaction=in_transaction,
            descriptions=self.history.spec.column_descriptions,
        )
        if others := [run for run in runs if run.partition_key not in values]:
            with self.warehouse.open() as con:
                values.update(read_values(con, commits_of(others)))
        seconds = (perf_counter() - began) / len(group)
        for _, staged in group:
            for file in staged.files:
                file.unlink()
        return [
            Committed(
                due.partition,
                run,
                skipped=run.run_id != self.stamp.run_id,  # meanwhile another run committed the same rows
                measures=values[run.partition_key],
                task=due.model.task,
                unseen=staged.counts.unseen,
                ignored=staged.counts.ignored,
                spent=staged.spent + Spent(commit=seconds, clock=seconds),
                link=staged.link,
            )
            for (due, staged), run in zip(group, runs, strict=True)
        ]


def require_within_budget(spec: PipelineSpec, staged: Staged) -> None:
    """Raise a DataError with the reasons and samples if more rows are rejected than is declared."""
    counts, budget = staged.counts, spec.features.rejected_budget
    if not budget.is_exceeded(counts.rows_rejected, counts.rows_in):
        return
    top = "; ".join(f"{reason} ({counted(count, 'row')})" for reason, count in Counter(counts.reasons).most_common(3))
    msg = (
        f"{spec.name}, partition {staged.partition.key}: {counts.rows_rejected} of {counts.rows_in} rows break the "
        f"contract, more than max_rejected ({budget}) allows; nothing is published. Broken rules: {top}. "
        f"For example {'; '.join(counts.samples)}."
    )
    seen = f"batch-platform rejected {spec.name} --partition {staged.partition.key} shows the rows"
    nulls = [reason.removesuffix(f": {UNSEEN_NULL}") for reason in counts.reasons if reason.endswith(UNSEEN_NULL)]
    allowing = listed(f"features.columns.{column}: {{nullable: true}}" for column in nulls)
    allow_nulls = f"allow nulls with {allowing}, " if nulls else ""
    raise DataError(msg, hint=f"{seen}; correct the features, {allow_nulls}or raise features.max_rejected.")


def orders_of(due: Sequence[Due], history: History, bundle_folder: BundleOf) -> Generator[ScoringOrder]:
    """The orders for an engine, one for each partition."""
    versions, rows = dict[str, Version](), Counter[str]()
    for item in due:
        for version in (item.model, *item.challengers.values()):
            if isinstance(version, Version):
                versions[version.version] = version
                rows[version.version] += item.build.rows
    folders = {name: bundle_folder(version, rows[name]) for name, version in versions.items()}
    for item in due:
        yield ScoringOrder(
            partition=item.partition,
            features=history.file(item.build),
            sha256=item.build.sha256,
            rows=item.build.rows,
            model=folders[item.model.version],
            xxh3=item.build.xxh3,
            challengers={
                name: version if isinstance(version, str) else folders[version.version]
                for name, version in item.challengers.items()
            },
        )


def staged_whole(
    engine: Engine, orders: Iterable[ScoringOrder], history: History, *, in_place: bool = False
) -> Generator[Staged]:
    """Score partitions into files, as the engine does, with the decisions that need a whole partition; see `with_whole`."""
    with closing(engine.staged(orders)) as results:
        for staged in results:
            yield with_whole(staged, history.spec, in_place=in_place)


_read_once = lru_cache(maxsize=64)(read_reference)


def in_groups(
    members: Iterable[Member],
    rows_of: Callable[[Member], int | Outcome],
    commit: Callable[[list[Member]], Sequence[Outcome]],
) -> Generator[Outcome]:
    """Commit members in groups, each while the next one is made, and yield the outcomes as soon as they are known.

    `rows_of` gives the number of rows that a member brings, or the outcome of a member that brings none. One group is committed at
    a time and in order. After a failure, what came before it is still committed.
    """
    group, rows, behind = list[Member](), 0, deque[Future[Sequence[Outcome]]]()
    failures = list[Exception]()
    with threads_explained(), ThreadPoolExecutor(1, "commit") as committer:
        try:
            for member in members:
                if not isinstance(brought := rows_of(member), int):
                    yield brought
                    continue
                group.append(member)
                rows += brought
                is_full = len(group) >= GROUP_PARTITIONS or rows >= GROUP_ROWS
                while behind and (is_full or behind[0].done()):
                    yield from behind.popleft().result()
                if is_full:
                    behind.append(committer.submit(commit, group))
                    group, rows = [], 0
        except Exception as error:  # noqa: BLE001 - raised below, once what came before is committed
            failures.append(error)
        if group:
            behind.append(committer.submit(commit, group))
        for ended in behind:
            try:
                yield from ended.result()
            except Exception as error:  # noqa: BLE001 - likewise
                failures.append(error)
        if failures:
            raise failures[0]
