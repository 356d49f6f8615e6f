"""Another type of label: predictions start anew with the first commit of the new type, and what stays is told before."""

from datetime import UTC, datetime
from typing import Any

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.new_label import NewLabel, new_label, retire
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA
from batch_platform.warehouse.published import reading_published
from batch_platform_tests.harness.small_pipeline import LABELS_SQL, carry_out, finished_pipeline, small_spec

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)
CHALLENGED = {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]}
TEXTS = "CASE WHEN returned THEN 'back' ELSE 'kept' END"
REGRESSOR = "sklearn.ensemble.HistGradientBoostingRegressor"


def with_label(pipeline: Pipeline, label: str, **overrides: Any) -> Pipeline:
    """The same pipeline after an edit of the SQL of its label, and of its declaration."""
    sql = LABELS_SQL.replace("SELECT id, returned", f"SELECT id, {label} AS returned")
    (pipeline.folder / "labels.sql").write_text(sql)
    return Pipeline(small_spec(**overrides), pipeline.folder, pipeline.home)


def rows(pipeline: Pipeline, query: str) -> list[tuple[Any, ...]]:
    with reading_published(pipeline.home) as con:
        return con.execute(query).fetchall()


def found_in(pipeline: Pipeline) -> NewLabel:
    found = new_label(pipeline, pipeline.state())
    assert found is not None
    return found


@pytest.mark.parametrize("store", ["duckdb", pytest.param("parquet", marks=pytest.mark.full)])
def test_predictions_of_another_type_go_with_the_first_commit_of_the_new_type(tmp_path, store):
    overrides = {**CHALLENGED, "predictions": {"store": store}}
    old = finished_pipeline(tmp_path, NOW, **overrides)
    scored = [*old.state().scores]
    assert len(scored) > 1
    new, stamp = with_label(old, TEXTS, **overrides), Stamp("anew", NOW)
    found = found_in(new)
    assert (len(found.versions), found.partitions) == (len(old.state().registry.versions), scored)
    assert found.reason == "small: its models predict truth values, but they are to predict texts now"
    retire(new, new.state(), found, "me", stamp)
    state = new.state()
    assert (state.registry.of_model, state.registry.champion(NOW), [*state.scores]) == ([], None, scored)
    kept = "SELECT count(DISTINCT partition_key), any_value(typeof(prediction)) FROM small.predictions"
    assert rows(new, kept) == [(len(scored), "BOOLEAN")], "the last complete state is read until the next one"
    assert (found_in(new).versions, found_in(new).partitions) == ([], scored), "it is still to be done after a kill"
    plan = make_plan(new.spec, state, PlanRequest(NOW))
    assert [item.partition.key for item in plan.of("predictions")] == scored
    for item in plan.of("model"):
        new.train(item.partition, stamp)
    first, *others = [item.partition for item in plan.of("predictions")]
    list(new.score([first], stamp))
    new.publish()
    assert rows(new, kept) == [(1, "VARCHAR")]
    for table in ("performance", "outcomes", "drift", "profiles", "estimates", "challengers", "challenger_scores"):
        assert rows(new, f"SELECT DISTINCT partition_key FROM small.{table}") in ([], [(first.key,)]), table
    assert rows(new, f"SELECT DISTINCT partition_key FROM {LEDGERS_SCHEMA}.score_runs") == [(first.key,)]
    assert rows(new, f"SELECT partition_key FROM {LEDGERS_SCHEMA}.partition_status") == [(first.key,)]
    assert rows(new, f"SELECT count(*) FROM {LEDGERS_SCHEMA}.evaluations") == [(0,)]
    assert new_label(new, new.state()) is None
    carry_out(new, NOW)
    assert [*sorted(new.state().scores)] == scored
    assert len(others) == len(scored) - 1
    assert rows(new, "SELECT DISTINCT prediction FROM small.predictions ORDER BY 1") == [("back",), ("kept",)]


@pytest.mark.parametrize(
    ("label", "overrides", "declared"),
    [
        ("returned", {}, None),
        ("NOT returned", {}, None),
        ("no_column", {}, None),
        ("ts", {}, None),
        ("CAST(returned AS INTEGER)", {}, "numbered classes"),
        (f"CAST({TEXTS} AS ENUM ('back', 'kept'))", {}, "texts"),
        ("amount", {"model": {"estimator": REGRESSOR}}, "quantities"),
        ("returned", {"labels": None, "model": {"estimator": "sklearn.cluster.KMeans", "params": None}}, "groups"),
    ],
)
def test_only_another_type_of_label_starts_predictions_anew(tmp_path, label, overrides, declared):
    pipeline = with_label(finished_pipeline(tmp_path, NOW), label, **overrides)
    found = new_label(pipeline, pipeline.state())
    assert (found is None) == (declared is None)
    assert found is None or found.reason.endswith(f"but they are to predict {declared} now")
