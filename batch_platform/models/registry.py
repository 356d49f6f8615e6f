"""Trained versions, the decisions on them, and the rule that picks the champion of a partition.

The tables are append-only: a version is a fact, a promotion an event. The champion depends only on what is recorded and on the
start of the partition; no clock is read. `promote` and `roll_back` return the decision that a person makes, to be recorded.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from typing import TypeVar

import duckdb

from batch_platform.declaration.errors import NoChampionError, WrongUseError, named
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    Action,
    ChallengerTraining,
    Change,
    ModelTraining,
    Promotion,
    ScoreRun,
    Version,
    create_table,
    insert,
    next_numbers,
    note,
)

SUSPECTED_LEAKS = "suspected_leaks"
Recorded = TypeVar("Recorded", Version, Promotion, ModelTraining, ChallengerTraining)
AnyTraining = ModelTraining | ChallengerTraining


@dataclass(frozen=True)
class Registry:
    """The recorded versions of one pipeline."""

    pipeline: str
    versions: Sequence[Version] = ()  # in order of registration
    promotions: Sequence[Promotion] = ()  # in order of time, as are the trainings
    challenger_trainings: Sequence[ChallengerTraining] = ()
    model_trainings: Sequence[ModelTraining] = ()

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

    def serves(self, version: Version, at: datetime) -> bool:
        """Whether a version may score a partition that starts at an instant: the last decision that holds there is an approval."""
        if version.serving_start > at:
            return False
        decisions = reversed(self._decisions.get(version.version, ()))
        last = next((event for event in decisions if event.holds_from is None or event.holds_from <= at), None)
        return last is not None and last.action == "approved"

    def champion(self, at: datetime) -> Version | None:
        """The version that scores a partition starting at an instant: of the newest serving period, the newest that serves."""
        begins, champions = self._eras
        era = bisect_right(begins, at)
        return champions[era - 1] if era else None

    @cached_property
    def of_model(self) -> list[Version]:
        """The versions of the model itself, without those of challengers, in order of registration."""
        return [version for version in self.versions if version.version not in self.challengers]

    def newest_of(self, serving_period: str) -> Version | None:
        """The version of the model that was trained last for a serving period."""
        return next((version for version in reversed(self.of_model) if version.serving_period == serving_period), None)

    @cached_property
    def challengers(self) -> dict[str, str]:
        """The name of the challenger, by version that was trained for one."""
        return {training.version: training.challenger for training in self.challenger_trainings if training.version}

    def challenger_at(self, challenger: str, at: datetime) -> Version | None:
        """The version of a challenger that scores a partition starting at an instant: of its newest serving period, the newest."""
        own = (version for version in reversed(self._by_period) if self.challengers.get(version.version) == challenger)
        return next(
            (version for version in own if version.serving_start <= at and not self._was(version, "removed")), None
        )

    def suspected_leaks(self, version: str) -> list[SuspectedLeak]:
        """The leaks that were suspected when a version was trained."""
        return next((leaks for event in self._decisions.get(version, ()) if (leaks := leaks_in(event.evidence))), [])

    def _was(self, version: Version, action: Action) -> bool:
        last = self.last_decision(version.version)
        return last is not None and last.action == action

    @cached_property
    def _eras(self) -> tuple[list[datetime], list[Version | None]]:
        """The instants at which the champion may change, in order, and the champion from each of them on."""
        decided = {event.holds_from for event in self.promotions if event.holds_from is not None}
        begins = sorted(decided | {version.serving_start for version in self.versions})
        newest_first = list(reversed(self._by_period))
        return begins, [next((version for version in newest_first if self.serves(version, at)), None) for at in begins]

    @cached_property
    def _by_name(self) -> dict[str, Version]:
        return {version.version: version for version in self.versions}

    @cached_property
    def _by_period(self) -> list[Version]:
        return sorted(self.versions, key=lambda version: (version.serving_start, version.seq))

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
        hint = f"batch-platform run {self.pipeline} --partition {partition_key} --model VERSION scores it with any version."
        waiting = [
            version for version in self._by_period if version.serving_start <= at and self._was(version, "waiting")
        ]
        if waiting:
            hint = f"{waiting[-1].version} waits for a decision: batch-platform models {self.pipeline} promote {waiting[-1].version}"
        raise NoChampionError(msg, hint=hint)

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


@dataclass(frozen=True)
class Decision:
    """A decision of a person that is not recorded yet, and the scored partitions whose champion it changes."""

    promotion: Promotion
    before: Version | None  # the champion where the decision begins to hold
    after: Version | None
    partitions: list[str]  # keys, oldest first: scored by a version that would no longer be their champion


@dataclass(frozen=True)
class Maker:
    """Who decides, when and why."""

    actor: str
    at: datetime
    reason: str = ""


def promote(
    registry: Registry, scores: Mapping[str, ScoreRun], name: str, maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Approve a version for partitions that start at `holds_from` or later; None: from its serving period on.

    `scores` holds the newest commits, by partition key. Raises WrongUseError if there is no such version, its bundle was removed,
    or it already serves.
    """
    version = registry.present(name)
    begin = max(version.serving_start, holds_from or version.serving_start)
    if registry.serves(version, begin):
        msg = f"{registry.pipeline}: {name} already serves from {_day(begin)} on."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} lists the decisions.")
    last = registry.last_decision(name)
    reason = maker.reason or "promoted by hand"
    if last is not None and last.action == "refused":
        reason += f"; the gate had refused it: {last.reason}"
    if last is not None and last.action == "challenger":
        reason += f"; it was a challenger: {last.reason}"
    evidence = "{}" if last is None else last.evidence
    event = _promotion(version, "approved", evidence, replace(maker, reason=reason), begin)
    return _decision(registry, scores, event, begin)


