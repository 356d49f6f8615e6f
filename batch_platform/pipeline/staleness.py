"""Which committed predictions are out of date, and why: one answer for `status`, the check and the view.

The plan finds it. Most of it can be read off the ledgers at any time, as the view `batch_platform.partition_status` does;
what only the declaration, the sources and the calendar tell is noted here whenever somebody looks, so that the view tells
it too. A model whose labels were corrected does not make predictions stale, since scoring them again would change
nothing; it is told beside them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from batch_platform.declaration.errors import SourceError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import History, labels_fingerprint
from batch_platform.models.registry import Version
from batch_platform.pipeline.plan import BUILT_AGAIN, MODEL_DUE, SOURCE_CHANGED, Plan, State
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import (
    Change,
    Declaration,
    PartitionNote,
    append,
    insert,
    newest_declaration,
    next_numbers,
    note,
    read_latest,
)

NOTED = frozenset({BUILT_AGAIN, MODEL_DUE, SOURCE_CHANGED})  # reasons that no ledger holds


@dataclass(frozen=True)
class Staleness:
    """What is out of date of a pipeline's committed predictions.

    Args:
        committed: How many partitions were looked at.
        stale: Why, by partition key, scoring them now would give other rows.
        remarks: What else is to be said of a partition that is not stale.
    """

    committed: int
    stale: Mapping[str, str]
    remarks: Mapping[str, str]

    @property
    def reasons(self) -> dict[str, int]:
        """How many partitions are stale for each reason, the most frequent first."""
        return dict(Counter(self.stale.values()).most_common())


def relabelled(history: History, versions: Iterable[Version]) -> frozenset[str]:
    """The versions that learnt from labels whose files changed since; where one is gone, nothing newer can be learnt."""
    if not history.builder.own_label_sources:
        return frozenset()
    calendar, changed = history.spec.partitions.calendar, set[str]()
    versions_now = cache(history.builder.label_versions)  # windows overlap
    for version in versions:
        with suppress(SourceError, WrongUseError):
            window = calendar.within(version.trained_from, version.trained_until)
            if version.label_sources and labels_fingerprint(window, versions_now) != version.label_sources:
                changed.add(version.version)
    return frozenset(changed)


def staleness_of(state: State, plan: Plan) -> Staleness:
    """What is out of date, as a plan of all partitions finds it."""
    remarks = {
        key: f"its model {run.model_version} learnt from labels that were corrected since"
        for key, run in state.scores.items()
        if run.model_version in state.relabelled and key not in plan.stale
    }
    return Staleness(len(state.scores), plan.stale, remarks)


def note_staleness(warehouse: Warehouse, pipeline: str, state: State, found: Staleness, stamp: Stamp) -> None:
    """Note what the ledgers do not tell yet of what was found; nothing is written where there is nothing new.

    Raises:
        WarehouseBusyError: Another process kept the warehouse for longer than the time-out.
    """
    with warehouse.open() as con:
        noted = read_latest(con, PartitionNote, pipeline)
        declared = newest_declaration(con, pipeline)
    new = [one for one in _notes(pipeline, state, found, stamp) if _differs(one, noted.get(one.partition_key))]
    codes = (state.features_code_version, state.scoring_code_version)
    changed = bool(state.scores) and declared != codes
    if not (new or changed):
        return
    with warehouse.transaction() as con:
        if new:
            append(con, new, "partition_status")
        if changed:
            (seq,) = next_numbers(con, 1)
            row = Declaration(pipeline, *codes, noted_at=stamp.now(), run_id=stamp.run_id)
            insert(con, "declarations", [{**vars(row), "seq": seq}])
            note(con, [Change(seq, pipeline, "partition_status", "")])


def _notes(pipeline: str, state: State, found: Staleness, stamp: Stamp) -> list[PartitionNote]:
    """What there is to note of every committed partition, be it that there is nothing."""
    notes: list[PartitionNote] = []
    for key, run in state.scores.items():
        reason = found.stale.get(key)
        stale = reason in NOTED
        told = reason if stale else found.remarks.get(key)
        notes.append(PartitionNote(pipeline, key, run.seq, stale, told, stamp.now(), stamp.run_id))
    return notes


def _differs(one: PartitionNote, last: PartitionNote | None) -> bool:
    if last is None or last.score_seq != one.score_seq:
        return one.reason is not None
    return (last.stale, last.reason) != (one.stale, one.reason)
