"""Columns that are missing, renamed, superfluous, in another order or of another type."""

from functools import partial
from pathlib import Path

import polars as pl

from batch_platform.components import describe
from batch_platform.declaration.errors import SourceError
from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.fed import DAY, EVENTS, Fed, assert_names, assert_same, changed, is_refused
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL

EVERY_COLUMN = {
    "features_sql": "SELECT * EXCLUDE (returned) FROM events WHERE ts >= $partition_start AND ts < $partition_end"
}
LENIENT = {"features": {"max_rejected": "10%"}}


def columns_in_excess(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, **EVERY_COLUMN)
    before = fed.rows(DAY, marks=False)
    fed.feed(events=EVENTS.with_columns(pl.lit(1).alias("zweitens"), pl.lit("x").alias("a|b <i>")))
    done = fed.takes()
    assert done.ignored == ("zweitens", "a|b <i>")
    assert str(describe.committed(done)["ignored_columns"].value) == "zweitens, a\\|b &lt;i&gt;"
    assert_same(fed.rows(DAY, marks=False), before)


def columns_declared_to_be_no_features(tmp_path: Path) -> None:
    done = Fed.scored(tmp_path, **EVERY_COLUMN, features={"columns": {"known": {"feature": False}}}).takes()
    assert done.ignored == ()
    assert "ignored_columns" not in describe.committed(done)


def the_same_rows(tmp_path: Path, *, events: pl.DataFrame | None = None, columns: str | None = None) -> None:
    """Events stored otherwise, or columns in another order, give the same rows."""
    fed = Fed.scored(tmp_path, **({} if columns else EVERY_COLUMN))
    before = fed.rows(DAY, marks=False)
    if columns:
        fed.feed(features_sql=FEATURES_SQL.replace("id, ts, amount, items, shop, known", columns))
    else:
        fed.feed(events=events)
    done = fed.takes()
    assert (done.run.rows_rejected, done.reasons) == (0, {})
    assert_same(fed.rows(DAY, marks=False), before)


def text_of_a_number(text: str, column: str = "amount") -> pl.DataFrame:
    """The events with a column as text, two of whose values on the day are replaced."""
    return changed(EVENTS.with_columns(pl.col(column).cast(pl.String)), pl.lit(text).alias(column), rows=2)


def text_that_is_no_number(tmp_path: Path, column: str, text: str, type_: str) -> None:
    """Within the budget such rows are rejected, as they are."""
    fed = Fed.scored(tmp_path, **EVERY_COLUMN, **LENIENT)
    before = fed.rows(DAY, marks=False)["predictions"]
    fed.feed(events=text_of_a_number(text, column))
    assert fed.takes().reasons == {f"{column}: not a value of type {type_}": 2}
    rejected = fed.rows(DAY)["rejected_rows"]
    assert rejected["row"].str.json_path_match(f"$.{column}").to_list() == [text, text]
    others = before.filter(~pl.col("id").is_in(fed.features()["id"].head(2).implode()))
    assert fed.rows(DAY, marks=False)["predictions"].to_dicts() == others.to_dicts()


