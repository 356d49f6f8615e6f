"""Trained versions and the decisions on them, and the tables that hold both.

The tables are append-only: a version is a fact, a promotion an event. What a person may decide is in `promotion`.

Every approval is an entry "from X on, version V serves", whoever made it and whenever: the gate's holds from the serving period
on, that of a person from the partition on that was named. An entry holds until the next one begins. Any later decision against a
version, such as a rollback, cancels its earlier entries from the partition on at which that decision begins to hold; there, what had
served before serves again.

A partition is served by the entry that holds at its start. When the decision was made does not matter for that, and no clock
is read: a decision of today about March counts for March, and scores that March got before are stale. The ledger says which
scores were made so: `hindsight` of `score_runs` is true where the decision was made only after the partition had ended.
"""

import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import NoChampionError, TrainingRefusedError, WrongUseError, listed, named
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.comparison import Difference, Verdict
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.warehouse.descriptions import OF_PIPELINES, RUN, Description
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    Action,
    ChallengerTraining,
    ModelTraining,
    Promotion,
    Version,
    create_table,
    insert,
    journal,
    read_records,
)

SUSPECTED_LEAKS = "suspected_leaks"
NOT_BETTER = "not_better_than_guessing"  # entry of the evidence of a decision: says so in words, or is empty
REFINEMENTS = "refinements"  # entry of the evidence: the names of those applied, and remarks on them and on others
OF_PIPELINES[SUSPECTED_LEAKS] = Description(
    "a feature that tells the label of a version suspiciously well",
    {
        "model_version": "version that learned from it",
        "serving_period": "serving period of the version",
        "column_name": "the feature; null if only the metrics of the whole model are suspicious",
        "reason": "what is suspicious",
        "allowed": "whether model.allow_suspected_leaks named it; the version waits for promotion otherwise",
        "found_at": "when the version was trained, in UTC",
        **RUN,
    },
)
Recorded = TypeVar("Recorded", Version, Promotion, ModelTraining, ChallengerTraining)
AnyTraining = ModelTraining | ChallengerTraining


@dataclass(frozen=True)
class Stretch:
    """A stretch of time in which one version serves by one decision."""

    begin: datetime
    end: datetime | None  # exclusive; None: until further notice
    version: Version
    decision: Promotion

    @property
    def approved_from(self) -> datetime:
        """The instant from which the decision holds; before the stretch, another version may have served that was cancelled later."""
        return _holds_from(self.version, self.decision)

    def is_hindsight(self, partition: Partition) -> bool:
        """Return whether the version was approved to serve a partition only after the partition had ended."""
        return self.decision.decided_at >= partition.end


def _holds_from(version: Version, approval: Promotion) -> datetime:
    return max(version.serving_start, approval.holds_from or version.serving_start)


@dataclass(frozen=True)
class _Entry:
    """An approval."""

    begin: datetime
    number: int  # position of the decision among all decisions
    version: Version
    decision: Promotion


