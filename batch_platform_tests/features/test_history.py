"""Recorded features joined with their labels: which are kept in memory, and for how long."""

from datetime import UTC, datetime

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.features import history
from batch_platform.features.build import FeatureSession
from batch_platform_tests.harness.small_pipeline import small_pipeline

STAMP = Stamp("run", datetime(2024, 3, 2, tzinfo=UTC))
KEYS = ["2024-01-01", "2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(("kept", "reads"), [(1 << 20, 3), (0, 6)])
def test_a_run_reads_labels_once_as_long_as_they_fit_into_memory(tmp_path, monkeypatch, kept, reads):
    pipeline, read = small_pipeline(tmp_path), list[str]()
    labels = FeatureSession.labels

    def noted(session, partition):
        read.append(partition.key)
        return labels(session, partition)

    monkeypatch.setattr(FeatureSession, "labels", noted)
    monkeypatch.setattr(history, "MOST_LABEL_BYTES", kept)
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in KEYS]
    with pipeline.builder.session(labels=True) as session:
        first = [pipeline.history.labels(session, partition, STAMP) for partition in partitions]
        again = [pipeline.history.labels(session, partition, STAMP) for partition in partitions]
    assert len(read) == reads
    assert all(before.equals(after) for before, after in zip(first, again, strict=True))
