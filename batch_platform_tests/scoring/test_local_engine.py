"""The local engine: threads and batches change nothing, a failure stops all work, memory holds a few batches only."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest
from threadpoolctl import threadpool_info
from xxhash import xxh3_128

from batch_platform.declaration.errors import IntegrityError
from batch_platform.features.lake import file_digests, parquet_writer
from batch_platform.models.bundle import Bundle, Native
from batch_platform.scoring.engines import local
from batch_platform.scoring.engines.local import LocalEngine
from batch_platform.scoring.partition import BundleFolder, ScoringOrder, Staged
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.scoring.batches import STAMP, Sum, bundle, rows

SPEC = small_spec(features={"max_rejected": "50%"})
CALENDAR = SPEC.partitions.calendar
ROWS = 50


class Watched(Sum):
    """The same model, with something that happens at each call."""

    def __init__(self, happens: Callable[[np.ndarray], None]) -> None:
        super().__init__("binary")
        self._happens = happens

    def predict(self, matrix):
        self._happens(matrix)
        return super().predict(matrix)


MODELS: dict[str, Bundle] = {}  # those that are open, by version


def opened(model: Bundle, version: str) -> BundleFolder:
    """A bundle that an engine need not open."""
    MODELS[version] = replace(model, folder=Path(version))
    return BundleFolder(version, Path("no-bundle"), model.sha256, ROWS)


def model(happens: Callable[[np.ndarray], None]) -> BundleFolder:
    watched = replace(bundle(), native=Native(partial(Watched, happens)))
    return opened(watched, f"2024-02-01-{len(MODELS):08}")


def table() -> pl.DataFrame:
    """Some rows break the contract, some have a category that the model does not know, one has no score."""
    amount = [float(n) if n % 9 else 2000.0 for n in range(ROWS)]
    return rows(amount, shop=["a", "new", "b", "a", "a"] * (ROWS // 5))


def order(
    folder: Path, day: int = 3, frame: pl.DataFrame | None = None, scored_by: BundleFolder | None = None
) -> ScoringOrder:
    frame = table() if frame is None else frame
    path = folder / f"features-{day}.parquet"
    frame.write_parquet(path)
    scored_by = scored_by or opened(bundle(), bundle().version)
    return ScoringOrder(CALENDAR.named(f"2024-02-{day:02}"), path, file_digests(path)[0], frame.height, scored_by)


def staged(orders: list[ScoringOrder], folder: Path, **options: Any) -> list[Staged]:
    folder.mkdir(exist_ok=True)
    with LocalEngine(SPEC, folder, STAMP, bundles=MODELS, **options) as engine:
        return list(engine.staged(orders))


def frames(partition: Staged) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(list(partition.predictions)), pl.read_parquet(list(partition.rejected))


@pytest.fixture
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before  # a thread of a library that was there may end


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("batch", [1, 7, ROWS])
def test_law_4_the_number_of_threads_and_how_they_share_the_work_change_nothing(tmp_path, monkeypatch, threads, batch):
    (whole,) = staged([order(tmp_path)], tmp_path / "whole", threads=1)
    monkeypatch.setattr(local, "BATCH_ROWS", batch)
    (parts,) = staged([order(tmp_path)], tmp_path / "parts", threads=threads)
    for expected, scored in zip(frames(whole), frames(parts), strict=True):
        pl.testing.assert_frame_equal(scored.sort(scored.columns[:2]), expected.sort(expected.columns[:2]))
    assert frames(parts)[0].equals(frames(whole)[0]), "and the order of the scored rows is that of the features"
    assert replace(parts.counts, samples=()) == replace(whole.counts, samples=()), "samples are the first of each batch"
    assert parts.started_at == whole.started_at


@pytest.mark.unit
@pytest.mark.usefixtures("no_thread_left")
def test_small_and_large_partitions_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 20)
    sizes = [5, 50, 20, 0, 21, 3, 50]
    orders = [order(tmp_path, day, table().head(size)) for day, size in enumerate(sizes, start=1)]
    partitions = staged(orders, tmp_path / "out", threads=3)
    assert [partition.partition for partition in partitions] == [partition.partition for partition in orders]
    assert [partition.counts.rows_in for partition in partitions] == sizes
    assert all(
        partition.counts.rows_in == partition.counts.rows_scored + partition.counts.rows_rejected
        for partition in partitions
    )


def broken(matrix: np.ndarray) -> None:
    if (matrix[:, 0] == 31.0).any():
        msg = "this model is broken"
        raise ArithmeticError(msg)


@pytest.mark.unit
@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("batch", [7, 1000])
def test_an_error_on_a_thread_is_raised_after_the_results_before_it_and_leaves_nothing(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(local, "BATCH_ROWS", batch)
    out = tmp_path / "out"
    out.mkdir()
    orders = [order(tmp_path, 1), order(tmp_path, 2, scored_by=model(broken)), order(tmp_path, 3)]
    with LocalEngine(SPEC, out, STAMP, bundles=MODELS) as engine:
        results = engine.staged(orders)
        assert next(results).partition == orders[0].partition
        with pytest.raises(ArithmeticError, match="this model is broken"):
            next(results)
    assert not [file.name for file in out.iterdir() if file.name.startswith("2024-02-02")]


@pytest.mark.unit
@pytest.mark.usefixtures("no_thread_left")
def test_an_interruption_ends_all_threads_and_leaves_nothing_staged(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 5)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staged([order(tmp_path)], tmp_path / "out", watch=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.unit
@pytest.mark.usefixtures("no_thread_left")
def test_an_engine_that_is_abandoned_ends_its_threads(tmp_path):
    (tmp_path / "out").mkdir()
    orders = [order(tmp_path, day) for day in range(1, 9)]
    with LocalEngine(SPEC, tmp_path / "out", STAMP, bundles=MODELS, threads=2) as engine:
        results = engine.staged(orders)
        assert next(results).partition == orders[0].partition
        results.close()


@pytest.mark.unit
@pytest.mark.parametrize("at", [4, 300, -9])
@pytest.mark.parametrize("quick", [True, False])
def test_a_changed_byte_is_refused_before_anything_can_be_committed(tmp_path, monkeypatch, at, quick):
    monkeypatch.setattr(local, "BATCH_ROWS", 7)
    damaged = order(tmp_path)
    if quick:
        damaged = replace(damaged, xxh3=xxh3_128(damaged.features.read_bytes()).hexdigest())
        staged([damaged], tmp_path / "out")  # as long as it is whole
        shutil.rmtree(tmp_path / "out")
    content = bytearray(damaged.features.read_bytes())
    content[at] ^= 1
    damaged.features.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"small, partition 2024-02-03: the bytes of .*--force builds it again"):
        staged([damaged], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_replaced_while_it_is_read_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 5)
    path = tmp_path / "features-3.parquet"

    def replace_it(_: np.ndarray) -> None:
        rows([7.0] * 9).write_parquet(tmp_path / "other.parquet")
        (tmp_path / "other.parquet").replace(path)

    (expected,) = staged([order(tmp_path)], tmp_path / "expected")
    (partition,) = staged([order(tmp_path, scored_by=model(replace_it))], tmp_path / "out", threads=1)
    predictions = [frames(partition)[0].drop("model_version") for partition in (partition, expected)]
    assert predictions[0].equals(predictions[1])


@pytest.mark.unit
def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 5)
    path = tmp_path / "features-3.parquet"
    touched = model(lambda _: os.utime(path, (1, 1)))
    with pytest.raises(IntegrityError, match="are not those that were recorded"):
        staged([order(tmp_path, scored_by=touched)], tmp_path / "out")


@pytest.mark.unit
def test_a_staged_partition_says_where_its_time_went(tmp_path):
    (partition,) = staged([order(tmp_path)], tmp_path / "out")
    assert partition.spent.clock > 0
    assert set(partition.spent.shares) == {"read", "score", "commit"}
    assert sum(partition.spent.shares.values()) == pytest.approx(1)


@pytest.mark.unit
def test_the_numeric_libraries_run_one_thread_each_while_it_scores_and_as_before_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 20)
    seen: list[set[int]] = []
    before = threads_of_libraries()
    watching = model(lambda _: seen.append(set(threads_of_libraries().values())))
    staged([order(tmp_path, scored_by=watching)], tmp_path / "out", threads=3)
    assert seen == [{1}] * 3
    assert threads_of_libraries() == before


def threads_of_libraries() -> dict[str, int]:
    import sklearn.ensemble  # noqa: F401 - it brings OpenMP

    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}


CHILD = """
import resource, sys
from pathlib import Path
from batch_platform_tests.scoring.test_local_engine import CALENDAR, opened, staged
from batch_platform.scoring.partition import ScoringOrder
from batch_platform_tests.scoring.batches import bundle
path, sha256, rows, out = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
(done,) = staged([ScoringOrder(CALENDAR.named("2024-02-03"), path, sha256, rows, opened(bundle(), "any"))], out)
assert done.counts.rows_scored == rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def many_rows(path: Path, batches: int, batch: int = 125_000) -> int:
    """Random numbers, written as features are; none breaks the contract."""
    random = np.random.default_rng(1)
    writer = None
    for number in range(batches):
        frame = pl.DataFrame(
            {
                "id": np.arange(batch) + number * batch,
                "ts": rows([1.0])["ts"].new_from_index(0, batch),
                "amount": random.uniform(20, 900, batch),
                "items": random.integers(1, 9, batch),
                "shop": pl.Series(["a", "b"] * (batch // 2)),
                **{f"further_{n}": random.uniform(size=batch) for n in range(6)},
            }
        )
        content = frame.to_arrow()
        writer = writer or parquet_writer(path, content.schema)
        writer.write_table(content)
    assert writer is not None
    writer.close()
    return batches * batch


@pytest.mark.full
def test_memory_does_not_grow_with_the_partition(tmp_path):
    peaks: list[int] = []
    for batches in (8, 32):
        path, out = tmp_path / f"{batches}.parquet", tmp_path / f"out-{batches}"
        out.mkdir()
        count = many_rows(path, batches)
        command = [sys.executable, "-c", CHILD, str(path), file_digests(path)[0], str(count), str(out)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        peaks.append(int(process.stdout))
    assert peaks[1] <= 1.1 * peaks[0], f"1 million rows: {peaks[0]} KiB, 4 million: {peaks[1]} KiB"
