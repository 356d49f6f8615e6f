import json
from copy import deepcopy
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.inputs import RejectedBudget
from batch_platform.declaration.spec import ADDED_COLUMNS, ASSETS, PipelineSpec
from batch_platform_tests.harness.declared_keys import OTHER_OF_TWO, given_keys, keys_of
from batch_platform_tests.harness.refusal import refusal
from batch_platform_tests.harness.small_pipeline import small_declaration, small_spec

pytestmark = pytest.mark.unit

ALL_KEYS: dict[str, Any] = {  # every key of a declaration that can be used
    "name": "flight_delays",
    "description": "Probability that a scheduled flight arrives 30 minutes late or more.",
    "owners": ["team:operations"],
    "partitions": {
        "every": "day",
        "start": "2013-01-01",
        "end": "2014-01-01",
        "timezone": "America/New_York",
        "end_offset": 1,
    },
    "sources": {
        "flights": {"python": "package.sources.flights"},
        "weather": {"parquet": "weather/{partition_key}.parquet", "number_rows": True},
        "planes": {
            "csv": "planes.csv",
            "delimiter": ";",
            "decimal": ",",
            "encoding": "utf-16",
            "types": {"tailnum": "VARCHAR"},
        },
        "crews": {"json": "crews.jsonl"},
        "routes": {"arrow": "routes.feather"},
        "airports": {
            "duckdb": "airports.duckdb",
            "wait": "1 minute",
            "table": "main.airports",
            "time": "opened_at",
            "late": "14 days",
            "asset": "raw/airports",
        },
        "diversions": {"delta": "diversions", "version": 3},
        "repairs": {"iceberg": {"catalog": "lake", "table": "fleet.repairs", "snapshot": 7}},
        "fares": {
            "sql": {"uri": "sqlite:///fares.sqlite", "query": "fares.sql", "version": "SELECT max(day) FROM fares"}
        },
    },
    "features": {
        "sql": "features.sql",
        "key": ["flight_id"],
        "time": "scheduled_departure",
        "driving": {"source": "flights", "time": "scheduled_departure"},
        "columns": {
            "distance": {
                "type": "float",
                "nullable": False,
                "min": 0,
                "max": 1e5,
                "feature": True,
                "description": "Miles between the airports.",
            }
        },
        "max_rejected": {"share": "1%", "rows": 5},
        "timeout": "10 minutes",
    },
    "labels": {"sql": "labels.sql", "column": "late", "delay": "1 day", "positive": True, "outcomes": ["arr_time"]}
    | {"weight": "passengers"},
    "model": {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "params": {"max_iter": 200},
        "calibrate": "isotonic",
        "search": {"params": {"learning_rate": [0.03, 0.1]}, "trials": 2},
        "allow_pickle": False,
        "publish": "mlflow",
        "train": {
            "every": "month",
            "start": "2013-03-01",
            "window": "60 days",
            "evaluate": "14 days",
            "group": ["carrier"],
            "max_rows": 100_000,
            "sample": "balanced",
            "schedule": "30 * * * *",
            "retrain": "never",
        },
        "promote": {"metric": "roc_auc", "at_least": 0.60, "tolerance": 0.01, "baseline": True, "manual": False},
        "refit": True,
        "allow_suspected_leaks": ["deposit_paid"],
        "card": {"intended_use": "The gates are planned by it.", "limits": "Not for cancelled flights."},
    },
    "challengers": [
        {
            "name": "linear",
            "estimator": "sklearn.linear_model.LogisticRegression",
            "params": {"max_iter": 200},
            "search": {"params": {"C": [0.5, 1.0]}, "trials": 2},
            "calibrate": "sigmoid",
        },
        {"name": "previous", "version": "2013-03-01-3f9c1a2b", "allow_pickle": False},
    ],
    "predictions": {
        "interval": "90%",
        "keep": ["carrier"],
        "schedule": "0 5 * * *",
        "store": "parquet",
        "decide": {"costs": {"false_positive": 1, "false_negative": 8}},
        "refine": ["shop.pricing.rounded"],
        "deliver": [
            {
                "parquet": "out/late",
                "name": "late",
                "of": "predictions",
                "columns": {"flight_id": "id", "score": "risk"},
            },
            {"csv": "out/rejected", "of": "rejected_rows"},
            {"delta": "out/table"},
            {"sql": {"uri": "sqlite:///out/late.db", "table": "late"}},
            {"iceberg": {"catalog": "lake", "table": "sales.late"}},
        ],
        "reasons": {"count": 3, "above": 0.5},
        "rescore": "when_stale",
        "limit": 100,
    },
    "monitoring": {
        "performance": {"warn_below": 0.6},
        "metrics": ["shop.metrics.cost_per_order"],
        "segments": ["carrier"],
        "unit": "carrier",
        "drift": {"warn": 0.1, "fail": 0.25, "ignore": ["month"], "columns": {"distance": {"warn": 0.2, "fail": 0.5}}},
        "fresh_by": "07:00",
        "max_champion_age": "90 days",
        "notify": ["json://host"],
        "notify_values": True,
        "rows": False,
        "allow_empty": ["2013-12-25"],
    },
    "report": {"every": "month", "schedule": "0 7 1 * *", "compare": False},
    "retention": {"features": "90 days", "predictions": "3 years", "rejected_rows": "90 days"},
    "automation": "on_arrival",
    "dagster": {
        "executor": "project",
        "pool": "warehouse",
        "retry": {"times": 2, "delay": "30 seconds"},
        "max_partitions_per_run": 31,
        "keep_runs": "30 days",
    },
    "engine": {
        "name": "spark",
        "spark": {
            "master": "spark://host:7077",
            "conf": {"spark.executor.memory": "8g", "spark.speculation": True},
            "wait_for_executors": "1 hour",
            "rows_per_task": 1_000_000,
            "resource": "pyspark",
            "staging": "s3://bucket/staging",
        },
    },
}
BLOCKS = [
    (),
    ("sources", "flights"),
    ("features", "columns", "distance"),
    ("model", "promote"),
    ("challengers", 0),
    ("predictions", "deliver", 0),
    ("predictions", "deliver", 3, "sql"),
    ("dagster", "retry"),
    ("engine", "spark"),
]


