"""What is out of date and why: each reason in `status`, in the table, in the check and in what the schedule requests."""

import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import duckdb
import polars as pl
import pytest

from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.wiring import stamp_of
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.promotion import Maker, roll_back
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.state import relabelled
from batch_platform.pipeline.status import status_of
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform_tests.harness.deployment import QUIET, Deployment, deploy
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    carry_out,
    feature_file,
    small_declaration,
    small_events,
)
from batch_platform_tests.harness.ticks import requested

NOW = datetime(2024, 2, 17, 12, tzinfo=UTC)
LABELS_SQL = "SELECT id, returned FROM answers WHERE returned IS NOT NULL"
OVERRIDES = {
    "sources": {
        "events": {"parquet": "days/{partition_key}.parquet"},
        "answers": {"parquet": "answers/{partition_key}.parquet"},
    },
    # Other SQL would train a model too, whose features come first.
    "model": {"train": {"every": "week", "start": "2024-02-04", "evaluate": "3 days", "retrain": "never"}},
}
FIRST, LAST = "2024-02-04", "2024-02-16"  # that are scored at NOW
ALL = [f"2024-02-{day:02}" for day in range(4, 17)]


def check_of(deployment: Deployment) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(deployment.key("predictions"), "up_to_date")


def on_disk(deployment: Deployment) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file of the warehouse and of what is published."""
    files = [file for file in deployment.pipeline.home.root.iterdir() if file.is_file()]
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def rewrite(deployment: Deployment, folder: str, key: str, *values: pl.Expr) -> None:
    """Write other values to the file of a partition of a source, with a later modification time."""
    path = deployment.pipeline.folder / folder / f"{key}.parquet"
    before = path.stat().st_mtime_ns
    pl.read_parquet(path).with_columns(*values).write_parquet(path)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def lay_out(deployment: Deployment) -> None:
    """Write the events of each day to one file, and their outcomes to another."""
    zone = deployment.pipeline.spec.partitions.calendar.zone.key
    day = pl.col("ts").dt.convert_time_zone(zone).dt.strftime("%Y-%m-%d")
    for (key,), rows in small_events().group_by(day, maintain_order=True):
        for folder, columns in (("days", pl.all().exclude("returned")), ("answers", pl.col("id", "returned"))):
            path = deployment.pipeline.folder / folder / f"{key}.parquet"
            path.parent.mkdir(exist_ok=True)
            rows.select(columns).write_parquet(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The project up to date at NOW: models of two weeks, and the partitions of both weeks scored."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as aside:
        deployment = deploy(folder, aside, labels_sql=LABELS_SQL, **OVERRIDES)
        lay_out(deployment)
        carry_out(deployment.pipeline, NOW)
    return folder


@pytest.fixture
def deployment(template, tmp_path, monkeypatch):
    for folder in ("home", "project"):
        shutil.copytree(template / folder, tmp_path / folder, symlinks=True)
    made = deploy(tmp_path, monkeypatch, labels_sql=LABELS_SQL, **OVERRIDES)
    assert conditions(made) == dict.fromkeys(ALL, ("scored", None))
    return made


def redeclared(deployment: Deployment, **overrides) -> Deployment:
    """The same project, loaded after somebody edited its files."""
    spec = PipelineSpec.model_validate(small_declaration(**{**OVERRIDES, **overrides}))
    pipeline = Pipeline(spec, deployment.pipeline.folder, deployment.pipeline.home)
    return Deployment(pipeline, build_definitions(spec, pipeline.folder), deployment.instance)


def conditions(deployment: Deployment, when: datetime = NOW) -> dict[str, tuple[str, str | None]]:
    """What `status` says of the scored partitions."""
    state = deployment.pipeline.state()
    spec = deployment.pipeline.spec
    report = status_of(spec, state, make_plan(spec, state, PlanRequest(when)), when)
    return {
        partition.partition: (partition.condition, partition.reason or None)
        for partition in report.partitions
        if partition.run_id
    }


def in_table(deployment: Deployment) -> dict[str, tuple[str, str | None]]:
    query = "SELECT partition_key, condition, reason FROM batch_platform.partition_status ORDER BY ALL"
    with duckdb.connect(str(deployment.pipeline.home.published.resolve()), read_only=True) as con:
        return {key: (condition, reason) for key, condition, reason in con.execute(query).fetchall()}


def checked(deployment: Deployment) -> dg.AssetCheckEvaluation:
    """What the check says when it is executed alone; nothing is scored for it."""
    before = len(deployment.materializations("predictions"))
    check = check_of(deployment)
    job = deployment.definitions.resolve_implicit_global_asset_job_def()
    alone = job.get_subset(asset_selection=set(), asset_check_selection={check})
    result = alone.execute_in_process(instance=deployment.instance, run_config={"loggers": QUIET})
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert len(deployment.materializations("predictions")) == before
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    return evaluation


def a_rollback(deployment: Deployment) -> Deployment:
    state = deployment.pipeline.state()
    made = roll_back(state.registry, state.scores, Maker("me", NOW, "it is wrong"), holds_from=None)
    deployment.pipeline.decide(made.promotion, state)
    return deployment


def a_rollback_of_some_days(deployment: Deployment) -> Deployment:
    state = deployment.pipeline.state()
    begin = deployment.pipeline.spec.partitions.calendar.named("2024-02-14").start
    made = roll_back(state.registry, state.scores, Maker("me", NOW, "it is wrong"), holds_from=begin)
    deployment.pipeline.decide(made.promotion, state)
    return deployment


def other_features(deployment: Deployment) -> Deployment:
    rewrite(deployment, "days", "2024-02-06", pl.col("items") + 1)
    days = [deployment.pipeline.spec.partitions.calendar.named("2024-02-06")]
    list(deployment.pipeline.build_features(days, Stamp("rebuilt", NOW)))
    return deployment


def other_sql(deployment: Deployment) -> Deployment:
    (deployment.pipeline.folder / "features.sql").write_text(f"{FEATURES_SQL} AND amount < 1000\n")
    return redeclared(deployment)


def other_declaration(deployment: Deployment) -> Deployment:
    return redeclared(deployment, predictions={"keep": ["shop", "items"]})


def another_source_file(deployment: Deployment) -> Deployment:
    rewrite(deployment, "days", "2024-02-12", pl.col("items") + 1)
    return deployment


FIRST_WEEK, SECOND = [key for key in ALL if key < "2024-02-11"], [key for key in ALL if key >= "2024-02-11"]
REASONS = {
    "another champion": (a_rollback, SECOND, r"scored by 2024-02-11-\w{8}, the champion is 2024-02-04-\w{8}"),
    "another champion from a day on": (a_rollback_of_some_days, SECOND[3:], "scored by .*, the champion is 2024-02-04"),
    "other features": (other_features, ["2024-02-06"], "its features changed"),
    "other SQL": (other_sql, ALL, "the SQL or its declaration changed"),
    "another declaration": (other_declaration, ALL, "its declaration or the scoring code changed"),
    "another source file": (another_source_file, ["2024-02-12"], "a source file changed"),
}
QUICKLY_SCORED_AGAIN = ("another champion from a day on", "other features")  # of the everyday tier


@pytest.mark.parametrize(
    "why", [pytest.param(it, marks=() if it in QUICKLY_SCORED_AGAIN else pytest.mark.full) for it in REASONS]
)
def test_status_check_and_table_tell_each_reason_and_the_schedule_scores_again(deployment, why):
    change, keys, reason = REASONS[why]
    changed = change(deployment)
    statuses = conditions(changed)
    assert {key for key, (condition, _) in statuses.items() if condition == "stale"} == set(keys)
    (words,) = {statuses[key][1] for key in keys}
    assert re.match(reason, words)
    evaluation = checked(changed)
    assert (evaluation.passed, evaluation.metadata["stale"].value) == (False, len(keys))
    assert (evaluation.metadata["first_stale"].value, evaluation.metadata["last_stale"].value) == (keys[0], keys[-1])
    assert evaluation.description == f"{len(keys)} partition{'s' if len(keys) > 1 else ''}: {words}"
    assert in_table(changed) == statuses
    assert [(first, last) for _, first, last in requested(changed, "predictions", NOW)] == [(keys[0], keys[-1])]
    carry_out(changed.pipeline, NOW, "again")
    assert conditions(changed) == dict.fromkeys(ALL, ("scored", None)) == in_table(changed)
    assert requested(changed, "predictions", NOW) == []
    assert checked(changed).passed


@pytest.mark.parametrize("why", ["other SQL", "another declaration", "another source file"])
def test_a_report_and_a_tick_see_what_changed_and_write_nothing(deployment, why):
    change, keys, _ = REASONS[why]
    changed, before = change(deployment), on_disk(deployment)
    state = changed.pipeline.published_state()
    plan = make_plan(changed.pipeline.spec, state, PlanRequest(NOW))
    report = status_of(changed.pipeline.spec, state, plan, NOW)
    assert [partition.partition for partition in report.partitions if partition.condition == "stale"] == keys
    assert requested(changed, "predictions", NOW) != []
    assert on_disk(changed) == before
    assert in_table(changed) == dict.fromkeys(ALL, ("scored", None)), "until a run looks"
    assert not checked(changed).passed
    assert in_table(changed) == conditions(changed)


def test_an_edit_that_is_undone_leaves_nothing_stale(deployment):
    changed = other_sql(deployment)
    assert not checked(changed).passed
    (deployment.pipeline.folder / "features.sql").write_text(FEATURES_SQL)
    back = redeclared(deployment)
    evaluation = checked(back)
    assert (evaluation.passed, evaluation.description) == (True, "none is stale")
    assert in_table(back) == conditions(back) == dict.fromkeys(ALL, ("scored", None))


def test_stale_predictions_are_reported_even_if_they_are_never_scored_again(deployment):
    changed = redeclared(other_sql(deployment), predictions={"rescore": "never", "keep": ["shop"]})
    statuses = conditions(changed)
    assert statuses == dict.fromkeys(ALL, ("stale", "the SQL or its declaration changed"))
    evaluation = checked(changed)
    assert (evaluation.passed, evaluation.metadata["stale"].value) == (False, len(ALL))
    assert in_table(changed) == statuses
    assert requested(changed, "predictions", NOW) == []


def test_scored_partitions_that_no_model_serves_any_more_are_never_called_up_to_date(deployment):
    later = redeclared(deployment, model={"train": OVERRIDES["model"]["train"] | {"start": "2024-02-11"}}).pipeline
    served, reason = "2024-02-11", "no model serves it, since predictions begin with 2024-02-11 now"

    def blocked(*, force: bool) -> dict[str, str]:
        plan = make_plan(later.spec, later.state(), PlanRequest(NOW, force=force))
        assert all(item.partition.key >= served for item in plan.of("predictions"))
        return {item.partition.key: item.reason for item in plan.blocked if not item.warm_up}

    assert blocked(force=False) == {}
    assert list(blocked(force=True)) == [key for key in ALL if key < served]
    rewrite(deployment, "days", "2024-02-05", pl.lit(1.0).alias("amount"))
    (told,) = blocked(force=False).items()
    assert told[0] == "2024-02-05"
    assert told[1].startswith(reason)
    state = later.state()
    stale = make_plan(later.spec, state, PlanRequest(NOW)).stale
    assert {key: text.partition(reason)[0] for key, text in stale.items()} == {"2024-02-05": "a source file changed; "}


def test_predictions_that_wait_for_a_newer_model_are_reported(deployment):
    later = datetime(2024, 2, 20, 12, tzinfo=UTC)
    pipeline = deployment.pipeline
    days = [pipeline.spec.partitions.calendar.named(key) for key in ("2024-02-17", "2024-02-18")]
    list(pipeline.build_features(days, Stamp("late", later)))
    list(pipeline.score(days, Stamp("late", later)))
    statuses = conditions(deployment, later)
    assert statuses["2024-02-17"] == ("scored", None)
    assert statuses["2024-02-18"] == ("stale", "a newer model is due")
    assert checked(deployment).description == "1 partition: a newer model is due"
    assert in_table(deployment) == statuses


def test_corrected_labels_are_reported_for_the_model_and_change_no_prediction(deployment):
    rewrite(deployment, "answers", "2024-02-06", ~pl.col("returned"))
    first, second = (version.version for version in deployment.pipeline.state().registry.versions)
    statuses = conditions(deployment)
    remark = f"its model {second} learned from labels that were corrected since"
    assert statuses == {key: ("scored", remark if key in SECOND else None) for key in ALL}
    evaluation = checked(deployment)
    assert (evaluation.passed, evaluation.metadata["models_with_corrected_labels"].value) == (True, second)
    assert in_table(deployment) == statuses
    assert requested(deployment, "predictions", NOW) == []
    assert requested(deployment, "performance", NOW) == [(("performance",), "2024-02-06", "2024-02-06")]
    versions = deployment.pipeline.state().registry.versions
    assert relabelled(deployment.pipeline.history, versions) == {second}
    rewrite(deployment, "answers", "2024-01-20", ~pl.col("returned"))
    assert deployment.pipeline.state().relabelled == {first, second}
    deployment.pipeline.train(deployment.wiring.serving_period("2024-02-11"), stamp_of("again"))
    assert {key for key, (condition, _) in conditions(deployment).items() if condition == "stale"} == set(SECOND)
    carry_out(deployment.pipeline, NOW, "again")
    assert checked(deployment).metadata["models_with_corrected_labels"].value == first
    remark = f"its model {first} learned from labels that were corrected since"
    assert in_table(deployment) == {key: ("scored", None if key in SECOND else remark) for key in ALL}


def test_models_that_know_too_much_once_the_delay_of_labels_is_corrected_are_told_and_trained_again(deployment):
    pipeline = deployment.pipeline
    versions = {version.serving_period: version.version for version in pipeline.state().registry.versions}
    known = {
        key: f"{name} learned from labels that were not known by {key} with labels.delay 8 days"
        for key, name in versions.items()
    }
    never = redeclared(deployment, labels={"delay": "8 days"})
    plan = make_plan(never.pipeline.spec, never.pipeline.state(), PlanRequest(NOW))
    assert plan.of("model", "predictions") == []
    assert status_of(never.pipeline.spec, never.pipeline.state(), plan, NOW).outdated == {
        key: f"{reason}: batch-platform train small --period {key}" for key, reason in known.items()
    }
    assert set(conditions(never).values()) == {("scored", f"its model {reason}") for reason in known.values()}
    train = OVERRIDES["model"]["train"] | {"retrain": "when_changed"}
    again = redeclared(deployment, labels={"delay": "8 days"}, model={"train": train})
    assert requested(again, "training", NOW) == [(("model",), "2024-02-04", "2024-02-11")]
    plan = carry_out(again.pipeline, NOW, "again")
    assert {item.partition.key: item.reason for item in plan.of("model")} == known
    assert [item.partition.key for item in plan.of("predictions")] == ALL
    state = again.pipeline.state()
    for version in state.registry.versions[2:]:
        judged = state.registry.last_decision(version.version)
        assert f"was not compared: it {known[version.serving_period].partition(' ')[2]}" in judged.reason
        assert version.trained_until + timedelta(days=8) <= version.serving_start
    assert {run.model_version for run in state.scores.values()} == {it.version for it in state.registry.versions[2:]}
    assert make_plan(again.pipeline.spec, state, PlanRequest(NOW)).items == []
    shorter = redeclared(deployment, labels={"delay": "0 days"}, model={"train": train}).pipeline
    assert make_plan(shorter.spec, state, PlanRequest(NOW)).of("model") == [], "what they learned was known"


@pytest.mark.full
def test_a_label_file_that_holds_the_same_labels_as_before_is_not_called_corrected(deployment):
    history, versions = deployment.pipeline.history, deployment.pipeline.state().registry.versions
    rewrite(deployment, "answers", "2024-01-20", pl.lit("by phone").alias("how"))
    rewrite(deployment, "answers", "2024-02-06")
    assert conditions(deployment) == dict.fromkeys(ALL, ("scored", None))
    assert relabelled(history, versions) == frozenset()
    rewrite(deployment, "answers", "2024-02-06", pl.col("returned").shift().fill_null(True))
    assert relabelled(history, versions) == {versions[1].version}, (
        "what was found before is not taken for what is there now"
    )
    known_by_files = [replace(version, label_sources=version.label_sources.partition(".")[0]) for version in versions]
    assert relabelled(history, known_by_files) == {version.version for version in versions}, "no labels were recorded"


def test_a_run_of_predictions_ends_with_the_check(deployment):
    changed = other_declaration(deployment)
    result = changed.run("predictions", first=FIRST, last="2024-02-10")
    assert result.success
    evaluations = [
        evaluation for evaluation in result.get_asset_check_evaluations() if evaluation.check_name == "up_to_date"
    ]
    assert {evaluation.partition: evaluation.passed for evaluation in evaluations} == {None: False}
    assert evaluations[-1].metadata["stale"].value == len(SECOND)
    assert in_table(changed) == conditions(changed)
    history = changed.instance.event_log_storage.get_asset_check_execution_history(check_of(changed), limit=100)
    assert len(history) == 1, "nothing is left that the UI would show as skipped"


def live(deployment: Deployment, columns: str = "partition_key, condition, reason") -> list[tuple]:
    """What the table in the warehouse holds, published or not."""
    with deployment.pipeline.warehouse.open() as con:
        return con.execute(f"SELECT {columns} FROM batch_platform.partition_status ORDER BY ALL").fetchall()


@pytest.mark.full
def test_a_decision_and_the_end_of_a_training_bring_every_row_up_to_date(deployment):
    a_rollback_of_some_days(deployment)
    statuses = {key: (condition, reason) for key, condition, reason in live(deployment)}
    assert statuses == conditions(deployment)
    assert [key for key, (condition, _) in statuses.items() if condition == "stale"] == SECOND[3:]
    ((computed_at,),) = set(live(deployment, "computed_at"))
    assert computed_at == NOW
    later = datetime(2024, 2, 17, 13, tzinfo=UTC)
    deployment.pipeline.train(deployment.wiring.serving_period("2024-02-11"), Stamp("retrained", later))
    deployment.pipeline.conclude(later)
    statuses = {key: (condition, reason) for key, condition, reason in live(deployment)}
    assert statuses == conditions(deployment)
    assert [key for key, (condition, _) in statuses.items() if condition == "stale"] == SECOND
    assert set(live(deployment, "computed_at")) == {(later,)}


@pytest.mark.full
def test_features_that_are_built_again_are_not_taken_for_lost_or_outdated(deployment):
    """The files that a step saw when it began do not count for builds recorded since."""
    pipeline = deployment.pipeline
    calendar = pipeline.spec.partitions.calendar
    another_source_file(deployment)
    feature_file(pipeline, "2024-02-06").unlink()
    seen = pipeline.state()
    assert set(seen.lost) == {"2024-02-06"}
    days = [calendar.named(key) for key in ("2024-02-06", "2024-02-12")]
    list(pipeline.build_features(days, Stamp("built", NOW)))
    list(pipeline.score(days, Stamp("built", NOW)))
    state = pipeline.state()
    decision = roll_back(state.registry, state.scores, Maker("me", NOW, "it is wrong"))
    pipeline.decide(decision.promotion, seen)
    statuses = {key: (condition, reason) for key, condition, reason in live(deployment)}
    assert statuses == conditions(deployment)
    assert statuses["2024-02-06"] == ("scored", None)
