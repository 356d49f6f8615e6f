"""The laws, each by its name, through a whole pipeline."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    IntegrityError,
    WarehouseError,
    WrongUseError,
)
from batch_platform.declaration.model import Model
from batch_platform.declaration.predictions import DUCKDB, PARQUET
from batch_platform.declaration.spec import Features
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import TrainingData
from batch_platform.models.bundle import open_bundle
from batch_platform.models.fitting import fit
from batch_platform.monitoring.measures.scored import read_profiles
from batch_platform.monitoring.profiles import merged_profiles, number_profile
from batch_platform.operations.cleanup import drop_partitions, drop_pipelines, find_garbage, remove_garbage
from batch_platform.pipeline.measured import newest_measured
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.scoring.engines import local
from batch_platform.warehouse.recovery import restore_from_published, verify
from batch_platform_tests.harness.small_pipeline import (
    LABELS_BY_DAY,
    carry_out,
    finished_pipeline,
    permuted_labels,
    small_events,
    small_pipeline,
    write_labels_by_day,
)
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.harness.windows import windows_near_a_change
from batch_platform_tests.laws import (
    BY_A_FUNCTION,
    FAILURES,
    FOREIGN,
    LONG_AGO,
    NOW,
    READ,
    RENAMINGS,
    STAMP,
    STOPS_EARLY,
    WRITTEN,
    changed_events,
    day,
    no_tables,
    on,
    plant_a_pickle,
    plant_links,
    predictions,
    score_in_files,
    tables_of_another_home,
    tables_of_another_program,
)
from batch_platform_tests.proposal.proposals import pipeline_of, proposed

MARKS = ("run_id", "scored_at", "model_version")  # columns that say which run scored a row, not what it predicts


in_each_store = pytest.mark.parametrize("store", [DUCKDB, pytest.param(PARQUET, marks=pytest.mark.full)])


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The predictions of the same project, made from nothing in another home."""
    other = small_pipeline(tmp_path_factory.mktemp("again"))
    carry_out(other, NOW, "other")
    return predictions(other)


@pytest.fixture
def store() -> str:
    return DUCKDB


@pytest.fixture
def pipeline(store: str, tmp_path: Path) -> Pipeline:
    """A pipeline that is up to date, in a home of its own."""
    finished_pipeline(tmp_path, NOW, after=score_in_files if store == PARQUET else None)
    return small_pipeline(tmp_path, predictions={"store": store})


@in_each_store
def test_law_1_a_partition_is_wholly_old_or_wholly_new(pipeline, tmp_path, store):
    before, ledger = predictions(pipeline), pipeline.state().scores
    broken = changed_events(
        tmp_path,
        lambda rows: rows.with_columns(amount=pl.when(on("2024-02-03")).then(float("inf")).otherwise(pl.col("amount"))),
        store,
    )
    days = [day(broken, "2024-02-02"), day(broken, "2024-02-03")]
    list(broken.build_features(days, STAMP, force=True))
    with pytest.raises(DataError, match="2024-02-03"):
        list(broken.score(days, STAMP, force=True))
    after = predictions(broken)
    same = pl.col("partition_key") != "2024-02-02"
    assert after.filter(same).equals(before.filter(same)), "the refused partition and all others are as they were"
    assert set(after.filter(~same)["run_id"]) == {"again"}, "what was done before the refusal is committed"
    scores = broken.state().scores
    assert scores["2024-02-02"].run_id == "again"
    assert scores | {"2024-02-02": None} == ledger | {"2024-02-02": None}


@in_each_store
def test_law_2_rows_in_are_rows_scored_and_rows_rejected_and_no_score_is_nan(pipeline):
    for run in pipeline.state().scores.values():
        assert run.rows_in == run.rows_scored + run.rows_rejected
    frame = predictions(pipeline)
    assert frame["score"].is_finite().all()
    assert frame.height == sum(run.rows_scored for run in pipeline.state().scores.values())
    assert (
        frame["id"].to_list()
        == small_events().filter(pl.col("ts") >= day(pipeline, "2024-02-01").start)["id"].to_list()
    )