@dataclass(frozen=True)
class Timeline:
    """The decisions on the versions of a pipeline, in order of time."""

    versions: Mapping[str, Version]  # key: name
    decisions: Sequence[Promotion]

    def at(self, instant: datetime) -> Stretch | None:
        """The stretch in which an instant lies; None if no version serves then."""
        changes = bisect_right(self._changes, instant, key=itemgetter(0))
        return self._changes[changes - 1][1] if changes else None

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The stretches, in order; between two of them there may be a time in which no version serves."""
        return [stretch for _, stretch in self._changes if stretch is not None]

    @cached_property
    def _changes(self) -> list[tuple[datetime, Stretch | None]]:
        """The instants at which another entry begins to hold, in order, each with the stretch in which it holds."""
        decided = {decision.holds_from for decision in self.decisions if decision.holds_from is not None}
        holding: list[tuple[datetime, _Entry | None]] = []
        for instant in sorted(decided | {version.serving_start for version in self.versions.values()}):
            entry = next((entry for entry in self._newest_first if self._holds(entry, instant)), None)
            if entry != (holding[-1][1] if holding else None):
                holding.append((instant, entry))
        ends = [*(begin for begin, _ in holding), None][1:]
        return [
            (begin, None if entry is None else Stretch(begin, end, entry.version, entry.decision))
            for (begin, entry), end in zip(holding, ends, strict=True)
        ]

    @cached_property
    def _newest_first(self) -> list[_Entry]:
        """The approvals, that with the latest begin first; of equal begins, the one decided last."""
        entries = [
            _Entry(_holds_from(version, decision), number, version, decision)
            for number, decision in enumerate(self.decisions)
            if decision.action == "approved" and (version := self.versions.get(decision.version)) is not None
        ]
        return sorted(entries, key=lambda entry: (entry.begin, entry.number), reverse=True)

    @cached_property
    def _against(self) -> dict[str, list[tuple[int, Promotion]]]:
        """The decisions against each version, with their positions."""
        against: dict[str, list[tuple[int, Promotion]]] = {}
        for number, decision in enumerate(self.decisions):
            if decision.action != "approved":
                against.setdefault(decision.version, []).append((number, decision))
        return against

    def _holds(self, entry: _Entry, instant: datetime) -> bool:
        """Return whether an entry has begun at an instant, and no later decision cancels it there."""
        return entry.begin <= instant and not any(
            number > entry.number and (decision.holds_from is None or decision.holds_from <= instant)
            for number, decision in self._against.get(entry.version.version, ())
        )


@dataclass(frozen=True)
class Registry:
    """The recorded versions of one pipeline."""

    pipeline: str
    versions: Sequence[Version] = ()  # order of registration
    promotions: Sequence[Promotion] = ()  # order of time, as the trainings
    challenger_trainings: Sequence[ChallengerTraining] = ()
    model_trainings: Sequence[ModelTraining] = ()
    # Hashes of the features as the last training found them, by each serving period in which it gave no model; see `fruitless`.
    refused_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])

    def last_decision(self, version: str) -> Promotion | None:
        """The last decision on a version."""
        return self._decisions.get(version, [None])[-1]

    def approved(self) -> list[Version]:
        """The versions whose last decision is an approval, by serving period and then by age."""
        return [version for version in self._by_period if self._was(version, "approved")]

    def waiting(self, champion: Version | None) -> dict[str, str]:
        """The versions that wait for a decision and were trained after the champion, oldest first, with the reason."""
        trained = [version for version in self.versions if champion is None or version.seq > champion.seq]
        last = {version.version: self.last_decision(version.version) for version in trained}
        return {name: event.reason for name, event in last.items() if event is not None and event.action == "waiting"}

    @cached_property
    def timeline(self) -> Timeline:
        """The versions that serve, each with the partition from which it serves."""
        return Timeline(self._by_name, self.promotions)

    def champion(self, at: datetime) -> Version | None:
        """The version that scores a partition starting at an instant."""
        stretch = self.timeline.at(at)
        return None if stretch is None else stretch.version

    @cached_property
    def of_model(self) -> list[Version]:
        """The versions of the model itself, without those of challengers and of another label, in order of registration."""
        left_out = self.challengers.keys() | self.retired
        return [version for version in self.versions if version.version not in left_out]

    @cached_property
    def retired(self) -> frozenset[str]:
        """The versions that predict another type of label than is declared since: they serve nothing and count for nothing."""
        return frozenset(version.version for version in self.versions if self._was(version, "retired"))

    def newest_of(self, serving_period: str) -> Version | None:
        """The version of the model that was trained last for a serving period."""
        return next((version for version in reversed(self.of_model) if version.serving_period == serving_period), None)

    def newest_at(self, at: datetime) -> Version | None:
        """The version of the model that was trained last for the newest serving period that has begun, approved or not."""
        begun = bisect_right(self._of_model_by_period, at, key=lambda version: version.serving_start)
        return self._of_model_by_period[begun - 1] if begun else None

    @cached_property
    def fruitless(self) -> dict[str, ModelTraining]:
        """The last training of each serving period of which no version serves, where it failed or the gate refused its version."""
        serving = {version.serving_period for version in self.approved()}
        last = {training.serving_period: training for training in self.model_trainings}
        refused = {version.version for version in self.of_model if self._was(version, "refused")}
        return {
            period: training
            for period, training in last.items()
            if period not in serving and (training.version is None or training.version in refused)
        }

    @cached_property
    def challengers(self) -> dict[str, str]:
        """The name of the challenger, by version that was trained for one."""
        return {training.version: training.challenger for training in self.challenger_trainings if training.version}

    def challenger_at(self, challenger: str, at: datetime) -> Version | None:
        """The version of a challenger that scores a partition starting at an instant: of its newest serving period, the newest."""
        own = (version for version in reversed(self._by_period) if self.challengers.get(version.version) == challenger)
        gone: tuple[Action, ...] = ("removed", "retired")
        return next(
            (it for it in own if it.serving_start <= at and not any(self._was(it, action) for action in gone)), None
        )

    def suspected_leaks(self, version: str) -> list[SuspectedLeak]:
        """The leaks that were suspected when a version was trained."""
        return next((leaks for event in self._decisions.get(version, ()) if (leaks := leaks_in(event.evidence))), [])

    def judged_beside(self, version: str, champion: str) -> Verdict | None:
        """The gate's verdict on a version beside a champion of its time; None if it was not held against that one."""
        for event in self._decisions.get(version, ()):
            recorded = json.loads(event.evidence).get("comparison") or {}
            if recorded.get("champion") == champion and (verdict := recorded.get("verdict")):
                return _recorded_verdict(verdict)
        return None

    def judged_beside_guessing(self, version: str) -> Verdict | None:
        """The gate's verdict on a version beside a trivial model; None if there is none."""
        for event in self._decisions.get(version, ()):
            recorded = json.loads(event.evidence).get("baseline") or {}
            if verdict := recorded.get("verdict"):
                return _recorded_verdict(verdict)
        return None

    def refinements(self, version: str) -> dict[str, list[str]]:
        """The names of the `applied` refinements of a version, and the `remarks` on declared ones; empty if nobody knows."""
        return self._refinements.get(version, {})

    def not_better_than_guessing(self, version: str) -> str:
        """That a version was not better than guessing when it was judged, in words; empty if it was, or if nobody knows."""
        return next((text for event in self._decisions.get(version, ()) if (text := guesses_in(event.evidence))), "")

    def _was(self, version: Version, action: Action) -> bool:
        last = self.last_decision(version.version)
        return last is not None and last.action == action

    @cached_property
    def _refinements(self) -> dict[str, dict[str, list[str]]]:
        recorded = ((event.version, json.loads(event.evidence).get(REFINEMENTS)) for event in self.promotions)
        return {version: of_version for version, of_version in recorded if of_version}

    @cached_property
    def _by_name(self) -> dict[str, Version]:
        return {version.version: version for version in self.versions}

    @cached_property
    def _by_period(self) -> list[Version]:
        return sorted(self.versions, key=lambda version: (version.serving_start, version.seq))

    @cached_property
    def _of_model_by_period(self) -> list[Version]:
        return sorted(self.of_model, key=lambda version: (version.serving_start, version.seq))

    @cached_property
    def _decisions(self) -> dict[str, list[Promotion]]:
        decisions: dict[str, list[Promotion]] = {}
        for event in self.promotions:
            decisions.setdefault(event.version, []).append(event)
        return decisions

    def require_champion(self, at: datetime, partition_key: str) -> Version:
        """Return the champion; raises NoChampionError, which names the earliest approved version, if there is none."""
        if champion := self.champion(at):
            return champion
        earliest = "no version is approved"
        if approved := self.approved():
            first = approved[0]
            earliest = f"the earliest approved version, {first.version}, serves from {first.serving_period} on"
        msg = f"{self.pipeline}, partition {partition_key}: no model serves it; {earliest}."
        key = partition_key
        hint = f"batch-platform backtest {self.pipeline} --from {key} --to {key} --model VERSION measures any version on it."
        promote = f"batch-platform models {self.pipeline} promote"
        could_serve = [version for version in self._by_period if version.serving_start <= at]
        if waiting := [version.version for version in could_serve if self._was(version, "waiting")]:
            hint = f"{waiting[-1]} waits for a decision: {promote} {waiting[-1]}"
        elif refused := [version.version for version in could_serve if self._was(version, "refused")]:
            hint = f"give the model better features, or take {refused[-1]} although it was refused: {promote} {refused[-1]}"
        raise NoChampionError(msg, hint=hint)

    def refusal(self, versions: Collection[str]) -> TrainingRefusedError | None:
        """The error that the gate refused some of these versions of the model; None if it refused none of them."""
        refused = [it for it in self.of_model if it.version in versions and self._was(it, "refused")]
        if not refused:
            return None
        first, decision = refused[0], self.last_decision(refused[0].version)
        msg = f"{self.pipeline}, serving period {first.serving_period}: {first.version} is refused: {decision and decision.reason}."
        if others := listed(version.version for version in refused[1:]):
            msg += f" So are {others}."
        hint = "what served before goes on. Give the model better features or other parameters, or let it serve all the same: "
        return TrainingRefusedError(msg, hint=f"{hint}batch-platform models {self.pipeline} promote {first.version}")

    def named(self, version: str) -> Version:
        """Look up a version by name, approved or not; raises WrongUseError if there is no such version."""
        refusal = f"{self.pipeline} has no version {version!r}; there are"
        return named(version, self._by_name, refusal, hint=f"batch-platform models {self.pipeline} lists them.")

    def present(self, version: str) -> Version:
        """Look up a version whose bundle still exists; raises WrongUseError if there is none."""
        registered, last = self.named(version), self.last_decision(version)
        if last is not None and last.action == "removed":
            msg = f"{self.pipeline}: the bundle of {version} was removed by {last.actor} on {last.decided_at:%Y-%m-%d}: {last.reason}."
            raise WrongUseError(msg, hint="train its serving period again.")
        return registered


