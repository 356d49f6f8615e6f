"""The state of a pipeline: what its ledgers say, what a look at its files and sources says, and what is declared now."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.delivery.ledger import Delivered, Deliveries
from batch_platform.features.fingerprints import Fingerprints, Look, ReadBy, Taken
from batch_platform.features.history import History
from batch_platform.models.registry import Registry, Version
from batch_platform.monitoring.measure import Commits
from batch_platform.monitoring.usual import Past
from batch_platform.planning.inputs import Inputs
from batch_platform.sources.objects import listed_once
from batch_platform.warehouse.deletion import DroppedPartition, ErasedSubjects
from batch_platform.warehouse.failures import FailedStep, Failure
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun
from batch_platform.warehouse.tables_in_files import PublishedFile, is_whole

Value = TypeVar("Value")


@dataclass(frozen=True)
class Records:
    """The records of a pipeline in the ledgers; mappings are by partition key."""

    registry: Registry
    features: Mapping[str, FeatureBuild] = field(default_factory=dict[str, FeatureBuild])  # newest builds
    scores: Mapping[str, ScoreRun] = field(default_factory=dict[str, ScoreRun])  # newest commits
    evaluations: Mapping[str, EvaluationRun] = field(default_factory=dict[str, EvaluationRun])  # newest evaluations
    deliveries: Deliveries = field(default_factory=dict[tuple[str, str], Delivered])
    # Of the newest attempt at a step of a partition.
    failures: Mapping[tuple[FailedStep, str], Failure] = field(default_factory=dict[tuple[FailedStep, str], Failure])
    dropped: Mapping[str, DroppedPartition] = field(default_factory=dict[str, DroppedPartition])  # and not made since
    files: Mapping[Path, PublishedFile] = field(default_factory=dict[Path, PublishedFile])  # files of tables, by path
    erased: ErasedSubjects | None = None  # subjects whose rows no build may bring back
    newest_change: int = 0  # number of the newest entry of the journal when it was read


@dataclass(frozen=True)
class Seen:
    """The result of a look at the files and sources; mappings are by partition key. Without a look, all is as recorded."""

    lost: Mapping[str, FeatureBuild] = field(default_factory=dict[str, FeatureBuild])  # their file is not as recorded
    lost_files: frozenset[Path] = frozenset()  # files of tables that changed since they were published
    # Current versions of the sources with a file per partition, in the form that builds and evaluations record.
    source_versions: Mapping[str, str] = field(default_factory=dict[str, str])
    label_versions: Mapping[str, str] = field(default_factory=dict[str, str])
    # The sources of the labels that have no file of a partition yet; looked for when it is called.
    awaited_label_sources: Callable[[Partition], Sequence[str]] = lambda _: ()
    changed: Mapping[str, str] = field(default_factory=dict[str, str])  # source of many partitions whose rows changed
    gone: Mapping[str, str] = field(default_factory=dict[str, str])  # what a build read and is no longer there
    # Why sources could not be looked at, by name: whether their rows changed is not known.
    unread: Mapping[str, SourceError] = field(default_factory=dict[str, SourceError])
    fingerprints: Taken = field(default_factory=dict[tuple[ReadBy, str], Fingerprints])  # as recorded, and taken since
    relabelled: frozenset[str] = frozenset()  # versions that scored something and learned from labels corrected since


@dataclass(frozen=True)
class Declared:
    """Versions of what is declared now."""

    features_version: str  # of the SQL of the features and its declaration
    scoring_version: str
    unexplained_version: str = ""  # of scoring by a model version without reasons; empty if none differs
    decision_rule: str | None = None
    refinements: str = ""  # hash of the declared refinements and their code; empty without any
    inputs: Inputs = field(default_factory=Inputs)  # of models and evaluations
    text: str = ""  # hash of the whole declaration


@dataclass(frozen=True)
class State:
    """The records of a pipeline, how its files and sources compare with them, and what is declared now."""

    records: Records
    declared: Declared
    seen: Seen = field(default_factory=Seen)
    over: frozenset[str] = frozenset()  # snapshots that cannot be taken again: a newer one is due

    @cached_property
    def features(self) -> Mapping[str, FeatureBuild]:
        """The newest builds whose file is as recorded."""
        return {key: build for key, build in self.records.features.items() if key not in self.seen.lost}

    @property
    def scores(self) -> Mapping[str, ScoreRun]:
        """The newest commits."""
        return self.records.scores

    @property
    def evaluations(self) -> Mapping[str, EvaluationRun]:
        """The newest evaluations."""
        return self.records.evaluations

    @property
    def registry(self) -> Registry:
        """The versions of the models, and what was decided of them."""
        return self.records.registry

    @property
    def failures(self) -> Mapping[tuple[FailedStep, str], Failure]:
        """The failures of the newest attempts at a step of a partition."""
        return self.records.failures

    @property
    def dropped(self) -> Mapping[str, DroppedPartition]:
        """The partitions that were deleted for good, and not made since."""
        return self.records.dropped

    @property
    def deliveries(self) -> Deliveries:
        """The newest delivery of each partition to each receiver."""
        return self.records.deliveries

    @cached_property
    def incomplete(self) -> dict[str, str]:
        """The table that lacks a file, by partition key."""
        files = self.records.files
        return {files[path].partition_key: path.parents[1].name for path in sorted(self.seen.lost_files)}

    @property
    def unread_error(self) -> SourceError | None:
        """The error that it is not known whether everything is up to date, since sources could not be looked at."""
        if not self.seen.unread:
            return None
        names = listed(map(repr, self.seen.unread))
        msg = f"{self.registry.pipeline}: it is not known whether the rows of {names} changed, which could not be looked at."
        return SourceError(msg, hint="repeat the command once the source answers.")

    @property
    def scored_by_retired(self) -> list[str]:
        """The partitions with predictions of another type of label, which the next commit deletes."""
        return [key for key, run in self.scores.items() if run.model_version in self.registry.retired]

    @property
    def standing_failures(self) -> list[Failure]:
        """The failures that another attempt may meet again, because nothing was declared differently since."""
        return [failure for failure in self.failures.values() if failure.declared == self.declared.text]

    def commits(self, spec: PipelineSpec, home: Home, runs: Sequence[ScoreRun]) -> Commits:
        """Committed partitions, and what is known beside them."""
        past = Past(spec.partitions.calendar, self.scores.values())
        return Commits(spec, home, runs, past, {version.version: version for version in self.registry.versions})


@listed_once()
def checked(history: History, recorded: State, *, recheck: bool = False, most_bytes: int | None = None) -> State:
    """A recorded state, checked against the files of features, sources and labels."""
    records, taken = recorded.records, recorded.seen.fingerprints
    features = history.recorded(records.features)
    known = history.builder.sources
    look = Look(recheck, most_bytes, [name for name in history.spec.sources if known.kind(name).endings])
    sources = history.source_changes(records.features, taken, look, scored=records.scores)
    labels = history.label_changes(records.evaluations, records.features, taken, look)
    scored_by = {run.model_version for run in records.scores.values()}
    seen = Seen(
        lost={key: build for key, build in records.features.items() if key not in features},
        lost_files=frozenset(path for path, row in records.files.items() if not is_whole(path, row)),
        source_versions=sources.versions,
        label_versions=labels.versions,
        awaited_label_sources=cache(history.builder.awaited_label_sources),
        changed=sources.changed,
        gone=sources.gone,
        unread=look.unread,
        fingerprints={**taken, **sources.fingerprints, **labels.fingerprints},
        relabelled=relabelled(history, [records.registry.named(version) for version in scored_by], records.dropped),
    )
    return replace(recorded, seen=seen)


def with_files_as_seen(recorded: State, before: State, keys: Collection[str] | None = None) -> State:
    """A state read anew, whose files are as an earlier look has seen them, or as recorded if they were recorded since.

    With `keys`, only the records of these partitions were read anew: the others stand as `before`, and are not looked at.
    """
    now, then, seen = recorded.records, before.records, before.seen

    def renewed(old: Mapping[str, Value], new: Mapping[str, Value]) -> Mapping[str, Value]:
        return new if keys is None else {key: it for key, it in old.items() if key not in keys} | {**new}

    records = replace(
        now,
        features=renewed(then.features, now.features),
        scores=renewed(then.scores, now.scores),
        evaluations=renewed(then.evaluations, now.evaluations),
        deliveries={to: it for to, it in then.deliveries.items() if keys is not None and to[1] not in keys}
        | {**now.deliveries},
    )
    built, measured = _same(then.features, records.features), _same(then.evaluations, records.evaluations)

    def still(facts: Mapping[str, Value], same: Collection[str]) -> Mapping[str, Value]:
        return {key: fact for key, fact in facts.items() if key in same}

    return replace(
        recorded,
        records=records,
        seen=replace(
            seen,
            lost=still(seen.lost, built),
            lost_files=seen.lost_files & now.files.keys(),
            source_versions=still(seen.source_versions, built),
            label_versions=still(seen.label_versions, measured),
            changed=still(seen.changed, built),
            gone=still(seen.gone, built),
            fingerprints={**recorded.seen.fingerprints, **seen.fingerprints},
        ),
    )


def _same(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    """The keys whose record is as it was; most are the same object, which is quicker to see."""
    return {key for key, record in new.items() if record is (before := old.get(key)) or record == before}


def relabelled(
    history: History, versions: Iterable[Version], dropped: Mapping[str, DroppedPartition] | None = None
) -> frozenset[str]:
    """The versions that learned from labels that changed since; labels whose file is gone count as unchanged.

    A version did not learn from the partitions that were dropped before it was trained.
    """
    if not history.builder.own_label_sources:
        return frozenset()
    calendar, changed = history.spec.partitions.calendar, set[str]()
    versions_now = cache(history.builder.label_versions)  # windows overlap
    for version in versions:
        with suppress(SourceError, WrongUseError):
            without = {key for key, drop in (dropped or {}).items() if drop.seq < version.seq}
            window = [
                it for it in calendar.within(version.trained_from, version.trained_until) if it.key not in without
            ]
            if history.are_labels_changed(window, version.label_sources, versions_now):
                changed.add(version.version)
    return frozenset(changed)
