"""Decisions on scored rows: by a rule as scoring goes, by the rank in a partition, and once the rule changed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, TrainingRefusedError
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import serving_calendar
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.pipeline.export import export
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.trace import trace
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.reports.figures import read_figures
from batch_platform.reports.report import write_report
from batch_platform.scoring.deciding import with_whole
from batch_platform.scoring.engines import local
from batch_platform.scoring.partition import Counts, Staged
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.verify import verify
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


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_row_gets_the_decision_of_the_rule_and_the_ledger_names_it(tmp_path, rule):
    pipeline = decided(tmp_path, rule)
    scores = rows(pipeline)
    assert scores["decision"].to_list() == acted(scores, rule)
    assert 0 < scores["decision"].sum() < scores.height
    (text,) = rules(pipeline)
    assert text is not None
    assert all(key in text for key in rule)


def test_a_pipeline_without_a_rule_has_no_decisions(tmp_path):
    pipeline = decided(tmp_path, None)
    assert "decision" not in rows(pipeline).columns
    assert rules(pipeline) == {None}


@pytest.mark.full
@pytest.mark.parametrize("rule", [COSTS, {"top": 7}], ids=str)
def test_decisions_are_the_same_in_files_and_whatever_the_size_of_a_batch(tmp_path, rule, monkeypatch):
    expected = rows(decided(tmp_path / "duckdb", rule, **CHALLENGED))
    monkeypatch.setattr(local, "BATCH_ROWS", 11)
    in_files = declared(tmp_path / "files", rule, "parquet", **CHALLENGED)
    carry_out(in_files, NOW)
    again = rows(in_files)
    assert again.select("id", "score", "decision").equals(expected.select("id", "score", "decision"))
    assert verify(in_files.home).differing == ()


@pytest.mark.parametrize(
    ("first", "store"), [(None, "duckdb"), (COSTS, "duckdb"), pytest.param(COSTS, "parquet", marks=pytest.mark.full)]
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


def test_where_nothing_is_scored_again_another_rule_is_only_shown(tmp_path):
    decided(tmp_path, COSTS)
    pipeline = small_pipeline(tmp_path, predictions={"decide": {"top": 7}, "rescore": "never"})
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert plan.stale == dict.fromkeys(SCORED, CHANGED)
    assert plan.items == []


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


def test_the_check_and_the_report_show_what_the_decisions_cost(tmp_path):
    pipeline = decided(tmp_path, COSTS, monitoring={"performance": {"warn_below": 0.1}})
    check = PERFORMANCE.check(pipeline.spec)
    assert check is not None
    assert "act on a row from a probability of 0.3333 on" in check.description
    with open_published(pipeline.home) as con:
        measured = PERFORMANCE.served_rows(con, "small", SCORED[:1])[SCORED[0]]
    judged = check.judge(measured, "binary")
    assert judged is not None
    shown = {"decision_cost", "decision_cost_always", "decision_cost_never", "decision_cost_in_hindsight"}
    assert shown <= judged.shown.keys()
    report = tmp_path / "report.html"
    write_report(pipeline, NOW, file=report)
    assert "The decisions cost " in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", [None, COSTS, {"top": 7}], ids=str)
def test_the_report_holds_the_stored_decisions_against_what_came_true(tmp_path, rule):
    pipeline = decided(tmp_path, rule)
    with open_published(pipeline.home) as con:
        confusion = read_figures(con, pipeline.spec).confusion
    scores = rows(pipeline).join(small_events().select("id", "returned").drop_nulls(), on="id")
    scores = scores.filter(pl.col("partition_key").is_in(SCORED[:2]))
    counted = scores.group_by("prediction" if rule is None else "decision", "returned").len()
    expected = {(str(held).lower(), str(came).lower(), count) for held, came, count in counted.iter_rows()}
    assert {*confusion.iter_rows()} == expected


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


def test_the_highest_scores_are_those_of_a_partition_that_was_staged_in_several_parts(tmp_path):
    """Tasks of Spark stage a part each."""
    pipeline = decided(tmp_path, {"top": 7})
    expected = rows(pipeline).filter(partition_key=SCORED[0])
    parts = list[Path]()
    for part in expected.with_columns(decision=pl.lit(None, pl.Boolean)).iter_slices(11):
        parts.append(tmp_path / f"{len(parts)}.predictions.parquet")
        part.write_parquet(parts[-1])
    calendar = pipeline.spec.partitions.calendar
    staged = Staged(calendar.named(SCORED[0]), tuple(parts), (), Counts(), NOW)
    assert pl.read_parquet(list(with_whole(staged, pipeline.spec, in_place=True).predictions)).equals(expected)


@pytest.mark.full
def test_the_rows_that_are_selected_have_reasons_and_no_others(tmp_path):
    everywhere = small_pipeline(tmp_path / "all", predictions={"reasons": 2})
    carry_out(everywhere, NOW)
    expected = rows(everywhere)
    for rule in ({"top": 7}, COSTS):
        further = {"decide": rule, "reasons": {"count": 2, "of": "decisions"}}
        pipeline = small_pipeline(tmp_path / "selected", predictions=further, **CHALLENGED)
        assert set(make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).stale.values()) <= {CHANGED}
        carry_out(pipeline, NOW, str(rule))
        scores = rows(pipeline)
        assert scores["decision"].to_list() == acted(scores, rule)
        assert scores["reasons"].is_not_null().to_list() == scores["decision"].to_list()
        selected = scores["decision"]
        assert scores.filter(selected)["reasons"].to_list() == expected.filter(selected)["reasons"].to_list()
        challenged = rows(pipeline, "challenger_scores")
        assert challenged["reasons"].is_not_null().to_list() == challenged["decision"].to_list()
        assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def three_classes(tmp_path: Path, costs: dict[str, Any] | None) -> Pipeline:
    labels = "SELECT id, CASE WHEN returned THEN 'back' WHEN items > 4 THEN 'kept' ELSE 'lost' END AS fate FROM events WHERE ts >= $partition_start AND ts < $partition_end AND returned IS NOT NULL"
    rule = {} if costs is None else {"decide": {"costs": costs}}
    return small_pipeline(tmp_path, labels_sql=labels, labels={"column": "fate"}, predictions=rule)


def test_of_several_classes_the_one_of_least_expected_cost_is_decided(tmp_path):
    costs = {"back": {"kept": 9, "lost": 9}, "kept": {"back": 1, "lost": 2}, "lost": {"back": 2, "kept": 1}}
    other = {**costs, "lost": {"back": 20, "kept": 20}}
    for number, by_class in enumerate((costs, other)):
        pipeline = three_classes(tmp_path, by_class)
        carry_out(pipeline, NOW, f"run {number}")
        scores = rows(pipeline)
        names = ["back", "kept", "lost"]
        matrix = np.array([[by_class[true].get(name, 0) for name in names] for true in names])
        expected = scores.select(f"score_{name}" for name in names).to_numpy() @ matrix
        assert scores["decision"].to_list() == [names[at] for at in expected.argmin(axis=1)]
        assert {"decision_cost", "decision_cost_always"} <= {metric for *_, metric in metrics(pipeline)}


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


@pytest.mark.full
def test_versions_are_judged_by_what_their_decisions_cost(tmp_path):
    pipeline = decided(tmp_path, COSTS, model={"promote": {"metric": "decision_cost"}})
    version = pipeline.state().registry.of_model[0]
    judged = pipeline.bundle(version).judged
    assert judged is not None
    act, hit = judged.outcomes.predicted[:, 1] >= 1 / 3, judged.outcomes.labels.astype(bool)
    assert version.metric_values["decision_cost"] == pytest.approx((act & ~hit).mean() + 2 * (hit & ~act).mean())
    assert version.metric_values["recall"] == pytest.approx((act & hit).sum() / hit.sum())
    decision = pipeline.state().registry.last_decision(version.version)
    assert decision is not None
    assert decision.action == "approved"
    assert "decision_cost" in decision.evidence
    stricter = {"promote": {"metric": "decision_cost", "at_least": 0.01}}
    calendar = serving_calendar(pipeline.spec)
    assert calendar is not None
    period = calendar.named(version.serving_period)
    refused = declared(tmp_path, COSTS, model=stricter).train(period, Stamp("again", NOW)).decision
    assert refused.action == "refused"
    assert "is worse than the required 0.01" in refused.reason
