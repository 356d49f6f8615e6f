import os
import subprocess
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG

from batch_platform.components import processes, runs
from batch_platform.components.processes import PROCESS_TAG, this_process
from batch_platform.components.runs import failures, held
from batch_platform.components.wiring import PIPELINE_TAG
from batch_platform.pipeline.state_keeper import StateKeeper
from batch_platform_tests.harness.deployment import Deployment, deploy, deploy_after, deploy_trained, range_tags
from batch_platform_tests.harness.small_pipeline import LABELS_BY_DAY, small_events, write_labels_by_day
from batch_platform_tests.harness.ticks import (
    AFTER_ALL,
    SCHEDULES,
    at,
    execute,
    in_a_long_commit,
    look,
    requested,
    shown,
    tick,
    under_way,
)

FEW_DAYS = {"start": "2024-01-17", "end": "2024-02-07"}  # 15 days before the first serving period, six days in it


@pytest.fixture
def trained(tmp_path, monkeypatch):
    return deploy_trained(tmp_path, monkeypatch, known=True)


def test_a_request_names_the_checks_of_the_user_too(trained):
    @dg.asset_check(asset=trained.key("predictions"))
    def nobody_is_certain() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    own = dg.Definitions(asset_checks=[nobody_is_certain])
    deployment = replace(trained, definitions=dg.Definitions.merge(trained.definitions, own))
    (request,), _ = look(deployment, "predictions", at("2024-02-02T05:00"))
    named = {check.name for check in request.asset_check_keys}
    assert {"nobody_is_certain", "rows_balance", "up_to_date"} <= named
    assert not named & {"gate", "performance"}


def test_a_schedule_can_be_evaluated_without_a_repository_as_dagsters_own_tests_do(trained):
    definition = trained.definitions.resolve_schedule_def(f"{trained.pipeline.spec.name}_score_when_due")
    with dg.build_schedule_context(trained.instance, at("2024-02-02T05:00")) as context:
        (request,) = definition.evaluate_tick(context).run_requests
    assert shown(request) == requested(trained, "predictions", at("2024-02-02T05:00"))[0]


def test_schedules_that_tick_at_the_same_time_share_one_look_at_the_published_copy(trained, monkeypatch):
    looks, look_at = [], StateKeeper.published
    monkeypatch.setattr(StateKeeper, "published", lambda keeper: looks.append(keeper) or look_at(keeper))
    one_by_one = [
        requested(trained, schedule, at(f"2024-02-0{4 + day}T05:00")) for day, schedule in enumerate(SCHEDULES)
    ]
    assert len(looks) == len(one_by_one), "a tick at another time looks anew"
    assert all(isinstance(requested(trained, schedule, at("2024-02-08T05:00")), list) for schedule in SCHEDULES)
    assert len(looks) == len(one_by_one) + 1
    requested(trained, "predictions", at("2024-02-08T05:00"))
    assert len(looks) == len(one_by_one) + 2, "a schedule that asks again at the same time sees what is there now"
    trained.score("2024-02-01", "2024-02-02")
    (scored,) = requested(trained, "performance", at("2024-02-08T05:00"))
    assert scored[1:] == ("2024-02-01", "2024-02-02"), "what was published meanwhile is seen"


def recorded(deployment: Deployment) -> dict[str, int]:
    state = deployment.pipeline.state()
    return {
        "features": len(state.features),
        "models": len(state.registry.versions),
        "scores": len(state.scores),
        "evaluations": len(state.evaluations),
    }


def test_each_pipeline_has_three_schedules_in_its_own_time_zone(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, model={"train": {"schedule": "15 3 * * *"}})
    schedules = {schedule.name: schedule for schedule in deployment.definitions.schedules or []}
    when_due = {f"small_{name}_when_due" for name in SCHEDULES.values()}
    assert set(schedules) == when_due | {"small_remove_old_runs_every_week"}
    assert {schedule.execution_timezone for schedule in schedules.values()} == {"Europe/Berlin"}
    assert {schedule.default_status for schedule in schedules.values()} == {dg.DefaultScheduleStatus.STOPPED}
    crons = [schedules[f"small_{name}_when_due"].cron_schedule for name in SCHEDULES.values()]
    assert crons == ["0 5 * * *", "15 3 * * *", "0 5 * * *"]
    assert all(schedule.tags[PIPELINE_TAG] == "small" for schedule in schedules.values())


