"""`train` and `run --retrain`: when a model is trained again, on which history, and what is said of it."""

import re
from pathlib import Path

import pytest
import yaml

from batch_platform_tests.harness.command_line import published, redeclare, write_project
from batch_platform_tests.harness.dagster_project import pipeline_folder

PERIOD = "2024-02-01"
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


def test_train_finds_nothing_to_do_unless_it_is_forced_and_then_trains_whatever_was_scored(cli, project):
    (before,) = versions(project)
    report = cli(project, "train", "small", "--json").json
    assert (report["trained"], report["version"], report["serving_period"]) == (False, before, PERIOD)
    assert (
        f"serving period 2024-02-01: nothing is due; the newest version is {before}.\n"
        in cli(project, "train", "small").out
    )
    lost = list((project / ".batch_platform" / "lake" / "small" / "features").rglob("2024-01-1*.parquet"))
    for file in lost:
        file.unlink()
    forced = cli(project, "train", "small", "--force", "--json").json
    assert (forced["trained"], forced["decision"], forced["refit"]) == (True, "approved", True)
    assert forced["baseline"]["name"].startswith("class shares")
    assert set(forced["baseline"]["metrics"]) == set(forced["metrics"])
    assert versions(project) == [before, forced["version"]]
    assert len(lost) == 10
    assert all(file.is_file() for file in lost), "the history is built again"


@pytest.mark.parametrize(
    ("period", "code", "says"),
    [
        ("2024-01-01", 1, "small, serving period 2024-01-01: its training window holds 0 partitions."),
        ("2024-02-02", 2, "'2024-02-02' is not the key of a partition: month partitions have keys like '2024-01-01'."),
        ("2024-03-01", 2, "Partition '2024-03-01' lies at or after the end of the partitions"),
    ],
)
def test_train_refuses_a_serving_period_that_cannot_be_trained(cli, fresh, period, code, says):
    answer = cli(fresh, "train", "small", "--period", period)
    assert answer.code == code
    assert answer.error.startswith(says)


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


def test_changes_are_left_to_the_command_if_that_is_declared(cli, tmp_path):
    folder = write_project(tmp_path / "project", model={"train": {"retrain": "never"}})
    cli(folder, "run", "small", "--to", "2024-02-02")
    (before,) = versions(folder)
    redeclare(folder, params={"max_iter": 6})
    assert "train" not in cli(folder, "run", "small", "--to", "2024-02-02").out
    said = f"  parameters changed in the declaration since {before}: batch-platform train small trains with them\n"
    assert said in cli(folder, "status").out
    assert cli(folder, "train", "small").out.startswith(
        "small, serving period 2024-02-01: the declared parameters changed\n"
    )
    assert len(versions(folder)) == 2


@pytest.mark.full
def test_run_retrains_the_newest_model_and_scores_with_it(cli, project):
    (before,) = versions(project)
    answer = cli(project, "run", "small", "--retrain")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1] == "  train 1 model (2024-02-01)"
    first, second = versions(project)
    assert first == before
    assert published(project, SERVING) == [(second,)]
    both = cli(project, "run", "small", "--retrain", "--model", first)
    assert both.code == 2
    assert both.error.startswith("--retrain trains a model, and --model scores with a version that exists.")


def test_models_show_lists_the_trials_of_a_search_the_best_first(cli, project):
    search = {"params": {"learning_rate": [0.001, 0.3], "max_leaf_nodes": [3, 7]}, "trials": 3}
    redeclare(project, params={"max_iter": 5, "early_stopping": False}, search=search)
    answer = cli(project, "train", "small")
    assert answer.code == 0, answer.err
    version = versions(project)[-1]
    manifest = cli(project, "models", "small", "show", version, "--json").json["manifest"]
    found = manifest["search"]
    assert found["best"].items() <= manifest["params"].items()
    lines = cli(project, "models", "small", "show", version).out.splitlines()
    at = lines.index("search: 4 trials, scored within the rows to learn from")
    assert lines[at + 1] == found["remark"], "no trial is clearly better than the declared parameters"
    assert sorted(lines[at + 2].split()[:2]) == ["learning_rate", "max_leaf_nodes"]
    scores = [line.split()[-4] for line in lines[at + 3 : at + 7]]
    assert scores == sorted((f"{trial['score']:.4f}" for trial in found["trials"]), reverse=True)
    assert [line.split()[:2] for line in lines[at + 3 : at + 7]].count(["default", "default"]) == 1
    assert cli(project, "status", "small").out.count("changed") == 0


def test_models_show_puts_each_metric_beside_that_of_the_baseline(cli, project):
    (version,) = versions(project)
    lines = cli(project, "models", "small", "show", version).out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("metrics on the evaluation rows"))
    assert lines[at].startswith("metrics on the evaluation rows; trivial baseline: class shares")
    assert lines[at + 1].startswith("  They are those of the judged fit, which learned from ")
    assert lines[at + 2].split() == ["metric", "value", "baseline"]
    evaluation = cli(project, "models", "small", "show", version, "--json").json["manifest"]["evaluation"]
    shown = {line.split()[0]: line.split()[1:] for line in lines[at + 3 : at + 3 + len(evaluation["metrics"])]}
    assert set(shown) == set(evaluation["metrics"])
    assert (
        float(shown["roc_auc"][0])
        > float(shown["roc_auc"][1])
        == pytest.approx(evaluation["baseline"]["metrics"]["roc_auc"], abs=1e-3)
    )
    assert "refit: True" in "\n".join(lines)


