"""States of a pipeline to plan from."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.planning.state import State
from batch_platform.warehouse.ledger import ScoreRun

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)


def scored(partition: Partition, version: str, input_hash: str, code: str = "s1", seq: int = 1) -> ScoreRun:
    return ScoreRun(
        pipeline="small",
        partition_key=partition.key,
        partition_start=partition.start,
        partition_end=partition.end,
        model_version=version,
        model_sha256="",
        input_hash=input_hash,
        code_version=code,
        engine="local",
        rows_in=1,
        rows_scored=1,
        rows_rejected=0,
        in_sample=False,
        started_at=NOW,
        committed_at=NOW,
        run_id="run",
        seq=seq,
    )


def with_changes(state: State, **changes: Any) -> State:
    """A state in which fields of its parts have other values, each in the part that has it."""
    for name, value in changes.items():
        (part,) = (
            part for part in ("records", "seen", "declared") if name in {it.name for it in fields(getattr(state, part))}
        )
        state = replace(state, **{part: replace(getattr(state, part), **{name: value})})
    return state
