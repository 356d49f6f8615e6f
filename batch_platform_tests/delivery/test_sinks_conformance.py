"""The duties of every kind of sink, for each kind, and for that of the guide's distribution."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from batch_platform.declaration.errors import DeliveryError
from batch_platform.delivery.known import replace_at_receiver
from batch_platform_tests.delivery.receivers import (
    KEY,
    RECEIVERS,
    deliver,
    delivered,
    place_of,
    target_of,
)
from batch_platform_tests.delivery.rows import NEW, ODD, OLD, as_text, holds, shown
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.tiers import FULL

pytestmark = pytest.mark.usefixtures("shop_extensions")

TYPES = {
    "PostgreSQL": {
        "byte": pl.Int16, "whole": pl.Int64, "number": pl.Float64, "at": pl.Datetime("us", "UTC"), "local": pl.Datetime("us"),
        "day": pl.Date, "flag": pl.Boolean, "text": pl.String,
    },
    "SQLite": {"byte": pl.Int64, "whole": pl.Int64, "number": pl.Float64, "money": pl.Float64, "flag": pl.Int64, "text": pl.String},
}  # fmt: skip

HOUR = "2026-01-01-05:00"  # a key with a character that an address must quote
QUICK = ("csv", "delta", "SQLite")  # of the everyday tier, where a fault befalls a receiver
of_quick_receivers = pytest.mark.parametrize(
    "kind", [pytest.param(it, marks=() if it in QUICK else FULL) for it in RECEIVERS], indirect=True
)


@pytest.fixture(params=RECEIVERS)
def kind(request) -> str:
    if request.param == "PostgreSQL":
        request.getfixturevalue("postgresql")
    if "://" in RECEIVERS[request.param].at:
        request.getfixturevalue("store")
    return request.param


def test_rows_arrive_with_their_values_and_types(kind, tmp_path):
    target = target_of(tmp_path, kind)
    deliver(target, ODD)
    rows = delivered(tmp_path, kind)
    assert set(rows.columns) == {*ODD.columns, "partition_key"}
    assert rows.height == ODD.height
    assert set(rows["partition_key"]) == {KEY}
    if kind.startswith(("parquet", "delta", "iceberg")):
        wide: Any = {} if kind.startswith("parquet") else {"byte": pl.Int16, "long": pl.Decimal(20, 0)}
        expected = ODD.cast(wide)
        if kind == "iceberg":  # pyiceberg writes a list of structs that is null as an empty one
            expected = expected.with_columns(pl.col("byte").cast(pl.Int32), pl.col("reasons").fill_null([]))
        assert rows.select(ODD.columns).sort("whole").equals(expected.sort("whole"))
        return
    if kind in ("PostgreSQL", "SQLite"):
        assert rows.schema.items() >= TYPES[kind].items()
        assert [text and json.loads(text) for text in rows["reasons"].to_list()] == ODD["reasons"].to_list()
    same = ["text", "whole", "number", "day", *(["money", "at", "local", "flag"] if kind.startswith("csv") else [])]
    same += (
        ["long", *(["byte", "money", "at", "local", "flag"] if kind == "PostgreSQL" else [])] if kind in TYPES else []
    )
    typed = [pl.col(name).cast(pl.String if kind in ("SQLite", "sqlite") else ODD[name].dtype) for name in same]
    assert as_text(rows.select(typed)) == as_text(ODD.select(same))


def test_delivering_twice_leaves_one_copy_and_new_rows_take_the_place_of_those_of_their_partition(kind, tmp_path):
    first, second = target_of(tmp_path, kind), target_of(tmp_path, kind, HOUR)
    for target in (first, second, first):
        deliver(target, OLD)
    assert shown(delivered(tmp_path, kind)) == sorted([*holds(OLD), *holds(OLD, HOUR)], key=str)
    deliver(first, NEW)
    assert shown(delivered(tmp_path, kind)) == sorted([*holds(NEW), *holds(OLD, HOUR)], key=str)


def test_a_partition_without_rows_is_empty_afterwards(kind, tmp_path):
    target, other = target_of(tmp_path, kind), target_of(tmp_path, kind, "2026-01-02")
    deliver(target, OLD.clear())
    assert delivered(tmp_path, kind).is_empty()
    deliver(other, NEW)
    deliver(target, OLD)
    deliver(target, OLD.clear())
    assert shown(delivered(tmp_path, kind)) == holds(NEW, "2026-01-02")


def test_a_receiver_that_has_fewer_rows_than_were_sent_holds_what_it_held(kind, tmp_path):
    target = target_of(tmp_path, kind)
    deliver(target, NEW)
    with pytest.raises(DeliveryError, match=r"not delivered to 'late': 4 rows were sent and 3 arrived, .* Hint: "):
        deliver(replace(target, rows=OLD.height + 1), OLD)
    assert shown(delivered(tmp_path, kind)) == holds(NEW)


@of_quick_receivers
def test_eight_partitions_may_be_delivered_at_once(kind, tmp_path):
    keys = [f"2026-01-0{day}" for day in range(1, 9)]
    for rows in (OLD, NEW):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key, rows=rows: deliver(target_of(tmp_path, kind, key), rows), keys))
        at_last = delivered(tmp_path, kind)
        assert shown(at_last) == sorted((row for key in keys for row in holds(rows, key)), key=str)


def left_over(folder: Path, kind: str) -> list[str]:
    """The names beside a file or folder that receives."""
    place = place_of(folder, kind)
    beside = [*place.parent.iterdir()] if place != folder else []
    return [path.name for path in beside if path not in (place, place.with_name(f"{place.name}-journal"))]


@of_quick_receivers
def test_a_receiver_that_refuses_holds_what_it_held_and_the_error_names_it(kind, tmp_path):
    target = target_of(tmp_path, kind)
    deliver(target, NEW.select("x"))
    command = [sys.executable, "-m", "batch_platform_tests.delivery.receivers", str(tmp_path), kind, "limit"]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert message.startswith(f"small, partition {KEY}: it is not delivered to 'late': ")
    assert "Hint: " in message
    assert shown(delivered(tmp_path, kind)) == holds(NEW.select("x"))
    deliver(target, OLD.select("x"))
    assert shown(delivered(tmp_path, kind)) == holds(OLD.select("x"))
    assert not left_over(tmp_path, kind)


@of_quick_receivers
def test_a_process_that_is_killed_half_way_leaves_the_former_rows_and_the_next_delivery_leaves_nothing_of_it(
    kind, tmp_path
):
    target = target_of(tmp_path, kind)
    deliver(target, NEW.select("x"))
    command = [sys.executable, "-m", "batch_platform_tests.delivery.receivers", str(tmp_path), kind, "pause"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert shown(delivered(tmp_path, kind)) == holds(NEW.select("x")), "a reader in between sees the former rows"
        process.send_signal(signal.SIGKILL)
    assert shown(delivered(tmp_path, kind)) == holds(NEW.select("x"))
    deliver(target, OLD.select("x"))
    assert shown(delivered(tmp_path, kind)) == holds(OLD.select("x"))
    assert not left_over(tmp_path, kind)


def test_a_receiver_in_the_home_is_refused(kind, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    elsewhere = place_of(tmp_path, kind) == tmp_path
    for place in () if elsewhere else ("home", "home/late", "link/late", "out/../home/late"):
        with pytest.raises(DeliveryError, match=r"lies in the home .* Hint: deliver to a folder outside"):
            deliver(target_of(tmp_path, kind, at=place), NEW)
    assert not [*(tmp_path / "home").iterdir()]


@pytest.mark.parametrize("kind", ["delta", "iceberg", "PostgreSQL", "SQLite"], indirect=True)
def test_a_table_takes_new_columns(kind, tmp_path):
    keys = [f"2026-01-0{day}" for day in range(1, 5)]
    deliver(target_of(tmp_path, kind), NEW.select("x"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: deliver(target_of(tmp_path, kind, key), NEW), keys))
    assert shown(delivered(tmp_path, kind)) == sorted((row for key in keys for row in holds(NEW, key)), key=str)


def test_a_delta_table_refuses_other_types_and_other_partitions(tmp_path):
    target = target_of(tmp_path, "delta")
    deliver(target, NEW)
    version = DeltaTable(place_of(tmp_path, "delta")).version()
    with pytest.raises(DeliveryError, match=r"has other types: x is double there and string here\. Hint: "):
        deliver(target, pl.DataFrame({"x": ["1.5"]}))
    with pytest.raises(DeliveryError, match=r"is partitioned by partition_key, not hour\. Hint: "):
        deliver(target_of(tmp_path, "delta", columns={"x": "x", "partition_key": "hour"}), NEW.select("x"))
    with pytest.raises(DeliveryError, match=r"not delivered to 'late': .*Time64"):
        deliver(target, pl.DataFrame({"clock": [time(1, 30)]}))
    assert DeltaTable(place_of(tmp_path, "delta")).version() == version


def test_an_iceberg_table_refuses_other_types(tmp_path):
    target = target_of(tmp_path, "iceberg")
    deliver(target, NEW)
    with pytest.raises(DeliveryError, match=r"Cannot change column type: x: double -> string\. Hint: "):
        deliver(target, pl.DataFrame({"x": ["1.5"]}))
    assert shown(delivered(tmp_path, "iceberg")) == holds(NEW)


def test_files_of_others_in_the_folder_stay(tmp_path):
    for kind in ("parquet", "csv"):
        target = target_of(tmp_path, kind)
        deliver(target, NEW)
        (own,) = place_of(tmp_path, kind).rglob(f"*.{kind}")
        foreign = own.with_name("theirs.txt")
        foreign.write_text("theirs")
        deliver(target, OLD)
        assert foreign.read_text() == "theirs"


def test_a_delivery_is_made_anew_where_another_one_changes_the_delta_table_meanwhile(tmp_path):
    target, other, readings = target_of(tmp_path, "delta"), target_of(tmp_path, "delta", "2026-01-02"), list[int]()
    deliver(target, NEW.select("x"))
    schema = pa.schema({"x": pa.float64(), "partition_key": pa.string()})

    def batches() -> Iterator[pa.RecordBatch]:
        readings.append(len(readings))
        if len(readings) == 1:
            with ThreadPoolExecutor(1) as pool:  # deltalake cannot write in the thread in which it reads
                pool.submit(deliver, other, NEW).result()  # adds a column
        yield pa.record_batch([pa.array([8.0]), pa.array([KEY])], schema=schema)

    replace_at_receiver(replace(target, rows=1), lambda: pa.RecordBatchReader.from_batches(schema, batches()))
    assert len(readings) == 2
    mine = NEW.with_columns(x=pl.lit(8.0), text=pl.lit(None, dtype=pl.String))
    assert shown(delivered(tmp_path, "delta")) == sorted([*holds(mine), *holds(NEW, "2026-01-02")], key=str)
