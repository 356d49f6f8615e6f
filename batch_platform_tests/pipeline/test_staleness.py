"""What is out of date and why: each reason in `status`, in the table, in the check and in what the schedule requests."""

import os
import re
import shutil
from datetime import UTC, datetime, timedelta

import dagster as dg
import duckdb
import polars as pl
import pytest

from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.wiring import stamp_of
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.promotion import Maker, roll_back
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import relabelled
from batch_platform_tests.harness.deployment import QUIET, Deployment, deploy
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_declaration, small_events
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
ALL = [f"2024-02-{day:02}" for day in range(4, 17)]


def check_of(deployment: Deployment) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(deployment.key("predictions"), "up_to_date")


def rewrite(deployment: Deployment, folder: str, key: str, *values: pl.Expr) -> None:
    """Write other values to the file of a partition of a source, with a later modification time."""
    path = deployment.pipeline.folder / folder / f"{key}.parquet"
    before = path.stat().st_mtime_ns
    pl.read_parquet(path).with_columns(*values).write_parquet(path)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def lay_out(deployment: Deployment) -> None:
    """Write the events of each day to one file, and their outcomes to another."""
    for (key,), rows in small_events().group_by(LOCAL_DAY, maintain_order=True):
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


def a_rollback_of_some_days(deployment: Deployment) -> None:
    state = deployment.pipeline.state()
    begin = deployment.pipeline.spec.partitions.calendar.named("2024-02-14").start
    made = roll_back(state.registry, state.scores, Maker("me", NOW, "it is wrong"), holds_from=begin)
    deployment.pipeline.decide(made.promotion, state)


def another_source_file(deployment: Deployment) -> None:
    rewrite(deployment, "days", "2024-02-12", pl.col("items") + 1)


SECOND = [key for key in ALL if key >= "2024-02-11"]
REASONS = {
    "another champion": (a_rollback_of_some_days, SECOND[3:], "scored by .*, the champion is 2024-02-04"),
    "another source file": (another_source_file, ["2024-02-12"], "a source file changed"),
}


@pytest.mark.parametrize("why", [pytest.param("another champion", marks=pytest.mark.full), "another source file"])
def test_status_check_and_table_tell_each_reason_and_the_schedule_scores_again(deployment, why):
    change, keys, reason = REASONS[why]
    change(deployment)
    statuses = conditions(deployment)
    assert {key for key, (condition, _) in statuses.items() if condition == "stale"} == set(keys)
    (words,) = {statuses[key][1] for key in keys}
    assert re.match(reason, words)
    evaluation = checked(deployment)
    assert (evaluation.passed, evaluation.metadata["stale"].value) == (False, len(keys))
    assert evaluation.description == f"{len(keys)} partition{'s' if len(keys) > 1 else ''}: {words}"
    assert in_table(deployment) == statuses
    assert [(first, last) for _, first, last in requested(deployment, "predictions", NOW)] == [(keys[0], keys[-1])]
    carry_out(deployment.pipeline, NOW, "again")
    assert conditions(deployment) == dict.fromkeys(ALL, ("scored", None)) == in_table(deployment)
    assert requested(deployment, "predictions", NOW) == []
    assert checked(deployment).passed


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
    assert deployment.pipeline.state().seen.relabelled == {first, second}
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
