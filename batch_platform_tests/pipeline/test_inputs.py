"""Law 23: whatever is declared and can change what is made is an input of it, with a version that is recorded.

Every key of the YAML and every file of a pipeline is changed, and the versions of all that is due when they change are compared; nothing is trained.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.predictions import rule_text
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.refinements.known import fingerprint
from batch_platform.models.registry import Registry
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.inputs import Inputs
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import Declared, Records, State
from batch_platform.planning.trainings import declared_now
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.declared_keys import keys_of
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    finished_pipeline,
    small_declaration,
    small_spec,
)

NOW = datetime(2024, 2, 17, 12, tzinfo=UTC)
Overrides = dict[str, Any]


def source(**keys: Any) -> Overrides:
    return {"sources": {"events": {"parquet": None, **keys}}}


def snapshot(**overrides: Any) -> Overrides:
    taken = {"partitions": {"snapshot": True}, "features": {"time": None}, "labels": {"delay": None}}
    return {**taken, "model": {"train": {"evaluate": None, **overrides}}}


def model(**keys: Any) -> Overrides:
    return {"model": keys}


def imported(**keys: Any) -> Overrides:
    made = {"import": "model.onnx", "task": "binary", "classes": [False, True], **keys}
    return {"model": {"estimator": None, "params": None, **made}}


def train(**keys: Any) -> Overrides:
    return {"model": {"train": keys}}


def challenger(**keys: Any) -> Overrides:
    return {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"} | keys]}


def challenger_imported(**keys: Any) -> Overrides:
    return {"challengers": [{"name": "other", "import": "a.onnx", "task": "binary", "classes": [False, True]} | keys]}


def decide(**keys: Any) -> Overrides:
    return {"predictions": {"decide": keys}}


def predictions(**keys: Any) -> Overrides:
    return {"predictions": keys}


def reasons(decide: Overrides | None = None, **keys: Any) -> Overrides:
    return predictions(reasons={"count": 2} | keys, **({"decide": decide} if decide else {}))


def deliver(**keys: Any) -> Overrides:
    return predictions(deliver=[keys])


def to_table(name: str, table: str) -> Overrides:
    return deliver(sql={"uri": f"sqlite:///{name}.sqlite", "table": table})


def searched(trials: int | None = None, **params: Any) -> Overrides:
    return challenger(search={"params": params} | ({"trials": trials} if trials else {}))


def costs(missed: int) -> Overrides:
    return predictions(decide={"costs": {"false_positive": 1, "false_negative": missed}})


def driven(**keys: str) -> Overrides:
    return {"sources": {"other": {"csv": "b.csv"}}, "features": {"driving": {"source": "events", "time": "ts"} | keys}}


def spark_table(name: str) -> Overrides:
    return {**ON_SPARK, **source(spark_table=name), "labels": None}


def database(**keys: Any) -> Overrides:
    return source(sql={"uri": "sqlite:///a.sqlite", "table": "events", **keys})


def iceberg(**keys: Any) -> dict[str, Any]:
    return {"iceberg": {"catalog": "lake", "table": "sales.orders", **keys}}


def rule(**keys: Any) -> Overrides:
    return {"features": {"columns": {"amount": keys}}}


ON_SPARK: Overrides = {"features": {"sql": None, "spark_sql": "spark.sql"}, "engine": {"spark": {"master": "local[1]"}}}
SEARCHED: Overrides = {"search": {"params": {"learning_rate": [0.1, 0.2]}}}
BUILT, DEEPER = ({"estimator": None, "build": f"own_code.{name}"} for name in ("network", "deeper"))
OWN = "batch_platform_tests.harness.own_refinements"

# Two declarations that differ in one key, or in what goes with it, by the path of the key.
EDITS: dict[str, tuple[Overrides, Overrides]] = {
    "name": ({}, {"name": "other"}),
    "partitions.start": ({}, {"partitions": {"start": "2024-01-02"}}),
    "partitions.end": ({}, {"partitions": {"end": "2024-02-10"}}),
    "partitions.every": ({}, {"partitions": {"every": "hour"}}),
    "partitions.timezone": ({}, {"partitions": {"timezone": "UTC"}}),
    "partitions.end_offset": ({}, {"partitions": {"end_offset": 1}}),
    "partitions.snapshot": ({}, snapshot()),
    "sources.parquet": ({}, source(parquet="other.parquet")),
    "sources.csv": (source(csv="a.csv"), source(csv="b.csv")),
    "sources.delimiter": (source(csv="a.csv"), source(csv="a.csv", delimiter=";")),
    "sources.decimal": (source(csv="a.csv"), source(csv="a.csv", decimal=",")),
    "sources.encoding": (source(csv="a.csv"), source(csv="a.csv", encoding="latin-1")),
    "sources.types": (source(csv="a.csv"), source(csv="a.csv", types={"shop": "VARCHAR"})),
    "sources.number_rows": (source(csv="a.csv"), source(csv="a.csv", number_rows=True)),
    "sources.json": (source(json="a.json"), source(json="b.json")),
    "sources.arrow": (source(arrow="a.arrow"), source(arrow="b.arrow")),
    "sources.duckdb": (source(duckdb="a.duckdb", table="t"), source(duckdb="b.duckdb", table="t")),
    "sources.table": (source(duckdb="a.duckdb", table="t"), source(duckdb="a.duckdb", table="u")),
    "sources.delta": (source(delta="a"), source(delta="b")),
    "sources.version": (source(delta="a"), source(delta="a", version=3)),
    "sources.iceberg.catalog": (source(**iceberg()), source(**iceberg(catalog="sea"))),
    "sources.iceberg.table": (source(**iceberg()), source(**iceberg(table="sales.others"))),
    "sources.iceberg.snapshot": (source(**iceberg()), source(**iceberg(snapshot=5))),
    "sources.sql.uri": (database(), database(uri="sqlite:///b.sqlite")),
    "sources.sql.table": (database(), database(table="others")),
    "sources.sql.query": (database(table=None, query="a.sql"), database(table=None, query="b.sql")),
    "sources.python": (source(python="own_code.orders"), source(python="own_code.refunds")),
    "sources.spark_table": (spark_table("a.orders"), spark_table("b.orders")),
    "sources.asset": (source(asset="raw/a"), source(asset="raw/b")),
    "features.sql": ({}, {"features": {"sql": "other.sql"}}),
    "features.spark_sql": ({}, ON_SPARK),
    "features.python": ({}, {"features": {"sql": None, "python": "own_code.features"}}),
    "features.key": ({}, {"features": {"key": ["id", "items"]}}),
    "features.time": ({}, {"features": {"time": "other_time"}}),
    "features.driving.source": (driven(), driven(source="other")),
    "features.driving.time": (driven(), driven(time="paid_at")),
    "features.columns.type": ({}, rule(type="category")),
    "features.columns.nullable": ({}, rule(nullable=False)),
    "features.columns.min": ({}, rule(min=0)),
    "features.columns.max": ({}, rule(max=9)),
    "features.columns.feature": ({}, rule(feature=False)),
    "labels.sql": ({}, {"labels": {"sql": "other.sql"}}),
    "labels.column": ({}, {"labels": {"column": "lost"}}),
    "labels.delay": ({}, {"labels": {"delay": "2 days"}}),
    "labels.positive": ({}, {"labels": {"positive": False}}),
    "labels.weight": ({}, {"labels": {"weight": "items"}}),
    "model.estimator": ({}, model(estimator="sklearn.linear_model.LogisticRegression")),
    "model.build": (model(**BUILT), model(**DEEPER)),
    "model.import": (imported(), imported(**{"import": "newer.onnx"})),
    "model.flavour": (imported(), imported(flavour="onnx")),
    "model.task": (imported(), imported(task="multiclass")),
    "model.classes": (imported(), imported(classes=[True, False])),
    "model.params": ({}, model(params={"max_iter": 6})),
    "model.search.params": (model(**SEARCHED), model(search={"params": {"learning_rate": [0.1, 0.3]}})),
    "model.search.trials": (model(**SEARCHED), model(search=SEARCHED["search"] | {"trials": 7})),
    "model.calibrate": ({}, model(calibrate="isotonic")),
    "model.refit": ({}, model(refit=False)),
    "model.train.every": ({}, train(every="week")),
    "model.train.start": (train(every="week"), train(every="week", start="2024-02-12")),
    "model.train.window": ({}, train(window="30 days")),
    "model.train.evaluate": ({}, train(evaluate="5 days")),
    "model.train.held_out": (snapshot(), snapshot(held_out="30%")),
    "model.train.group": ({}, train(group=["shop"])),
    "model.train.max_rows": ({}, train(max_rows=500)),
    "model.train.sample": ({}, train(sample="balanced")),
    "challengers.name": (challenger(), challenger(name="plain")),
    "challengers.estimator": (challenger(), challenger(estimator="sklearn.tree.DecisionTreeClassifier")),
    "challengers.build": (challenger(**BUILT), challenger(**DEEPER)),
    "challengers.import": (challenger_imported(), challenger_imported(**{"import": "b.onnx"})),
    "challengers.flavour": (challenger_imported(), challenger_imported(flavour="onnx")),
    "challengers.task": (challenger_imported(), challenger_imported(task="multiclass")),
    "challengers.classes": (challenger_imported(), challenger_imported(classes=[True, False])),
    "challengers.params": (challenger(), challenger(params={"C": 2})),
    "challengers.calibrate": (challenger(), challenger(calibrate="sigmoid")),
    "challengers.search.params": (searched(C=[1, 2]), searched(C=[1, 3])),
    "challengers.search.trials": (searched(C=[1, 2]), searched(trials=1, C=[1, 2])),
    "predictions.keep": ({}, {"predictions": {"keep": ["shop", "items"]}}),
    "predictions.decide.threshold": (decide(threshold=0.3), decide(threshold=0.4)),
    "predictions.decide.costs": (costs(8), costs(9)),
    "predictions.decide.benefit": (decide(benefit=9, cost=1), decide(benefit=8, cost=1)),
    "predictions.decide.cost": (decide(benefit=9, cost=1), decide(benefit=9, cost=2)),
    "predictions.decide.top": (decide(top=5), decide(top=6)),
    "predictions.interval": ({}, {"predictions": {"interval": "90%"}}),
    "predictions.refine": (predictions(refine=[f"{OWN}.BOUNDED"]), predictions(refine=[f"{OWN}.BANDED"])),
    "predictions.reasons.count": (reasons(), reasons(count=3)),
    "predictions.reasons.above": (reasons(), reasons(above=0.5)),
    "predictions.reasons.of": (reasons(decide={"top": 5}), reasons(decide={"top": 5}, of="decisions")),
    "predictions.deliver.parquet": (deliver(parquet="a"), deliver(parquet="b")),
    "predictions.deliver.csv": (deliver(csv="a"), deliver(csv="b")),
    "predictions.deliver.delta": (deliver(delta="a"), deliver(delta="b")),
    "predictions.deliver.iceberg.catalog": (deliver(**iceberg()), deliver(**iceberg(catalog="sea"))),
    "predictions.deliver.iceberg.table": (deliver(**iceberg()), deliver(**iceberg(table="sales.others"))),
    "predictions.deliver.sql.uri": (to_table("a", "t"), to_table("b", "t")),
    "predictions.deliver.sql.table": (to_table("a", "t"), to_table("a", "u")),
    "predictions.deliver.name": (deliver(parquet="a"), deliver(parquet="a", name="late")),
    "predictions.deliver.of": (deliver(parquet="a"), deliver(parquet="a", of="rejected_rows")),
    "predictions.deliver.columns": (deliver(parquet="a"), deliver(parquet="a", columns=["id", "score"])),
    "monitoring.metrics": ({}, {"monitoring": {"metrics": ["own_code.cost"]}}),
    "monitoring.segments": ({}, {"monitoring": {"segments": ["shop"]}}),
    "monitoring.unit": ({}, {"monitoring": {"unit": "shop"}}),
}

_SHOWN, _WHEN, _WHERE = "only shown", "says when work is done", "says where work is done, with the same result (law 4)"
_TRUST = "lets files run code; what they hold has a version of its own"
_GATE = (
    "decides once, when a version is trained, whether it serves; `models promote` and `models roll-back` change that"
)
_JUDGED = "judges what is measured for warnings; the measures stay the same"
NO_INPUT = {  # keys that change nothing that is made, each with the reason
    "description": _SHOWN,
    "owners": _SHOWN,
    "features.columns.description": _SHOWN,
    "model.card.intended_use": _SHOWN,
    "model.card.limits": _SHOWN,
    "monitoring.notify": "says who is told",
    "monitoring.notify_values": "says what people are told",
    "report.every": _WHEN,
    "report.schedule": _WHEN,
    "report.compare": _SHOWN,
    "automation": _WHEN,
    "model.train.schedule": _WHEN,
    "model.train.retrain": _WHEN,
    "predictions.schedule": _WHEN,
    "predictions.rescore": _WHEN,
    "predictions.limit": _WHEN,
    "monitoring.fresh_by": _WHEN,
    "monitoring.max_champion_age": "says when a warning is due",
    "retention.features": "says when rows are deleted, which `gc` does",
    "retention.predictions": "says when rows are deleted, which `gc` does",
    "retention.rejected_rows": "says when rows are deleted, which `gc` does",
    "features.timeout": "ends a query, whose result does not depend on it",
    "sources.time": "says which rows are compared; the rows that are read are the same",
    "sources.late": "says how long rows are compared",
    "sources.wait": "says how long to wait for the file",
    "sources.sql.version": "says when the rows are compared",
    **{
        f"dagster.{key}": _WHERE for key in ("executor", "max_partitions_per_run", "pool", "retry.delay", "retry.times")
    },
    "dagster.keep_runs": "says when records of runs are deleted",
    "engine.name": _WHERE,
    **{f"engine.spark.{key}": _WHERE for key in ("conf", "master", "resource", "rows_per_task", "staging")},
    "engine.spark.wait_for_executors": _WHERE,
    "predictions.store": "says where rows are kept, from the next partition on",
    "model.publish": "says where versions are registered too",
    "model.allow_pickle": _TRUST,
    "challengers.allow_pickle": _TRUST,
    "challengers.version": "names what is trained already; it scores what is scored from then on",
    "features.max_rejected.rows": "decides only whether a partition is published; published ones are named",
    "features.max_rejected.share": "decides only whether a partition is published; published ones are named",
    "labels.outcomes": "refuses declarations and names suspected leaks of a version, once, when it is trained",
    "model.allow_suspected_leaks": _GATE,
    **{f"model.promote.{key}": _GATE for key in ("at_least", "baseline", "manual", "metric", "tolerance")},
    "monitoring.performance.warn_below": _JUDGED,
    **{f"monitoring.drift.{key}": _JUDGED for key in ("fail", "ignore", "warn")},
    "monitoring.drift.columns.fail": _JUDGED,
    "monitoring.drift.columns.warn": _JUDGED,
    "monitoring.rows": "adds warnings to what is scored from then on",
    "monitoring.allow_empty": "says which partitions without rows are a warning",
}

OWN_CODE = """\
def orders(): ...
def refunds(): ...
def features(events): ...
def network(): ...
def deeper(): ...
def cost(outcomes): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a pipeline, beside a module of the user's own."""
    for name, text in {
        "features.sql": FEATURES_SQL,
        "labels.sql": LABELS_SQL,
        "other.sql": LABELS_SQL.replace("returned\n", "returned, ts\n"),
        "spark.sql": FEATURES_SQL.replace("$", ":"),
        "a.sql": "SELECT * FROM events",
        "b.sql": "SELECT * FROM events WHERE amount > 0",
        "own_code.py": OWN_CODE,
        "model.onnx": "model",
        "newer.onnx": "newer model",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_code", raising=False)
    return tmp_path


def versions(folder: Path, overrides: Overrides) -> dict[str, object]:
    """What is compared with the records, step by step: where it differs, the step is due."""
    spec = PipelineSpec.model_validate(small_declaration(**overrides))
    pipeline = Pipeline(spec, folder, Home(folder / "home"))
    builder, calendar = pipeline.builder, spec.partitions.calendar
    versions_now = (builder.code_version, pipeline.scoring_code_version)
    declared = Declared(*versions_now, refinements=fingerprint(spec), inputs=Inputs.declared(builder))
    state = State(Records(Registry(spec.name)), declared)
    functions = [name for name in builder.feature_sources if spec.sources[name].python is not None]
    first = calendar.around(calendar.first_start)
    return {
        "pipeline": spec.name,
        "partitions": calendar.due(NOW),
        "features": (builder.code_version, builder.sources.versions(first, functions)),
        "periods": spec.periods.begun(NOW),
        "model": declared_now(spec, state),
        "challengers": {it.name: it.fingerprint for it in spec.challengers},
        "predictions": (pipeline.scoring_code_version, rule_text(spec.predictions.decide)),
        "performance": ([spec.periods.matures(it) for it in calendar.due(NOW)], state.declared.inputs.measured),
        "deliveries": {it.name: it.digest for it in spec.predictions.deliver},
    }


def due(folder: Path, before: Overrides, after: Overrides, edit: Callable[[], object] = lambda: None) -> set[str]:
    """The steps whose versions differ after an edit."""
    then = versions(folder, before)
    edit()
    now = versions(folder, after)
    return {step for step in now if then[step] != now[step]}


def test_law_23_every_key_is_an_input_or_is_listed_with_the_reason_why_it_is_none():
    assert EDITS.keys() | NO_INPUT.keys() == keys_of(PipelineSpec)
    assert not EDITS.keys() & NO_INPUT.keys()


@pytest.mark.parametrize("key", EDITS)
def test_law_23_another_value_of_a_key_makes_a_step_due(folder, key):
    assert due(folder, *EDITS[key])


ALL_LEARNED, BY_FUNCTION = (
    {"features", "model", "performance"},
    {"features": {"sql": None, "python": "own_code.features"}},
)
FILES: dict[str, tuple[Overrides, str, set[str]]] = {
    "the SQL of the features": ({}, "features.sql", {"features", "model"}),
    "the SQL of the labels": ({}, "labels.sql", {"model", "performance"}),
    "SQL of Spark": (ON_SPARK, "spark.sql", {"features", "model"}),
    "the query of a source": (database(table=None, query="a.sql"), "a.sql", ALL_LEARNED),
    "a function of the features": (BY_FUNCTION, "own_code.py", {"features", "model"}),
    "a function of a source": (source(python="own_code.orders"), "own_code.py", ALL_LEARNED),
    "a function that builds the model": (model(**BUILT), "own_code.py", {"model"}),
    "an estimator of one's own": (model(estimator="own_code.network"), "own_code.py", {"model"}),
    "the file of an imported model": (imported(), "model.onnx", {"model"}),
    "a metric of one's own": ({"monitoring": {"metrics": ["own_code.cost"]}}, "own_code.py", {"performance"}),
}


@pytest.mark.parametrize("what", FILES)
def test_law_23_another_content_of_a_file_makes_steps_due(folder, what):
    overrides, name, steps = FILES[what]
    file = folder / name

    def edit() -> None:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("SELECT", "SELECT 1 AS one,", 1) if name.endswith("sql") else f"{text} = 1\n")

    assert due(folder, overrides, overrides, edit) == steps


