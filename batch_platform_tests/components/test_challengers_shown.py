"""What Dagster and the command line show of challengers, and how they bring them up to date."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from batch_platform_tests.harness.command_line import InProcess, copy_of, published, run_command, write_project
from batch_platform_tests.harness.deployment import Deployment, deploy
from batch_platform_tests.harness.events import evaluations, value
from batch_platform_tests.harness.small_pipeline import LINEAR
from batch_platform_tests.harness.ticks import at, look, shown, tick

BROKEN = {"name": "broken", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_dept": 3}}
FIRST, LAST = "2024-02-01", "2024-02-03"
FEW_DAYS = {"start": "2024-01-17", "end": "2024-02-07"}  # enough to train a model, and six days that it serves


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tmp_path_factory.mktemp("template")


def names(deployment: Deployment) -> set[str | None]:
    registry = deployment.pipeline.state().registry
    return {registry.challengers.get(version.version) for version in registry.versions}


def test_a_run_of_dagster_trains_scores_and_measures_challengers_and_shows_their_numbers(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, challengers=[LINEAR, BROKEN], partitions=FEW_DAYS)
    assert deployment.run("features", first="2024-01-17", last=LAST).success
    assert deployment.run("model", first=FIRST).success
    (model,) = deployment.materializations("model")
    assert value(model, "linear_roc_auc") > 0.5
    assert "has no parameter max_dept" in value(model, "challengers")
    results = evaluations(deployment, "model", "challengers")
    assert (results[FIRST].passed, results[FIRST].severity.value) == (False, "WARN")
    assert results[None].metadata["failed"].value == f"broken ({FIRST})"
    assert evaluations(deployment, "model", "gate")[FIRST].passed
    assert deployment.run("predictions", first=FIRST, last=LAST).success
    for entry in deployment.materializations("predictions"):
        assert -1 <= value(entry, "linear_rank_correlation") <= 1
        assert 0 <= value(entry, "linear_decisions_flipped") <= 1
        assert value(entry, "linear_rows_rejected") == 0
        assert "| linear | 2024-02-01-" in value(entry, "challengers")
    results = evaluations(deployment, "predictions", "challengers")
    assert results[f"{FIRST}...{LAST}"].passed
    assert results[None].metadata["scored"].value == "3"
    assert deployment.run("performance", first=FIRST, last=LAST).success
    (entry, *_) = deployment.materializations("performance")
    assert value(entry, "linear_roc_auc") != value(entry, "roc_auc")
    shown_of = {spec.key.path[1]: spec for spec in deployment.definitions.resolve_all_asset_specs()}
    for asset in ("model", "predictions"):
        assert "Challengers (`linear`, `broken`) score the same rows" in shown_of[asset].description
    assert "`small.challenger_scores`" in shown_of["predictions"].metadata["where_columns_come_from"].value
    assert "null for the model that serves" in shown_of["performance"].description


@pytest.mark.parametrize("every", ["month", None])
@pytest.mark.full
def test_the_schedule_of_training_trains_an_added_challenger_and_leaves_the_model(
    template, tmp_path, monkeypatch, every
):
    folder = template / str(every)
    declared = {"model": {"train": {"every": every}}, "partitions": FEW_DAYS}
    if not (folder / "home").exists():
        with monkeypatch.context() as aside:
            deploy(folder, aside, **declared).train()
    shutil.copytree(folder / "home", tmp_path / "home", symlinks=True)
    deployment = deploy(tmp_path, monkeypatch, **declared, challengers=[LINEAR])
    when = at("2024-02-06T05:00")
    (champion,) = [version.version for version in deployment.pipeline.state().registry.versions]
    requests, _ = look(deployment, "training", when)
    assert [request.run_config["ops"]["small__model"]["config"]["challengers_only"] for request in requests] == [True]
    if every:
        assert [shown(request) for request in requests] == [(("model",), FIRST, FIRST)]
    assert tick(deployment, "training", when) == [True]
    assert names(deployment) == {None, "linear"}
    assert deployment.pipeline.state().registry.champion(when).version == champion
    assert look(deployment, "training", when)[0] == []
    (event,) = deployment.materializations("model")
    told = event.asset_materialization.metadata
    assert (told["logged_for_run"].value, told["version"].value) == ("training", champion), "the model is as it was"
    (seen,) = deployment.observations("model")
    assert "linear_roc_auc" in seen.asset_observation.metadata
    assert all(result.passed for result in evaluations(deployment, "model", "gate").values())


@pytest.fixture(scope="module")
def challenged(tmp_path_factory) -> Path:
    """A project with two challengers of which one cannot be trained, all that is due done."""
    folder = write_project(
        tmp_path_factory.mktemp("challenged") / "project", challengers=[LINEAR, BROKEN], partitions=FEW_DAYS
    )
    answer = run_command(folder, "run", "small")
    assert answer.code == 0, answer.err
    assert "challengers.broken.params: DecisionTreeClassifier has no parameter max_dept" in answer.err
    return folder


@pytest.fixture
def project(challenged: Path, tmp_path: Path) -> Path:
    return copy_of(challenged, tmp_path / "project")


def by_challenger(cli: InProcess, project: Path) -> dict[str | None, dict[str, Any]]:
    return {version["challenger"]: version for version in cli(project, "models", "small", "list", "--json").json}


@pytest.mark.full
def test_the_command_line_lists_shows_compares_and_promotes_challengers(cli, project):
    (status,) = cli(project, "status", "small", "--json").json
    listed = by_challenger(cli, project)
    linear, broken = status["challengers"]
    assert (linear["name"], linear["version"]) == ("linear", listed["linear"]["version"])
    assert broken["version"] is None
    assert "max_dept" in broken["failure"]
    assert status["champion"] == listed[None]["version"]
    assert status["due"] == {}
    text = cli(project, "status", "small").out
    assert f"challenger linear: {linear['version']} (accuracy" in text
    assert "challenger broken: challengers.broken.params: " in text
    assert "challenger" in cli(project, "models", "small").out.splitlines()[0]
    shown_of = cli(project, "models", "small", "show", linear["version"], "--json").json
    assert shown_of["manifest"]["estimator"] == LINEAR["estimator"]
    assert shown_of["decisions"][0]["action"] == "challenger"
    compared = cli(project, "models", "small", "compare", status["champion"], linear["version"], "--json").json
    assert compared["estimator"][linear["version"]] == LINEAR["estimator"]
    promoted = cli(project, "models", "small", "promote", linear["version"], "--json").json
    assert (promoted["champion_before"], promoted["champion_after"]) == (status["champion"], linear["version"])
    assert by_challenger(cli, project)["linear"]["champion"]
    (status,) = cli(project, "status", "small", "--json").json
    assert status["counts"]["stale"] == len(promoted["partitions"]) == 6
    scored = "SELECT count(*) FROM small.challenger_scores WHERE challenger = 'linear'"
    assert published(project, scored) == published(project, "SELECT count(*) FROM small.predictions")


@pytest.mark.full
def test_check_names_the_challenger_and_the_key(cli, project):
    answer = cli(project, "check")
    assert answer.code == 2
    says = r"\S+/defs.yaml:\d+: attributes.challengers.broken.params: DecisionTreeClassifier has no parameter max_dept"
    assert re.match(says, answer.error)
    assert "did you mean 'max_depth'" in answer.error
