"""The state of a pipeline: its records in the ledgers, and how its files compare with them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, listed
from batch_platform.declaration.predictions import Delivery
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.delivery.ledger import Delivered, Deliveries
from batch_platform.features.fingerprints import Fingerprints, Look, ReadBy, Taken
from batch_platform.features.history import History
from batch_platform.models.refinements.reasons import REASONS
from batch_platform.models.registry import Registry, Version
from batch_platform.monitoring.measure import Commits
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.inputs import Inputs
from batch_platform.sources.objects import listed_once
from batch_platform.warehouse.deletion import DroppedPartition, ErasedSubjects
from batch_platform.warehouse.failures import FailedStep, Failure
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun
from batch_platform.warehouse.tables_in_files import PublishedFile, is_whole

Value = TypeVar("Value")


@dataclass(frozen=True)
class State:
    """The records of a pipeline, and how its files compare with them; mappings are by partition key."""

    features: dict[str, FeatureBuild]  # newest builds whose file is as recorded
    scores: dict[str, ScoreRun]  # newest commits
    evaluations: dict[str, EvaluationRun]  # newest evaluations
    registry: Registry
    features_code_version: str  # version of the present declaration
    scoring_code_version: str  # version of the present declaration
    unexplained_code_version: str = ""  # the same of a model version without reasons; empty if none differs
    decision_rule: str | None = None  # rule of the present declaration
    lost: dict[str, FeatureBuild] = field(default_factory=dict[str, FeatureBuild])  # their file is not as recorded
    # Current versions of the sources with a file per partition, in the form that builds and evaluations record.
    source_versions: dict[str, str] = field(default_factory=dict[str, str])
    label_versions: dict[str, str] = field(default_factory=dict[str, str])
    # The sources of the labels that have no file of a partition yet; looked for when it is called.
    awaited_label_sources: Callable[[Partition], Sequence[str]] = lambda _: ()
    changed: dict[str, str] = field(default_factory=dict[str, str])  # source of many partitions whose rows changed
    gone: dict[str, str] = field(default_factory=dict[str, str])  # what a build read and is no longer there
    # Why sources could not be looked at, by name: whether their rows changed is not known.
    unread: Mapping[str, SourceError] = field(default_factory=dict[str, SourceError])
    fingerprints: Taken = field(default_factory=dict[tuple[ReadBy, str], Fingerprints])
    inputs: Inputs = field(default_factory=Inputs)  # of models and evaluations, as declared now
    # Hashes of the features as the last training found them, by serving period in which it gave no model; see `Registry`.
    refused_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    relabelled: frozenset[str] = frozenset()  # versions that scored something and learned from labels corrected since
    over: frozenset[str] = frozenset()  # snapshots that cannot be taken again: a newer one is due
    # Of the newest attempt at a step of a partition.
    failures: dict[tuple[FailedStep, str], Failure] = field(default_factory=dict[tuple[FailedStep, str], Failure])
    files: Mapping[Path, PublishedFile] = field(default_factory=dict[Path, PublishedFile])  # files of tables, by path
    lost_files: frozenset[Path] = frozenset()  # files of tables that changed since they were published
    declared: str = ""  # hash of the declaration as it is now
    dropped: Mapping[str, DroppedPartition] = field(default_factory=dict[str, DroppedPartition])  # and not made since
    deliveries: Deliveries = field(default_factory=dict[tuple[str, str], Delivered])
    erased: ErasedSubjects | None = None  # subjects whose rows no build may bring back
    newest_change: int = 0  # number of the newest entry of the journal when it was read

    @cached_property
    def incomplete(self) -> dict[str, str]:
        """The table that lacks a file, by partition key."""
        return {self.files[path].partition_key: path.parents[1].name for path in sorted(self.lost_files)}

    def code_version_of(self, version: str) -> str:
        """The code version with which a model version would score now."""
        explained, unexplained = self.scoring_code_version, self.unexplained_code_version
        if unexplained in ("", explained):
            return explained
        known = self.registry.refinements(version)
        return unexplained if known and REASONS.name not in known["applied"] else explained

    @property
    def unread_error(self) -> SourceError | None:
        """The error that it is not known whether everything is up to date, since sources could not be looked at."""
        if not self.unread:
            return None
        names = listed(map(repr, self.unread))
        msg = f"{self.registry.pipeline}: it is not known whether the rows of {names} changed, which could not be looked at."
        return SourceError(msg, hint="repeat the command once the source answers.")

    @property
    def scored_by_retired(self) -> list[str]:
        """The partitions with predictions of another type of label, which the next commit deletes."""
        return [key for key, run in self.scores.items() if run.model_version in self.registry.retired]

    @property
    def standing_failures(self) -> list[Failure]:
        """The failures that another attempt may meet again, because nothing was declared differently since."""
        return [failure for failure in self.failures.values() if failure.declared == self.declared]

    def commits(self, spec: PipelineSpec, home: Home, runs: Sequence[ScoreRun]) -> Commits:
        """Committed partitions, and what is known beside them."""
        past = Past(spec.partitions.calendar, self.scores.values())
        return Commits(spec, home, runs, past, {version.version: version for version in self.registry.versions})


def with_snapshots_over(spec: PipelineSpec, state: State, now: datetime) -> State:
    """The state that knows which snapshots stay as they were taken: all but the newest that is due at a time."""
    if not spec.partitions.snapshot:
        return state
    newest = {partition.key for partition in spec.partitions.calendar.due(now)[-1:]}
    return replace(state, over=frozenset(state.features.keys() - newest))


def features_due(state: State, partition: Partition) -> str | None:
    """Say why the features of a partition are due; None if they are not."""
    build = state.features.get(partition.key)
    if build is None:
        return "missing"
    if partition.key in state.over:
        return None
    if build.code_version != state.features_code_version:
        return "the SQL or its declaration changed"
    if partition.key in state.gone:  # building it again would leave it empty
        return None
    if state.source_versions.get(partition.key, build.sources) != build.sources:
        return "a source file changed"
    return state.changed.get(partition.key)


def undelivered(state: State, delivery: Delivery, partition_key: str) -> str | None:
    """Say why committed predictions are to be delivered; None if they are not, or if there are none."""
    run, delivered = state.scores.get(partition_key), state.deliveries.get((delivery.name, partition_key))
    if run is None:
        return None
    if delivered is None:
        return "missing"
    if delivered.score_seq != run.seq:
        return "scored again"
    return None if delivered.declared == delivery.digest else "its declaration changed"


@listed_once()
def checked(history: History, recorded: State, *, recheck: bool = False, most_bytes: int | None = None) -> State:
    """A recorded state, checked against the files of features, sources and labels."""
    features = history.recorded(recorded.features)
    known = history.builder.sources
    look = Look(recheck, most_bytes, [name for name in history.spec.sources if known.kind(name).endings])
    sources = history.source_changes(recorded.features, recorded.fingerprints, look, scored=recorded.scores)
    labels = history.label_changes(recorded.evaluations, recorded.features, recorded.fingerprints, look)
    scored_by = {run.model_version for run in recorded.scores.values()}
    return replace(
        recorded,
        features=features,
        lost={key: build for key, build in recorded.features.items() if key not in features},
        lost_files=frozenset(path for path, row in recorded.files.items() if not is_whole(path, row)),
        source_versions=sources.versions,
        changed=sources.changed,
        gone=sources.gone,
        unread=look.unread,
        fingerprints={**recorded.fingerprints, **sources.fingerprints, **labels.fingerprints},
        label_versions=labels.versions,
        awaited_label_sources=cache(history.builder.awaited_label_sources),
        relabelled=relabelled(history, [recorded.registry.named(version) for version in scored_by], recorded.dropped),
    )


def with_files_as_seen(recorded: State, seen: State, keys: Collection[str] | None = None) -> State:
    """A state read anew, whose files are as an earlier look has `seen` them, or as recorded if they were recorded since.

    With `keys`, only the records of these partitions were read anew: the others stand as seen, and are not looked at.
    """

    def renewed(before: Mapping[str, Value], now: Mapping[str, Value]) -> dict[str, Value]:
        if keys is None:
            return dict(now)
        others = dict(before)
        for key in keys:
            others.pop(key, None)
        return {**others, **now}

    def as_seen(facts: Mapping[str, str], of: AbstractSet[str]) -> dict[str, str]:
        looked_at = facts if keys is None else sorted(keys)
        return renewed(facts, {key: facts[key] for key in looked_at if key in of and key in facts})

    known = {**seen.features, **seen.lost}
    same = {key for key, build in recorded.features.items() if known.get(key) == build}
    measured = {key for key, run in recorded.evaluations.items() if seen.evaluations.get(key) == run}
    lost = {key: build for key, build in recorded.features.items() if seen.lost.get(key) == build}
    return replace(
        recorded,
        features=renewed(seen.features, {key: it for key, it in recorded.features.items() if key not in lost}),
        scores=renewed(seen.scores, recorded.scores),
        evaluations=renewed(seen.evaluations, recorded.evaluations),
        deliveries={of: it for of, it in seen.deliveries.items() if keys is not None and of[1] not in keys}
        | {**recorded.deliveries},
        lost=renewed(seen.lost, lost),
        lost_files=seen.lost_files & recorded.files.keys(),
        source_versions=as_seen(seen.source_versions, same),
        changed=as_seen(seen.changed, same),
        gone=as_seen(seen.gone, same),
        unread=seen.unread,
        fingerprints={**recorded.fingerprints, **seen.fingerprints},
        label_versions=as_seen(seen.label_versions, measured),
        awaited_label_sources=seen.awaited_label_sources,
        relabelled=seen.relabelled,
    )


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