def test_comments_and_white_space_in_sql_make_nothing_due(folder):
    def edit() -> None:
        for name in ("features.sql", "labels.sql"):
            file = folder / name
            file.write_text("-- what it is for\n" + file.read_text(encoding="utf-8").replace(" ", "  "))

    assert due(folder, {}, {}, edit) == set()


def planned(pipeline: Pipeline) -> set[tuple[str, str]]:
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    return {(item.step, item.reason) for item in plan.items}


def again(pipeline: Pipeline, **overrides: Any) -> Pipeline:
    """The pipeline as another process reads it."""
    return Pipeline(small_spec(**overrides), pipeline.folder, pipeline.home)


OTHER_LABELS = {
    ("model", "the declared labels changed"),
    ("predictions", "a newer model is due"),
    ("performance", "scored"),
}


def test_b36_labels_that_are_declared_otherwise_make_the_model_and_what_it_scored_due(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    assert planned(pipeline) == set()
    file = pipeline.folder / "labels.sql"
    file.write_text(LABELS_SQL.replace("id, returned\n", "id, NOT returned AS returned\n"))
    assert planned(again(pipeline)) == OTHER_LABELS
    never = again(pipeline, model={"train": {"retrain": "never"}})
    plan = make_plan(never.spec, never.state(), PlanRequest(NOW))
    assert {(item.step, item.reason) for item in plan.items} == {
        ("performance", "labels.sql or the declaration of the labels changed")
    }
    assert {text.partition(" learned ")[2] for text in plan.remarks.values()} == {
        "other labels: labels.sql or the declaration of the labels changed since"
    }


def test_b36_a_label_column_that_does_not_exist_is_due_and_an_error_that_names_the_nearest(tmp_path):
    pipeline = again(finished_pipeline(tmp_path, NOW), labels={"column": "retrned"})
    assert planned(pipeline) == OTHER_LABELS
    with pytest.raises(SourceError, match=r"gives no column 'retrned'; it gives id, returned\.") as raised:
        pipeline.train(pipeline.spec.partitions.calendar.named("2024-02-01"), Stamp("later", NOW))
    assert raised.value.hint == "'retrned': did you mean 'returned'?"
