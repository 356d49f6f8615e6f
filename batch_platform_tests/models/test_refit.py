"""After the gate has judged a model on the end of its window, the model is fitted again on the whole window, and serves."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.errors import IntegrityError
from batch_platform.declaration.model import Model
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import JUDGED, MANIFEST, WITHOUT_JUDGED_FIT, Manifest, read_judged, read_manifest
from batch_platform.models.contract import Contract, infer_contract
from batch_platform.models.fitting import fit, refit
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import DECLARATION, carry_out, small_events, small_pipeline
from batch_platform_tests.models.training_rows import FEATURES, data

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
BEFORE_SCORING = datetime(2024, 2, 1, 12, tzinfo=UTC)
MODEL = Model(estimator="sklearn.ensemble.HistGradientBoostingClassifier", params={"max_iter": 3})
COLUMNS = ["amount", "items", "shop", "known"]
BOUNDARY, END = datetime(2024, 1, 23, 23, tzinfo=UTC), datetime(2024, 1, 30, 23, tzinfo=UTC)
KNOWN = BOUNDARY - timedelta(days=1)  # labels take a day: those until then are known when the evaluation rows begin


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
    (version,) = pipeline.state().registry.of_model
    kept = read_judged(pipeline.home.bundle("small", version.version), manifest)
    assert (kept.outcomes.predicted[:, 1].tolist(), kept.outcomes.truth.tolist()) == (
        judged.tolist(),
        held_out["returned"].to_list(),
    )
    assert manifest.evaluation.metrics["roc_auc"] == pytest.approx(roc_auc_score(held_out["returned"], judged))
    assert (manifest.refit, manifest.training.end) == (True, END.isoformat())
    assert (manifest.evaluation.start, manifest.evaluation.end) == (BOUNDARY.isoformat(), END.isoformat())
    assert manifest.training.rows == labelled(None, END).height
    assert manifest.evaluation.rows == held_out.height
    assert manifest.evaluation.rows_not_known == labelled(KNOWN, BOUNDARY).height
    assert manifest.training.partitions == 30
    assert (manifest.compiled.kernel, manifest.compiled.reason) == ("leaf masks of 32 bits", None)


def test_without_refit_the_judged_model_serves_and_is_stored_once(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"refit": False})
    carry_out(pipeline, NOW)
    predicted = committed(pipeline)
    day = small_events().filter(pl.col("id").is_in(predicted["id"].to_list())).sort("id")
    assert scores(*by_hand(labelled(None, KNOWN)), day).tolist() == predicted["score"].to_list()
    manifest = manifest_of(pipeline)
    assert (manifest.refit, manifest.training.end, manifest.judged_fit) == (False, KNOWN.isoformat(), None)
    assert (manifest.training.partitions, manifest.training.rows) == (22, labelled(None, KNOWN).height)
    assert not [name for name in manifest.files if name.startswith(JUDGED)]


@pytest.mark.full
@pytest.mark.parametrize(("promote", "refitted"), [({"at_least": 0.9999}, False), ("manual", True)])
def test_a_version_that_waits_for_a_person_is_fitted_again_and_a_refused_version_is_not(tmp_path, promote, refitted):
    pipeline = small_pipeline(tmp_path, model={"promote": promote})
    carry_out(pipeline, BEFORE_SCORING)
    assert manifest_of(pipeline).refit == refitted


@pytest.mark.full
def test_a_sample_of_the_whole_window_holds_as_large_a_part_of_the_end_as_the_window_does():
    training = data(400, number=np.arange(400))
    whole = training.whole(100, stratified=True)
    assert (whole.fit.height, whole.rows_before_cap) == (100, 400)
    assert whole.fit.filter(pl.col("number") >= 300).height == 25
    assert whole.fit["number"].is_sorted()
    assert whole.evaluate.equals(training.evaluate)
    assert training.whole(400, stratified=True).fit.height == training.whole(None, stratified=True).fit.height == 400


def test_a_refit_knows_the_categories_and_bounds_of_the_whole_window_and_keeps_what_was_measured_before():
    training = data(amount=[float(n) for n in range(200)], kind=["old"] * 150 + ["new"] * 50)
    judged = fit(MODEL, FEATURES, training, {})
    again = refit(MODEL, FEATURES, training.whole(None, stratified=True), {}, judged)
    contract = {column.name: column for column in again.signature.contract.columns}
    assert (contract["amount"].highest, contract["kind"].categories) == (199.0, ("new", "old"))
    assert again.reference.prediction == judged.reference.prediction, "drift is measured from unseen rows"
    assert (again.rows_fitted, again.metrics) == (200, judged.metrics)


@pytest.mark.full
def test_a_class_that_the_judged_model_did_not_know_is_left_to_the_next_training():
    labels = ["a", "b"] * 75 + ["c"] * 10 + ["a", "b"] * 20
    training = data(label=labels)
    judged = fit(MODEL, FEATURES, training, {})
    again = refit(MODEL, FEATURES, training.whole(None, stratified=True), {}, judged)
    assert (again.signature.task, again.signature.classes) == ("binary", ["a", "b"])
    assert again.rows_fitted == 190
    assert again.estimator.classes_.tolist() == ["a", "b"]


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
    again = pipeline.train(pipeline.spec.periods.serving.named("2024-02-01"), Stamp("again", NOW))
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
    again = pipeline.train(pipeline.spec.periods.serving.named("2024-02-01"), Stamp("again", NOW))
    assert again.decision.action == "approved"
    assert "was not compared: an earlier release trained it and kept only the fit that serves" in (
        again.decision.reason
    )
