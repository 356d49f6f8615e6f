"""After the gate has judged a model on the end of its window, the model is fitted again on the whole window, and serves."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.errors import IntegrityError
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import can_train, serving_calendar, serving_periods, training_window
from batch_platform.features.training_data import PARTITION_START
from batch_platform.models.bundle import JUDGED, MANIFEST, WITHOUT_JUDGED_FIT, Manifest, read_judged, read_manifest
from batch_platform.models.contract import Contract, infer_contract
from batch_platform.models.fitting import fit, refit
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import (
    BERLIN,
    DECLARATION,
    carry_out,
    small_events,
    small_pipeline,
    small_spec,
)
from batch_platform_tests.models.training_rows import FEATURES, data

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
BEFORE_SCORING = datetime(2024, 2, 1, 12, tzinfo=UTC)
COLUMNS = ["amount", "items", "shop", "known"]
BOUNDARY, END = datetime(2024, 1, 23, 23, tzinfo=UTC), datetime(2024, 1, 30, 23, tzinfo=UTC)
KNOWN = BOUNDARY - timedelta(
    days=1
)  # labels take a day: at the start of the evaluation rows, those until then are known


def manifest_of(pipeline: Pipeline) -> Manifest:
    (version,) = pipeline.state().registry.of_model
    return read_manifest(pipeline.home.bundle("small", version.version), version.sha256)


def labelled(since: datetime | None, until: datetime) -> pl.DataFrame:
    """The rows with a label between two instants, in the order of the feature files."""
    rows = small_events().filter(pl.col("returned").is_not_null(), pl.col("ts") < until)
    return rows if since is None else rows.filter(pl.col("ts") >= since)


def by_hand(rows: pl.DataFrame, **params: int) -> tuple[Contract, HistGradientBoostingClassifier]:
    """The declared estimator as scikit-learn fits it, and the contract of the rows."""
    contract = infer_contract(rows.select(COLUMNS), {})
    estimator = HistGradientBoostingClassifier(
        **DECLARATION["model"]["params"] | params, random_state=0, categorical_features=contract.categorical
    )
    return contract, estimator.fit(contract.encode(contract.split(rows).kept), rows["returned"].to_numpy())


def scores(contract: Contract, estimator: HistGradientBoostingClassifier, rows: pl.DataFrame) -> np.ndarray:
    return estimator.predict_proba(contract.encode(contract.split(rows).kept))[:, 1]


def committed(pipeline: Pipeline) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        query = "SELECT id, score FROM small.predictions WHERE partition_key = '2024-02-02' ORDER BY id"
        return con.sql(query).pl()


@pytest.mark.full
def test_what_serves_has_learned_from_the_whole_window_and_what_is_told_of_it_was_measured_before(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, NOW)
    predicted = committed(pipeline)
    day = small_events().filter(pl.col("id").is_in(predicted["id"].to_list())).sort("id")
    assert scores(*by_hand(labelled(None, END)), day).tolist() == predicted["score"].to_list()
    held_out = labelled(BOUNDARY, END)
    judged = scores(*by_hand(labelled(None, KNOWN)), held_out)
    manifest = manifest_of(pipeline)
    assert manifest.evaluation.metrics["roc_auc"] == pytest.approx(roc_auc_score(held_out["returned"], judged))
    assert (manifest.refit, manifest.training.end) == (True, END.isoformat())
    assert (manifest.evaluation.start, manifest.evaluation.end) == (BOUNDARY.isoformat(), END.isoformat())
    assert manifest.training.rows == labelled(None, END).height
    assert manifest.evaluation.rows == held_out.height
    assert manifest.evaluation.rows_not_known == labelled(KNOWN, BOUNDARY).height
    assert manifest.training.partitions == 30
    assert (manifest.compiled.kernel, manifest.compiled.reason) == ("leaf masks of 32 bits", None)


@pytest.mark.full
def test_refinements_learn_from_no_row_whose_label_was_not_known_when_the_rows_begin_that_the_gate_judges(tmp_path):
    model = {"calibrate": "sigmoid", "train": {"evaluate": "14 days"}}
    pipeline = small_pipeline(tmp_path, model=model, labels={"delay": "2 days"})
    carry_out(pipeline, NOW)
    manifest, end = manifest_of(pipeline), END - timedelta(days=1)
    assert manifest.evaluation.rows == labelled(end - timedelta(days=7), end).height
    assert manifest.evaluation.rows_refined == labelled(end - timedelta(days=14), end - timedelta(days=9)).height
    late = [labelled(end - timedelta(days=days + 2), end - timedelta(days=days)).height for days in (7, 14)]
    assert manifest.evaluation.rows_not_known == sum(late)
    assert manifest.training.rows == labelled(None, end).height


def test_a_period_whose_evaluation_rows_begin_before_any_label_is_known_is_not_trained():
    spec = small_spec(labels={"delay": "20 days"}, model={"train": {"every": "week", "evaluate": "2 days"}})
    first, *_ = serving_periods(spec, datetime(2024, 3, 1, tzinfo=UTC))
    assert (
        first.key == "2024-02-19"
    )  # 1 day to learn from, 20 until it is known, 2 for evaluation, and 20 until these are
    before = datetime(2024, 2, 11, 23, tzinfo=UTC)
    assert len(training_window(spec, before)) == 22
    assert not can_train(spec, training_window(spec, before))


@pytest.mark.full
@pytest.mark.parametrize(
    "train", [{}, {"max_rows": 200}, {"sample": "balanced"}, {"sample": "balanced", "max_rows": 200}]
)
def test_a_sample_for_the_judged_fit_is_drawn_from_known_labels_and_that_of_the_refit_from_all(tmp_path, train):
    pipeline = small_pipeline(tmp_path, labels={"delay": "6 days"}, model={"train": train})
    end = END - timedelta(days=5)
    boundary = end - timedelta(days=7)
    list(pipeline.build_features(pipeline.spec.partitions.calendar.due(NOW), Stamp("r", NOW)))
    window = training_window(pipeline.spec, datetime(2024, 1, 31, 23, tzinfo=UTC))
    builds = pipeline.state().features
    data = pipeline.history.training_data(builds, window, boundary, Stamp("r", NOW), stratified=True)
    known = labelled(None, boundary - timedelta(days=6))
    assert (data.rows_before_cap, data.not_known.before_cap) == (
        known.height,
        labelled(known["ts"].max(), boundary).height - 1,
    )
    assert data.fit[PARTITION_START].max() < boundary - timedelta(days=6)
    whole, most = data.whole(train.get("max_rows"), stratified=True), train.get("max_rows")
    assert whole.rows_before_cap == labelled(None, end).height
    assert whole.fit[PARTITION_START].is_sorted()
    assert whole.not_known is None
    rows = whole.fit["returned"].value_counts()["count"].to_list()
    balanced = 2 * min(labelled(None, end)["returned"].value_counts()["count"])
    if train.get("sample"):
        assert max(rows) - min(rows) <= 3, "each part gives its share of a class, rounded down"
    assert sum(rows) <= (most or whole.rows_before_cap)
    assert sum(rows) >= (most or (balanced if train else whole.rows_before_cap)) - 3
    between = whole.fit.filter(
        pl.col(PARTITION_START).is_between(boundary - timedelta(days=6), boundary, closed="left")
    )
    share = data.not_known.before_cap / whole.rows_before_cap
    assert between.height == pytest.approx(share * whole.fit.height, abs=6)


@pytest.mark.full
def test_its_score_is_judged_by_what_the_first_fit_gave_rows_that_it_had_not_seen(tmp_path):
    many = {"max_iter": 100, "max_leaf_nodes": 31}  # so that scores take many values
    pipeline = small_pipeline(tmp_path, model={"params": many}, monitoring={"drift": {}})
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.of_model
    profile = pipeline.bundle(version).reference.prediction
    judged = scores(*by_hand(labelled(None, KNOWN), **many), labelled(BOUNDARY, END))
    places = np.searchsorted(profile.bins.edges, judged, side="right")
    assert np.bincount(places, minlength=profile.bins.cells).tolist() == list(profile.histogram)
    with pipeline.warehouse.open() as con:
        query = "SELECT level FROM small.drift WHERE column_name = 'score' AND baseline = 'reference'"
        assert con.sql(query).fetchall() == [("none",)] * 4


def test_without_refit_the_judged_model_serves_and_its_training_ends_where_labels_were_known_at_the_evaluation(
    tmp_path,
):
    pipeline = small_pipeline(tmp_path, model={"refit": False})
    carry_out(pipeline, NOW)
    predicted = committed(pipeline)
    day = small_events().filter(pl.col("id").is_in(predicted["id"].to_list())).sort("id")
    assert scores(*by_hand(labelled(None, KNOWN)), day).tolist() == predicted["score"].to_list()
    manifest = manifest_of(pipeline)
    assert (manifest.refit, manifest.training.end) == (False, KNOWN.isoformat())
    assert (manifest.training.partitions, manifest.training.rows) == (22, labelled(None, KNOWN).height)


@pytest.mark.full
def test_a_refused_version_is_not_fitted_again(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": {"at_least": 0.9999}})
    carry_out(pipeline, BEFORE_SCORING)
    manifest = manifest_of(pipeline)
    assert (manifest.refit, manifest.training.end) == (False, KNOWN.isoformat())


@pytest.mark.full
def test_a_version_that_waits_for_a_person_is_fitted_again(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"promote": "manual"})
    carry_out(pipeline, BEFORE_SCORING)
    assert manifest_of(pipeline).refit


@pytest.mark.full
def test_challengers_are_fitted_again_too(tmp_path):
    tree = {"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 3}}
    pipeline = small_pipeline(tmp_path, challengers=[tree])
    carry_out(pipeline, NOW)
    registry = pipeline.state().registry
    version = registry.challenger_at("tree", NOW)
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    assert (manifest.refit, manifest.training.rows) == (True, labelled(None, END).height)


@pytest.mark.full
def test_the_same_data_give_the_same_refit(tmp_path):
    twice = [small_pipeline(tmp_path / name) for name in ("first", "second")]
    for pipeline in twice:
        carry_out(pipeline, NOW)
    first, second = map(committed, twice)
    assert first.equals(second)


@pytest.mark.full
def test_the_cap_on_rows_holds_for_the_refit_with_both_parts_in_proportion(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"train": {"max_rows": 200}})
    carry_out(pipeline, NOW)
    manifest = manifest_of(pipeline)
    everything = labelled(None, END).height
    assert manifest.training.rows == 200
    assert (manifest.sampled.rows_before, manifest.sampled.rows_after) == (everything, 200)


@pytest.mark.full
def test_a_sample_of_the_whole_window_holds_as_large_a_part_of_the_end_as_the_window_does():
    training = data(400, number=np.arange(400))
    whole = training.whole(100, stratified=True)
    assert (whole.fit.height, whole.rows_before_cap) == (100, 400)
    assert whole.fit.filter(pl.col("number") >= 300).height == 25
    assert whole.fit["number"].is_sorted()
    assert whole.evaluate.equals(training.evaluate)
    assert training.whole(400, stratified=True).fit.height == training.whole(None, stratified=True).fit.height == 400


def test_the_contract_of_a_refit_knows_the_categories_and_bounds_of_the_whole_window():
    training = data(amount=[float(n) for n in range(200)], kind=["old"] * 150 + ["new"] * 50)
    judged = fit(model(), FEATURES, training, {})
    again = refit(model(), FEATURES, training.whole(None, stratified=True), {}, judged)
    contract = {column.name: column for column in again.signature.contract.columns}
    assert (contract["amount"].highest, contract["kind"].categories) == (199.0, ("new", "old"))
    assert (again.rows_fitted, again.metrics) == (200, judged.metrics)


@pytest.mark.full
def test_a_class_that_the_judged_model_did_not_know_is_left_to_the_next_training():
    labels = ["a", "b"] * 75 + ["c"] * 10 + ["a", "b"] * 20
    training = data(label=labels)
    judged = fit(model(), FEATURES, training, {})
    again = refit(model(), FEATURES, training.whole(None, stratified=True), {}, judged)
    assert (again.signature.task, again.signature.classes) == ("binary", ["a", "b"])
    assert again.rows_fitted == 190
    assert again.estimator.classes_.tolist() == ["a", "b"]


def model():
    from batch_platform.declaration.spec import Model

    return Model(estimator="sklearn.ensemble.HistGradientBoostingClassifier", params={"max_iter": 3})


@pytest.mark.full
def test_judged_fits_are_compared_on_the_whole_evaluation_window_and_the_reason_names_both_ends_of_learning(tmp_path):
    weekly = {"train": {"every": "week", "evaluate": "14 days"}, "promote": {"tolerance": 0.5}}
    pipeline = small_pipeline(tmp_path, model=weekly)
    carry_out(pipeline, datetime(2024, 2, 19, tzinfo=UTC))
    registry = pipeline.state().registry
    *_, champion, newest = registry.of_model
    decision = registry.last_decision(newest.version)
    comparison = json.loads(decision.evidence)["comparison"]
    assert (comparison["champion"], comparison["rows_seen"]) == (champion.version, 0)
    rows = labelled(newest.trained_until - timedelta(days=14), newest.trained_until)
    assert comparison["verdict"]["rows"] == rows.height == newest.rows_evaluated
    known, later = (it.trained_until - timedelta(days=15) for it in (champion, newest))  # labels take a day
    by_champion = scores(*by_hand(labelled(None, known)), rows)
    assert comparison["verdict"]["other"] == pytest.approx(roc_auc_score(rows["returned"], by_champion))
    days = [f"{end.astimezone(BERLIN):%Y-%m-%d}" for end in (later, known)]
    told = f"this version's judged fit learned from data before {days[0]}, the champion's from data before {days[1]}"
    assert told in decision.reason


def corrected(tmp_path: Path, every: int) -> Pipeline:
    """A pipeline with a champion, after every so many labels of its evaluation rows were turned round: harder for all models."""
    model = {"promote": {"tolerance": 0.0}}
    carry_out(small_pipeline(tmp_path, model=model), NOW)
    turned = (pl.col("ts") >= BOUNDARY) & (pl.col("id") % every == 0)
    pipeline = small_pipeline(tmp_path, events=small_events().with_columns(pl.col("returned") ^ turned), model=model)
    calendar = pipeline.spec.partitions.calendar
    window = calendar.within(calendar.first_start, serving_calendar(pipeline.spec).named("2024-02-01").start)
    list(pipeline.build_features(window, Stamp("again", NOW), force=True))
    return pipeline


@pytest.mark.full
def test_a_champion_that_was_refitted_on_the_evaluation_rows_is_compared_by_its_judged_fit(tmp_path):
    pipeline = corrected(tmp_path, every=6)
    period = serving_calendar(pipeline.spec).named("2024-02-01")
    (champion,) = pipeline.state().registry.versions
    same = pipeline.train(period, Stamp("again", NOW))
    comparison = json.loads(same.decision.evidence)["comparison"]
    verdict = comparison["verdict"]
    assert same.version.metric_values["roc_auc"] < champion.metric_values["roc_auc"] - 0.05
    assert verdict["value"] == verdict["other"] == same.version.metric_values["roc_auc"]
    assert (same.decision.action, comparison["word"]) == ("approved", "cannot tell")
    assert f"not clearly better or worse than champion {champion.version}: roc_auc 0." in same.decision.reason
    worse = pipeline.train(period, Stamp("once more", NOW), params={"max_iter": 1, "max_leaf_nodes": 2})
    assert worse.decision.action == "refused"
    assert worse.decision.reason.startswith(f"worse than champion {same.version.version}: roc_auc 0.")


def test_the_scores_of_the_judged_fit_are_those_of_the_evaluation_rows_and_stay_when_it_is_fitted_again(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, BEFORE_SCORING)
    manifest = manifest_of(pipeline)
    (version,) = pipeline.state().registry.of_model
    judged = read_judged(pipeline.home.bundle("small", version.version), manifest)
    rows = labelled(BOUNDARY, END)
    contract, first = by_hand(labelled(None, KNOWN), **DECLARATION["model"]["params"])
    assert manifest.refit
    assert judged.outcomes.predicted.tolist() == first.predict_proba(contract.encode(rows)).tolist()
    assert judged.outcomes.truth.tolist() == rows["returned"].to_list()
    assert len(set(judged.outcomes.units["partition"].tolist())) == 7


@pytest.mark.full
def test_a_judged_fit_that_changed_is_refused_when_it_is_read_and_holds_up_no_scoring(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, BEFORE_SCORING)
    (version,) = pipeline.state().registry.of_model
    name = f"{JUDGED}model.skops"
    file = pipeline.home.bundle("small", version.version) / name
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    bundle = pipeline.bundle(version)
    with pytest.raises(IntegrityError, match=rf"{name} of the bundle .* is not the one that was trained"):
        _ = bundle.judged_fit
    again = pipeline.train(serving_calendar(pipeline.spec).named("2024-02-01"), Stamp("again", NOW))
    assert f"the champion {version.version} was not compared: {name} of the bundle" in again.decision.reason


def test_a_bundle_of_an_earlier_build_holds_no_judged_fit_and_its_version_is_replaced_uncompared(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, BEFORE_SCORING)
    (version,) = pipeline.state().registry.of_model
    folder = pipeline.home.bundle("small", version.version)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["judged_fit"]
    files = {name: digest for name, digest in manifest["files"].items() if not name.startswith(JUDGED)}
    manifest |= {"files": files, "format": WITHOUT_JUDGED_FIT}
    (folder / MANIFEST).write_text(text := json.dumps(manifest))
    with pipeline.warehouse.transaction() as con:
        con.execute("UPDATE batch_platform.model_versions SET sha256 = ?", [sha256(text.encode()).hexdigest()])
    again = pipeline.train(serving_calendar(pipeline.spec).named("2024-02-01"), Stamp("again", NOW))
    assert again.decision.action == "approved"
    assert "was not compared: an earlier release trained it and kept only the fit that serves" in (
        again.decision.reason
    )


def test_a_fit_that_serves_and_is_judged_is_stored_once(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"refit": False})
    carry_out(pipeline, BEFORE_SCORING)
    manifest = manifest_of(pipeline)
    assert manifest.judged_fit is None
    assert not [name for name in manifest.files if name.startswith(JUDGED)]
    (version,) = pipeline.state().registry.of_model
    bundle = pipeline.bundle(version)
    assert bundle.judged_fit == (bundle.predictor, bundle.signature)
