"""What the driver of the Spark engine does with the summaries of very many tasks: its time and its memory, without a cluster.

python -m batch_platform_tests.benchmarks.spark_driver [TASKS] [COLUMNS]

The summaries are those of a partition of TASKS times 500,000 rows: counts, and the profiles of COLUMNS features. Each is pickled as an
executor returns it, and merged as the driver does, with the scores that a challenger shares with the champion, which executors leave in files.
"""

import pickle
import resource
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.spark.parts import FilePart
from batch_platform.monitoring.agreement import Agreement
from batch_platform.monitoring.profiles import number_bins, number_profile
from batch_platform.scoring.batch import Counts
from batch_platform.scoring.engines.spark import SparkEngine
from batch_platform.scoring.engines.spark_task import Job, Summary, Task
from batch_platform.scoring.partition import BundleFolder, ChallengerScores, ScoringOrder, Spent, Staged
from batch_platform_tests.harness.small_pipeline import small_spec

ROWS_PER_TASK = 500_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = Partition("2026-03-01", NOW, NOW)


def summaries(tasks: int, columns: int, folder: Path) -> list[bytes]:
    """What executors return, pickled; each task has its files in the folder."""
    random = np.random.default_rng(1)
    values = random.normal(size=5_000)
    bins = number_bins(values)
    stretch = {(0, 100): "footer"}
    hashed = Summary(stretches=stretch | {(at, at + 1): f"{at}" for at in range(1000, 1000 + 4 * tasks)})
    result, whole = [pickle.dumps(hashed)], tasks * ROWS_PER_TASK
    for number in range(tasks):
        files = tuple(folder / f"{DAY.key}.{number}.{kind}.parquet" for kind in ("predictions", "rejected", "linear"))
        for file in files:
            file.touch()
        places = number * ROWS_PER_TASK + np.arange(ROWS_PER_TASK)
        agreement = Agreement.of(places, *random.random((2, ROWS_PER_TASK, 1)), np.arange(ROWS_PER_TASK) == 0, whole)
        agreements = folder / f"{DAY.key}.{number}.agreements"
        agreements.write_bytes(pickle.dumps([agreement]))
        challenger = ChallengerScores("linear", ROWS_PER_TASK, ROWS_PER_TASK, files=files[2:])
        profiles = tuple(number_profile(f"column_{at}", "feature", bins, values) for at in range(columns))
        staged = Staged(
            partition=DAY,
            predictions=files[:1],
            rejected=files[1:2],
            counts=Counts(rows_in=ROWS_PER_TASK, rows_scored=ROWS_PER_TASK, profiles=profiles),
            started_at=NOW,
            challengers=(challenger,),
            spent=Spent(read=1.0, score=1.0),
        )
        read = {(at, at + 1): f"{at}" for at in range(1000 + 4 * number, 1004 + 4 * number)}
        sizes = 0, 0, 0, agreements.stat().st_size
        result.append(pickle.dumps(Summary(staged, agreements, stretch | read, sizes)))
    return result


def main(tasks: int = 10_000, columns: int = 20) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        returned = summaries(tasks, columns, folder)
        model = BundleFolder("v", folder, "", tasks * ROWS_PER_TASK)
        order = ScoringOrder(DAY, folder / "features.parquet", "", tasks * ROWS_PER_TASK, model)
        parts = (Task(0, FilePart((at, at + 1), at * ROWS_PER_TASK)) for at in range(tasks))
        job = Job(
            small_spec(), folder, "run", NOW, (order,), (Task(0, scores=False), *parts), folder / "mark", attempts=4
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = perf_counter()
        staged = SparkEngine(job.spec, folder, Stamp("run", NOW)).whole(
            job, order, [pickle.loads(summary) for summary in returned]
        )
        merging = perf_counter() - began
        agreed = staged.challengers[0].agreement.result()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(map(len, returned))
    print(
        f"{tasks:,} tasks, {staged.counts.rows_in:,} rows, {columns} columns, one challenger ({agreed.rank_correlation:+.3f})"
    )
    print(
        f"summaries: {size / 2**20:,.0f} MiB, {size / len(returned) / 1024:,.1f} KiB each; the job as sent: {len(pickle.dumps(job)) / 2**20:,.1f} MiB"
    )
    print(
        f"merged in {merging:.1f} s; peak of the driver's Python {before / 1024:,.0f} MiB before, {peak / 1024:,.0f} MiB after"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