def _recorded_verdict(recorded: dict[str, Any]) -> Verdict:
    difference: dict[str, Any] | None = recorded["difference"]
    return replace(Verdict(**recorded), difference=difference and Difference(**difference))


def has_seen(version: Version, partition: Partition) -> bool:
    """Return whether a version learned from data that overlap a partition, see `is_in_sample`."""
    return version.trained_from < partition.end and partition.start < version.trained_until


def is_in_sample(spec: PipelineSpec, version: Version, partition: Partition) -> bool:
    """Return whether a version is measured on rows of a partition that it learned from. Of a snapshot, its performance says so."""
    return not spec.partitions.snapshot and has_seen(version, partition)


def positive_class(version: Version) -> Any:
    """Return the positive one of two classes, or the label of outliers; None if there are no classes."""
    return next(reversed(version.class_labels), None)


def read_registry(con: duckdb.DuckDBPyConnection, pipeline: str) -> Registry:
    """Read the recorded versions and decisions of a pipeline."""
    return Registry(
        pipeline=pipeline,
        versions=_rows(con, "model_versions", Version, pipeline),
        promotions=_rows(con, "promotions", Promotion, pipeline),
        challenger_trainings=_rows(con, "challenger_trainings", ChallengerTraining, pipeline),
        model_trainings=_rows(con, "model_trainings", ModelTraining, pipeline),
    )


