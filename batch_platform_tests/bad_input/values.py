"""Values that break the contract, or could break the code that handles or shows them."""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from batch_platform.components import describe
from batch_platform.declaration.errors import SourceError
from batch_platform.monitoring.measure import markdown
from batch_platform.warehouse.sql import quoted
from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.fed import DAY, EVENTS, Fed, changed, is_refused, on_the_day
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL

IDS = EVENTS.filter(on_the_day(EVENTS))["id"].sort().to_list()
TREES = ("max_iter", "max_leaf_nodes", "early_stopping")  # parameters of the usual model that others lack
LENIENT: dict[str, Any] = {"features": {"max_rejected": "10%"}}

LONG = "long " * 200_000
TEXTS = {
    "very long": LONG,
    "NUL": "a\0b",
    "right to left": "\u202eabc \u05d0\u05d1 \u200f",
    "beyond the basic plane": "\U0001f600\U0010ffff",
    "combining": "e\u0301 \u00e9",
    "line ends": "a\r\nb\u2028c\td",
    "SQL": "'; DROP TABLE predictions; --",
    "quotes": "\"a\" 'b' `c` \\",
    "a path": "../../../etc/passwd",
    "a formula": "=cmd|' /C calc'!A0",
    "a tag": "<script>alert(1)</script>",
    "a terminal's commands": "\x1b[31mred\x07",
    "empty": "",
    "a template": "{{ env.HOME }} $partition_key {partition_key} %s",
}
SAFE_TO_STORE = ("SQL", "quotes", "a template", "a formula", "a tag", "a terminal's commands")  # under other numbers
HOSTILE = "'; DROP TABLE predictions; --"


def nulls(tmp_path: Path, *, column: str, allowed: bool) -> None:
    fed = Fed.scored(tmp_path, **LENIENT)
    dtype = EVENTS.schema[column]
    fed.feed(events=changed(EVENTS, pl.lit(None, dtype=dtype).alias(column), rows=2))
    done = fed.takes()
    assert done.reasons == ({} if allowed else {f"{column}: no value where training always had one": 2})
    assert done.run.rows_rejected == (0 if allowed else 2)


def an_all_null_column(tmp_path: Path) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(features_sql=FEATURES_SQL.replace(" amount,", " NULL AS amount,"))
    assert fed.takes().run.rows_scored == 40


def no_finite_number(tmp_path: Path, *, value: float, stored: pl.DataType) -> None:
    """The row is rejected and never scored, wherever its column is kept."""
    fed = Fed.scored(tmp_path, **LENIENT)
    events = changed(EVENTS, pl.lit(value).alias("amount"), rows=3).with_columns(pl.col("amount").cast(stored))
    fed.feed(events=events)
    done = fed.takes()
    assert done.reasons == {"amount: NaN or infinite": 3}
    assert sorted(fed.rows(DAY)["predictions"]["id"]) == IDS[3:]


def no_finite_score(tmp_path: Path) -> None:
    """A linear model of large targets overflows for a finite amount: such rows are rejected."""
    events = EVENTS.with_columns(amount=pl.col("amount").fill_null(1.0))
    events = events.with_columns(returned=pl.col("amount") * 1e10)
    model = {"estimator": "sklearn.linear_model.LinearRegression", "params": dict.fromkeys(TREES)}
    model["allow_suspected_leaks"] = ["*"]
    fed = Fed.scored(tmp_path, events=events, model=model, **LENIENT)
    fed.feed(events=changed(events, pl.lit(1.7e308).alias("amount"), rows=2))
    with np.errstate(over="ignore", invalid="ignore"):
        done = fed.takes()
    assert done.reasons == {"the score is NaN or infinite": 2}
    assert sorted(fed.rows(DAY)["predictions"]["id"]) == IDS[2:]


def an_unseen_category(tmp_path: Path, *, text: str) -> None:
    fed = Fed.scored(tmp_path)
    fed.feed(events=changed(EVENTS, pl.lit(text).alias("shop"), rows=7))
    done = fed.takes()
    assert (done.run.rows_scored, done.unseen) == (40, {"shop": 7})
    assert describe.committed(done)["unknown_categories"].value.splitlines()[-1] == "| shop | 7 |"
    predictions = fed.rows(DAY)["predictions"]
    assert predictions.filter(pl.col("shop") == text)["id"].to_list() == IDS[:7]