def changed(path: tuple[str | int, ...] | str, value: Any) -> dict[str, Any]:
    """Everything that can be declared, with one key, which may be written with dots, set to something else."""
    if isinstance(path, str):
        path = tuple(int(key) if key.isdigit() else key for key in path.split("."))
    declared = deepcopy(ALL_KEYS)
    block = declared
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return declared


def test_every_key_of_a_declaration_is_read():
    spec = PipelineSpec.model_validate(ALL_KEYS)
    assert spec.features.max_rejected == RejectedBudget(share=0.01, rows=5)
    assert spec.labels.maturity == Duration(days=1)
    assert spec.model.train.window_length == Duration(days=60)
    assert [source.kind for source in spec.sources.values()] == [
        *("python", "parquet", "csv", "json", "arrow", "duckdb", "delta", "iceberg", "sql")
    ]
    assert [name for name, source in spec.sources.items() if source.by_partition] == ["weather"]
    assert given_keys(ALL_KEYS) | OTHER_OF_TWO == keys_of(PipelineSpec)


def test_only_five_keys_are_required():
    needed = ("name", "partitions", "sources", "features", "model")
    spec = PipelineSpec.model_validate({key: small_declaration()[key] for key in needed})
    assert spec.labels is None
    assert spec.engine.name == "local"
    for key in needed:
        assert refusal({name: small_declaration()[name] for name in needed if name != key}).startswith(f"{key}: ")


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: ".".join(map(str, path)))
def test_an_unknown_key_is_refused_at_any_depth_with_its_path_and_the_nearest_key(path):
    declared = deepcopy(ALL_KEYS)
    block = declared
    for key in path:
        block = block[key]
    known = next(iter(block))
    message = refusal(changed((*path, f"{known}x"), block[known]))
    assert message.startswith(f"{'.'.join(map(str, path))}: ")
    assert f"unknown key '{known}x'; allowed are " in message
    assert f"did you mean '{known}'?" in message


@pytest.mark.parametrize("name", ["../etc", "..", 'a"b', "A", "Ünder", "", "a\0", "a" * 64, "batch_platform"])
def test_a_name_that_cannot_be_a_schema_folder_and_asset_is_refused(name):
    assert "is not a valid name: use at most 63 lower-case letters" in refusal(changed(("name",), name))
    assert "is not a valid name: use at most 63 lower-case letters" in refusal(
        changed(("sources", name), {"csv": "a.csv"})
    )


