"""Whether a version may serve: held against the champion on the same rows, or kept until somebody promotes it."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from batch_platform.declaration.errors import NoChampionError
from batch_platform.declaration.spec import Promote
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import serving_calendar
from batch_platform.models.bundle import read_manifest
from batch_platform.models.gate import ChampionComparison, beside_champion
from batch_platform.models.promotion import Maker, promote, roll_back
from batch_platform.monitoring.comparison import Difference
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform_tests.harness.small_pipeline import carry_out, permuted_labels, small_events, small_pipeline

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
UNSEEN = {"refit": False}  # so that a champion of the same serving period has not learned from the evaluation rows


def retrain(pipeline: Pipeline, **params):
    period = serving_calendar(pipeline.spec).named("2024-02-01")
    return pipeline.train(period, Stamp("again", NOW), params=params)


def test_the_first_version_is_not_compared(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, NOW)
    (decision,) = pipeline.state().registry.promotions
    assert json.loads(decision.evidence)["comparison"] is None
    assert (decision.action, decision.reason) == ("approved", "meets the gate")


def test_a_worse_version_is_refused_with_a_paired_interval_as_evidence_and_the_champion_keeps_serving(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": {"metric": "log_loss", "tolerance": 0.0}, **UNSEEN})
    carry_out(pipeline, NOW)
    (champion,) = pipeline.state().registry.versions
    trained = retrain(pipeline, max_iter=1)
    assert trained.decision.action == "refused"
    evidence = json.loads(trained.decision.evidence)["comparison"]
    assert evidence["champion"] == champion.version
    assert evidence["champion_metrics"] == pytest.approx(champion.metric_values), "measured on the same rows"
    difference = evidence["difference"]
    assert (difference["metric"], difference["level"]) == ("log_loss", 0.95)
    assert difference["estimate"] == pytest.approx(
        evidence["metrics"]["log_loss"] - evidence["champion_metrics"]["log_loss"]
    )
    assert 0 < difference["low"] < difference["estimate"] < difference["high"]
    assert pipeline.state().registry.champion(NOW) == champion


@pytest.mark.full
def test_the_same_model_trained_again_shows_no_difference(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": {"tolerance": 0.0}, **UNSEEN})
    carry_out(pipeline, NOW)
    trained = retrain(pipeline)
    difference = json.loads(trained.decision.evidence)["comparison"]["difference"]
    assert (trained.decision.action, difference["low"], difference["high"]) == ("approved", 0.0, 0.0)


BESIDE = [
    ({}, 0.80, "refused", "is worse than the champion's 0.8800 on the same 840 rows"),
    ({}, 0.87, "accepted", "shows no clear difference from the champion's 0.8800 on the same 840 rows"),
    ({}, 0.95, "accepted", "is better than the champion's 0.8800 on the same 840 rows"),
    ({"tolerance": 0.0}, 0.87, "accepted", "shows no clear difference from"),
    (
        {"tolerance": 0.05},
        0.80,
        "refused",
        "is worse than the champion's 0.8800 by more than 0.05 on the same 840 rows",
    ),
    (
        {"tolerance": 0.1},
        0.80,
        "accepted",
        "is worse than the champion's 0.8800 by no more than the tolerance of 0.1 on",
    ),
    ({"manual": True}, 0.80, "accepted", "is worse than the champion's 0.8800 on"),
    ({"manual": True, "tolerance": 0.05}, 0.80, "refused", "by more than 0.05 on"),
]


@pytest.mark.parametrize(("promote", "value", "outcome", "reason"), BESIDE)
@pytest.mark.full
def test_the_champion_is_kept_from_what_is_worse_beyond_chance_and_the_comparison_is_always_told(
    promote, value, outcome, reason
):
    difference = Difference("roc_auc", value - 0.88, value - 0.91, value - 0.85, 0.95, 200, 840)
    comparison = ChampionComparison("2024-02-01-0000", {"roc_auc": value}, {"roc_auc": 0.88}, difference)
    beside = beside_champion(Promote.model_validate(promote), "roc_auc", comparison)
    assert beside is not None
    assert beside.refuses == (outcome == "refused")
    interval = f"(difference {value - 0.88:+.4f}, 95% interval {value - 0.91:+.4f} to {value - 0.85:+.4f})"
    assert reason in beside.reason
    assert beside.reason.startswith(f"roc_auc {value:.4f} ")
    assert beside.reason.endswith(interval)


def test_a_version_that_is_no_better_than_a_trivial_one_on_permuted_labels_does_not_replace_a_champion_that_was(
    tmp_path,
):
    """All models look alike on labels of other rows, so the champion is not better either."""
    events = permuted_labels(small_events(), datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC))
    month = {"train": {"window": "30 days"}}
    pipeline = small_pipeline(tmp_path, events=events, partitions={"end": "2024-04-01"}, model=month)
    carry_out(pipeline, datetime(2024, 3, 1, 12, tzinfo=UTC))
    registry = pipeline.state().registry
    champion, version = registry.of_model
    decision = registry.last_decision(version.version)
    assert decision.action == "refused"
    assert "is not better than the trivial baseline's" in decision.reason
    assert f"beyond chance, which the champion {champion.version} beat by 0." in decision.reason
    assert "shows no clear difference from the champion's" in decision.reason
    assert registry.champion(datetime(2024, 3, 5, tzinfo=UTC)) == champion


def test_both_are_measured_on_the_rows_that_both_accept(tmp_path):
    """The champion never saw a missing number of items; the new version did, and would have more rows to show for it."""
    pipeline = small_pipeline(tmp_path, model={"promote": {"tolerance": 0.5}, **UNSEEN})
    carry_out(pipeline, NOW)
    holes = small_events().with_columns(items=pl.when(pl.col("id") % 10 == 0).then(None).otherwise(pl.col("items")))
    later = small_pipeline(tmp_path, events=holes, model={"promote": {"tolerance": 0.5}, **UNSEEN})
    january = serving_calendar(later.spec).named("2024-02-01").start
    window = later.spec.partitions.calendar.within(later.spec.partitions.calendar.first_start, january)
    list(later.build_features(window, Stamp("again", NOW), force=True))
    comparison = json.loads(retrain(later).decision.evidence)["comparison"]
    assert comparison["not_compared"] == ""
    everywhere = retrain(later).version
    assert comparison["difference"]["rows"] < everywhere.rows_evaluated


def trained_only(tmp_path, promote) -> Pipeline:
    """The pipeline with January's features and one trained version."""
    pipeline = small_pipeline(tmp_path, model={"promote": promote})
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    list(pipeline.build_features([item.partition for item in plan.of("features")], Stamp("run", NOW)))
    retrain(pipeline)
    return pipeline


