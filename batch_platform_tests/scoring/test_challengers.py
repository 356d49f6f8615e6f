"""Challengers: trained and scored beside the champion, compared with it, and never in its way."""

import json
import logging
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import RecordedFile
from batch_platform.models.promotion import Maker, promote, roll_back
from batch_platform.monitoring.measures.challengers import read_challenger_runs
from batch_platform.monitoring.metrics import measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.operations.cleanup import find_garbage
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.scoring.engines import local
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
    write_small_project,
)

NOW = datetime(2024, 2, 9, 12, tzinfo=UTC)
AGAIN = Stamp("again", NOW)
LINEAR = {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}
TREE = {"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 3}}
BOTH = {"challengers": [LINEAR, TREE]}
RULE = """\
class Rule:
    def __init__(self, above=80.0):
        self.above = above

    def predict(self, batch):
        return (batch["amount"].fill_null(0.0) > self.above).cast(float) * 0.8 + 0.1
"""
MOODY = """\
class Moody:
    def predict(self, batch):
        if (batch["id_of_mood"] > {above}).any():
            raise RuntimeError("not today")
        return batch["amount"].fill_null(0.0) * 0 + 0.25
"""
MOODY_SQL = """\
SELECT id, ts, amount, items, shop, known, id AS id_of_mood
FROM events
WHERE ts >= $partition_start AND ts < $partition_end
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A pipeline with two challengers that is up to date."""
    return finished_pipeline(tmp_path, NOW, **BOTH)


def table(pipeline: Pipeline, name: str, *, without: tuple[str, ...] = ()) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        return con.sql(f"FROM small.{name}").pl().drop(without)


def scores(pipeline: Pipeline, challenger: str, *, without: tuple[str, ...] = ()) -> pl.DataFrame:
    """The scores of a challenger, ordered by key."""
    frame = table(pipeline, "challenger_scores", without=without)
    return frame.filter(pl.col("challenger") == challenger).sort("id")


def predictions(pipeline: Pipeline, *, without: tuple[str, ...] = ()) -> pl.DataFrame:
    return table(pipeline, "predictions", without=without).sort("id")


def runs(pipeline: Pipeline) -> dict[tuple[str, str], Any]:
    with pipeline.warehouse.open() as con:
        return {(run.partition_key, run.challenger): run for run in read_challenger_runs(con, "small")}


def tables(pipeline: Pipeline) -> set[str]:
    with pipeline.warehouse.open() as con:
        return {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}


def days(pipeline: Pipeline, *keys: str):
    return [pipeline.spec.partitions.calendar.named(key) for key in keys]


def versions(pipeline: Pipeline) -> dict[str | None, str]:
    """The version by the name of its challenger; under None that of the model."""
    registry = pipeline.state().registry
    return {registry.challengers.get(version.version): version.version for version in registry.versions}


def test_every_row_that_the_champion_scores_is_scored_by_every_challenger(pipeline):
    served = predictions(pipeline)
    for name in ("linear", "tree"):
        scored = scores(pipeline, name)
        assert scored.select("id", "ts", "partition_key", "run_id").equals(
            served.select("id", "ts", "partition_key", "run_id")
        )
        assert set(scored["model_version"]) == {versions(pipeline)[name]}
    assert list(scored.columns) == [
        *("id", "ts", "challenger", "model_version", "prediction", "score"),
        *("partition_key", "scored_at", "run_id"),
    ]
    for (key, _), run in runs(pipeline).items():
        assert run.rows_in == run.rows_scored == pipeline.state().scores[key].rows_scored
        assert (run.rows_rejected, run.reasons, run.failure, run.in_sample) == (0, "{}", None, False)
        assert run.champion_version == versions(pipeline)[None]


def test_a_challenger_scores_what_its_version_would_give_in_production(pipeline, tmp_path):
    shutil.copytree(tmp_path, tmp_path / "other", symlinks=True)
    alone = small_pipeline(tmp_path / "other")
    every = [day for day in alone.spec.partitions.calendar.due(NOW) if day.key >= "2024-02-01"]
    list(alone.score(every, AGAIN, force=True, version=versions(pipeline)["tree"]))
    same = ["id", "prediction", "score"]
    assert scores(pipeline, "tree").select(same).equals(predictions(alone).select(same))


def test_production_is_the_same_with_and_without_challengers(pipeline, tmp_path):
    alone = finished_pipeline(tmp_path / "alone", NOW)
    assert predictions(alone, without=("model_version",)).equals(predictions(pipeline, without=("model_version",)))
    measured = table(pipeline, "performance").filter(pl.col("challenger").is_null())
    marks = ("model_version", "challenger")
    assert measured.drop(marks).equals(table(alone, "performance", without=marks))
    assert not {"challenger_scores", "challengers"} & tables(alone), "without challengers there are no tables for them"


def test_one_read_of_the_features_serves_all(pipeline, monkeypatch):
    read: list[str] = []
    batches = RecordedFile.batches
    monkeypatch.setattr(RecordedFile, "batches", lambda file, rows: read.append(file.path.stem) or batches(file, rows))
    list(pipeline.score(days(pipeline, "2024-02-02", "2024-02-03"), AGAIN, force=True))
    assert sorted(stem.partition(".")[0] for stem in read) == ["2024-02-02", "2024-02-03"]


@pytest.fixture
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The declaration of an imported rule, which may be a model or a challenger."""
    folder = write_small_project(tmp_path / "project")
    (folder / "rules_of_thumb.py").write_text(RULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "rules_of_thumb", raising=False)
    monkeypatch.syspath_prepend(folder)
    return {"import": "rules_of_thumb.Rule", "task": "binary", "classes": [False, True]}


@pytest.mark.full
def test_an_import_may_challenge_a_model_that_is_trained(tmp_path, rule):
    pipeline = small_pipeline(tmp_path, challengers=[{"name": "rule", **rule, "params": {"above": 60.0}}])
    carry_out(pipeline, datetime(2024, 2, 3, tzinfo=UTC))
    version = pipeline.state().registry.named(versions(pipeline)["rule"])
    assert (version.flavour, version.rows_trained) == ("python", 0)
    assert set(version.metric_values) >= {"roc_auc", "accuracy"}
    scored = scores(pipeline, "rule").join(small_events(), on="id")
    assert scored["score"].to_list() == [0.9 if amount > 60 else 0.1 for amount in scored["amount"].fill_null(0.0)]


@pytest.mark.full
def test_a_trained_model_may_challenge_an_import(tmp_path, rule):
    model = {**rule, "estimator": None, "params": None, "train": {"evaluate": "7 days"}}
    pipeline = small_pipeline(tmp_path, model=model, challengers=[TREE])
    carry_out(pipeline, datetime(2024, 2, 4, tzinfo=UTC))
    tree = pipeline.state().registry.challenger_at("tree", datetime(2024, 2, 4, tzinfo=UTC))
    begin = datetime.fromisoformat(tree.serving_period).replace(tzinfo=UTC)
    assert tree.rows_trained > 0
    assert tree.trained_until <= begin, "only from what was known at the start of the period"
    assert {name for _, name in runs(pipeline)} == {"tree"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "challenger", "has_rank", "decides"),
    [
        ("sklearn.ensemble.IsolationForest", {"n_estimators": 20}, True, True),
        ("sklearn.cluster.KMeans", {"n_clusters": 4}, False, False),
    ],
)
def test_scores_have_a_rank_correlation_and_decisions_may_flip_but_segments_have_neither(
    tmp_path, model, challenger, has_rank, decides
):
    declared = {"labels": None, "model": {"estimator": model, "params": None}}
    other = {"name": "other", "estimator": model, "params": challenger}
    pipeline = small_pipeline(tmp_path, **declared, challengers=[other])
    carry_out(pipeline, datetime(2024, 2, 3, tzinfo=UTC))
    run = runs(pipeline)["2024-02-01", "other"]
    assert run.rows_scored == 40
    assert (run.rank_correlation is not None, run.decisions_flipped is not None) == (has_rank, decides)


def test_a_promoted_challenger_serves_and_does_not_challenge_itself(pipeline):
    state, tree, me = pipeline.state(), versions(pipeline)["tree"], Maker("me", NOW)
    decision = promote(state.registry, state.scores, tree, me)
    assert (decision.before.version, decision.after.version) == (versions(pipeline)[None], tree)
    assert decision.promotion.reason.startswith("promoted manually; it was a challenger: tree; ")
    pipeline.decide(decision.promotion, state)
    stale = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).of("predictions")
    assert {item.reason for item in stale} == {f"scored by {versions(pipeline)[None]}, the champion is {tree}"}
    before = scores(pipeline, "tree")
    carry_out(pipeline, NOW, "promoted")
    assert set(predictions(pipeline)["model_version"]) == {tree}
    assert scores(pipeline, "tree").equals(before), "it does not challenge itself; its earlier scores stay"
    assert {run.champion_version for run in runs(pipeline).values() if run.challenger == "linear"} == {tree}
    back = roll_back(pipeline.state().registry, pipeline.state().scores, me)
    assert (back.promotion.version, back.after.version) == (tree, versions(pipeline)[None])


def test_performance_names_the_challenger_once_labels_are_known(pipeline):
    measured = table(pipeline, "performance").filter(pl.col("partition_key") == "2024-02-03")
    truth = small_events().filter(pl.col("returned").is_not_null())
    for name in (None, "linear", "tree"):
        rows = measured.filter(pl.col("challenger").eq_missing(pl.lit(name)))
        predicted = predictions(pipeline) if name is None else scores(pipeline, name)
        labelled = predicted.filter(pl.col("partition_key") == "2024-02-03").join(truth, on="id")
        shares = labelled.select(1 - pl.col("score"), score2="score").to_numpy()
        expected = measure(Outcomes("binary", shares, labelled["returned"].to_numpy(), [False, True]))
        share = labelled.height / 40
        coverage = {"label_coverage": share, "label_not_known_yet": 1 - share, "label_class_unknown": 0.0}
        assert dict(rows.select("metric", "value").iter_rows()) == pytest.approx(expected | coverage)
        assert set(rows["model_version"]) == {versions(pipeline)[name]}
        assert set(rows["rows_labelled"]) == {labelled.height}
    assert "2024-02-08" in pipeline.state().scores
    late = table(pipeline, "performance").filter(pl.col("partition_key") == "2024-02-08")
    assert late.is_empty()


@pytest.mark.full
def test_a_challenger_of_another_task_is_refused_when_it_is_trained(tmp_path):
    pipeline = small_pipeline(tmp_path, challengers=[{"name": "other", "estimator": "sklearn.linear_model.Ridge"}])
    carry_out(pipeline, datetime(2024, 2, 3, tzinfo=UTC))
    (failed,) = pipeline.state().registry.challenger_trainings
    assert "challengers.other: it is a regression model, but" in failed.failure
    assert list((pipeline.home.models / "small").iterdir()) == [
        pipeline.home.models / "small" / versions(pipeline)[None]
    ]


def test_a_challenger_whose_bundle_is_damaged_scores_nothing_and_production_goes_on(pipeline, tmp_path, caplog):
    before = predictions(pipeline, without=("run_id", "scored_at"))
    (pipeline.home.bundle("small", versions(pipeline)["tree"]) / "model.skops").write_bytes(b"x")
    fresh = small_pipeline(tmp_path, **BOTH)
    with caplog.at_level(logging.WARNING):
        assert len(list(fresh.score(days(fresh, "2024-02-02"), AGAIN, force=True))) == 1
    assert predictions(fresh, without=("run_id", "scored_at")).equals(before)
    run = runs(fresh)["2024-02-02", "tree"]
    assert (run.rows_in, run.rows_scored, run.rows_rejected, run.rank_correlation) == (40, 0, 0, None)
    assert "is not the one that was trained" in run.failure
    assert any("challenger 'tree'" in record.message for record in caplog.records)
    assert not scores(fresh, "tree").filter(pl.col("partition_key") == "2024-02-02").height, "old rows went with it"
    assert runs(fresh)["2024-02-02", "linear"].run_id == "again"
    assert runs(fresh)["2024-02-03", "tree"].rows_scored == 40


def moody(tmp_path: Path, above: int) -> dict[str, Any]:
    """A challenger that raises where an id is above a bound."""
    module = f"moody{above}"
    (tmp_path / f"{module}.py").write_text(MOODY.format(above=above), encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    return {"name": "moody", "import": f"{module}.Moody", "task": "binary", "classes": [False, True]}


def test_a_challenger_that_raises_while_it_scores_does_not_affect_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 16)
    declared = {"features_sql": MOODY_SQL, "challengers": [moody(tmp_path, 1310), LINEAR]}
    pipeline = small_pipeline(tmp_path, **declared)
    carry_out(pipeline, NOW)
    after = runs(pipeline)
    assert after["2024-02-01", "moody"].rows_scored == 40
    assert after["2024-02-01", "moody"].rank_correlation is None, "one score for all rows has no order"
    assert after["2024-02-02", "moody"].failure == "RuntimeError: not today"
    assert after["2024-02-02", "moody"].rows_scored == 0, "the batches that went well are not kept either"
    assert set(scores(pipeline, "moody")["partition_key"]) == {"2024-02-01"}
    assert len(pipeline.state().scores) == 8
    assert after["2024-02-02", "linear"].rows_scored == 40


@pytest.mark.full
def test_rows_that_break_only_a_challengers_contract_are_counted_with_their_reason(tmp_path):
    early = pl.col("ts") < datetime(2024, 2, 1, tzinfo=UTC)
    events = small_events().with_columns(
        amount=pl.when(early).then(pl.col("amount").fill_null(10.0)).otherwise("amount")
    )
    weekly = {"train": {"every": "week", "start": "2024-01-07", "window": "all", "evaluate": "7 days"}}
    declared = {"events": events, "model": weekly, "features": {"max_rejected": "50%"}}
    pipeline = small_pipeline(tmp_path, **declared)
    carry_out(pipeline, NOW)
    strict = pipeline.state().registry.champion(datetime(2024, 1, 30, tzinfo=UTC)).version
    pinned = small_pipeline(tmp_path, **declared, challengers=[{"name": "previous", "version": strict}])
    list(pinned.score(days(pinned, "2024-02-08"), AGAIN, force=True))
    run = runs(pinned)["2024-02-08", "previous"]
    served = pinned.state().scores["2024-02-08"]
    nulls = pl.read_parquet(feature_file(pinned, "2024-02-08"))["amount"].null_count()
    assert (served.rows_rejected, run.rows_rejected) == (0, nulls)
    assert nulls
    assert run.rows_scored + run.rows_rejected == run.rows_in == served.rows_scored
    assert json.loads(run.reasons) == {"amount: no value where training always had one": nulls}


def test_a_pinned_version_scores_any_period_and_is_marked_where_it_was_trained_on_the_data(pipeline, tmp_path):
    pinned = small_pipeline(tmp_path, challengers=[{"name": "old", "version": versions(pipeline)["linear"]}])
    assert make_plan(pinned.spec, pinned.state(), PlanRequest(NOW)).items == [], "nothing is trained for it"
    list(pinned.score(days(pinned, "2024-01-20", "2024-02-02"), AGAIN, force=True, version=versions(pinned)["tree"]))
    after = runs(pinned)
    assert (after["2024-01-20", "old"].in_sample, after["2024-02-02", "old"].in_sample) == (True, False)
    assert after["2024-02-02", "old"].champion_version == versions(pinned)["tree"]
    list(pinned.evaluate(days(pinned, "2024-01-20"), AGAIN))
    measured = table(pinned, "performance").filter(pl.col("partition_key") == "2024-01-20")
    assert set(measured.select("challenger", "in_sample").rows()) == {(None, True), ("old", True)}


def test_a_missing_pinned_version_is_recorded_and_production_goes_on(pipeline, tmp_path):
    pinned = small_pipeline(tmp_path, challengers=[{"name": "old", "version": "2024-02-01-00000000"}])
    list(pinned.score(days(pinned, "2024-02-02"), AGAIN, force=True))
    run = runs(pinned)["2024-02-02", "old"]
    assert run.model_version is None
    assert run.failure.startswith("small has no version '2024-02-01-00000000'; there are 2024-02-01-")
    assert pinned.state().scores["2024-02-02"].run_id == "again"
    assert pipeline.state().scores["2024-02-03"].run_id == "run"


def test_a_challenger_added_later_is_trained_alone_and_makes_no_prediction_stale(tmp_path):
    finished_pipeline(tmp_path, NOW)
    added = small_pipeline(tmp_path, challengers=[LINEAR])
    before, champion = predictions(added), versions(added)[None]
    (item,) = make_plan(added.spec, added.state(), PlanRequest(NOW)).items
    assert (item.step, item.partition.key, item.reason) == ("challengers", "2024-02-01", "not trained: linear")
    carry_out(added, NOW, "added")
    assert versions(added)[None] == champion
    assert make_plan(added.spec, added.state(), PlanRequest(NOW)).items == []
    keys = days(added, "2024-02-02", "2024-02-03")
    assert all(partition.skipped for partition in added.score(keys, AGAIN))
    assert predictions(added).equals(before)
    assert "challenger_scores" not in tables(added), "scored partitions are not scored again for it"
    list(added.score(keys, AGAIN, force=True))
    assert {key for key, _ in runs(added)} == {"2024-02-02", "2024-02-03"}
    assert predictions(added, without=("run_id", "scored_at")).equals(before.drop("run_id", "scored_at"))


@pytest.mark.full
def test_older_periods_get_a_challenger_only_with_force(tmp_path):
    weekly = {"train": {"every": "week", "start": "2024-01-07", "window": "all", "evaluate": "7 days"}}
    carry_out(small_pipeline(tmp_path, model=weekly), NOW)
    added = small_pipeline(tmp_path, model=weekly, challengers=[LINEAR])
    state, wanted = added.state(), days(added, "2024-01-23", "2024-01-30")
    newest = max(version.serving_period for version in state.registry.of_model)
    assert [item.partition.key for item in make_plan(added.spec, state, PlanRequest(NOW)).of("challengers")] == [newest]
    assert make_plan(added.spec, state, PlanRequest(NOW, wanted)).of("challengers") == []
    forced = make_plan(added.spec, state, PlanRequest(NOW, wanted, force=True))
    assert [item.partition.key for item in forced.of("challengers")] == ["2024-01-21", "2024-01-28"]


@pytest.mark.full
def test_the_scores_of_a_challenger_that_is_no_longer_declared_stay(pipeline, tmp_path):
    before, measured = scores(pipeline, "tree"), runs(pipeline)
    fewer = small_pipeline(tmp_path, challengers=[LINEAR])
    assert make_plan(fewer.spec, fewer.state(), PlanRequest(NOW)).items == []
    list(fewer.score(days(fewer, "2024-02-02"), AGAIN, force=True))
    list(fewer.evaluate(days(fewer, "2024-02-02"), AGAIN))
    assert scores(fewer, "tree").equals(before)
    assert runs(fewer)["2024-02-02", "tree"] == measured["2024-02-02", "tree"]
    assert runs(fewer)["2024-02-02", "linear"].run_id == "again"
    performance = table(fewer, "performance").filter(pl.col("run_id") == "again")
    assert set(performance["challenger"]) == {None, "linear", "tree"}, "the scores that exist are measured"


def test_a_failed_commit_leaves_predictions_and_challengers_unchanged(pipeline):
    with pipeline.warehouse.transaction() as con:  # the value that does not fit comes last
        con.execute("ALTER TABLE small.challenger_scores ALTER score TYPE TINYINT USING 1")
    before = [table(pipeline, name) for name in ("predictions", "challenger_scores", "challengers")]
    ledger = pipeline.state().scores
    with pytest.raises(DataError, match=r"values do not fit small\.challenger_scores"):
        list(pipeline.score(days(pipeline, "2024-02-02"), AGAIN, force=True))
    after = [table(pipeline, name) for name in ("predictions", "challenger_scores", "challengers")]
    assert all(old.equals(new) for old, new in zip(before, after, strict=True))
    assert pipeline.state().scores == ledger
    assert not list(pipeline.home.staging.iterdir())


@pytest.mark.full
def test_bundles_of_declared_challengers_are_kept_on_disk(pipeline, tmp_path):
    later, recent = NOW + timedelta(days=40), NOW + timedelta(days=1)
    assert find_garbage([pipeline.spec], pipeline.home, later, trained_before=recent) == []
    spare = small_pipeline(tmp_path, challengers=[{**LINEAR, "params": {"C": 0.1}}])
    carry_out(spare, NOW, "again")
    carry_out(small_pipeline(tmp_path, challengers=[{**LINEAR, "params": {"C": 0.2}}]), NOW, "again")
    middle = spare.state().registry.versions[-2].version  # it scored nothing
    pinned = small_pipeline(tmp_path, challengers=[{"name": "old", "version": middle}])
    assert find_garbage([pinned.spec], spare.home, later, trained_before=recent) == []
    (garbage,) = find_garbage([spare.spec], spare.home, later, trained_before=recent)
    assert garbage.version == middle