@in_each_store
def test_law_3_the_same_inputs_give_the_same_rows_and_are_skipped_unless_forced(pipeline, made_again):
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []
    days = [day(pipeline, "2024-02-02"), day(pipeline, "2024-02-03")]
    before = predictions(pipeline, without=("run_id", "scored_at"))
    assert [built.skipped for built in pipeline.build_features(days, STAMP)] == [True, True]
    assert [scored.skipped for scored in pipeline.score(days, STAMP)] == [True, True]
    assert [built.skipped for built in pipeline.build_features(days, STAMP, force=True)] == [False, False]
    assert [scored.skipped for scored in pipeline.score(days, STAMP)] == [True, True], "the same bytes were built"
    assert [scored.skipped for scored in pipeline.score(days, STAMP, force=True)] == [False, False]
    assert predictions(pipeline, without=("run_id", "scored_at")).equals(before)
    assert made_again.drop(MARKS).equals(predictions(pipeline, without=MARKS))


def test_law_4_batch_size_changes_no_prediction(pipeline, monkeypatch):
    before = predictions(pipeline, without=("run_id", "scored_at"))
    monkeypatch.setattr(local, "BATCH_ROWS", 7)
    days = [day(pipeline, f"2024-02-{n:02}") for n in range(1, 30)]
    assert not any(scored.skipped for scored in pipeline.score(days, STAMP, force=True))
    assert predictions(pipeline, without=("run_id", "scored_at")).equals(before)


def test_law_4_the_compiled_or_the_native_path_changes_no_prediction(pipeline):
    (version,) = pipeline.state().registry.versions
    bundle = open_bundle(pipeline.home.bundle("small", version.version), version.sha256)
    matrix = bundle.contract.encode(small_events())
    native, compiled = bundle.predictor, bundle.for_rows(10**12)
    assert native is not compiled
    assert compiled.predict(matrix).tobytes() == native.predict(matrix).tobytes()


@pytest.mark.full
def test_law_5_the_champion_as_of_its_start_scores_a_partition_whenever_it_runs(tmp_path):
    train = {"every": "week", "start": "2024-02-04", "evaluate": "2 days"}
    weekly = {"model": {"train": train}, "partitions": {"start": "2024-02-01"}}
    pipeline = small_pipeline(tmp_path, **weekly)
    carry_out(pipeline, datetime(2024, 2, 25, 5, tzinfo=UTC))
    carry_out(pipeline, NOW)
    registry = pipeline.state().registry
    decided = {version.version: registry.last_decision(version.version).seq for version in registry.versions}
    for key, run in pipeline.state().scores.items():
        assert run.hindsight == (key < "2024-02-25"), "the newest model was approved when its first partition was open"
        assert run.decision_seq == decided[run.model_version]
        version = registry.named(run.model_version)
        assert version.serving_start <= day(pipeline, key).start < version.serving_start + timedelta(days=7)
        assert version.trained_until <= version.serving_start
        assert not run.in_sample
    late = small_pipeline(tmp_path / "late", **weekly)
    carry_out(late, NOW + timedelta(days=500))
    assert predictions(late, without=MARKS).equals(predictions(pipeline, without=MARKS))


def test_law_5_a_model_of_the_future_scores_only_on_demand_and_is_marked(pipeline):
    january = day(pipeline, "2024-01-10")
    with pytest.raises(BatchPlatformError, match="partition 2024-01-10: no model serves it"):
        list(pipeline.score([january], STAMP))
    version = pipeline.state().registry.versions[0].version
    (scored,) = pipeline.score([january], STAMP, version=version)
    assert (scored.run.in_sample, scored.run.hindsight, scored.run.decision_seq) == (True, True, None)


def test_law_6_scoring_fits_nothing(pipeline, tmp_path):
    """A row gets the same score alone, among others and among quite different rows."""
    before = predictions(pipeline).filter(pl.col("partition_key") == "2024-02-05")
    kept = before["id"][0]
    wild = changed_events(
        tmp_path,
        lambda rows: rows.with_columns(
            amount=pl.when(on("2024-02-05") & (pl.col("id") != kept)).then(1e6).otherwise(pl.col("amount"))
        ),
    )
    list(wild.build_features([day(wild, "2024-02-05")], STAMP, force=True))
    list(wild.score([day(wild, "2024-02-05")], STAMP, force=True))
    after = predictions(wild).filter(pl.col("id") == kept)
    assert after["score"].to_list() == before.filter(pl.col("id") == kept)["score"].to_list()