def test_a_model_without_a_period_learns_from_all_that_is_known_and_an_earlier_one_serves_the_past_on_demand(
    cli, tmp_path
):
    folder = write_project(
        tmp_path / "project",
        partitions={"end": "2024-01-21"},
        model={"train": {"every": None, "evaluate": "3 days"}},
    )
    first = cli(folder, "run", "small")
    assert first.code == 0, first.err
    assert "  train 1 model (2024-01-20)" in first.out.splitlines()
    assert "  19 partitions are warm-up (2024-01-01 to 2024-01-19): the first model serves from 2024-01-20" in first.out
    (newest,) = versions(folder)
    ((rows,),) = published(folder, "SELECT rows_trained FROM batch_platform.model_versions")
    assert 700 < rows <= 18 * 40, "some rows have no label"
    learned = f"learned from {rows} rows of 18 days"
    judged = r"\(of the judged fit, which learned from \d{3} rows of 14 days\)"
    assert re.search(rf"model {newest}, {learned}: roc_auc 0\.\d{{4}} {judged}[,;]", first.out)
    hint = "batch-platform run small --from 2024-01-08, to score the past too, by a model of what was before"
    assert hint in first.out
    status = cli(folder, "status").out
    assert status.splitlines()[0] == "small: 1 scored, 19 warm-up"
    assert f", {learned}\n" in status
    past = cli(folder, "run", "small", "--from", "2024-01-08")
    assert past.code == 0, past.err
    assert "  train 1 model (2024-01-08)" in past.out.splitlines()
    scored = "SELECT min(partition_key), max(partition_key), count(*), bool_or(in_sample) FROM batch_platform.score_runs GROUP BY model_version ORDER BY 1"
    assert published(folder, scored) == [
        ("2024-01-08", "2024-01-19", 12, False),
        ("2024-01-20", "2024-01-20", 1, False),
    ]
    assert hint not in past.out
    refused = cli(folder, "run", "small", "--partition", "2024-01-04")
    assert "small, partition 2024-01-04: no model serves it" in refused.error


def test_a_refused_training_that_was_asked_for_ends_with_exit_code_1_and_says_what_to_do(cli, project):
    (before,) = versions(project)
    redeclare(project, params=WORSE, promote={"metric": "log_loss", "tolerance": 0})
    answer = cli(project, "train", "small")
    _, refused = versions(project)
    assert answer.code == 1
    assert answer.error.startswith(
        f"small, serving period 2024-02-01: {refused} is refused: worse than champion {before}: log_loss 0."
    )
    assert answer.error.endswith(f"batch-platform models small promote {refused}")
    again = cli(project, "train", "small")
    assert again.code == 0
    assert f"nothing is due; the newest version is {refused}, which is refused: worse than champion" in again.out
    retrained = cli(project, "run", "small", "--retrain")
    assert retrained.code == 1
    assert f"serving period 2024-02-01: {versions(project)[-1]} is refused: " in retrained.error
    assert published(project, SERVING) == [(before,)]


def test_a_removed_feature_is_mended_for_every_serving_period_by_the_one_command_that_the_error_names(cli, tmp_path):
    train = {"every": "week", "start": "2024-02-04", "evaluate": "3 days"}
    folder = write_project(tmp_path / "project", model={"train": train})
    assert cli(folder, "run", "small", "--to", "2024-02-24").code == 0
    sql = pipeline_folder(folder) / "features.sql"
    sql.write_text(sql.read_text().replace(" items,", ""))
    redeclare_kept(folder, "known")
    broken = cli(folder, "run", "small", "--to", "2024-02-24")
    assert broken.code == 1
    assert "The features lack the columns items;" in broken.error
    assert "partitions failed the same way: 2024-02-05, " in broken.error
    assert broken.error.endswith(
        "batch-platform train small --all trains the models of all serving periods without it."
    )
    trained = cli(folder, "train", "small", "--all", "--json").json
    assert [(it["serving_period"], it["trained"]) for it in trained][:3] == [
        ("2024-02-04", True),
        ("2024-02-11", True),
        ("2024-02-18", False),  # the newest one: the run has trained it
    ]
    assert cli(folder, "run", "small", "--to", "2024-02-24").code == 0
    both = cli(folder, "train", "small", "--all", "--period", "2024-02-04")
    assert both.error.startswith("--period names one serving period, and --all means every one.")


def redeclare_kept(folder: Path, *columns: str) -> None:
    """Keep other columns of the features with the predictions."""
    file = pipeline_folder(folder) / "defs.yaml"
    declared = yaml.safe_load(file.read_text(encoding="utf-8"))
    declared["attributes"]["predictions"]["keep"] = [*columns]
    file.write_text(yaml.safe_dump(declared, allow_unicode=True), encoding="utf-8")
