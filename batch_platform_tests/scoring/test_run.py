"""A scoring run: whatever fails, all other partitions are committed."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WarehouseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring import run
from batch_platform_tests.harness.small_pipeline import feature_file, finished_pipeline

NOW = datetime(2024, 2, 8, tzinfo=UTC)
DAYS = ("2024-02-02", "2024-02-03", "2024-02-04")


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A scored pipeline that commits two partitions at once."""
    made = finished_pipeline(tmp_path, NOW)
    monkeypatch.setattr(run, "GROUP_PARTITIONS", 2)
    return made


def days(pipeline: Pipeline, *keys: str) -> list[Partition]:
    return [pipeline.spec.partitions.calendar.named(key) for key in keys or DAYS]


def damage(pipeline: Pipeline, key: str) -> None:
    """Change a byte of a feature file in a way that only reading it can find."""
    path = feature_file(pipeline, key)
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("damaged", [False, True], ids=["the last group is scored", "and then scoring fails"])
def test_a_group_is_committed_although_the_commit_before_it_fails_after_the_last_partition(pipeline, damaged):
    """The first group's commit waits until all else is scored, and then finds a newer run's commit."""
    wanted, held, scored = days(pipeline), threading.Event(), threading.Event()
    if damaged:
        wanted += days(pipeline, "2024-02-05")
        damage(pipeline, "2024-02-05")

    def hold() -> None:
        with pipeline.warehouse.open():
            held.set()
            scored.wait(60)

    holder = threading.Thread(target=hold)

    def watch(partition: Partition, *_: int) -> None:
        if partition.key == DAYS[0]:
            pipeline.train(days(pipeline, "2024-02-01")[0], Stamp("fast", NOW), params={"max_iter": 3})
            list(pipeline.score([partition], Stamp("fast", NOW)))
            holder.start()
            held.wait(60)
        if partition.key == DAYS[2]:
            threading.Timer(0.5, scored.set).start()

    with pytest.raises(WarehouseError, match="2024-02-02: run fast committed it"):
        list(pipeline.score(wanted, Stamp("slow", NOW), force=True, watch=watch))
    holder.join()
    committed = {key: scores.run_id for key, scores in pipeline.state().scores.items() if key in DAYS}
    assert committed == dict(zip(DAYS, ["fast", "slow", "slow"], strict=True))
