"""Decisions on scored rows: by a rule as scoring goes, by the rank in a partition, and once the rule changed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, TrainingRefusedError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.operations.export import export
from batch_platform.operations.trace import trace
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.recovery import verify
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_events, small_pipeline

NOW = datetime(2024, 2, 4, 12, tzinfo=UTC)
SCORED = ["2024-02-01", "2024-02-02", "2024-02-03"]
CHANGED = "the decision rule changed"
COSTS = {"costs": {"false_positive": 1, "false_negative": 2}}
CHALLENGED = {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]}
RULES: list[dict[str, Any]] = [{"threshold": 0.4}, COSTS, {"benefit": 5, "cost": 2}, {"top": 7}, {"top": "5%"}]


def declared(tmp_path: Path, rule: Mapping[str, Any] | None, store: str = "duckdb", **further: Any) -> Pipeline:
    """The pipeline in its folder as it is declared now."""
    return small_pipeline(tmp_path, **_overrides(rule, store), **further)


def decided(tmp_path: Path, rule: Mapping[str, Any] | None, store: str = "duckdb", **further: Any) -> Pipeline:
    """The pipeline with three scored days, of which two are evaluated."""
    return finished_pipeline(tmp_path, NOW, **_overrides(rule, store), **further)


def _overrides(rule: Mapping[str, Any] | None, store: str) -> dict[str, Any]:
    return {"predictions": {"store": store} | ({} if rule is None else {"decide": dict(rule)})}


def rows(pipeline: Pipeline, table: str = "predictions") -> pl.DataFrame:
    with open_published(pipeline.home) as con:
        return con.sql(f"FROM small.{table}").pl().sort("id")


def metrics(pipeline: Pipeline) -> dict[tuple[str, str | None, str], float]:
    with open_published(pipeline.home) as con:
        query = "SELECT partition_key, challenger, metric, value FROM small.performance"
        return {(key, challenger, metric): value for key, challenger, metric, value in con.sql(query).fetchall()}


def rules(pipeline: Pipeline) -> set[str | None]:
    return {run.decision_rule for run in pipeline.state().scores.values()}


def acted(scores: pl.DataFrame, rule: Mapping[str, Any]) -> list[bool]:
    """The decisions on rows in the order of their keys, worked out by hand."""
    match rule:
        case {"top": top}:
            most = top if isinstance(top, int) else 2  # 5% of 40 rows
            ranked = scores.sort("partition_key", "score", "id", descending=[False, True, False])
            best = ranked.group_by("partition_key", maintain_order=True).head(most)["id"]
            return scores["id"].is_in(best.implode()).to_list()
        case {"threshold": threshold}:
            pass
        case {"costs": {"false_positive": positive, "false_negative": negative}}:
            threshold = positive / (positive + negative)
        case {"benefit": benefit, "cost": cost}:
            threshold = cost / benefit
        case _:
            raise AssertionError(rule)
    return (scores["score"] >= threshold).to_list()


@pytest.mark.parametrize(
    "rule", [COSTS, *(pytest.param(it, marks=pytest.mark.full) for it in RULES if it != COSTS)], ids=str
)
def test_every_row_gets_the_decision_of_the_rule_and_the_ledger_names_it(tmp_path, rule):
    pipeline = decided(tmp_path, rule)
    scores = rows(pipeline)
    assert scores["decision"].to_list() == acted(scores, rule)
    assert 0 < scores["decision"].sum() < scores.height
    (text,) = rules(pipeline)
    assert text is not None
    assert all(key in text for key in rule)


@pytest.mark.parametrize(
    ("first", "store"),
    [
        (None, "duckdb"),
        pytest.param(COSTS, "duckdb", marks=pytest.mark.full),
        pytest.param(COSTS, "parquet", marks=pytest.mark.full),
    ],
)
def test_a_changed_rule_is_an_input_by_which_partitions_are_scored_again(tmp_path, first, store):
    expected, rule = decided(tmp_path / "expected", {"top": 7}, store, **CHALLENGED), {"top": 7}
    decided(tmp_path / "changed", first, store, **CHALLENGED)
    changed = declared(tmp_path / "changed", rule, store, **CHALLENGED)
    plan = carry_out(changed, NOW, "run")
    assert plan.stale == dict.fromkeys(SCORED, CHANGED)
    assert {item.step for item in plan.items} == {"predictions", "performance"}
    for table in ("predictions", "challenger_scores"):
        under_rule, again = (
            rows(pipeline, table).drop("scored_at", "model_version") for pipeline in (expected, changed)
        )
        assert again.select(under_rule.columns).equals(under_rule)
    assert metrics(changed) == metrics(expected)
    assert make_plan(changed.spec, changed.state(), PlanRequest(NOW)).items == []
    assert verify(changed.home).differing == ()


def test_without_the_rule_the_decisions_are_null(tmp_path):
    decided(tmp_path, COSTS)
    pipeline = declared(tmp_path, None)
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).stale == dict.fromkeys(SCORED, CHANGED)
    carry_out(pipeline, NOW, "removed")
    assert rows(pipeline)["decision"].null_count() == rows(pipeline).height
    assert rules(pipeline) == {None}
    assert not [metric for *_, metric in metrics(pipeline) if metric.startswith("decision_cost")]
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def test_performance_is_that_of_the_stored_decisions_with_their_costs(tmp_path):
    pipeline = decided(tmp_path, COSTS, **CHALLENGED)
    labels = small_events().select("id", "returned").drop_nulls()
    values = metrics(pipeline)
    for table, challenger in (("predictions", None), ("challenger_scores", "linear")):
        measured = rows(pipeline, table).join(labels, on="id")
        for key in SCORED[:2]:
            acted_on, hit = measured.filter(partition_key=key).select("decision", "returned")
            wrong = (acted_on & ~hit).sum() + 2 * (hit & ~acted_on).sum()
            assert values[key, challenger, "decision_cost"] == pytest.approx(wrong / len(hit))
            assert values[key, challenger, "decision_cost_always"] == pytest.approx((~hit).mean())
            assert values[key, challenger, "decision_cost_never"] == pytest.approx(2 * hit.mean())
            assert values[key, challenger, "decision_cost_in_hindsight"] <= values[key, challenger, "decision_cost"]
            assert values[key, challenger, "recall"] == pytest.approx((acted_on & hit).sum() / hit.sum())
            assert values[key, challenger, "selection_rate"] == pytest.approx(acted_on.mean())
    with open_published(pipeline.home) as con:
        pooled = pooled_performance(con, "small").filter(pl.col("challenger").is_null(), metric="decision_cost")
    both = rows(pipeline).join(labels, on="id").filter(pl.col("partition_key").is_in(SCORED[:2]))
    wrong = (both["decision"] & ~both["returned"]).sum() + 2 * (both["returned"] & ~both["decision"]).sum()
    assert pooled["value"].to_list() == pytest.approx([wrong / both.height] * pooled.height)
    with open_published(pipeline.home) as con:
        query = "SELECT count(*) FROM small.performance WHERE metric = 'decision_cost' AND low < value AND value < high"
        assert con.sql(query).fetchall() == [(4,)]


def test_a_backtest_decides_too_and_an_export_and_a_trace_show_the_decision(tmp_path):
    pipeline = decided(tmp_path, {"top": 7})
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in SCORED[:2]]
    result = backtest(
        pipeline,
        partitions,
        BacktestModel(estimator="sklearn.linear_model.LogisticRegression"),
        Stamp("test", NOW),
        keep_scores=True,
    )
    tested = rows(pipeline, "backtest_scores")
    assert tested["decision"].to_list() == acted(tested, {"top": 7})
    assert {"precision", "recall"} <= result.partitions[0].metrics.keys() & result.partitions[0].production.keys()
    file = tmp_path / "export.parquet"
    export(pipeline, file, features=True)
    assert pl.read_parquet(file).sort("id")["decision"].to_list() == rows(pipeline)["decision"].to_list()
    (traced,) = trace(pipeline.spec, pipeline.home, {"id": str(rows(pipeline)["id"][0])})
    assert traced.row["decision"] == rows(pipeline)["decision"][0]
    assert traced.commit.decision_rule == '{"top": 7}'


def test_a_version_that_a_changed_rule_does_not_fit_keeps_its_decisions_and_says_why(tmp_path):
    pipeline = decided(tmp_path, COSTS)
    before = rows(pipeline)
    costs = {"back": {"kept": 9}, "kept": {"back": 1}}
    pipeline = declared(tmp_path, {"costs": costs})
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in SCORED]
    with pytest.raises(DataError, match="the model has no class 'back', 'kept'; its classes are false, true"):
        list(pipeline.score(partitions, Stamp("wrong", NOW)))
    pipeline.publish()
    assert rows(pipeline).equals(before)


@pytest.mark.parametrize(
    ("estimator", "rule", "refusal"),
    [
        ("sklearn.linear_model.Ridge", COSTS, "predictions.decide needs probabilities of classes"),
        ("sklearn.linear_model.LogisticRegression", {"costs": {"x": {"y": 1}}}, "the model has no class 'x', 'y'"),
    ],
)
def test_no_model_is_trained_that_a_rule_does_not_fit(tmp_path, estimator, rule, refusal):
    model = {"estimator": estimator, "params": None}
    pipeline = small_pipeline(tmp_path, model=model, predictions={"decide": rule})
    partitions = pipeline.spec.partitions.calendar.due(NOW)
    list(pipeline.build_features(partitions, Stamp("build", NOW)))
    period = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).of("model")[0].partition
    with pytest.raises(TrainingRefusedError) as error:
        pipeline.train(period, Stamp("train", NOW))
    assert f"serving period {period.key}: predictions.decide" in error.value.message
    assert refusal in error.value.message