@pytest.mark.parametrize("name", [*ASSETS, "partition"])
def test_a_source_cannot_have_a_name_that_is_taken(name):
    assert f"a source cannot be named {name!r}" in refusal(changed(("sources", name), {"csv": "a.csv"}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("features", "key"), ["flight_id", "late"]),
        (("features", "time"), "late"),
        (("features", "columns"), {"late": {}}),
        (("predictions", "keep"), ["carrier", "late"]),
    ],
)
def test_the_label_cannot_be_a_feature_a_key_the_time_or_a_kept_column(path, value):
    assert "the label 'late' cannot be a feature, a key or a kept column" in refusal(changed(path, value))
    known_with_it = json.loads(json.dumps(value).replace("late", "arr_time"))
    assert "known only with the label, 'arr_time' cannot be" in refusal(changed(path, known_with_it))


@pytest.mark.parametrize("sql", ["SELECT 1", "with a AS (SELECT 1) FROM a", "-- of orders\n/* new; */ select\t*"])
@pytest.mark.parametrize("path", [("features", "sql"), ("labels", "sql")])
def test_sql_may_stand_in_the_declaration(path, sql):
    block, key = path
    assert getattr(getattr(PipelineSpec.model_validate(changed(path, sql)), block), key) == sql


@pytest.mark.parametrize("name", ["../f.sql", "a/../../f.sql", "/etc/f.sql", "~/f.sql", "..", ".", "", "a\0b"])
@pytest.mark.parametrize("path", [("features", "sql"), ("labels", "sql")])
def test_sql_lies_in_the_folder_of_the_pipeline(path, name):
    assert "is neither a SELECT nor the name of a file in this folder or below it" in refusal(changed(path, name))


@pytest.mark.parametrize("name", [*ADDED_COLUMNS, "Run_ID"])
def test_no_key_and_no_kept_column_has_the_name_of_one_that_scoring_adds(name):
    assert f"{name!r} cannot be a key" in refusal(changed(("features", "key"), [name]))
    assert f"{name!r} cannot be a key" in refusal(changed(("features", "time"), name))
    assert f"{name!r} cannot be a key" in refusal(changed(("predictions", "keep"), [name]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("features.key", [], "features.key: List should have at least 1 item"),
        ("features.key", ["a", "a"], "the key names 'a' more than once"),
        ("features.columns", {"flight_id": {}}, "'flight_id' is key or time"),
        ("features.columns.distance", {"min": 2, "max": 1}, "min (2.0) is above max (1.0)"),
        ("features.columns.distance", {"type": "category", "max": 1}, "min and max do not apply to a category"),
        ("features.driving.source", "fligths", "there is no source 'fligths'; "),
        ("features.max_rejected", "101%", "features.max_rejected: "),
        ("features.python", "package.features", "give one of `sql`, `spark_sql` and `python`"),
        ("features", {"key": ["flight_id"], "python": "features"}, "'features' is not an import path"),
        ("sources.flights", {}, "give exactly one of arrow, asset, "),
        ("sources.flights", {"arrow": "a", "number_rows": True}, "'number_rows' is a key of sources of kind csv"),
        ("sources.flights", {"csv": "a", "parquet": "b"}, "found csv, parquet"),
        ("sources.flights", {"json": "a", "decimal": ","}, "but the source is of kind json"),
        ("sources.flights", {"csv": "a", "decimal": ",", "delimiter": ","}, "delimiter and decimal are both ','"),
        ("sources.flights", {"csv": "a.csv", "late": "soon"}, "neither a duration such as '7 days' nor 'always'"),
        ("sources.flights", {"csv": "{partition_key}.csv", "late": "1 day"}, "files that belong to one partition each"),
        ("sources.flights", {"duckdb": "a.duckdb"}, "`duckdb` and `table` go together"),
        ("sources.flights", {"python": "os; import sys"}, "is not an import path"),
        ("model.build", "package.build", "give one of `estimator`, `build` and `import`"),
        ("model.promote.metric", "roc_auk", "'roc_auk' is not a metric; allowed are accuracy"),
        ("model.promote.metric", "roc_auk", "did you mean 'roc_auc'?"),
        ("challengers.0.name", "Linear", "challengers.0.name: Value error, 'Linear' is not a valid name"),
        ("challengers.0.name", "previous", "more than one challenger is named 'previous'"),
        ("challengers.0", {"name": "a"}, "give one of `estimator`, `build`, `import`"),
        ("challengers.0.version", "2013-03-01-3f9c1a2b", "give one of `estimator`, `build`, `import`"),
        ("challengers.0.task", "binary", "'task' can only describe an import"),
        ("challengers.1.version", "3f9c1a2b", "'3f9c1a2b' is not the name of a version such as"),
        ("model.params", {"since": date(2024, 1, 1)}, "which is not a plain value"),
        ("challengers.1.params", {"C": 1}, "`params` cannot be given to the version 2013-03-01-3f9c1a2b"),
        ("engine", "locl", "'locl' is not an engine; allowed are 'local', 'spark'; did you mean 'local'?"),
        ("predictions.limit", 0, "greater than or equal to 1"),
        ("name", False, "name: Input should be a valid string"),
        ("features.columns.distance.nullable", "yes", "nullable: Input should be a valid boolean"),
        ("predictions.rescore", False, "predictions.rescore: Input should be 'when_stale' or 'never'"),
        ("predictions.deliver.0", {"parquet": "http://host/late"}, "give a path, or an address with"),
        ("predictions.deliver.0", {"csv": "s3://"}, "must name a bucket and an object or folder in it"),
        ("predictions.deliver.0", {"delta": "s3://key:opensesame@lake/late"}, "and no credentials"),
        (
            "predictions.deliver.3.sql.uri",
            "snowflake://u:p@a/b",
            "delivered to PostgreSQL and SQLite, not to snowflake",
        ),
        ("predictions.deliver.3.sql.table", "main.late", "SQLite has no schemas: 'main.late' must be the name"),
        ("predictions.deliver.3.sql.uri", "postgres//a", "uri must begin with one of"),
        ("monitoring.drift.baseline", "previous", "with the training data alone: remove `baseline`"),
    ],
)
def test_a_contradictory_or_impossible_value_is_refused(path, value, message):
    assert message in refusal(changed(path, value))


