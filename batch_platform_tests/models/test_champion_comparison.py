"""A version beside its champion: which fits are compared, and what a champion that was better than guessing means for one that is not."""

from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.model import Model, Promote
from batch_platform.declaration.spec import Features
from batch_platform.features.history import PARTITION_START, TrainingData
from batch_platform.models.bundle import Evaluation, JudgedFit, Manifest, Window, open_bundle, write_bundle
from batch_platform.models.fitting import Fitted, fit
from batch_platform.models.gate import GateDecision, pass_gate
from batch_platform.monitoring.comparison import Difference, Verdict
from batch_platform.warehouse.ledger import Version

pytestmark = pytest.mark.unit

FEATURES = Features(sql="features.sql", key=["id"], time="ts")
START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)
LEARNED = Window(START.isoformat(), END.isoformat(), 31, 400, 0, "")
TREE, RIDGE = "sklearn.tree.DecisionTreeRegressor", "sklearn.linear_model.Ridge"


def data(signal: float) -> TrainingData:
    """A label that depends on its feature so much, and is noise besides."""
    random = np.random.default_rng(1)
    x = random.normal(size=500)
    rows = pl.DataFrame({"x": x, "y": signal * x + random.normal(size=500)})
    apart = [
        part.with_columns(pl.lit(at).alias(PARTITION_START)) for part, at in ((rows[:400], START), (rows[400:], END))
    ]
    return TrainingData(*apart, "y")


def fitted(training: TrainingData, estimator: str) -> Fitted:
    return fit(Model(estimator=estimator), FEATURES, training, {})


def decision(  # noqa: PLR0913 - a model, its rows, and what serves
    folder: Path,
    model: Fitted,
    training: TrainingData,
    *,
    champion: Fitted | None = None,
    serving: Fitted | None = None,
    then: Verdict | None = None,
) -> GateDecision:
    """The gate's decision on a model whose champion was judged by the same fit unless another is given, and serves by another one if there is one."""
    contract = model.signature.contract.to_json()
    manifest = Manifest(
        **dict.fromkeys(
            ("pipeline", "serving_period", "serving_start", "estimator", "features_code_version", "run_id"), ""
        ),
        flavour="sklearn",
        task="regression",
        classes=[],
        params={},
        contract=contract,
        training=LEARNED,
        evaluation=Evaluation(END.isoformat(), END.isoformat(), 100, {}),
        created_at=END.isoformat(),
        refit=serving is not None,
        judged_fit=None if serving is None else JudgedFit(LEARNED, contract),
    )
    (folder / "staging").mkdir()
    judged = None if serving is None else (model.estimator, ())
    version, sha256, _ = write_bundle(
        manifest,
        (serving or champion or model).estimator,
        folder / "staging",
        folder / "models",
        model.reference,
        judged_fit=judged,
    )
    champion = Version(**dict.fromkeys((field.name for field in fields(Version)), version))
    return pass_gate(
        Promote(),
        FEATURES,
        model,
        training,
        champion,
        lambda _: open_bundle(folder / "models" / version, sha256),
        learned_from=LEARNED,
        champion_over_guessing=then,
    )


def test_it_is_compared_with_the_fit_by_which_the_champion_was_judged_and_not_with_one_that_has_seen_the_rows(tmp_path):
    training = data(signal=2.0)
    everything = TrainingData(pl.concat([training.fit, training.evaluate]), training.evaluate, "y")
    model, serving = fitted(training, TREE), fitted(everything, TREE)
    assert serving.metrics["rmse"] == 0 < model.metrics["rmse"]
    made = decision(tmp_path, model, training, serving=serving)
    assert (made.action, "(no difference)" in made.reason) == ("approved", True)


@pytest.mark.parametrize(
    ("alpha", "action", "says"),
    [
        (100.0, "approved", "), but not by the 99% interval that a refusal needs; "),
        (200.0, "refused", "worse than champion "),
    ],
)
def test_a_version_is_refused_if_it_is_worse_by_a_99_percent_interval_and_otherwise_its_reason_says_so(
    tmp_path, alpha, action, says
):
    training = data(signal=2.0)
    shrunk = fit(Model(estimator=RIDGE), FEATURES, training, {"alpha": alpha})
    made = decision(tmp_path, shrunk, training, champion=fitted(training, RIDGE))
    assert (made.action, says in made.reason) == (action, True)


@pytest.mark.parametrize(
    ("gain", "action"), [((0.4, 0.6), "refused"), ((0.001, 0.6), "approved"), ((-0.1, 0.6), "approved")]
)
def test_one_that_is_no_better_than_guessing_does_not_replace_a_champion_that_clearly_was(tmp_path, gain, action):
    """The champion is as good on these rows, since on labels that are wrong no model is better."""
    training, (low, high) = data(signal=0.0), gain
    then = Verdict("rmse", 0.5, 1.0, 336, Difference("rmse", -(low + high) / 2, -high, -low, 336))
    made = decision(tmp_path, fitted(training, RIDGE), training, then=then)
    first = "labels or data may have changed: when the champion was judged, it was better than guessing: rmse 0.5"
    assert (made.action, made.reason.startswith(first)) == (action, action == "refused")
    assert "(no difference)" in made.reason