def text_in_every_place(tmp_path: Path, *, text: str) -> None:
    """The value is unchanged as key, category, kept column, label key and in a rejected row."""
    fed = Fed.scored(tmp_path, **BY_SHOP)
    events = changed(EVENTS, pl.lit(text).alias("shop"), rows=4)
    events = changed(events, pl.lit(float("inf")).alias("amount"), rows=2)
    fed.feed(events=events)
    done = fed.takes()
    assert (done.run.rows_rejected, done.unseen) == (2, {"town": 2})
    rows = fed.rows(DAY)
    for column in ("shop", "town", "street"):
        assert rows["predictions"].filter(pl.col("id").is_in(IDS[2:4]))[column].to_list() == [text] * 2
    for column in ("key", "row"):
        assert [value["shop"] for value in map(json.loads, rows["rejected_rows"][column])] == [text] * 2
    assert fed.evaluated()["label_coverage"] > 0.8


BY_SHOP: dict[str, Any] = {
    "features_sql": FEATURES_SQL.replace(" shop,", " shop, shop AS town, shop AS street,"),
    "labels_sql": "SELECT id, shop, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end",
    "features": {"key": ["id", "shop"], "max_rejected": "10%", "columns": {"street": {"feature": False}}},
    "predictions": {"keep": ["town", "street"]},
}


def bytes_that_are_no_text(tmp_path: Path) -> None:
    """A CSV file in another encoding is refused; no encoding is guessed."""
    fed = Fed.scored(tmp_path)
    path = fed.tmp_path / "project" / "events.csv"
    EVENTS.write_csv(path)
    fed.declare(sources={"events": {"parquet": None, "csv": path.name}})
    fed.run(DAY)
    path.write_bytes(path.read_bytes().replace("Zürich".encode(), "Zürich".encode("latin-1")))
    fed.reopen()
    fed.stays("'events' of 'small'", "utf-8", error=SourceError)