@pytest.mark.parametrize(("written", "share"), [("1%", 0.01), ("0.5 %", 0.005), (0, 0.0), (0.2, 0.2), ("100%", 1.0)])
def test_a_share_may_be_written_in_percent(written, share):
    assert small_spec(features={"max_rejected": written}).features.max_rejected == pytest.approx(share)


@pytest.mark.parametrize(
    ("rows", "rejected", "exceeded"),
    [(30, 5, False), (30, 6, True), (1000, 10, False), (1000, 11, True), (3, 3, False), (0, 0, False)],
)
def test_a_budget_is_exact_and_the_larger_of_a_share_and_a_number_of_rows(rows, rejected, exceeded):
    budget = small_spec(features={"max_rejected": {"share": "1%", "rows": 5}}).features.rejected_budget
    assert budget.is_exceeded(rejected, rows) == exceeded
    assert str(budget) == "1.00%, or 5 rows if that is more"
    odd = small_spec(features={"max_rejected": "57.5%"}).features.rejected_budget
    assert (odd.is_exceeded(23, 40), odd.is_exceeded(24, 40)) == (False, True)


@pytest.mark.parametrize(
    "written", ["1", "day", "-1 day", "1.5 days", "1 month", "1 year", "1 day 2 hours", "", "\u0661 day", "999999 days"]
)
def test_an_invalid_duration_is_refused(written):
    assert ("since months and years differ in length" in refusal(changed(("labels", "delay"), written))) == (
        "month" in written or "year" in written
    )
    assert "is not a duration; write for example '1 day'" in refusal(changed(("labels", "delay"), written))
    for window in () if written in ("1 month", "1 year") else ("evaluate", "window"):
        assert "is not a duration; write for example '1 day'" in refusal(changed(("model", "train", window), written))


@pytest.mark.parametrize(
    ("evaluate", "start"), [("6 months", "2023-07-01"), ("1 year", "2023-01-01"), ("31 days", "2023-12-01")]
)
def test_windows_may_be_months_and_years_of_the_calendar(evaluate, start):
    spec = small_spec(
        partitions={"every": "month", "start": "2020-01-01", "end": None},
        model={"train": {"every": "month", "evaluate": evaluate, "window": "3 years"}},
    )
    window = spec.periods.window(datetime(2024, 1, 31, 23, tzinfo=UTC))
    assert (window[0].key, window[-1].key) == ("2021-02-01", "2023-12-01")
    assert spec.periods.evaluation_start(window) == spec.partitions.calendar.named(start).start


