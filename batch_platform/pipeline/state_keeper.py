"""The state of a pipeline from one step to the next: read whole or renewed, carried on, and written down at the end."""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import NothingPublishedError
from batch_platform.declaration.predictions import rule_text
from batch_platform.delivery.ledger import read_deliveries
from batch_platform.features.fingerprints import record_fingerprints, recorded_fingerprints
from batch_platform.features.history import History
from batch_platform.models.refinements.known import fingerprint
from batch_platform.models.registry import Registry, read_registry
from batch_platform.planning.inputs import Inputs
from batch_platform.planning.plan import Plan, make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import Declared, Records, Seen, State, checked, with_files_as_seen
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import read_dropped, read_erased
from batch_platform.warehouse.failures import read_failures
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    EvaluationRun,
    FeatureBuild,
    ScoreRun,
    StatusRow,
    as_record,
    journal,
    newest_change,
    read_features_of,
    read_latest,
    replace_statuses,
    statuses_of,
)
from batch_platform.warehouse.published import publish, reading_published
from batch_platform.warehouse.tables_in_files import named_files

_JOURNAL = f"{LEDGERS_SCHEMA}.changes"


@dataclass
class _Carried:
    """The state that the steps of one piece of work hand on."""

    work: str = ""
    steps: int = 0  # number of steps at work, each within the one before it
    seen: dict[bool, State] = field(default_factory=dict[bool, State])  # key: whether all sources were looked at