def test_a_version_waits_for_promotion_if_the_gate_is_manual(tmp_path):
    pipeline = trained_only(tmp_path, "manual")
    (decision,) = pipeline.state().registry.promotions
    assert (decision.action, decision.reason) == ("waiting", "meets the gate; waits for promotion")
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert (plan.items, len(plan.blocked)) == ([], 35), "it is trained once, and nothing is scored by it"
    with pytest.raises(
        NoChampionError, match=f"{decision.version} waits for a decision: .* models small promote {decision.version}"
    ):
        list(pipeline.score([plan.blocked[-1].partition], Stamp("run", NOW)))
    made = promote(pipeline.state().registry, {}, decision.version, Maker("me", NOW))
    pipeline.decide(made.promotion, pipeline.state())
    assert pipeline.state().registry.champion(NOW).version == decision.version
    assert len(make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).of("predictions")) == 4


def test_a_manual_gate_still_refuses_a_version_that_misses_its_rule(tmp_path):
    (decision,) = trained_only(tmp_path, {"manual": True, "at_least": 0.9999}).state().registry.promotions
    assert decision.action == "refused"


def rebuilt(tmp_path, events: pl.DataFrame, model: dict, features: dict) -> Pipeline:
    """The pipeline after its events of January were replaced; they are not scored again."""
    later = small_pipeline(tmp_path, events=events, model=model, features=features)
    january = serving_calendar(later.spec).named("2024-02-01").start
    window = later.spec.partitions.calendar.within(later.spec.partitions.calendar.first_start, january)
    list(later.build_features(window, Stamp("again", NOW), force=True))
    return later


