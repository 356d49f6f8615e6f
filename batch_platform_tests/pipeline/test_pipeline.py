"""The steps of a pipeline: what is recorded, what is skipped, and what a changed source makes due."""

import os
from datetime import UTC, datetime

from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    feature_file,
    finished_pipeline,
    small_pipeline,
    write_events_by_day,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
BY_DAY = {"sources": {"events": {"parquet": "days/{partition_key}.parquet"}, "shops": {"csv": "shops.csv"}}}


def by_day(tmp_path):
    """A pipeline with a source that has a file for each day, and a source with one file for all days."""
    pipeline = small_pipeline(tmp_path, **BY_DAY)
    (pipeline.folder / "shops.csv").write_text("shop\nx\n", encoding="utf-8")
    write_events_by_day(pipeline.folder)
    return pipeline


def test_archiving_a_source_file_blocks_nothing(tmp_path):
    pipeline = by_day(tmp_path)
    carry_out(pipeline, NOW)
    (pipeline.folder / "days" / "2024-01-03.parquet").unlink()
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def test_features_are_recognized_by_the_name_and_size_of_their_file(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    kept, touched, linked, cut, gone = days = [f"2024-01-0{day}" for day in range(1, 6)]
    files = {day: feature_file(pipeline, day) for day in days}
    os.utime(files[touched])
    files[linked].rename(files[linked].with_name("elsewhere"))
    files[linked].symlink_to("elsewhere")
    with files[cut].open("ab") as file:
        file.truncate(100)
    files[gone].unlink()
    assert pipeline.state().features.keys() & set(days) == {kept, touched, linked}