@in_each_store
@pytest.mark.parametrize("keep", [["items"], ["shop"]], ids=["other rows", "the same rows"])
@pytest.mark.usefixtures("pipeline")
def test_law_7_an_older_slower_run_never_overwrites_a_newer_commit(tmp_path, store, keep):
    """It succeeds if its own rows are already committed."""
    changed = changed_events(tmp_path, lambda rows: rows.filter(~on("2024-02-02") | (pl.col("items") > 3)), store)
    days = [day(changed, "2024-02-01"), day(changed, "2024-02-02")]
    list(changed.build_features(days[1:], STAMP, force=True))
    slow = changed.score(days, Stamp("slow", NOW))
    assert next(slow).skipped, "the slow run has begun, and seen what the warehouse holds"
    other = changed.spec.model_copy(update={"predictions": changed.spec.predictions.model_copy(update={"keep": keep})})
    list(Pipeline(other, changed.folder, changed.home).score(days[1:], Stamp("fast", NOW)))
    before = predictions(changed)
    if keep == ["shop"]:
        (second,) = slow
        assert (second.skipped, second.run.run_id) == (True, "fast")
    else:
        with pytest.raises(WarehouseError, match="2024-02-02: run fast committed it"):
            list(slow)
    assert predictions(changed).equals(before)
    assert changed.state().scores["2024-02-02"].run_id == "fast"


def test_a_run_that_is_abandoned_changes_nothing_and_leaves_nothing(pipeline):
    days = [day(pipeline, f"2024-02-{n:02}") for n in range(1, 5)]
    before = predictions(pipeline)
    run = pipeline.score(days, STAMP)
    next(run)
    run.close()
    assert predictions(pipeline).equals(before)
    assert list(pipeline.home.staging.iterdir()) == []


@pytest.mark.parametrize("file", ["manifest.json", "model.skops"])
def test_law_8_a_changed_byte_of_a_bundle_is_refused(pipeline, tmp_path, file):
    (version,) = pipeline.state().registry.versions
    path = pipeline.home.bundle("small", version.version) / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = predictions(pipeline)
    fresh = small_pipeline(tmp_path)
    with pytest.raises(IntegrityError, match=version.version):
        list(fresh.score([day(fresh, "2024-02-02")], STAMP, force=True))
    assert predictions(fresh).equals(before)


@pytest.mark.parametrize("trees", [True, False], ids=["beside its trees", "alone"])
def test_law_8_no_pickle_is_loaded_even_when_every_hash_fits(pipeline, tmp_path, trees):
    canary = tmp_path / "canary"
    plant_a_pickle(pipeline, canary, trees=trees)
    fresh = small_pipeline(tmp_path)
    with nullcontext() if trees else pytest.raises(IntegrityError):  # kept trees score without the file
        list(fresh.score([day(fresh, "2024-02-02")], STAMP, force=True))
    with pytest.raises(IntegrityError):
        assert fresh.bundle(fresh.state().registry.versions[0]).predictor
    assert not canary.exists()


