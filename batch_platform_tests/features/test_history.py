"""Recorded features joined with their labels: which are kept in memory, and for how long."""

from datetime import UTC, datetime

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.features import training_data as in_memory
from batch_platform.features.history import History
from batch_platform_tests.harness.small_pipeline import finished_pipeline

STAMP = Stamp("run", datetime(2024, 3, 2, tzinfo=UTC))
KEYS = ["2024-01-01", "2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(("most_bytes", "reads"), [pytest.param(1 << 20, 20, marks=pytest.mark.full), (0, 30)])
def test_trainings_in_a_row_read_each_feature_file_once_if_memory_allows_and_get_the_same_rows(
    tmp_path, monkeypatch, most_bytes, reads
):
    pipeline, read = finished_pipeline(tmp_path, STAMP.at), list[str]()
    builds = pipeline.state().features
    window = [
        partition for partition in pipeline.spec.partitions.calendar.due(STAMP.at) if partition.key < "2024-01-21"
    ]
    require_unchanged = History.require_unchanged

    def noted(self, build):
        read.append(build.partition_key)
        return require_unchanged(self, build)

    def data(days: int):
        return pipeline.history.training_data(builds, window[:days], window[days - 3].start, STAMP)

    alone = [data(days) for days in (10, 20)]
    monkeypatch.setattr(History, "require_unchanged", noted)
    monkeypatch.setattr(in_memory, "MOST_ROW_BYTES", most_bytes)
    with pipeline.history.reading_once():
        in_a_row = [data(days) for days in (10, 20)]
    assert len(read) == reads
    assert data(10).fit.height
    assert len(read) == reads + 10, "nothing is kept any longer"
    for one, other in zip(alone, in_a_row, strict=True):
        assert one.fit.equals(other.fit)
        assert one.evaluate.equals(other.evaluate)
        assert (one.rows_unlabelled, one.nulls_unlabelled) == (other.rows_unlabelled, other.nulls_unlabelled)