def test_a_first_model_later_than_declared_says_why():
    early = small_spec(model={"train": {"every": "week", "start": "2024-01-08"}})
    first = early.periods.first_service
    assert early.periods.serves_from(first) == (
        "the first model serves from 2024-01-22, since too few labels are known at model.train.start (2024-01-08)"
    )
    late = small_spec(model={"train": {"every": "week", "start": "2024-01-22"}})
    assert late.periods.serves_from(late.periods.first_service) == "the first model serves from 2024-01-22"


def test_a_window_in_which_no_label_is_known_when_the_evaluation_rows_begin_is_refused():
    train = {"every": "day", "evaluate": "7 days"}
    small_spec(labels={"delay": "10 days"}, model={"train": {**train, "window": "28 days"}})  # 7 + 2 * 10 + 1
    with pytest.raises(
        ValidationError, match=r"model\.train\.window \(27 days\) must hold evaluate .*twice labels\.delay"
    ):
        small_spec(labels={"delay": "10 days"}, model={"train": {**train, "window": "27 days"}})


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("model.calibrate", {"calibrate": "sigmoid"}),
        ("predictions.interval", {"estimator": "sklearn.linear_model.Ridge", "params": {}}),
    ],
)
def test_an_evaluation_window_whose_first_half_is_not_known_at_the_second_is_refused(name, further):
    interval = {"interval": "90%"} if name == "predictions.interval" else {}
    small_spec(labels={"delay": "2 days"}, model=further, predictions=interval)
    with pytest.raises(ValidationError, match=f"{name} learns on the first half .* at least 8 partitions"):
        small_spec(labels={"delay": "3 days"}, model=further, predictions=interval)


@pytest.mark.parametrize(
    "path", [("partitions", "start"), ("partitions", "end"), ("model", "train", "start")], ids=".".join
)
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("2013-02-30", "is not a date or a time such as '2013-01-01'"),
        ("", "is not a date or a time such as '2013-01-01'"),
        ("2013-06-01T00:00Z", "has an offset; give the local time in `timezone`"),
        (2013, "Input should be a valid string"),
        ("9999-12-31", "is not in the years 2 to 9998; partitions without `end` go on for ever"),
    ],
)
def test_an_invalid_local_time_is_refused(path, written, message):
    assert f"{'.'.join(path)}: " in refusal(changed(path, written))
    assert message in refusal(changed(path, written))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"timezone": "America/New_Yrk"}, "did you mean 'America/New_York'?"),
        ({"every": "minute"}, "Input should be 'hour', 'day', 'week' or 'month'"),
        ({"end": "2013-01-01"}, "no day lies between start (2013-01-01) and end (2013-01-01)"),
        ({"every": "month", "end": "2013-02-10"}, "no month ends at 2013-02-10; the next one ends at 2013-03-01"),
        (
            {"every": "month", "start": "2013-01-20"},
            "start (2013-01-20) is not the start of a month; use 2013-01-01 or 2013-02-01",
        ),
        (
            {"start": "2013-01-01T06:00"},
            "start (2013-01-01T06:00) is not the start of a day; use 2013-01-01 or 2013-01-02",
        ),
        (
            {"every": "hour", "start": "2013-01-01T06:30"},
            "not the start of an hour; use 2013-01-01T06:00 or 2013-01-01T07:00",
        ),
        ({"every": "hour", "timezone": "Australia/Lord_Howe"}, "hours cannot be partitions; use timezone UTC"),
        (
            {"every": "hour", "timezone": "America/Caracas", "start": "2014-12-30", "end": None},
            "hours cannot be partitions; use timezone UTC",
        ),
        ({"end_offset": 2}, "less than or equal to 1"),
    ],
)
def test_impossible_partitions_are_refused(declared, message):
    assert message in refusal(changed(("partitions",), {**ALL_KEYS["partitions"], **declared}))