@pytest.mark.parametrize(("failing", "said"), FAILURES, ids=lambda value: getattr(value, "__name__", ""))
def test_law_9_every_failure_says_where_what_and_what_to_do(pipeline, failing, said):
    with pytest.raises(BatchPlatformError) as caught:
        failing(pipeline)
    assert caught.value.hint
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("store", [DUCKDB, pytest.param(PARQUET, marks=pytest.mark.full)])
def test_law_10_every_reader_sees_the_last_complete_state_also_during_writes(pipeline):
    days = [day(pipeline, f"2024-02-{n:02}") for n in range(1, 30)]
    command = [sys.executable, "-c", READ, str(pipeline.home.published)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout.readline() == "reading\n"
        for n in range(6):
            list(pipeline.score(days[n::2], Stamp(f"r{n}", NOW), force=True))
            pipeline.publish()
        out, err = reader.communicate("\n")
    assert (err, reader.returncode) == ("", 0)
    assert int(out) > 1, "it saw states come and go"


@in_each_store
def test_law_10_no_reader_can_block_a_write(pipeline):
    with duckdb.connect(str(pipeline.home.published), read_only=True) as reader:
        before = reader.execute("SELECT count(*) FROM batch_platform.score_runs").fetchall()
        rows = reader.execute("SELECT count(*) FROM small.predictions").fetchall()
        list(pipeline.score([day(pipeline, "2024-02-02")], STAMP, force=True))
        pipeline.publish()
        assert reader.execute("SELECT count(*) FROM batch_platform.score_runs").fetchall() == before
        assert reader.execute("SELECT count(*) FROM small.predictions").fetchall() == rows
    with duckdb.connect(str(pipeline.home.published), read_only=True) as reader:
        assert reader.execute("SELECT count(*) FROM batch_platform.score_runs").fetchall() == [(before[0][0] + 1,)]


@pytest.mark.parametrize(
    ("estimator", "raw"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", lambda score: np.log(score / (1 - score))),
        pytest.param("sklearn.ensemble.ExtraTreesClassifier", lambda score: score, marks=pytest.mark.full),
        pytest.param(
            "sklearn.linear_model.LogisticRegression", lambda score: np.log(score / (1 - score)), marks=pytest.mark.full
        ),
        pytest.param("lightgbm.LGBMClassifier", lambda score: np.log(score / (1 - score)), marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("store", [pytest.param(DUCKDB, marks=pytest.mark.full), PARQUET])
def test_law_11_reasons_and_the_base_value_add_up_to_the_raw_score(tmp_path, estimator, raw, store):
    pipeline = finished_pipeline(
        tmp_path,
        datetime(2024, 2, 5, 12, tzinfo=UTC),
        model={"estimator": estimator, "params": None},
        predictions={"reasons": 4, "store": store},
    )
    with pipeline.warehouse.open() as con:
        rows = con.sql("FROM small.predictions").pl()
    (version,) = pipeline.state().registry.of_model
    (applied,) = [each for each in pipeline.bundle(version).refinements if each.refinement.name == "reasons"]
    assert rows["reasons"].list.len().unique().to_list() == [4] == [len(applied.learned["importance"])]
    sums = applied.learned["base"][0] + rows["reasons"].list.eval(pl.element().struct["contribution"]).list.sum()
    np.testing.assert_allclose(sums.to_numpy(), raw(rows["score"].to_numpy()), rtol=0, atol=1e-9)
    assert rows.height > 100


def test_law_12_a_profile_of_a_month_is_the_merge_of_its_days_and_replaced_with_them(pipeline, tmp_path):
    days = [partition.key for partition in pipeline.spec.partitions.calendar.due(NOW) if partition.key >= "2024-02-01"]
    with pipeline.warehouse.open() as con:
        parts = read_profiles(con, "small", days)
        scores = con.sql("SELECT score FROM small.predictions").pl()["score"].to_numpy()
    assert list(parts) == days
    for key, run in pipeline.state().scores.items():
        assert {profile.rows for profile in parts[key]} == {run.rows_scored}
        assert sum(profile.rejected for profile in parts[key]) == run.rows_rejected
    month = {profile.name: profile for profile in merged_profiles(parts.values())}
    events = small_events().filter(pl.col("ts") >= day(pipeline, "2024-02-01").start)
    whole = {
        "amount": events["amount"].fill_null(float("nan")).to_numpy(),
        "items": events["items"].cast(pl.Float64).to_numpy(),
        "known": events["known"].cast(pl.Float64).to_numpy(),
        "score": scores,
    }
    for name, values in whole.items():
        profile = month[name]
        expected = number_profile(name, profile.role, profile.bins, values)
        assert replace(profile, mean=None, squares=None) == replace(expected, mean=None, squares=None)
        assert (profile.mean, profile.variance) == pytest.approx((expected.mean, expected.variance), rel=1e-12)
    shops = dict(zip([*(month["shop"].bins.categories or ()), "other"], month["shop"].histogram, strict=True))
    assert shops == dict(events["shop"].value_counts().iter_rows()) | {"other": 0}
    dearer = changed_events(tmp_path, lambda rows: rows.with_columns(pl.col("amount") + 1000))
    list(dearer.build_features([day(dearer, "2024-02-03")], STAMP))
    list(dearer.score([day(dearer, "2024-02-03")], STAMP))
    with dearer.warehouse.open() as con:
        after = read_profiles(con, "small", days)
    assert {key for key in days if after[key] != parts[key]} == {"2024-02-03"}
    (amount,) = (profile for profile in after["2024-02-03"] if profile.name == "amount")
    assert amount.histogram[-1] == amount.values, "all of them above what training saw"


def test_law_15_no_performance_is_stored_of_labels_that_are_not_mature(pipeline, tmp_path):
    patient = small_pipeline(tmp_path, labels={"delay": "29 days"})
    days, later = [day(patient, key) for key in sorted(pipeline.state().scores)], NOW + timedelta(days=1)
    assert sorted(patient.state().evaluations) == ["2024-02-01"], "what was measured too early counts as not measured"
    assert newest_measured(patient.home, patient.spec, patient.state()).evaluated == "2024-02-01"
    assert [done.partition.key for done in patient.evaluate(days, STAMP)] == ["2024-02-01"]
    waits = patient.awaited_labels(days, NOW)
    assert [*waits] == [partition.key for partition in days[1:]]
    assert waits["2024-02-02"] == "its labels are not known before 2024-03-02 23:00 UTC"
    assert [done.partition.key for done in patient.evaluate(days, Stamp("later", later))] == [
        "2024-02-01",
        "2024-02-02",
    ]
    assert make_plan(patient.spec, patient.state(), PlanRequest(later)).of("performance") == []


@pytest.mark.parametrize(
    "features", [pytest.param({}, marks=pytest.mark.full, id="sql"), pytest.param(BY_A_FUNCTION, id="python")]
)
def test_law_16_labels_never_hold_up_scores(tmp_path, features):
    partitions = {"start": "2024-01-17", "end": "2024-02-07"}
    pipeline = small_pipeline(tmp_path, **LABELS_BY_DAY, features=features, partitions=partitions)
    february = [partition.key for partition in pipeline.spec.partitions.calendar.due(NOW) if partition.key >= "2024-02"]
    write_labels_by_day(pipeline.folder, without=february)
    carry_out(pipeline, NOW)
    assert sorted(pipeline.state().scores) == february
    assert pipeline.state().evaluations == {}
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.full)])
@pytest.mark.parametrize("estimator", STOPS_EARLY)
def test_law_17_renaming_labels_changes_no_probability(estimator, classes):
    rows = small_events().filter(pl.col("returned").is_not_null())
    swapped = (pl.col("items") > 5) & (classes == 3)
    number = pl.when(swapped).then(2).otherwise(pl.col("returned").cast(pl.Int64))
    features = Features(sql="features.sql", key=["id"], time="ts")

    def probabilities(names: tuple[object, ...]) -> np.ndarray:
        """Of each class that has a score, for the rows that the model is judged on."""
        label = number.replace_strict(dict(enumerate(names)))
        labelled = rows.with_columns(returned=label)
        data = TrainingData(labelled.head(1500), labelled.tail(600), "returned")
        model = fit(Model(estimator=estimator), features, data, STOPS_EARLY[estimator])
        scores = model.scorer.predict(model.held_out)
        return scores[:, [model.signature.classes.index(name) for name in names[:classes]]]

    expected = probabilities((0, 1, 2))
    assert len(np.unique(expected)) > 100
    for renaming, names in RENAMINGS.items():
        assert np.array_equal(probabilities(names), expected), renaming


def test_law_17_the_order_of_rows_changes_no_training_data(tmp_path):
    """Rows that nothing names, newest first: later ones stand above the others, and some rows are equal."""
    file, rows = tmp_path / "orders.csv", small_events(date(2024, 1, 1), date(2024, 2, 10), 20).drop("id")
    other = rows.head(60).with_columns(returned=~pl.col("returned"))
    rows = pl.concat([rows, rows.head(60), other]).sort("ts", descending=True)
    rows.write_csv(file)
    _, files = proposed(file, label="returned", timezone="Europe/Berlin")
    pipeline = pipeline_of(files, tmp_path)
    window = pipeline.spec.partitions.calendar.due(NOW)
    list(pipeline.build_features(window, STAMP))

    def learned() -> pl.DataFrame:
        data = pipeline.history.training_data(pipeline.state().features, window, window[-7].start, STAMP)
        return pl.concat([data.fit, data.evaluate], how="diagonal")

    before = learned()
    assert before.height == rows["returned"].count()
    late = rows[100:400:60].with_columns(items=pl.lit(9, pl.Int32))
    pl.concat([late, rows.sample(fraction=1, shuffle=True, seed=1)]).write_csv(file)
    pipeline = Pipeline(pipeline.spec, pipeline.folder, pipeline.home)  # which remembers no labels
    assert learned().equals(before)
    assert pipeline.state(recheck=True).seen.changed.keys() == set(
        late["ts"].dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
    )
    list(pipeline.build_features(window, STAMP))
    pipeline = Pipeline(pipeline.spec, pipeline.folder, pipeline.home)
    assert learned().height == before.height + late["returned"].count()


def test_law_18_what_is_worse_beyond_chance_never_replaces_a_champion_by_itself(tmp_path):
    """Three weeks of February have the labels of other rows; the rows that both models are judged on have their own."""
    since, until = datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 22, tzinfo=UTC)
    events = permuted_labels(small_events(), since, until)
    month = {"train": {"window": "30 days"}}
    pipeline = small_pipeline(tmp_path, events=events, partitions={"end": "2024-04-01"}, model=month)
    carry_out(pipeline, datetime(2024, 3, 1, 12, tzinfo=UTC))
    registry = pipeline.state().registry
    champion, worse = registry.of_model
    decision = registry.last_decision(worse.version)
    assert decision.action == "refused"
    assert json.loads(decision.evidence)["comparison"]["verdict"]["difference"]["high"] < 0
    assert re.match(
        rf"worse than champion {champion.version}: roc_auc 0\.\d{{3}} against 0\.\d{{3}} on \d+ rows of \d+ partitions "
        r"\(difference -0\.\d{3}, between -0\.\d{3} and -0\.\d{3}\)",
        decision.reason,
    ), decision.reason
    assert registry.champion(datetime(2024, 3, 5, tzinfo=UTC)) == champion