def roll_back(
    registry: Registry, scores: Mapping[str, ScoreRun], maker: Maker, *, holds_from: datetime | None = None
) -> Decision:
    """Withdraw the champion at the time of the decision, so that the version before it serves again.

    It is withdrawn for partitions that start at `holds_from` or later; None: for all that it serves. `scores` holds the newest
    commits, by partition key. Raises WrongUseError if there is no champion, or no version would serve instead.
    """
    champion = registry.champion(maker.at if holds_from is None else max(holds_from, maker.at))
    if champion is None:
        msg = f"{registry.pipeline} has no champion to withdraw."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} lists the versions.")
    begin = max(champion.serving_start, holds_from or champion.serving_start)
    maker = replace(maker, reason=maker.reason or "rolled back by hand")
    decision = _decision(registry, scores, _promotion(champion, "withdrawn", "{}", maker, begin), begin)
    if decision.after is None:
        msg = f"{registry.pipeline}: no approved version but {champion.version} serves {_day(begin)}; nothing is withdrawn."
        raise WrongUseError(msg, hint=f"batch-platform models {registry.pipeline} promote VERSION first.")
    return decision


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
    seqs = next_numbers(con, 2)
    if training is not None:
        _insert_training(con, training, seqs[0])
    insert(con, "model_versions", [{**vars(version), "seq": seqs[0]}])
    insert(con, "promotions", [{**vars(decision), "seq": seqs[1]}])
    record_suspected_leaks(con, version, leaks_in(decision.evidence))
    note(con, [Change(seq, version.pipeline, "models", version.serving_period) for seq in seqs])


def leaks_in(evidence: str) -> list[SuspectedLeak]:
    """The suspected leaks in the evidence of a decision."""
    return [SuspectedLeak.from_json(leak) for leak in json.loads(evidence).get("suspected_leaks", ())]


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
        note(con, [Change(next_numbers(con, 1)[0], version.pipeline, SUSPECTED_LEAKS, None)])


def record_failure(con: duckdb.DuckDBPyConnection, training: AnyTraining) -> None:
    """Record that a model or a challenger could not be trained, within the caller's transaction."""
    (seq,) = next_numbers(con, 1)
    _insert_training(con, training, seq)
    note(con, [Change(seq, training.pipeline, "models", training.serving_period)])


def _insert_training(con: duckdb.DuckDBPyConnection, training: AnyTraining, seq: int) -> None:
    table = "model_trainings" if isinstance(training, ModelTraining) else "challenger_trainings"
    insert(con, table, [{**vars(training), "seq": seq}])


def record_decisions(con: duckdb.DuckDBPyConnection, decisions: Sequence[Promotion]) -> None:
    """Record decisions within the caller's transaction; raises WrongUseError if a version to approve was removed meanwhile."""
    for decision in decisions:
        if decision.action == "approved":
            read_registry(con, decision.pipeline).present(decision.version)
    seqs = next_numbers(con, len(decisions))
    numbered = [replace(decision, seq=seq) for decision, seq in zip(decisions, seqs, strict=True)]
    insert(con, "promotions", [vars(decision) for decision in numbered])
    note(con, [Change(event.seq, event.pipeline, "models", event.version) for event in numbered])


def _rows(con: duckdb.DuckDBPyConnection, table: str, record: type[Recorded], pipeline: str) -> list[Recorded]:
    columns = ", ".join(item.name for item in fields(record))
    query = f"SELECT {columns} FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline ORDER BY seq"
    return [record(*row) for row in con.execute(query, {"pipeline": pipeline}).fetchall()]


def _decision(registry: Registry, scores: Mapping[str, ScoreRun], event: Promotion, begin: datetime) -> Decision:
    then = replace(registry, promotions=[*registry.promotions, event])
    partitions: list[str] = []
    for run in sorted(scores.values(), key=lambda run: run.partition_start):
        champion = then.champion(run.partition_start)
        if champion != registry.champion(run.partition_start) and champion and champion.version != run.model_version:
            partitions.append(run.partition_key)
    return Decision(event, registry.champion(begin), then.champion(begin), partitions)


def _promotion(version: Version, action: Action, evidence: str, maker: Maker, begin: datetime) -> Promotion:
    return Promotion(
        pipeline=version.pipeline,
        version=version.version,
        action=action,
        reason=maker.reason,
        evidence=evidence,
        actor=maker.actor,
        decided_at=maker.at,
        run_id="",
        holds_from=begin,
    )


def _day(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