def labels_of_another_type(tmp_path: Path, key: str, *, meets: bool) -> None:
    """The keys of the labels have another type than those of the features."""
    fed = Fed.scored(tmp_path)
    usual = fed.evaluated()
    fed.feed(
        labels_sql=f"SELECT {key} AS id, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    )
    before = fed.snapshot()
    if meets:
        assert fed.evaluated() == usual
        assert fed.trained().version.rows_trained > 800
    else:
        expected = "key column 'id' is Int64 in the features, but String in the labels"
        for message in (fed.refused(fed.evaluated), fed.refused(fed.trained)):
            assert_names(message, "small, partition 2024-0", expected, "Hint: cast 'id' in labels.sql")
    fed.holds(before)


def a_time_with_a_zone_in_the_key(tmp_path: Path) -> None:
    """The pipeline's time zone is Berlin; the warehouse returns times in UTC."""
    sql = "SELECT id, ts, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    metrics = Fed.scored(tmp_path, labels_sql=sql, features={"key": ["id", "ts"], "time": None}).evaluated()
    assert metrics["label_coverage"] > 0.9
    assert metrics["roc_auc"] > 0.5


def of_every_column(events: pl.DataFrame, *named: str, **declared: object) -> Case:
    """The events are refused by a pipeline whose SQL takes every column."""
    return partial(is_refused, scored=EVERY_COLUMN | declared, feed={"events": events}, named=named)


def sql(old: str, new: str) -> dict[str, str]:
    return {"features_sql": FEATURES_SQL.replace(old, new)}


CASES: dict[str, Case] = {
    "B1 a renamed feature": of_every_column(
        EVENTS.rename({"amount": "amuont"}),
        f"small, partition {DAY}: ",
        "lack the columns amount",
        "there are amuont",
        "did you mean 'amuont'?",
    ),
    "B1 a missing feature": of_every_column(EVENTS.drop("amount", "known"), DAY, "lack the columns amount, known"),
    "B1 a renamed column that the SQL names": partial(
        is_refused,
        feed={"events": EVENTS.rename({"amount": "amuont"})},
        named=[DAY, "features.sql:1", '"amount"', "amuont"],
        error=SourceError,
    ),
    "B1 a renamed key": partial(
        is_refused,
        feed=sql("SELECT id,", "SELECT id AS idd,"),
        named=["features.sql", "no column 'id'", "did you mean 'idd'?"],
        error=SourceError,
    ),
    "B1 a missing time": partial(is_refused, feed=sql(" ts,", ""), named=[DAY, "lack 'ts'", "features.time"]),
    "B1 a renamed column that is kept": of_every_column(
        EVENTS.rename({"shop": "shops"}),
        *(DAY, "lack the columns shop", "shops", "predictions.keep"),
        features={"columns": {"shop": {"feature": False}}},
    ),
    "B2 columns in excess": columns_in_excess,
    "B2 columns declared to be no features": columns_declared_to_be_no_features,
    "B3 another order in the source": partial(the_same_rows, events=EVENTS.select(reversed(EVENTS.columns))),
    "B3 another order in the SQL": partial(the_same_rows, columns="known, shop, items, amount, ts, id"),
    **{
        f"B4 {what}": partial(
            the_same_rows, events=EVENTS.with_columns(pl.col(name).cast(dtype) for name, dtype in columns.items())
        )
        for what, columns in {
            "text that is a number": {"amount": pl.String(), "items": pl.String()},
            "text that is true or false": {"known": pl.String()},
            "a number in a wider type": {"items": pl.UInt64(), "amount": pl.Decimal(20, 2)},
            "whole numbers stored as floats": {"items": pl.Float64()},
            "text stored as categories": {"shop": pl.Categorical()},
            "a key as text": {"id": pl.String()},
        }.items()
    },
    "B4 text that is none": partial(text_that_is_no_number, column="amount", text="12x", type_="float"),
    "B4 a text between numbers": partial(text_that_is_no_number, column="items", text="1.5", type_="integer"),
    "B4 text that is none, past the budget": of_every_column(
        text_of_a_number("12x"),
        *(DAY, "2 of 40 rows", "max_rejected (0.00%)", "amount: not a value of type float (2 rows)"),
        *("(amount=12x)", "nothing is published"),
    ),
    "B4 a time in place of a number": of_every_column(
        EVENTS.with_columns(pl.col("ts").alias("amount")),
        "40 of 40 rows",
        "amount: not a value of type float (40 rows)",
    ),
    "B4 a key as text that is no number": of_every_column(
        EVENTS.with_columns(pl.format("n{}", pl.col("id")).alias("id")),
        *(DAY, "small.predictions", "id is BIGINT, now VARCHAR", "cast the column"),
    ),
    "B4 label keys in another width": partial(labels_of_another_type, key="id::SMALLINT", meets=True),
    "B4 label keys as text": partial(labels_of_another_type, key="id::VARCHAR", meets=False),
    "B4 a time with a zone in the key": a_time_with_a_zone_in_the_key,
}
