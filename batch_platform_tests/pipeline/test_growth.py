"""The law: what a run of one partition reads and computes depends on that partition and its windows, not on the history."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.features import build
from batch_platform.warehouse import ledger
from batch_platform.warehouse.ledger import LEDGERS, EvaluationRun, FeatureBuild, ScoreRun
from batch_platform_tests.harness.small_pipeline import finished_pipeline

START = datetime(2024, 2, 1, tzinfo=UTC)
HOURLY = {"every": "hour", "start": "2024-01-01", "end": "2024-03-01", "timezone": "UTC"}
LENGTHS = (12, 36)  # hours that are scored before


@pytest.fixture
def counted(monkeypatch):
    """Counts the rows of the ledgers that become objects, the comparisons of these, and the queries of labels."""
    counts = Counter[str]()
    read, query = ledger.read_records, build.rows_within

    def read_records(con, record, rows, values):
        records = read(con, record, rows, values)
        counts[record.__name__] += len(records)
        return records

    def rows_within(*arguments):
        counts["labels"] += 1
        return query(*arguments)

    monkeypatch.setattr(ledger, "read_records", read_records)
    monkeypatch.setattr(build, "rows_within", rows_within)
    for record in LEDGERS:
        same = record.__eq__

        def compared(left, right, same=same):
            counts["compared"] += 1
            return same(left, right)

        monkeypatch.setattr(record, "__eq__", compared)
    return counts


def run_of_the_next(folder: Path, hours: int):
    """Build, score and evaluate one partition after so many, as the steps of one run."""
    now = START + timedelta(hours=hours)
    model = {"train": {"every": "month", "window": "3 days", "evaluate": "1 day"}}
    pipeline = finished_pipeline(folder, now, partitions=HOURLY, labels={"delay": "0 days"}, model=model)
    (hour,) = pipeline.spec.partitions.calendar.within(now, now + timedelta(hours=1))
    yield pipeline
    stamp = Stamp("next", hour.end)
    with pipeline.carrying("next"):
        list(pipeline.build_features([hour], stamp))
        list(pipeline.score([hour], stamp))
        list(pipeline.evaluate([hour], stamp))
        pipeline.conclude(hour.end)


@pytest.mark.full
def test_a_run_of_one_partition_reads_each_row_of_the_ledgers_at_most_once(tmp_path, counted):
    counts = list[Counter[str]]()
    for hours in LENGTHS:
        run = run_of_the_next(tmp_path / str(hours), hours)
        next(run)
        counted.clear()
        assert next(run, None) is None
        counts.append(Counter(counted))
    short, long = counts
    more = LENGTHS[1] - LENGTHS[0]
    for record in (FeatureBuild, ScoreRun, EvaluationRun):
        assert long[record.__name__] - short[record.__name__] == more
    assert long["compared"] == short["compared"]
    assert long["labels"] == short["labels"] == 1