def test_from_an_empty_home_ticks_bring_everything_in_in_the_right_order(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, partitions=FEW_DAYS)
    assert recorded(deployment) == {"features": 0, "models": 0, "scores": 0, "evaluations": 0}
    rounds: list[dict[str, int]] = []
    while any(look(deployment, schedule, AFTER_ALL)[0] for schedule in SCHEDULES):
        for schedule in SCHEDULES:
            assert all(tick(deployment, schedule, AFTER_ALL))
        rounds.append(recorded(deployment))
        assert len(rounds) < 6
    assert rounds[0] == {"features": 14, "models": 1, "scores": 0, "evaluations": 0}  # nothing needs 31 January
    assert rounds[-1] == {"features": 20, "models": 1, "scores": 6, "evaluations": 6}
    assert len(rounds) == 2
    for schedule in SCHEDULES:
        requests, reason = look(deployment, schedule, AFTER_ALL)
        assert requests == []
        assert reason == "Nothing is due; 15 partitions are warm-up: the first model serves from 2024-02-01."


def test_a_schedule_that_waits_for_another_one_names_it(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, partitions=FEW_DAYS)
    reasons = {schedule: look(deployment, schedule, AFTER_ALL)[1] for schedule in ("predictions", "performance")}
    assert reasons == {
        "predictions": "Nothing can be done here yet: 6 of predictions, waiting for 1 of model (small_train_when_due).",
        "performance": "Nothing can be done here yet: 6 of performance, waiting for 1 of model (small_train_when_due), "
        "6 of predictions (small_score_when_due).",
    }
    assert all(tick(deployment, "training", AFTER_ALL))
    _, reason = look(deployment, "training", AFTER_ALL)
    assert reason == "Nothing is due here; elsewhere: 6 of predictions (small_score_when_due)."


@pytest.mark.full
def test_f32_a_tick_answers_while_a_long_commit_holds_the_warehouse(trained, monkeypatch):
    trained.score("2024-02-01", "2024-02-02")
    when = at("2024-02-05T05:00")
    expected = {schedule: look(trained, schedule, when) for schedule in SCHEDULES}
    assert expected["predictions"][0] != []
    root = trained.pipeline.home.root
    monkeypatch.setenv("BATCH_PLATFORM_LOCK_TIMEOUT", "0.1")  # whoever waits for the warehouse fails
    with in_a_long_commit(trained.pipeline.home) as process:
        before = {file.name: file.stat() for file in root.iterdir() if file.is_file()}
        assert {schedule: look(trained, schedule, when) for schedule in SCHEDULES} == expected
        assert {file.name: file.stat().st_mtime_ns for file in root.iterdir() if file.is_file()} == {
            name: stat.st_mtime_ns for name, stat in before.items()
        }
        process.stdin.close()


def test_a_tick_in_an_empty_home_makes_no_warehouse(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    assert look(deployment, "training", AFTER_ALL)[0] != []
    assert not deployment.pipeline.home.warehouse.exists()
    assert not deployment.pipeline.home.published.exists()


def test_a_tick_logs_commits_that_dagster_does_not_know(trained):
    trained.score("2024-02-01", "2024-02-02")
    look(trained, "predictions", at("2024-02-03T05:00"))
    assert len(trained.materializations("predictions")) == 2


def with_one_key_between(first: str, last: str) -> pl.DataFrame:
    """The events, all with the same key from one midnight to another, so that the features of that time are refused."""
    between = pl.col("ts").is_between(at(f"{first}T00:00"), at(f"{last}T00:00"))
    return small_events().with_columns(id=pl.when(between).then(pl.lit(1)).otherwise(pl.col("id")))


def test_a_failed_partition_is_requested_again_and_holds_up_none_behind_it(tmp_path, monkeypatch):
    twice = with_one_key_between("2024-02-03", "2024-02-04")
    trained = deploy_trained(tmp_path, monkeypatch, known=True, events=twice)
    when = at("2024-02-07T05:00")
    assert tick(trained, "predictions", when) == [False]
    assert "2024-02-03" not in trained.pipeline.state().features
    assert sorted(trained.pipeline.state().scores) == [f"2024-02-0{day}" for day in (1, 2, 4, 5, 6)]
    assert tick(trained, "predictions", when) == [False]
    assert requested(trained, "predictions", when) == [(("predictions",), "2024-02-03", "2024-02-03")]
    small_events().write_parquet(trained.pipeline.folder / "events.parquet")
    assert tick(trained, "predictions", when) == [True]
    assert look(trained, "predictions", when)[0] == []


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]
)
@pytest.mark.parametrize("of_a_schedule", [True, False])
def test_a_range_under_way_is_not_requested_twice(trained, status, of_a_schedule):
    tags = range_tags("2024-02-02", "2024-02-04")
    if of_a_schedule:
        under_way(trained, status=status, tags=tags, job="small_score")
    else:
        under_way(trained, "features", "predictions", status=status, tags=tags)
    assert requested(trained, "predictions", at("2024-02-07T05:00")) == [
        (("predictions",), "2024-02-01", "2024-02-01"),
        (("predictions",), "2024-02-05", "2024-02-06"),
    ]