def a_lone_surrogate(tmp_path: Path) -> None:
    """Python's text can hold half a character, which no table can."""
    odd = ModuleType("odd_sources")
    odd.__file__, odd.events = os.__file__, lambda: pl.DataFrame({"id": [1], "shop": ["\ud800"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "odd_sources", odd)
        fed = Fed.scored(tmp_path)
        fed.declare(sources={"events": {"parquet": None, "python": "odd_sources.events"}})
        message = fed.stays("'events' of 'small'", "odd_sources.events", "UnicodeEncodeError", error=SourceError)
        assert message.encode()


def hostile_names(tmp_path: Path, *, name: str) -> None:
    """Names of columns: key, time, feature, kept, label."""
    named = {old: f"{name}{old}" for old in ("id", "ts", "amount", "shop", "returned")}
    events = EVENTS.rename(named)
    fed = Fed.scored(
        tmp_path,
        events=events,
        features_sql=f"SELECT * EXCLUDE ({quoted(named['returned'])}) FROM events {_where(quoted(named['ts']))}",
        labels_sql=f"SELECT {quoted(named['id'])}, {quoted(named['returned'])} FROM events {_where(quoted(named['ts']))}",
        features={
            "key": [named["id"]],
            "time": named["ts"],
            "max_rejected": "10%",
            "driving": {"source": "events", "time": named["ts"]},
            "columns": {named["amount"]: {"min": 0}},
        },
        labels={"column": named["returned"]},
        predictions={"keep": [named["shop"]]},
    )
    first = events.filter(pl.col(named["id"]).is_in(IDS[:2]))[named["id"]].implode()
    bad = events.with_columns(
        pl.when(pl.col(named["id"]).is_in(first)).then(-1.0).otherwise(pl.col(named["amount"])).alias(named["amount"])
    )
    fed.feed(events=bad)
    done = fed.takes()
    assert done.reasons == {f"{named['amount']}: below the minimum 0": 2}
    table = describe.committed(done)["rejected"].value.splitlines()
    assert len(table) == 3
    assert "<script>" not in table[2]
    assert fed.evaluated()["label_coverage"] > 0.8
    assert set(fed.rows(DAY)["predictions"].columns) >= {named["id"], named["ts"], named["shop"]}


def _where(time: str) -> str:
    return f"WHERE {time} >= $partition_start AND {time} < $partition_end"


def hostile_sql(tmp_path: Path, *, sql: str) -> None:
    """What the SQL of a pipeline may not do."""
    canary = tmp_path / "canary"
    fed = Fed.scored(tmp_path)
    warehouse = fed.pipeline.home.warehouse
    fed.feed(features_sql=sql.format(canary=canary, warehouse=warehouse, home=fed.pipeline.home.root))
    fed.refuses("small", "features.sql", error=SourceError)
    assert not canary.exists()


def shown_as_text(tmp_path: Path, *, text: str) -> None:
    """Names from the data in the tables of the UI and on a terminal."""
    shown = markdown(text)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)[`|*\[\]]|<", shown)
    hostile_names(tmp_path, name=text)


NAMES = {
    "SQL": HOSTILE,
    "quotes": "a\"b'c`d",
    "a comment": "a--b /* c",
    "a tag": "<script>alert(1)</script>",
    "a formula": "=cmd|x",
    "Markdown": "[a](javascript:b) | **c** _d_",
    "spaces and line ends": " a\n\tb ",
    "right to left": "\u202e\u05d0\u05d1",
    "a path": "../../a",
    "a template": "{{ a }} {b} %s $partition_key",
    "very long": "n" * 300,
}
HOSTILE_SQL = {
    "a second statement": "SELECT 1 AS id; DROP TABLE small.predictions",
    "a statement that writes": "COPY (SELECT 1) TO '{canary}'",
    "a file of the system": "SELECT content AS id FROM read_text('/etc/passwd')",
    "the warehouse": "SELECT * FROM '{warehouse}'",
    "another database": "ATTACH '{warehouse}' AS w",
    "files of the home": "SELECT file AS id FROM glob('{home}/**')",
    "a setting": "SET enable_external_access = true",
    "an extension": "INSTALL httpfs",
    "a parameter of its own": "SELECT $password AS id",
}

CASES: dict[str, Case] = {
    "B5 nulls where training saw some": partial(nulls, column="amount", allowed=True),
    "B5 nulls where training saw none": partial(nulls, column="items", allowed=False),
    "B5 null categories where training saw none": partial(nulls, column="shop", allowed=False),
    "B5 nulls past the budget": partial(
        is_refused,
        scored=LENIENT,
        feed={"events": changed(EVENTS, pl.lit(None, dtype=pl.Int32).alias("items"), rows=5)},
        named=[
            *(DAY, "5 of 40 rows", "items: no value where training always had one (5 rows)", "(no items)"),
            "allow nulls with features.columns.items: {nullable: true}, or raise features.max_rejected.",
        ],
    ),
    "B5 an all-null column where training saw nulls": an_all_null_column,
    **{
        f"B5 an all-null {what}": partial(  # DuckDB chooses the type
            is_refused,
            feed={"features_sql": FEATURES_SQL.replace(f" {column},", f" NULL AS {column},")},
            named=[DAY, f"{column}: no value where training always had one (40 rows)"],
        )
        for what, column in (("column where training saw none", "items"), ("category", "shop"))
    },
    **{
        f"B6 {value} in, stored as {stored}": partial(no_finite_number, value=value, stored=stored)
        for value in (float("inf"), float("-inf"), float("nan"))
        for stored in (pl.Float64(), pl.Float32())
    },
    "B6 inf as text": partial(no_finite_number, value=float("inf"), stored=pl.String()),
    "B6 NaN past the budget": partial(
        is_refused,
        scored=LENIENT,
        feed={"events": changed(EVENTS, pl.lit(float("nan")).alias("amount"), rows=5)},
        named=[DAY, "amount: NaN or infinite (5 rows)", f"id={IDS[0]} (amount=nan)"],
    ),
    "B13 a very long text past the budget": partial(
        is_refused,
        scored=BY_SHOP,
        feed={"events": changed(EVENTS, pl.lit(LONG).alias("shop"), pl.lit(float("inf")).alias("amount"), rows=5)},
        named=[DAY, "5 of 40 rows"],
    ),
    "B6 a score that is infinite": no_finite_score,
    "B7 an unseen category": partial(an_unseen_category, text="Neustadt"),
    "B7 an empty category": partial(an_unseen_category, text=""),
    "B7 a category that differs in case": partial(an_unseen_category, text="zürich"),
    **{
        f"B13 {name} text": partial(text_in_every_place, text=TEXTS[name])
        for name in TEXTS
        if name not in SAFE_TO_STORE
    },
    "B13 bytes that are no text": bytes_that_are_no_text,
    "B13 a lone surrogate": a_lone_surrogate,
    **{
        f"B14 {name} in values": partial(text_in_every_place, text=TEXTS[name])
        for name in ("SQL", "quotes", "a template")
    },
    **{f"B14 {name} in names of columns": partial(hostile_names, name=name_) for name, name_ in NAMES.items()},
    **{f"B14 {name} in the SQL": partial(hostile_sql, sql=sql) for name, sql in HOSTILE_SQL.items()},
    **{
        f"B19 {name} in values": partial(text_in_every_place, text=TEXTS[name])
        for name in ("a formula", "a tag", "a terminal's commands")
    },
    **{
        f"B19 {name} in reports": partial(shown_as_text, text=NAMES[name])
        for name in ("a tag", "a formula", "Markdown")
    },
}