def test_a_version_that_alone_can_score_many_rows_is_judged_on_the_shared_ones_and_replaces_an_unfit_champion(tmp_path):
    """From one day on, 40% of the rows lack a feature, and chance decides about them."""
    model = {"promote": {"tolerance": 0.03}, **UNSEEN}
    pipeline = small_pipeline(tmp_path, model=model, features={"max_rejected": "50%"})
    carry_out(pipeline, NOW)
    (champion,) = pipeline.state().registry.versions
    hole = (pl.col("id") % 5 < 2) & (pl.col("ts") >= datetime(2024, 1, 15, tzinfo=UTC))
    events = small_events().with_columns(
        items=pl.when(hole).then(None).otherwise(pl.col("items")),
        returned=pl.when(hole).then(pl.col("id") % 3 == 0).otherwise(pl.col("returned")),
    )
    tolerant = rebuilt(tmp_path, events, model, {"max_rejected": "50%"})
    worse = retrain(tolerant, max_iter=1, max_leaf_nodes=2)
    comparison = json.loads(worse.decision.evidence)["comparison"]
    rows, lost = worse.version.rows_evaluated, comparison["coverage"]["champion_rejects"]
    assert 0.35 * rows < lost < 0.45 * rows
    assert worse.decision.action == "refused"
    told = f"of {rows} evaluation rows {rows - lost} can be scored by both, {lost} only by this version, 0 only by"
    assert told in worse.decision.reason
    assert "unfit" not in worse.decision.reason

    strict = small_pipeline(tmp_path, events=events, model=model, features={"max_rejected": "1%"})
    worse = retrain(strict, max_iter=1, max_leaf_nodes=2)
    assert worse.decision.action == "approved", (
        "a champion with which every partition fails keeps no model from serving"
    )
    assert "is worse than the champion's" in worse.decision.reason
    assert f"the champion {champion.version} is unfit: it would reject {lost} of the {rows} evaluation rows" in (
        worse.decision.reason
    )
    manifest = read_manifest(strict.home.bundle("small", worse.version.version), worse.version.sha256)
    coverage = manifest.evaluation.coverage
    assert (coverage.rows, coverage.only_version, coverage.champion_is_unfit) == (rows, lost, True)

    strict.decide(roll_back(strict.state().registry, {}, Maker("me", NOW)).promotion, strict.state())
    good = retrain(tolerant)
    comparison = json.loads(good.decision.evidence)["comparison"]
    assert comparison["champion"] == champion.version
    assert good.version.metric_values["roc_auc"] < comparison["champion_metrics"]["roc_auc"] - 0.03
    assert comparison["metrics"]["roc_auc"] >= comparison["champion_metrics"]["roc_auc"] - 0.03
    assert good.decision.action == "approved", "on the same rows it is as good"


def test_a_version_that_learned_a_new_class_is_held_against_the_champion_on_the_classes_that_both_know(tmp_path):
    model = {"promote": {"metric": "log_loss", "tolerance": 0.05, "baseline": False}, **UNSEEN}
    named = pl.when(pl.col("returned")).then(pl.lit("back")).otherwise(pl.lit("kept"))
    events = small_events().with_columns(returned=pl.when(pl.col("returned").is_not_null()).then(named))
    pipeline = small_pipeline(tmp_path, events=events, model=model)
    carry_out(pipeline, NOW)
    (champion,) = pipeline.state().registry.versions
    lost = (pl.col("id") % 3 == 0) & (pl.col("ts") >= datetime(2024, 1, 15, tzinfo=UTC))
    events = events.with_columns(returned=pl.when(lost).then(pl.lit("lost")).otherwise(pl.col("returned")))
    later = rebuilt(tmp_path, events, model, {})
    trained = retrain(later)
    comparison = json.loads(trained.decision.evidence)["comparison"]
    assert (champion.task, trained.version.task, trained.decision.action) == ("binary", "multiclass", "approved")
    assert comparison["metrics"].keys() == comparison["champion_metrics"].keys() == {*champion.metric_values}
    assert comparison["difference"]["rows"] == comparison["coverage"]["shared"]
    of_all, of_shared = trained.version.metric_values["log_loss"], comparison["metrics"]["log_loss"]
    assert of_all > of_shared + 0.2, "the chance of the new class is no fault of the version"
    unknown = comparison["coverage"]["champion_lacks_class"]
    assert 0.3 * trained.version.rows_evaluated < unknown < 0.4 * trained.version.rows_evaluated
    assert f"is unfit: it does not know the class of {unknown} of the " in trained.decision.reason
