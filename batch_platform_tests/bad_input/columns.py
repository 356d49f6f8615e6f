"""Columns that are missing, renamed, superfluous, in another order or of another type."""

from functools import partial
from pathlib import Path

import polars as pl

from batch_platform.components import describe
from batch_platform.declaration.errors import DataError, SourceError
from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.fed import DAY, EVENTS, Fed, assert_names, assert_same, changed
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL

EVERY_COLUMN = """\
SELECT * EXCLUDE (returned) FROM events WHERE ts >= $partition_start AND ts < $partition_end
"""
LENIENT = {"features": {"max_rejected": "10%"}}


def a_renamed_feature(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    fed.feed(events=EVENTS.rename({"amount": "amuont"}))
    message = fed.refuses(DAY, "lack the columns amount", "there are amuont", "did you mean 'amuont'?", error=DataError)
    assert message.startswith(f"small, partition {DAY}: ")


def a_missing_feature(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    fed.feed(events=EVENTS.drop("amount", "known"))
    fed.refuses(DAY, "lack the columns amount, known", error=DataError)


def a_renamed_column_that_the_sql_names(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(events=EVENTS.rename({"amount": "amuont"}))
    message = fed.refuses(DAY, "features.sql:1", '"amount"', "amuont", error=SourceError)
    assert message.count("Hint:") == 1


def a_renamed_key(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(features_sql=FEATURES_SQL.replace("SELECT id,", "SELECT id AS idd,"))
    fed.refuses("features.sql", "no column 'id'", "did you mean 'idd'?", error=SourceError)


def a_missing_time(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(features_sql=FEATURES_SQL.replace(" ts,", ""))
    fed.refuses(DAY, "lack 'ts'", "features.time", error=DataError)


def a_renamed_kept_column(tmp_path: Path) -> None:
    overrides = {"features": {"columns": {"shop": {"feature": False}}}}
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN, **overrides)
    fed.feed(events=EVENTS.rename({"shop": "shops"}))
    fed.refuses(DAY, "lack the columns shop", "shops", "predictions.keep", error=DataError)


def columns_in_excess(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    before = fed.rows(DAY, marks=False)
    fed.feed(events=EVENTS.with_columns(pl.lit(1).alias("zweitens"), pl.lit("x").alias("a|b <i>")))
    done = fed.takes()
    assert done.ignored == ("zweitens", "a|b <i>")
    assert str(describe.committed(done)["ignored_columns"].value) == "zweitens, a\\|b &lt;i&gt;"
    assert_same(fed.rows(DAY, marks=False), before)


def columns_declared_to_be_no_features(tmp_path: Path) -> None:
    overrides = {"features": {"columns": {"known": {"feature": False}}}}
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN, **overrides)
    done = fed.takes()
    assert done.ignored == ()
    assert "ignored_columns" not in describe.committed(done)


def another_order_in_the_source(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    before = fed.rows(DAY, marks=False)
    fed.feed(events=EVENTS.select(reversed(EVENTS.columns)))
    fed.takes()
    assert fed.features().columns == ["known", "shop", "items", "amount", "ts", "id"]
    assert_same(fed.rows(DAY, marks=False), before)


def another_order_in_the_sql(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    before = fed.rows(DAY, marks=False)
    fed.feed(
        features_sql=FEATURES_SQL.replace("id, ts, amount, items, shop, known", "known, shop, items, amount, ts, id")
    )
    fed.takes()
    assert_same(fed.rows(DAY, marks=False), before)


def stored_otherwise(tmp_path: Path, columns: dict[str, pl.DataType]) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    before = fed.rows(DAY, marks=False)
    fed.feed(events=EVENTS.with_columns(pl.col(name).cast(dtype) for name, dtype in columns.items()))
    done = fed.takes()
    assert (done.run.rows_rejected, done.reasons) == (0, {})
    assert_same(fed.rows(DAY, marks=False), before)


def text_of_a_number(text: str, column: str = "amount") -> pl.DataFrame:
    """The events with a column as text, two of whose values on the day are replaced."""
    return changed(EVENTS.with_columns(pl.col(column).cast(pl.String)), pl.lit(text).alias(column), rows=2)


def text_that_is_no_number_within_the_budget(tmp_path: Path, column: str, text: str) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN, **LENIENT)
    before = fed.rows(DAY, marks=False)["predictions"]
    events = text_of_a_number(text, column)
    fed.feed(events=events)
    done = fed.takes()
    type_ = "float" if column == "amount" else "integer"
    assert done.reasons == {f"{column}: not a value of type {type_}": 2}
    rejected = fed.rows(DAY)["rejected_rows"]
    assert rejected["row"].str.json_path_match(f"$.{column}").to_list() == [text, text]
    kept = before.filter(~pl.col("id").is_in(fed.features()["id"].head(2).implode()))
    assert fed.rows(DAY, marks=False)["predictions"].to_dicts() == kept.to_dicts()


def text_that_is_no_number_past_the_budget(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    fed.feed(events=text_of_a_number("12x"))
    message = fed.refuses(
        DAY, "2 of 40 rows", "max_rejected (0.00%)", "amount: not a value of type float (2 rows)", error=DataError
    )
    assert_names(message, "(amount=12x)", "nothing is published")


def a_type_that_is_no_number(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    fed.feed(events=EVENTS.with_columns(pl.col("ts").alias("amount")))
    fed.refuses(DAY, "40 of 40 rows", "amount: not a value of type float (40 rows)", error=DataError)


def a_key_of_another_type(tmp_path: Path, key: pl.Expr, *, fits: bool) -> None:
    fed = Fed.scored(tmp_path, features_sql=EVERY_COLUMN)
    before = fed.rows(DAY, marks=False)
    fed.feed(events=EVENTS.with_columns(key))
    if fits:
        fed.takes()
        assert_same(fed.rows(DAY, marks=False), before)
    else:
        fed.refuses(DAY, "small.predictions", "id is BIGINT, now VARCHAR", "cast the column", error=DataError)


def labels_of_another_type(tmp_path: Path, key: str, *, meets: bool) -> None:
    """The keys of the labels have another type than those of the features."""
    sql = f"SELECT {key} AS id, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    fed = Fed.scored(tmp_path)
    usual = fed.evaluated()
    fed.feed(labels_sql=sql)
    before = fed.snapshot()
    if meets:
        assert fed.evaluated() == usual
        trained = fed.trained()
        assert trained.version.rows_trained > 800
    else:
        for message in (fed.refused(fed.evaluated), fed.refused(fed.trained)):
            assert_names(
                message, "small, partition 2024-0", "key column 'id' is Int64 in the features, but String in the labels"
            )
            assert_names(message, "Hint: cast 'id' in labels.sql")
    fed.holds(before)


def a_time_with_a_zone_in_the_key(tmp_path: Path) -> None:
    """The pipeline's time zone is Berlin; the warehouse returns times in UTC."""
    sql = "SELECT id, ts, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    fed = Fed.scored(tmp_path, labels_sql=sql, features={"key": ["id", "ts"], "time": None})
    metrics = fed.evaluated()
    assert metrics["label_coverage"] > 0.9
    assert metrics["roc_auc"] > 0.5


CASES: dict[str, Case] = {
    "B1 a renamed feature": a_renamed_feature,
    "B1 a missing feature": a_missing_feature,
    "B1 a renamed column that the SQL names": a_renamed_column_that_the_sql_names,
    "B1 a renamed key": a_renamed_key,
    "B1 a missing time": a_missing_time,
    "B1 a renamed column that is kept": a_renamed_kept_column,
    "B2 columns in excess": columns_in_excess,
    "B2 columns declared to be no features": columns_declared_to_be_no_features,
    "B3 another order in the source": another_order_in_the_source,
    "B3 another order in the SQL": another_order_in_the_sql,
    "B4 text that is a number": partial(stored_otherwise, columns={"amount": pl.String(), "items": pl.String()}),
    "B4 text that is true or false": partial(stored_otherwise, columns={"known": pl.String()}),
    "B4 a number in a wider type": partial(
        stored_otherwise, columns={"items": pl.UInt64(), "amount": pl.Decimal(20, 2)}
    ),
    "B4 whole numbers stored as floats": partial(stored_otherwise, columns={"items": pl.Float64()}),
    "B4 text stored as categories": partial(stored_otherwise, columns={"shop": pl.Categorical()}),
    "B4 text that is none": partial(text_that_is_no_number_within_the_budget, column="amount", text="12x"),
    "B4 a text between numbers": partial(text_that_is_no_number_within_the_budget, column="items", text="1.5"),
    "B4 text that is none, past the budget": text_that_is_no_number_past_the_budget,
    "B4 a time in place of a number": a_type_that_is_no_number,
    "B4 a key as text": partial(a_key_of_another_type, key=pl.col("id").cast(pl.String), fits=True),
    "B4 a key as text that is no number": partial(
        a_key_of_another_type, key=pl.format("n{}", pl.col("id")).alias("id"), fits=False
    ),
    "B4 label keys in another width": partial(labels_of_another_type, key="id::SMALLINT", meets=True),
    "B4 label keys as text": partial(labels_of_another_type, key="id::VARCHAR", meets=False),
    "B4 a time with a zone in the key": a_time_with_a_zone_in_the_key,
}
