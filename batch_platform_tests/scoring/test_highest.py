"""The highest scores of a partition, decided while staged files are copied and in the files themselves: against a plain sort."""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.features.lake import parquet_writer
from batch_platform.scoring.batch import Counts
from batch_platform.scoring.deciding import with_whole
from batch_platform.scoring.partition import Staged
from batch_platform.warehouse.replacing import rows_of_files
from batch_platform.warehouse.sql import in_memory
from batch_platform_tests.harness.small_pipeline import small_spec

NOW = datetime(2024, 2, 4, 12, tzinfo=UTC)
ADJACENT = [0.0, 5e-324, 0.1, 0.30000000000000004, math.nextafter(0.30000000000000004, 1), 1 / 3, 1.0]
MOMENTS = st.datetimes()
NANOSECONDS = st.integers(-(2**40), 2**40).map(lambda offset: 1_700_000_000_000_000_000 + offset)
KEYS: dict[str, tuple[Any, ...]] = {
    "integers": (st.integers(-(2**63), 2**63 - 1), pl.Int64),
    "text": (st.text(max_size=3), pl.String),
    "bytes": (st.binary(max_size=3), pl.Binary),
    "dates": (st.dates(date(1, 1, 1)), pl.Date),
    "moments": (MOMENTS, pl.Datetime("us")),
    "zoned moments": (MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)), pl.Datetime("us", "UTC")),
    "nanoseconds": (NANOSECONDS, pl.Datetime("ns")),
    "real numbers": (st.floats(allow_nan=False).map(lambda number: number + 0.0), pl.Float64),
    "amounts": (st.decimals(-1000, 1000, places=2), pl.Decimal(10, 2)),
    "times of day": (st.times(), pl.Time),
    "categories": (st.text("abc", max_size=5), pl.Categorical),
}
QUICK = ("integers", "text")


def staged(folder: Path, rows: pl.DataFrame, cuts: Sequence[int]) -> Staged:
    """The rows as a scored partition, in a file for each part."""
    files = list[Path]()
    for start, end in zip([0, *cuts], [*cuts, rows.height], strict=True):
        files.append(folder / f"{len(files)}.predictions.parquet")
        part = rows[start:end].with_columns(decision=pl.lit(None, pl.Boolean)).to_arrow()
        with parquet_writer(files[-1], part.schema, lasting=False) as writer:
            writer.write_table(part)
    spec = small_spec()
    return Staged(spec.partitions.calendar.named("2024-02-01"), tuple(files), (), Counts(), NOW)


def copied(partition: Staged) -> pl.DataFrame:
    """The rows as a commit copies them."""
    rows, values = rows_of_files(partition.predictions, partition.decided)
    with in_memory() as con:
        return con.sql(f"SELECT decision FROM {rows}", params=values).pl()


def in_files(partition: Staged) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(pq.read_table(file, columns=["decision"])) for file in partition.predictions])


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.full) for kind in KEYS]
)
def test_the_highest_scores_are_taken_and_of_equal_ones_the_lowest_keys_in_any_order_of_the_rows(
    kind, tmp_path_factory
):
    strategy, dtype = KEYS[kind]

    @given(data=st.data())
    def decided_like_a_sort(data):
        keys = data.draw(st.lists(strategy, unique=True, max_size=30))
        scores = data.draw(st.lists(st.sampled_from(ADJACENT), min_size=len(keys), max_size=len(keys)))
        top = data.draw(st.integers(1, 35) | st.sampled_from(["1%", "50%", "100%"]))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=2)))
        is_second = data.draw(st.booleans())
        rows = pl.DataFrame(
            {
                "key": pl.Series(keys, dtype=dtype),
                "score": pl.Series(scores, dtype=data.draw(st.sampled_from([pl.Float64, pl.Float32]))),
            }
        ).with_columns(half=pl.Series([at % 2 for at in range(len(keys))], dtype=pl.Int8))
        columns = ["half", "key"] if is_second else ["key"]
        spec = small_spec(features={"key": columns}, predictions={"decide": {"top": top}})
        most = min(len(keys), top if isinstance(top, int) else math.floor(float(top[:-1]) / 100 * len(keys)))
        order = [
            pl.col(name).cast(pl.String) if rows[name].dtype == pl.Categorical else pl.col(name) for name in columns
        ]
        best = set(
            rows.with_row_index().sort("score", *order, descending=[True, *(False for _ in order)])["index"][:most]
        )
        expected = [at in best for at in range(len(keys))]
        folder = tmp_path_factory.mktemp("staged")
        partition = staged(folder, rows, cuts)
        assert copied(with_whole(partition, spec))["decision"].to_list() == expected
        assert in_files(with_whole(partition, spec, in_place=True))["decision"].to_list() == expected

    decided_like_a_sort()


@pytest.mark.unit
def test_of_equal_scores_at_the_border_only_the_lowest_key_is_selected(tmp_path):
    rows = pl.DataFrame({"id": [4, 3, 2, 1], "score": [0.9, 0.5, 0.5, 0.5]})
    decided = with_whole(staged(tmp_path, rows, cuts=[2]), small_spec(predictions={"decide": {"top": 2}}))
    assert copied(decided)["decision"].to_list() == [True, False, False, True]
