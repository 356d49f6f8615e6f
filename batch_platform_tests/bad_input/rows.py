"""Too many or too few rows, bad rows among good ones, and rows outside their partition."""

from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from batch_platform.declaration.errors import DataError, SourceError, TrainingRefusedError
from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.fed import (
    DAY,
    DAYS,
    EVENTS,
    PERIOD,
    Fed,
    assert_names,
    changed,
    is_refused,
    on_the_day,
)
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, ROWS_PER_DAY

IDS = EVENTS.filter(on_the_day(EVENTS))["id"].sort().to_list()
DRIVEN = {"features": {"driving": {"source": "events", "time": "ts"}}}
JOINED_SQL = """\
SELECT e.id, e.ts, amount, items, e.shop, known
FROM events AS e {join} JOIN (VALUES {values}) AS s(shop, town) ON e.shop = s.shop
WHERE ts >= $partition_start AND ts < $partition_end
"""
SHOPS = sorted(set(EVENTS["shop"]))


def joined(join: str, shops: list[str]) -> str:
    """The features, joined with the towns of some shops."""
    rows = ", ".join("('{}', 'x')".format(shop.replace("'", "''")) for shop in shops)
    return JOINED_SQL.format(join=join, values=rows)


def many_keys_that_occur_twice(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(events=pl.concat([EVENTS, EVENTS.filter(pl.col("id").is_in(IDS[:13]))]))
    message = fed.refuses(DAY, "keys occur more than once", "and 3 more", error=DataError)
    assert message.partition("and 3 more")[0].count("id=") == 10


def label_keys_that_occur_twice(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    before = fed.snapshot()
    fed.feed(
        labels_sql="SELECT id, returned FROM events, range(2) WHERE ts >= $partition_start AND ts < $partition_end"
    )
    for work in (fed.evaluated, fed.trained):
        assert_names(
            fed.refused(work, DataError), "small, partition 2024-0", "keys occur more than once in the labels: id="
        )
    fed.holds(before)


TWO_KEYS: dict[str, Any] = {  # the second comes from a join, so that no key occurs twice
    "features": {"key": ["id", "line"], **DRIVEN["features"]},
    "features_sql": FEATURES_SQL.replace("SELECT id", "SELECT id, 1::BIGINT AS line"),
    "labels_sql": "SELECT id, 1::BIGINT AS line, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end",
}


def a_join_that_does_neither(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, **DRIVEN)
    fed.feed(features_sql=joined("LEFT", SHOPS[:2]))
    assert fed.takes().run.rows_in == ROWS_PER_DAY


def a_driving_time_that_is_not_there(tmp_path: Path, *, time: str, message: str) -> None:
    fed = Fed.scored(tmp_path)
    fed.declare(features={"driving": {"source": "events", "time": time}})
    fed.stays("small, partition", DAY, "'events'", message, error=SourceError, force=False)


def a_rule_declared_later(tmp_path: Path) -> None:
    """Features that were built before the declaration are checked as well."""
    fed = Fed.scored(tmp_path, features_sql=joined("INNER", SHOPS[:3]))
    fed.declare(**DRIVEN)
    fed.stays(DAY, "'events' has 40 rows", "missing: id=", error=DataError, force=False)


def an_empty_partition(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, events=EVENTS.filter(~on_the_day(EVENTS)))
    assert fed.takes().run.rows_in == 0
    assert fed.evaluated() == {"label_coverage": 0.0, "label_not_known_yet": 0.0, "label_class_unknown": 0.0}


def no_training(tmp_path: Path, *, events: pl.DataFrame, message: str) -> None:
    """The champion stays, and nothing of another version is left."""
    fed = Fed.scored(tmp_path)
    champion = fed.pipeline.state().registry.champion(fed.partition().start)
    before = fed.snapshot()
    bundles = sorted((fed.pipeline.home.models / "small").iterdir())
    fed.feed(events=events)
    calendar = fed.pipeline.spec.partitions.calendar
    list(
        fed.pipeline.build_features(
            calendar.within(calendar.first_start, fed.partition(PERIOD).start), fed.stamp(), force=True
        )
    )
    text = fed.refused(fed.trained, TrainingRefusedError)
    assert_names(text, f"small, serving period {PERIOD}", message)
    registry = fed.pipeline.state().registry
    assert registry.champion(fed.partition().start) == champion
    assert len(registry.versions) == 1
    assert sorted((fed.pipeline.home.models / "small").iterdir()) == bundles
    fed.holds(before)
    fed.feed()
    (done,) = fed.run(DAY, force=True)
    assert done.run.model_version == champion.version


def refused_events(events: pl.DataFrame, *named: str) -> Case:
    return partial(is_refused, feed={"events": events}, named=[DAY, *named])


def refused_sql(sql: str, *named: str, scored: dict[str, Any] | None = None) -> Case:
    return partial(is_refused, feed={"features_sql": sql}, named=[DAY, *named], scored=scored)


def refused_times(columns: str, *named: str) -> Case:
    """Features with other columns in the place of the time."""
    return refused_sql(FEATURES_SQL.replace(" ts,", f" {columns},"), *named)


MOVED = f"CASE WHEN id = {IDS[0]} THEN ts + INTERVAL 1 DAY ELSE ts END AS ts"
OUTSIDE = ("1 rows lie outside the partition", "'ts'", f"id={IDS[0]}", "$partition_start")
JANUARY = pl.col("ts") < EVENTS.filter(on_the_day(EVENTS, DAYS[0]))["ts"].min()

CASES: dict[str, Case] = {
    "B5 an all-null column to learn from": partial(
        no_training,
        events=EVENTS.with_columns(amount=pl.lit(None, dtype=pl.Float64)),
        message="amount has no values: leave it out of the features",
    ),
    "B8 keys that occur twice": refused_events(
        pl.concat([EVENTS, EVENTS.filter(pl.col("id").is_in(IDS[3:5]))]),
        *(f"keys occur more than once in the features: id={IDS[3]}, id={IDS[4]}", "features.key"),
    ),
    "B8 many keys that occur twice": many_keys_that_occur_twice,
    "B8 keys that are null": refused_events(
        changed(EVENTS, pl.lit(None, dtype=pl.Int64).alias("id"), rows=1), "the key has nulls in id"
    ),
    "B8 label keys that occur twice": label_keys_that_occur_twice,
    "B9 a join that loses rows": refused_sql(
        joined("INNER", SHOPS[1:]), "'events' has 40 rows by 'ts', but ", "; missing: id=", "LEFT JOIN", scored=DRIVEN
    ),
    "B9 a join that loses all rows": refused_sql(
        joined("INNER", ["nowhere"]),
        *("but 0 rows of features came out", f"missing: id={IDS[0]}", "and 30 more"),
        scored=DRIVEN,
    ),
    "B9 a join that fans out": refused_sql(
        joined("LEFT", [*SHOPS, SHOPS[0]]), "keys occur more than once in the features: id=", scored=DRIVEN
    ),
    "B9 a join that fans out under a key of two columns": refused_sql(
        FEATURES_SQL.replace("SELECT id", "SELECT id, line").replace("events", "events, range(1, 3) AS r(line)"),
        *("'events' has 40 rows by 'ts', but 80 rows of features came out", f"too many: id={IDS[0]}"),
        scored=TWO_KEYS,
    ),
    "B9 a join that does neither": a_join_that_does_neither,
    "B9 a driving time that is not there": partial(
        a_driving_time_that_is_not_there, time="tss", message="did you mean 'ts'?"
    ),
    "B9 a driving time that is none": partial(
        a_driving_time_that_is_not_there, time="known", message="cannot be counted by 'known'"
    ),
    "B9 a rule declared later": a_rule_declared_later,
    "B10 an empty partition": an_empty_partition,
    "B12 a row of the next day": refused_times(MOVED, *OUTSIDE),
    "B12 a row without a time": refused_times(f"CASE WHEN id <> {IDS[0]} THEN ts END AS ts", "1 rows have no 'ts'"),
    "B12 a time that is a text": refused_times("ts::VARCHAR AS ts", "'ts' is of type String"),
    **{  # databases write infinity for a time that never comes
        f"B12 an infinite {what}": refused_times(
            columns, f"40 rows have a {name!r} before the year 1 or after the year 9999"
        )
        for what, columns, name in (
            ("time", "'infinity'::TIMESTAMPTZ AS ts", "ts"),
            ("time without a zone", "'-infinity'::TIMESTAMP AS ts", "ts"),
            ("date in another column", "ts, 'infinity'::DATE AS due", "due"),
        )
    },
    "B18 one class": partial(
        no_training,
        events=EVENTS.with_columns(returned=pl.lit(value=False)),
        message="a classification needs two classes",
    ),
    "B18 classes that differ only by case": partial(
        no_training,
        events=EVENTS.with_columns(returned=(pl.col("id") % 3).replace_strict({0: "a", 1: "A", 2: "b"})),
        message="The classes 'A', 'a' differ only by case",
    ),
    "B18 no rows": partial(no_training, events=EVENTS.filter(~JANUARY), message="There are 0 rows to learn from"),
}
