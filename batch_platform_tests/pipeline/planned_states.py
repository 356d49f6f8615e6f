"""States of a pipeline to plan from."""

from datetime import UTC, datetime

from batch_platform.declaration.calendar import Partition
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