def test_runs_of_other_pipelines_and_of_former_partitions_hold_nothing(trained):
    under_way(trained, "features", tags=range_tags("1999-01-01", "1999-01-03"))
    under_way(trained, "features", tags=range_tags("2024-02-01-00:00", "2024-02-01-05:00"))
    under_way(trained, job="other_score", tags=range_tags("2024-02-01", "2024-02-05"))
    assert len(requested(trained, "predictions", at("2024-02-06T05:00"))) == 1
    assert held(trained.wiring, trained.instance) == frozenset()


def test_a_tick_requests_no_more_than_its_limit_oldest_first(tmp_path, monkeypatch):
    trained = deploy_trained(tmp_path, monkeypatch, known=True, predictions={"limit": 4})
    when = at("2024-02-12T05:00")
    assert requested(trained, "predictions", when) == [(("predictions",), "2024-02-01", "2024-02-04")]
    assert tick(trained, "predictions", when) == [True]
    assert requested(trained, "predictions", when) == [(("predictions",), "2024-02-05", "2024-02-08")]


def weekly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A model for each week from 21 January on, and the features of January."""
    train = {"every": "week", "start": "2024-01-21", "window": "all", "evaluate": "7 days"}
    return deploy_after(january, tmp_path, monkeypatch, name="january", model={"train": train})


def january(deployment: Deployment) -> None:
    assert deployment.run("features", first="2024-01-01", last="2024-01-31").success


@pytest.mark.full
def test_a_failed_training_lets_the_older_champion_serve(tmp_path, monkeypatch):
    deployment = weekly(tmp_path, monkeypatch)
    when = at("2024-01-31T05:00")
    assert tick(deployment, "training", at("2024-01-25T00:30")) == [True]
    assert not deployment.run("model", first="2024-01-28", config={"model": {"params": {"max_iter": -1}}}).success
    assert requested(deployment, "predictions", when) == [(("predictions",), "2024-01-21", "2024-01-30")]
    assert tick(deployment, "predictions", when) == [True]
    versions = {run.model_version[:10] for run in deployment.pipeline.state().scores.values()}
    assert versions == {"2024-01-21"}
    assert tick(deployment, "training", when) == [True]
    assert requested(deployment, "predictions", when) == [(("predictions",), "2024-01-28", "2024-01-30")]


@pytest.mark.full
def test_a_model_that_lacks_a_file_of_labels_holds_up_no_scores_and_evaluation_says_what_it_waits_for(
    tmp_path, monkeypatch
):
    deployment = deploy(
        tmp_path, monkeypatch, model={"train": {"every": "week", "evaluate": "7 days"}}, **LABELS_BY_DAY
    )
    write_labels_by_day(deployment.pipeline.folder, without=("2024-01-23",))
    earlier, when = at("2024-01-27T05:00"), at("2024-01-31T05:00")
    january(deployment)
    assert tick(deployment, "training", at("2024-01-25T00:30")) == [True]
    assert tick(deployment, "predictions", earlier) == [True]
    assert tick(deployment, "performance", earlier) == [True, True]
    reason = "the evaluation of 2024-01-23 waits: source 'returns' has no file of labels for it yet"
    assert look(deployment, "performance", earlier) == ([], f"Nothing is due; {reason}.")
    assert tick(deployment, "predictions", when) == [True]
    versions = {run.model_version[:10] for run in deployment.pipeline.state().scores.values()}
    assert versions == {"2024-01-22"}
    (request,), _ = look(deployment, "training", when)
    (failure,) = [it for it in execute(deployment, "training", request).all_events if it.is_step_failure]
    message = failure.step_failure_data.user_failure_data.description
    assert "since source 'returns' has no file for 2024-01-23 of its training window" in message, message
    write_labels_by_day(deployment.pipeline.folder)
    assert tick(deployment, "training", when) == [True]
    assert ((("performance",), "2024-01-23", "2024-01-23")) in requested(deployment, "performance", earlier)


def test_a_model_under_way_is_not_requested_twice(tmp_path, monkeypatch):
    deployment = weekly(tmp_path, monkeypatch)
    under_way(deployment, "model", tags={PARTITION_NAME_TAG: "2024-01-21"})
    assert requested(deployment, "training", at("2024-02-03T00:30")) == [(("model",), "2024-01-28", "2024-01-28")]


def test_a_run_that_somebody_starts_in_the_ui_bears_the_tag_of_the_pipeline(trained):
    broken = {"model": {"params": {"max_iter": -1}}}
    result = trained.run("model", first="2024-02-01", config=broken)
    assert not result.success
    assert trained.instance.get_run_by_id(result.run_id).tags[PIPELINE_TAG] == "small"
    assert failures(trained.wiring, trained.instance) == {("model", "2024-02-01"): result.run_id}


def test_a_run_left_behind_by_a_dead_process_is_closed_and_its_partitions_requested(trained):
    tags = {**range_tags("2024-02-01", "2024-02-03"), PROCESS_TAG: "4194305 1"}
    dead = under_way(trained, "features", "predictions", tags=tags)
    assert requested(trained, "predictions", at("2024-02-04T05:00")) == [
        (("predictions",), "2024-02-01", "2024-02-01"),
        (("predictions",), "2024-02-02", "2024-02-03"),
    ]
    assert trained.instance.get_run_by_id(dead).status == dg.DagsterRunStatus.FAILURE


def test_many_runs_of_another_pipeline_hide_no_failure(trained, monkeypatch):
    monkeypatch.setattr(runs, "RECENT", 3)
    failure, other = dg.DagsterRunStatus.FAILURE, {PIPELINE_TAG: "other", **range_tags("a", "b")}
    tags = {PIPELINE_TAG: "small", **range_tags("2024-02-01", "2024-02-02")}
    run_id = under_way(trained, "features", "predictions", status=failure, tags=tags)
    for _ in range(4):
        under_way(trained, job="other_score", status=failure, tags=other)
    assert failures(trained.wiring, trained.instance)["predictions", "2024-02-01"] == run_id


def test_a_process_that_has_ended_is_gone_although_its_parent_has_not_asked_how(trained):
    with subprocess.Popen(["sleep", "600"]) as process:
        tag = f"{processes._process(process.pid)} {processes._place()}"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        dead = under_way(trained, "features", tags={**range_tags("2024-02-01", "2024-02-01"), PROCESS_TAG: tag})
        look(trained, "predictions", at("2024-02-02T05:00"))
    assert trained.instance.get_run_by_id(dead).status == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("process", "status"),
    [
        ("{pid} {started} {host}/{boot}/{namespace}", dg.DagsterRunStatus.STARTED),
        ("{pid} 1 {host}/{boot}/{namespace}", dg.DagsterRunStatus.FAILURE),  # another process has this id now
        ("4194305 1 elsewhere/{boot}/{namespace}", dg.DagsterRunStatus.STARTED),
        ("4194305 1 {host}/{boot}/1", dg.DagsterRunStatus.STARTED),
        ("4194305 1 {host}/an-earlier-start-of-the-machine/{namespace}", dg.DagsterRunStatus.FAILURE),
    ],
)
def test_a_process_counts_as_gone_only_where_its_id_is_valid(trained, process, status):
    pid, started, place = this_process().split()
    host, boot, namespace = place.split("/")
    tag = process.format(pid=pid, started=started, host=host, boot=boot, namespace=namespace)
    run = under_way(trained, "features", tags={**range_tags("2024-02-01", "2024-02-01"), PROCESS_TAG: tag})
    look(trained, "predictions", at("2024-02-02T05:00"))
    assert trained.instance.get_run_by_id(run).status == status


def test_parameters_of_one_training_in_the_launchpad_are_not_undone_by_a_tick(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, known=True)
    assert deployment.run("model", first="2024-02-01", config={"model": {"params": {"max_iter": 9}}}).success
    assert requested(deployment, "training", at("2024-02-04T05:30")) == []


@pytest.mark.full
def test_one_model_for_all_is_requested_once_and_then_serves(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, model={"train": {"every": None}}, partitions=FEW_DAYS)
    assert look(deployment, "predictions", AFTER_ALL)[0] == []
    (request,), _ = look(deployment, "training", AFTER_ALL)
    assert request.run_config == {"ops": {"small__model": {"config": {"until": "2024-02-06"}}}}
    run_id = under_way(deployment, tags={}, job="small_train", run_config=request.run_config)
    assert look(deployment, "training", AFTER_ALL)[0] == []
    deployment.instance.report_run_failed(deployment.instance.get_run_by_id(run_id))
    assert tick(deployment, "training", AFTER_ALL) == [True]
    while tick(deployment, "predictions", AFTER_ALL):
        pass
    assert recorded(deployment)["models"] == 1
    assert list(deployment.pipeline.state().scores) == ["2024-02-06"], "the rest is what the model learned from"