def register(
    con: duckdb.DuckDBPyConnection, version: Version, decision: Promotion, training: AnyTraining | None = None
) -> None:
    """Record a trained version, the decision on it and its training, within the caller's transaction."""
    seqs = journal(con, [(version.pipeline, "models", version.serving_period)] * 2)
    if training is not None:
        _insert_training(con, training, seqs[0])
    insert(con, "model_versions", [{**vars(version), "seq": seqs[0]}])
    insert(con, "promotions", [{**vars(decision), "seq": seqs[1]}])
    record_suspected_leaks(con, version, leaks_in(decision.evidence))


def leaks_in(evidence: str) -> list[SuspectedLeak]:
    """The suspected leaks in the evidence of a decision."""
    return [SuspectedLeak.from_json(leak) for leak in json.loads(evidence).get("suspected_leaks", ())]


def guesses_in(evidence: str) -> str:
    """That a version is not better than guessing, in words, by the evidence of a decision; empty if it is, or if nobody knows."""
    return str(json.loads(evidence).get(NOT_BETTER, ""))


@dataclass(frozen=True)
class SuspectedColumn:
    """A row of the table of suspected leaks."""

    model_version: str
    serving_period: str
    column_name: str | None
    reason: str
    allowed: bool
    found_at: datetime
    run_id: str


def record_suspected_leaks(con: duckdb.DuckDBPyConnection, version: Version, leaks: Sequence[SuspectedLeak]) -> None:
    """Add what is suspected of a version to the table of its pipeline: one row for each column."""
    rows = [
        SuspectedColumn(
            model_version=version.version,
            serving_period=version.serving_period,
            column_name=column,
            reason=str(leak),
            allowed=leak.allowed,
            found_at=version.created_at,
            run_id=version.run_id,
        )
        for leak in leaks
        for column in (leak.columns or (None,))
    ]
    if rows:
        create_table(con, version.pipeline, SUSPECTED_LEAKS, SuspectedColumn)
        insert(con, SUSPECTED_LEAKS, [vars(row) for row in rows], schema=version.pipeline)
        journal(con, [(version.pipeline, SUSPECTED_LEAKS, None)])


def record_failure(con: duckdb.DuckDBPyConnection, training: AnyTraining) -> None:
    """Record that a model or a challenger could not be trained, within the caller's transaction."""
    (seq,) = journal(con, [(training.pipeline, "models", training.serving_period)])
    _insert_training(con, training, seq)


def _insert_training(con: duckdb.DuckDBPyConnection, training: AnyTraining, seq: int) -> None:
    table = "model_trainings" if isinstance(training, ModelTraining) else "challenger_trainings"
    insert(con, table, [{**vars(training), "seq": seq}])


def record_decisions(con: duckdb.DuckDBPyConnection, decisions: Sequence[Promotion]) -> None:
    """Record decisions within the caller's transaction; raises WrongUseError if a version to approve was removed meanwhile."""
    for decision in decisions:
        if decision.action == "approved":
            read_registry(con, decision.pipeline).present(decision.version)
    seqs = journal(con, [(decision.pipeline, "models", decision.version) for decision in decisions])
    numbered = [{**vars(decision), "seq": seq} for decision, seq in zip(decisions, seqs, strict=True)]
    insert(con, "promotions", numbered)


def _rows(con: duckdb.DuckDBPyConnection, table: str, record: type[Recorded], pipeline: str) -> list[Recorded]:
    rows = read_records(con, record, f"{LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline", {"pipeline": pipeline})
    return sorted(rows, key=attrgetter("seq"))  # DuckDB takes longer to plan the sort
