"""Whether a version may serve: held against the champion on the same rows, or kept until somebody promotes it."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit

import batch_platform
from batch_platform.declaration.errors import NoChampionError
from batch_platform.declaration.model import Promote
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import read_manifest
from batch_platform.models.gate import is_refused
from batch_platform.models.promotion import Maker, promote, roll_back
from batch_platform.monitoring.comparison import Difference, Verdict
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.small_pipeline import carry_out, permuted_labels, small_events, small_pipeline

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
SIMULATED = 400  # pairs of models; seeded
UNSEEN = {"refit": False}  # so that a champion of the same serving period has not learned from the evaluation rows


def retrain(pipeline: Pipeline, **params):
    period = pipeline.spec.periods.serving.named("2024-02-01")
    return pipeline.train(period, Stamp("again", NOW), params=params)


def test_a_worse_version_is_refused_with_a_paired_interval_as_evidence_and_the_champion_keeps_serving(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": {"metric": "log_loss", "tolerance": 0.0}, **UNSEEN})
    carry_out(pipeline, NOW)
    (champion,) = pipeline.state().registry.versions
    trained = retrain(pipeline, max_iter=1)
    assert trained.decision.action == "refused"
    evidence = json.loads(trained.decision.evidence)["comparison"]
    assert (evidence["champion"], evidence["word"]) == (champion.version, "worse")
    verdict = evidence["verdict"]
    assert verdict["other"] == pytest.approx(champion.metric_values["log_loss"]), "measured on the same rows"
    difference = verdict["difference"]
    assert 0 < difference["low"] < difference["estimate"] < difference["high"]
    assert pipeline.state().registry.champion(NOW) == champion


REFUSED = [  # declared, the ends of the interval of the difference in roc_auc, whether it is refused
    ({}, (-0.11, -0.05), True),
    ({}, (-0.06, -0.01), True),
    ({}, (-0.06, -0.005), False),  # worse, but not by a 99% interval
    ({}, (-0.04, 0.02), False),
    ({}, (0.04, 0.10), False),
    ({"tolerance": 0.1}, (-0.11, -0.05), True),
    ({"tolerance": 0.12}, (-0.11, -0.05), False),
    ({"manual": True}, (-0.11, -0.05), False),
    ({"manual": True, "tolerance": 0.1}, (-0.11, -0.05), True),
]


@pytest.mark.unit
@pytest.mark.parametrize(("promote", "ends", "refused"), REFUSED)
def test_what_is_worse_is_refused_unless_the_whole_interval_is_within_the_tolerance(promote, ends, refused):
    gate, (low, high) = Promote.model_validate(promote), ends
    better_if_higher = Difference("roc_auc", (low + high) / 2, low, high, 840)
    assert is_refused(gate, Verdict("roc_auc", 0.8, 0.8, 840, better_if_higher)) == refused
    turned = replace(better_if_higher, metric="log_loss", low=-high, high=-low)
    assert is_refused(gate, Verdict("log_loss", 0.8, 0.8, 840, turned)) == refused


def equal_or_worse(rows: int, noise: float, seed: int) -> tuple[Outcomes, Outcomes]:
    """Two models on the same rows; the scores of the first have so much noise, those of the second 0.5."""
    random = np.random.default_rng([seed, rows])
    truth, hard = random.random(rows) < 0.3, random.normal(size=rows)

    def model(own: float) -> Outcomes:
        score = expit(1.3 * truth + hard + own * random.normal(size=rows))
        return Outcomes("binary", np.column_stack([1 - score, score]), truth, [False, True])

    return model(noise), model(0.5)


def refused_percent(rows: int, noise: float) -> float:
    verdicts = [Verdict.on("roc_auc", *equal_or_worse(rows, noise, seed)) for seed in range(SIMULATED)]
    return 100 * float(np.mean([is_refused(Promote(), verdict) for verdict in verdicts]))


EQUAL, WORSE_BY_2, WORSE_BY_10 = 0.5, 0.7, 1.5  # noise, by what it costs of the area under the curve, in hundredths


@pytest.mark.parametrize("rows", [50, pytest.param(1_000, marks=pytest.mark.full)])
def test_hardly_an_equal_model_is_refused_at_any_number_of_rows_and_the_guide_states_what_becomes_of_worse_ones(rows):
    """One in 200 lies beyond one end of a 99% interval."""
    percents = [refused_percent(rows, noise) for noise in (EQUAL, WORSE_BY_2, WORSE_BY_10)]
    assert percents[0] < 2
    guide = (Path(batch_platform.__file__).parent / "guide" / "models.md").read_text(encoding="utf-8")
    (stated,) = re.findall(rf"^\| {rows:,} \| (\d+)% \| (\d+)% \| (\d+)% \|$", guide, re.MULTILINE)
    assert percents == pytest.approx([float(percent) for percent in stated], abs=6)


@pytest.mark.full
def test_equally_good_versions_of_a_rolling_window_are_approved_one_after_the_other(tmp_path):
    """The fit of each that serves learned from 24 days, the one that is judged from 7, and nothing changes in the data."""
    model = {"params": {"max_iter": 30}, "train": {"every": "week", "window": "34 days", "evaluate": "7 days"}}
    events, until = small_events(last=date(2024, 3, 31)), datetime(2024, 2, 27, tzinfo=UTC)
    pipeline = small_pipeline(tmp_path, events=events, labels={"delay": "10 days"}, model=model)
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(until))
    list(pipeline.build_features([item.partition for item in plan.of("features")], Stamp("run", until)))
    for item in plan.of("model"):
        pipeline.train(item.partition, Stamp("run", until))
    registry = pipeline.state().registry
    assert [decision.action for decision in registry.promotions] == ["approved"] * 5


@pytest.mark.full
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
    told = "labels or data may have changed: when the champion was judged, it was better than guessing: roc_auc 0."
    assert decision.reason.startswith(told), "what decides comes first"
    assert f"; not clearly better or worse than champion {champion.version}: roc_auc 0." in decision.reason
    assert "; not clearly better than guessing (class shares" in decision.reason
    assert registry.champion(datetime(2024, 3, 5, tzinfo=UTC)) == champion


def test_a_version_waits_for_promotion_if_the_gate_is_manual(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": "manual"})
    carry_out(pipeline, datetime(2024, 2, 1, 12, tzinfo=UTC))
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


def rebuilt(tmp_path, events: pl.DataFrame, model: dict, features: dict) -> Pipeline:
    """The pipeline after its events of January were replaced; they are not scored again."""
    later = small_pipeline(tmp_path, events=events, model=model, features=features)
    january = later.spec.periods.serving.named("2024-02-01").start
    window = later.spec.partitions.calendar.within(later.spec.partitions.calendar.first_start, january)
    list(later.build_features(window, Stamp("again", NOW), force=True))
    return later


@pytest.mark.full
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
    strict = rebuilt(tmp_path, events, model, {"max_rejected": "1%"})
    worse = retrain(strict, max_iter=1, max_leaf_nodes=2)
    assert worse.decision.action == "approved", (
        "a champion with which every partition fails keeps no model from serving"
    )
    assert f"worse than champion {champion.version}: roc_auc " in worse.decision.reason
    manifest = read_manifest(strict.home.bundle("small", worse.version.version), worse.version.sha256)
    coverage, rows = manifest.evaluation.coverage, worse.version.rows_evaluated
    assert (coverage.rows, coverage.champion_is_unfit) == (rows, True)
    assert 0.35 * rows < coverage.only_version < 0.45 * rows
    unfit = f"is unfit: it would reject {coverage.only_version} of the {rows} evaluation rows"
    assert unfit in worse.decision.reason

    strict.decide(roll_back(strict.state().registry, {}, Maker("me", NOW)).promotion, strict.state())
    good = retrain(small_pipeline(tmp_path, events=events, model=model, features={"max_rejected": "50%"}))
    comparison = json.loads(good.decision.evidence)["comparison"]
    assert comparison["champion"] == champion.version
    verdict = comparison["verdict"]
    assert good.version.metric_values["roc_auc"] < verdict["other"] - 0.03
    assert verdict["value"] >= verdict["other"] - 0.03
    assert good.decision.action == "approved", "on the same rows it is as good"


@pytest.mark.full
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
    assert comparison["verdict"]["rows"] == comparison["coverage"]["shared"]
    of_all, of_shared = trained.version.metric_values["log_loss"], comparison["verdict"]["value"]
    assert of_all > of_shared + 0.2, "the chance of the new class is no fault of the version"
    unknown = comparison["coverage"]["champion_lacks_class"]
    assert 0.3 * trained.version.rows_evaluated < unknown < 0.4 * trained.version.rows_evaluated
    assert f"is unfit: it does not know the class of {unknown} of the " in trained.decision.reason
