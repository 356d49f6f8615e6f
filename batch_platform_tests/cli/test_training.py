"""`train` and `run --retrain`: when a model is trained again, on which history, and what is said of it."""

import re
from pathlib import Path

import pytest

from batch_platform_tests.harness.command_line import published, redeclare, write_project
from batch_platform_tests.harness.dagster_project import pipeline_folder

VERSIONS = "SELECT version, params FROM batch_platform.model_versions ORDER BY seq"
SERVING = "SELECT DISTINCT model_version FROM small.predictions"
WORSE = {"max_iter": 1, "max_leaf_nodes": 2, "early_stopping": False}


def versions(folder: Path) -> list[str]:
    return [version for version, _ in published(folder, VERSIONS)]


def test_train_builds_the_history_of_the_newest_serving_period_and_scores_nothing(cli, fresh):
    answer = cli(fresh, "train", "small")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[:3] == [
        "small, serving period 2024-02-01: not trained",
        "  build features of 2024-01-01 to 2024-01-30 (30)",
        "  train 2024-02-01",
    ]
    (version,) = versions(fresh)
    assert f"{version} is approved: meets the gate.\n" in answer.out
    assert "metrics on the evaluation rows; trivial baseline: class shares" in answer.out
    judged = "They are those of the judged fit, which learned from "
    assert re.search(rf"{judged}[\d,]+ rows of 22 days. The fit that serves learned from these rows too.\n", answer.out)
    assert published(fresh, "SELECT count(*) FROM batch_platform.score_runs") == [(0,)]


def test_a_changed_parameter_is_told_by_status_and_trained_by_the_next_run(cli, project):
    (before,) = versions(project)
    redeclare(project, params={"max_iter": 6, "max_leaf_nodes": 7, "early_stopping": False})
    said = f"  parameters changed in the declaration since {before}: a training is due\n"
    assert said in cli(project, "status").out
    assert cli(project, "status", "--json").json[0]["declaration_change"]["differs"] == ["parameters"]
    answer = cli(project, "run", "small")
    assert "  train 1 model (2024-02-01)\n" in answer.out
    _, new = versions(project)
    assert published(project, SERVING) == [(new,)]
    assert cli(project, "run", "small").out.splitlines()[:2] == [
        "small: everything asked for is up to date.",
        "  the partitions end on 2024-03-01 (partitions.end): newer rows are not scored",
    ]
    assert "in the declaration" not in cli(project, "status").out


@pytest.mark.full
def test_a_change_whose_model_is_refused_is_not_trained_again_and_status_says_why(cli, project):
    (before,) = versions(project)
    redeclare(project, params=WORSE, promote={"metric": "log_loss", "tolerance": 0})
    assert cli(project, "run", "small").code == 0
    _, refused = versions(project)
    said = cli(project, "status").out
    assert f"  parameters changed in the declaration since {before}: {refused}, trained with them, is refused\n" in said
    assert f"  model 2024-02-01: {refused} is refused: worse than champion {before}: log_loss 0." in said
    assert f"batch-platform models small promote {refused} lets it serve all the same\n" in said
    assert cli(project, "run", "small").out.splitlines()[0] == "small: everything asked for is up to date."
    assert len(versions(project)) == 2
    assert published(project, SERVING) == [(before,)]
    again = cli(project, "train", "small")
    assert again.code == 0
    assert f"nothing is due; the newest version is {refused}, which is refused: worse than champion" in again.out
    forced = cli(project, "train", "small", "--force")
    assert forced.code == 1
    assert f"{versions(project)[-1]} is refused: worse than champion {before}: log_loss 0." in forced.error


def test_a_change_that_cannot_be_trained_is_tried_once_and_the_champion_goes_on(cli, project):
    (before,) = versions(project)
    redeclare(project, params={"max_iter": 5, "learning_rate": -1.0})
    failed = cli(project, "run", "small")
    assert failed.code == 1
    assert "learning_rate" in failed.error
    assert cli(project, "run", "small").out.splitlines()[0] == "small: everything asked for is up to date."
    said = cli(project, "status").out
    assert f"  parameters changed in the declaration since {before}: the training with them failed\n" in said
    assert "  model 2024-02-01: could not be trained: model.params.learning_rate: -1.0 is not allowed" in said
    assert versions(project) == [before]
    trainings = (
        "SELECT version IS NULL, failure LIKE '%learning_rate%' FROM batch_platform.model_trainings ORDER BY seq"
    )
    assert published(project, trainings) == [(False, None), (True, True)]


@pytest.mark.full
def test_a_removed_feature_is_mended_for_every_serving_period_by_the_one_command_that_the_error_names(cli, tmp_path):
    folder, ranged = tmp_path / "project", ("run", "small", "--to", "2024-02-17")
    train = {"every": "week", "start": "2024-02-04", "evaluate": "3 days"}
    write_project(folder, model={"train": train}, predictions={"keep": []})
    assert cli(folder, *ranged).code == 0
    sql = pipeline_folder(folder) / "features.sql"
    sql.write_text(sql.read_text().replace(" items,", ""))
    broken = cli(folder, *ranged).error
    assert "The features lack the columns items;" in broken
    assert broken.endswith("batch-platform train small --all trains the models of all serving periods without it.")
    trained = cli(folder, "train", "small", "--all", "--json").json
    periods = [("2024-02-04", True), ("2024-02-11", False)]  # the newest one: the run has trained it
    assert [(line["serving_period"], line["trained"]) for line in trained][:2] == periods
    assert cli(folder, *ranged).code == 0
