"""The request of a plan: the partitions to bring up to date, and how."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, listed
from batch_platform.declaration.operating import RetentionKind
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.planning.artifacts import with_snapshots_over
from batch_platform.planning.retention import Expired, expired, why_left
from batch_platform.planning.state import State


@dataclass(frozen=True)
class PlanRequest:
    """Partitions to bring up to date at a time, with whatever upstream they lack."""

    now: datetime
    only: Sequence[Partition] | None = None  # None: every partition that is due, and neither dropped nor too old
    force: bool = False  # features and predictions are due even if nothing changed
    model: str | None = None  # version that scores in place of the champions; no model is trained then
    recheck: bool = False  # the state is compared with the sources of all partitions, however old
    retrain: bool = False  # the model of the newest serving period is due even if nothing changed
    train: Sequence[Partition] = ()  # serving periods whose models are due in any case
    # A pipeline's only model has to serve the oldest partition of `only` that has enough history before it. Otherwise it is
    # trained on all that is mature.
    serve_all: bool = False
    failed_models: AbstractSet[str] = frozenset()  # serving periods whose training failed: the previous model scores

    @property
    def named(self) -> Sequence[Partition]:
        """The partitions that it names; none where it is about all."""
        return self.only or ()


@dataclass(frozen=True)
class Question:
    """A request and all that decides what is due by it; the steps of planning share it."""

    spec: PipelineSpec
    state: State  # knows which snapshots stay as they were taken
    request: PlanRequest
    partitions: Sequence[Partition]  # those that it is about, oldest first
    # Partitions that are left as they are unless they are named.
    expired: Expired = field(default_factory=dict[RetentionKind, Sequence[Partition]])

    @property
    def now(self) -> datetime:
        """The time of the request."""
        return self.request.now

    @cached_property
    def due(self) -> list[Partition]:
        """The partitions that are due at its time, wanted or not."""
        return self.spec.partitions.calendar.due(self.now)

    def is_servable(self, partition: Partition) -> bool:
        """Return whether a model can serve a partition."""
        return partition.start >= self.spec.periods.served.first_start

    @classmethod
    def of(cls, spec: PipelineSpec, state: State, request: PlanRequest) -> "Question":
        """Select the partitions that a request is about; raises WrongUseError if none of its snapshots can be taken."""
        only = request.only
        if only is not None and not spec.partitions.snapshot:
            return cls(spec, state, request, only)
        due, state = open_partitions(spec, state, request.now), with_snapshots_over(spec, state, request.now)
        if only is None:
            old = expired(spec, state, request.now)
            left = state.dropped.keys() | why_left(spec, old).keys()
            return cls(spec, state, request, [item for item in due if item.key not in left], old)
        takeable = [item for item in only if item in due]
        if only and not takeable:
            require_takeable(spec, only, request.now)
        return cls(spec, state, request, takeable)


def open_partitions(spec: PipelineSpec, state: State, now: datetime) -> list[Partition]:
    """The partitions that are due at a time, oldest first; of snapshots, those that were taken, also if dropped, and the newest."""
    due = spec.partitions.calendar.due(now)
    if not spec.partitions.snapshot:
        return due
    held = {*state.features, *state.scores, *state.dropped, *(item.key for item in due[-1:])}
    return [item for item in due if item.key in held]


def require_takeable(spec: PipelineSpec, partitions: Iterable[Partition], now: datetime) -> None:
    """Refuse to take a snapshot of a past that no table holds any more; raises WrongUseError."""
    due = spec.partitions.calendar.due(now) if spec.partitions.snapshot else []
    if spec.partitions.snapshot and (late := [partition.key for partition in partitions if partition not in due[-1:]]):
        msg = f"{spec.name}: the snapshot {listed(late)} can no longer be taken: its sources hold what they hold now."
        hint = f"take the newest one: batch-platform run {spec.name} --partition {due[-1].key}" if due else None
        raise WrongUseError(msg, hint=hint)