@dataclass(frozen=True)
class StateKeeper:
    """Keeps the state of one pipeline in one home."""

    history: History
    warehouse: Warehouse
    scoring_code_version: str
    unexplained_code_version: str  # see `State`
    declared: str  # hash of the whole declaration
    _carried: _Carried = field(default_factory=_Carried, init=False, repr=False, compare=False)

    @cached_property
    def inputs(self) -> Inputs:
        """The versions of what models and evaluations are made from beside the features, as declared now."""
        return Inputs.declared(self.history.builder)

    @property
    def _declared(self) -> Declared:
        return Declared(
            features_version=self.history.builder.code_version,
            scoring_version=self.scoring_code_version,
            unexplained_version=self.unexplained_code_version,
            decision_rule=rule_text(self.history.spec.predictions.decide),
            refinements=fingerprint(self.history.spec),  # of each state anew: their modules may be edited meanwhile
            inputs=self.inputs,
            text=self.declared,
        )

    @contextmanager
    def carrying(self, work: str) -> Generator[None]:
        """Carry one state through a piece of work, such as a run with its steps; work within it takes part in it.

        The ledgers are read whole once, and the files are looked at once with and once without `recheck`, as far as a step
        asks for it. From then on `state` adds only what was recorded since, by this process or another.
        """
        carried = self._carried
        if not carried.steps and carried.work != work:
            carried.work, carried.seen = work, {}
        carried.steps += 1
        try:
            yield
        finally:
            carried.steps -= 1

    def state(self, *, recheck: bool = False) -> State:
        """The state now; waits for the warehouse. With `recheck`, the sources of all partitions are looked at, however old."""
        carried = self._carried
        if carried.steps and carried.seen:
            carried.seen = dict(zip(carried.seen, self._renewed([*carried.seen.values()]), strict=True))
            if recheck in carried.seen:
                return carried.seen[recheck]
            recorded = next(iter(carried.seen.values()))
        else:
            with self.warehouse.open() as con:
                recorded = self._recorded(con)
        state = checked(self.history, recorded, recheck=recheck)
        if carried.steps:
            carried.seen[recheck] = state
        return state

    def published(self) -> State:
        """The state as it was last published, without a look at any file; empty if nothing is published."""
        try:
            with reading_published(self.history.home) as con:
                return self._recorded(con)
        except NothingPublishedError:
            declared = Declared(self.history.builder.code_version, self.scoring_code_version)
            return State(Records(Registry(self.history.spec.name)), declared)

    def _recorded(
        self, con: duckdb.DuckDBPyConnection, partition_keys: Collection[str] | None = None, seen: State | None = None
    ) -> State:
        """The state by the ledgers, of all partitions or of some; every file is taken to be as recorded.

        What `seen` holds of the sources is not read again.
        """
        name = self.history.spec.name
        scores = read_latest(con, ScoreRun, name, partition_keys)
        evaluations = read_latest(con, EvaluationRun, name, partition_keys)
        registry = read_registry(con, name)
        records = Records(
            registry=replace(registry, refused_on=read_features_of(con, registry.fruitless.values())),
            features=read_latest(con, FeatureBuild, name, partition_keys),
            scores=scores,
            evaluations={key: run for key, run in evaluations.items() if self._knew_labels(run, scores.get(key))},
            deliveries=read_deliveries(con, name, partition_keys),
            failures=read_failures(con, name),
            dropped=read_dropped(con, name),
            files=named_files(con, self.history.home, pipeline=name),
            erased=read_erased(con, self.history.home, name),
            newest_change=newest_change(con),
        )
        taken = recorded_fingerprints(con, name) if seen is None else seen.seen.fingerprints
        return State(records, self._declared, Seen(fingerprints=taken))

    def renewed(self, seen: State) -> State:
        """A state with what was recorded since: the partitions that the journal names are read again."""
        return self._renewed([seen])[0]

    def _renewed(self, seen: Sequence[State]) -> Sequence[State]:
        """The same of states whose records are those of one time."""
        with self.warehouse.open() as con:
            keys = _changed_since(con, self.history.spec.name, seen[0])
            if keys is not None and not keys:
                return seen
            recorded = self._recorded(con, keys, seen[0])
        return [with_files_as_seen(recorded, state, keys) for state in seen]

    def conclude(self, state: State, now: datetime) -> tuple[State, Plan]:
        """Write how every partition stands, except those that another run committed since the state was read, and publish it.

        Returns the state and the plan for it. If a whole ledger changed meanwhile, both are made anew.
        """
        name = self.history.spec.name
        while True:
            plan = make_plan(self.history.spec, state, PlanRequest(now))
            rows = {row.partition_key: row for row in _status_rows(state, plan, now)}
            with self.warehouse.transaction() as con:
                others = _changed_since(con, name, state)
                if others is not None:
                    first_seen = self.inputs.first_seen(state.registry.model_trainings, state.evaluations.values())
                    taken = {**first_seen, **state.seen.fingerprints, **self.history.builder.taken}
                    record_fingerprints(con, name, taken)
                    own = [row for key, row in rows.items() if key not in others]
                    replace_statuses(con, name, own, rows.keys() - others if others else None)
                    journal(con, [statuses_of(name)])
                    break
            state = self.state()  # what was planned is out of date
        publish(self.history.home)
        return state, plan

    def _knew_labels(self, evaluation: EvaluationRun, run: ScoreRun | None) -> bool:
        """Return whether labels were mature, as they are declared now, when a partition was evaluated."""
        if run is None:
            return True
        partition = Partition(run.partition_key, run.partition_start, run.partition_end)
        return self.history.spec.periods.matures(partition) <= evaluation.evaluated_at


def _changed_since(con: duckdb.DuckDBPyConnection, pipeline: str, seen: State) -> set[str] | None:
    """The keys, of partitions or of models, whose records changed since a state was read; None if it may be any.

    A change of a whole ledger names no partition.
    """
    query = (
        f"SELECT DISTINCT schema_name, coalesce(partition_key, '') FROM {_JOURNAL} WHERE seq > $seq "
        "AND (schema_name = $pipeline OR schema_name = $ledgers AND partition_key IS NULL)"
    )
    values = {"seq": seen.records.newest_change, "pipeline": pipeline, "ledgers": LEDGERS_SCHEMA}
    changes = con.execute(query, values).fetchall()
    return None if any(schema == LEDGERS_SCHEMA for schema, _ in changes) else {key for _, key in changes}


def _status_rows(state: State, plan: Plan, computed_at: datetime) -> list[StatusRow]:
    """Say how every committed partition of a state stands by a plan that covers it."""
    rows = list[StatusRow]()
    for key, run in state.scores.items():
        stale, champion = plan.stale.get(key), state.registry.champion(run.partition_start)
        row = as_record(
            StatusRow,
            run,
            condition="scored" if stale is None else "stale",
            reason=plan.remarks.get(key) if stale is None else stale,
            champion=None if champion is None else champion.version,
            computed_at=computed_at,
        )
        rows.append(row)
    return rows