@pytest.mark.parametrize(
    ("train", "every", "message"),
    [
        ({"evaluate": "0 days"}, "day", "evaluate (0 days) must be at least one partition long (1 day)"),
        ({"evaluate": "14 days"}, "month", "evaluate (14 days) must be at least one partition long (31 days)"),
        (
            {"evaluate": "7 days", "window": "7 days"},
            "day",
            "window (7 days) must be at least twice as long as evaluate (7 days)",
        ),
        ({"every": None, "start": "2013-03-01"}, "day", "`start` needs `every`"),
    ],
)
def test_lengths_with_which_no_model_could_be_trained_are_refused(train, every, message):
    declared = changed(("model", "train"), {**ALL_KEYS["model"]["train"], **train})
    declared["partitions"] = {**declared["partitions"], "every": every}
    assert message in refusal(declared)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"every": "month", "start": "2024-01-11"}, "one month; use 2024-01-01 or 2024-02-01"),
        ({"every": "hour", "start": "2024-01-11T06:30"}, "one hour; use 2024-01-11T06:00 or 2024-01-11T07:00"),
    ],
)
def test_a_first_serving_period_that_begins_within_a_period_is_refused_with_both_neighbours(train, message):
    said = refusal(small_declaration(model={"train": train}))
    assert f"model.train.start ({train['start']}) is not the start of a serving period of {message}" in said
    starts = [start.rstrip(".") for start in said.rpartition("; use ")[2].split(" or ")]
    assert [small_spec(model={"train": train | {"start": start}}).model.train.start for start in starts] == starts


@pytest.mark.parametrize("written", ["", "daily", "@daily", "* * * *", "* * * * * *"])
def test_a_schedule_that_has_not_five_fields_is_refused(written):
    assert "cron" in refusal(changed(("predictions", "schedule"), written))
    assert refusal(changed(("model", "train", "schedule"), written)).startswith("model.train.schedule: ")


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        ({"threshold": 30}, "predictions.decide.threshold: 30 is not a probability above 0 and below 1; did you mean 0.3?"),
        ({"top": 0}, "top: 0 is neither a number of rows above 0 nor a share above 0% and at most 100%; write for example 1"),
        ({"costs": {"false_positive": 0, "false_negative": 8}}, "costs: false_positive (0) must be above 0"),
        ({"costs": {"false_positiv": 1, "false_negative": 8}}, "did you mean 'false_positive'?"),
        ({"costs": {"false_positive": 1}}, "costs: has 'false_positive'; give a number as false_positive and false_negative"),
        ({"benefit": 0, "cost": 1}, "benefit\n  Input should be greater than 0"),
        ({"benefit": 2, "cost": 2}, "acting on a row would never pay: `cost` (2) must be below `benefit` (2)"),
        ({"threshold": 0.3, "top": 5}, "give exactly one of `threshold`, `costs`, `benefit` (with `cost`) and `top`; there are threshold, top"),
    ],
)  # fmt: skip
def test_a_decision_rule_that_means_nothing_is_refused_with_the_nearest_one_that_does(decide, message):
    with pytest.raises(ValidationError) as error:
        small_spec(predictions={"decide": decide})
    assert message.rpartition("predictions.decide.")[2] in str(error.value).replace("\n  Value error, ", ": ")


CRM, SHOP = ({"uri": f"postgresql://u:opensesame@h/{name}", "table": "late"} for name in ("crm", "shop"))


@pytest.mark.parametrize(
    ("deliveries", "message"),
    [
        (
            [{"parquet": "out", "delta": "out"}],
            "give exactly one of csv, delta, iceberg, parquet, sql; found delta, parquet",
        ),
        ([{"parquet": "a"}, {"parquet": "b"}], "more than one delivery has the name 'parquet'"),
        ([{"csv": "a"}, {"csv": "a", "name": "late"}], "more than one delivery has the receiver 'csv: a'"),
        ([{"sql": CRM}, {"sql": CRM, "name": "again"}], "more than one delivery has the receiver"),
        ([{"csv": "a", "columns": {"x": "z", "y": "z"}}], "every column needs a name of its own"),
    ],
)
def test_deliveries_that_cannot_be_told_apart_or_have_no_single_receiver_are_refused(deliveries, message):
    assert message in refusal(small_declaration(predictions={"deliver": deliveries}))


def test_a_delivery_is_named_after_its_kind_and_no_source_has_the_name_of_its_asset():
    small_spec(
        predictions={"deliver": [{"sql": CRM}, {"sql": SHOP, "name": "shop"}]}
    )  # tables of one name, two receivers
    spec = small_spec(predictions={"deliver": [{"parquet": "out"}, {"csv": "out", "columns": ["id"]}]})
    assert [delivery.asset for delivery in spec.predictions.deliver] == ["delivered_parquet", "delivered_csv"]
    sources = {**small_declaration()["sources"], "delivered_csv": {"parquet": "b.parquet"}}
    declared = small_declaration(sources=sources, predictions={"deliver": [{"csv": "out"}]})
    assert "'delivered_csv' is the asset of a delivery of this pipeline; rename the source" in refusal(declared)