@pytest.mark.full
@pytest.mark.parametrize("store", [PARQUET])
def test_law_19_nothing_behind_a_link_in_the_home_is_written_or_deleted(pipeline, tmp_path):
    home, outside = pipeline.home, tmp_path / "outside"
    links, theirs = plant_links(home, outside), home.table_folder("small", "predictions")
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    (outside / "predictions").symlink_to(outside)  # so that lake/linked looks like a pipeline
    (home.root / ".published").symlink_to(outside / "notes")
    (theirs / "2024-02-03" / "notes").write_text("precious")
    list(pipeline.score([day(pipeline, "2024-02-03")], STAMP, force=True))
    pipeline.publish()
    with pipeline.warehouse.transaction() as con:  # so that files from before it are not taken for another home's
        con.execute("UPDATE batch_platform.meta SET created_at = '2000-01-01'")
    pipeline.publish()
    later = NOW + timedelta(days=9000)
    garbage = find_garbage([pipeline.spec], home, later, trained_before=later)
    remove_garbage(garbage, home, Stamp("gc", later))
    drop_partitions(pipeline, ["2024-02-03"], "somebody", STAMP)
    drop_pipelines(home, ["small"])
    (outside / "predictions").unlink()
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before
    assert (theirs / "2024-02-03" / "notes").is_file(), "a file of somebody else stays"
    assert all(link.is_symlink() for link in links)
    for folder in (home.models / "small", home.lake / "small" / "features", home.lake / "small"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.symlink_to(outside)
        with pytest.raises(
            WrongUseError, match=rf"{folder} leads out of .* by a link; nothing is read or written there"
        ):
            carry_out(pipeline, NOW)
        folder.unlink()
    for name in WRITTEN:
        (home.root / name).unlink(missing_ok=True)
        (home.root / name).symlink_to(outside / "notes")
        with pytest.raises(BatchPlatformError, match=rf"{name} is a link.*Hint: remove the link"):
            pipeline.publish()
        (home.root / name).unlink()
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


def test_law_19_files_of_other_names_stay_whatever_is_cleaned_up_dropped_or_restored(pipeline):
    home = pipeline.home
    for name in FOREIGN:
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        os.utime(path, (LONG_AGO, LONG_AGO))
        os.utime(path.parent, (LONG_AGO, LONG_AGO))
    with pipeline.warehouse.transaction() as con:  # so that files from before it are not taken for another home's
        con.execute("UPDATE batch_platform.meta SET created_at = '2000-01-01'")
    later = NOW + timedelta(days=9000)
    list(pipeline.build_features([day(pipeline, "2024-02-03")], STAMP, force=True))
    list(pipeline.score([day(pipeline, "2024-02-03")], STAMP, force=True))
    pipeline.publish()
    garbage = find_garbage([pipeline.spec], home, later, trained_before=later)
    assert not [item for item in garbage if "notes" in item.path.name]
    remove_garbage(garbage, home, Stamp("gc", later))
    drop_partitions(pipeline, ["2024-02-03"], "somebody", STAMP)
    restore_from_published(home, NOW)
    drop_pipelines(home, ["small"])
    assert [name for name in FOREIGN if not (home.root / name).is_file()] == []
    assert not [path for path in home.lake.rglob("*") if home.knows(path)], "what is our own is gone"
    assert not [path for path in home.models.rglob("*") if home.knows(path)]


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        tables_of_another_home,
        *(pytest.param(it, marks=pytest.mark.full) for it in (no_tables, tables_of_another_program)),
    ],
)
def test_law_20_no_copy_is_removed_that_holds_a_change_which_the_warehouse_lacks(pipeline, tmp_path, wrong):
    other = tmp_path / "other.duckdb"
    if wrong is None:  # an older file
        shutil.copyfile(pipeline.home.warehouse, other)
    else:
        wrong(other)
    list(pipeline.score([day(pipeline, "2024-02-02")], STAMP, force=True))
    pipeline.publish()
    before = predictions(pipeline)
    shutil.copyfile(other, pipeline.home.warehouse)
    files = {path: path.stat().st_size for path in pipeline.home.root.rglob("*")}
    for command in (
        pipeline.publish,
        lambda: list(pipeline.score([day(pipeline, "2024-02-03")], STAMP, force=True)),
        lambda: find_garbage([pipeline.spec], pipeline.home, NOW, trained_before=NOW),
        lambda: drop_partitions(pipeline, ["2024-02-02"], "somebody", STAMP),
        lambda: drop_pipelines(pipeline.home, ["small"]),
        lambda: verify(pipeline.home),
    ):
        with pytest.raises(WarehouseError, match=r"nothing was changed.*batch-platform restore --from-published"):
            command()
        assert {path: path.stat().st_size for path in pipeline.home.root.rglob("*")} == files
    restored = restore_from_published(pipeline.home, NOW)
    assert predictions(pipeline).equals(before)
    assert restored.set_aside is not None
    assert restored.set_aside.read_bytes() == other.read_bytes()
    list(pipeline.score([day(pipeline, "2024-02-03")], STAMP, force=True))
    pipeline.publish()
    assert verify(pipeline.home).differing == ()


@examples(100)
@given(windows_near_a_change())
def test_law_22_windows_are_whole_partitions_in_every_zone(drawn):
    spec, partitions, evaluate = drawn
    delay = spec.labels.maturity.days or spec.labels.maturity.hours
    delay //= 7 if spec.partitions.every == "week" else 1
    starts = [partition.start for partition in partitions]
    assert len(starts) > 3 * evaluate + delay
    for at in range(3 * evaluate + delay, len(partitions)):
        window = spec.periods.window(starts[at])
        assert window == partitions[at - 3 * evaluate - delay : at - delay], "as many as the window holds"
        assert spec.periods.evaluation_start(window) == window[-evaluate].start, "as many as are declared"
        least = evaluate + max(evaluate, delay + 1)
        assert spec.periods.can_train(window[-least:]), (
            "as much to learn from as to evaluate on, and known when that begins"
        )
        assert not spec.periods.can_train(window[1 - least :])
        a_week_before = Duration(days=7).before(starts[at], spec.partitions.calendar.zone)
        assert a_week_before < starts[0] or a_week_before in starts
