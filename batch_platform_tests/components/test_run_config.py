"""What a launch can be told, and what the list of runs shows of it."""

import json
from typing import Any

import dagster as dg
import pytest

from batch_platform.components.runs import PARTITIONS_TAG
from batch_platform_tests.harness.deployment import Deployment, deploy, deploy_trained
from batch_platform_tests.harness.small_pipeline import DECLARATION

DECLARED = DECLARATION["model"]["params"]


def offered(deployment: Deployment) -> dict[str, Any]:
    """What the launchpad fills in for a training."""
    schema = deployment.definitions.resolve_job_def("small_train").run_config_schema
    return schema.run_config_schema_type.fields["ops"].default_value["small__model"]["config"]


def test_the_launchpad_fills_in_the_declared_parameters_and_only_the_options_that_apply(tmp_path, monkeypatch):
    assert offered(deploy(tmp_path, monkeypatch)) == {"params": DECLARED}
    challenged = deploy(tmp_path, monkeypatch, challengers=[{"name": "linear", "estimator": "sklearn.svm.LinearSVC"}])
    assert offered(challenged) == {"params": DECLARED, "challengers_only": False}


def test_parameters_left_as_filled_in_count_as_declared(tmp_path, monkeypatch):
    weights = {"class_weight": {False: 1, True: 2.5}}
    trained = deploy_trained(tmp_path, monkeypatch, model={"params": weights})
    sent = {**weights, "max_iter": 3}
    sent = json.loads(json.dumps(sent))  # as a launch is stored
    assert "false" in sent["class_weight"]
    result = trained.run("model", first="2024-02-01", config={"model": {"params": sent}})
    assert result.success
    (version,) = [model for model in trained.pipeline.state().registry.versions if model.run_id == result.run_id]
    assert json.loads(version.params) == {**DECLARED, "max_iter": 3, "class_weight": {"false": 1, "true": 2.5}}


def test_a_secret_among_the_parameters_is_not_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_TOKEN", "hunter2hunter2")
    secret = {"build": "shop.models.remote", "estimator": None, "params": {"password": "hunter2hunter2"}}
    assert offered(deploy(tmp_path, monkeypatch, model=secret))["params"] == {}


def test_until_is_refused_where_each_period_has_its_own_model(tmp_path, monkeypatch):
    trained = deploy_trained(tmp_path, monkeypatch)
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "until"'):
        trained.run("model", first="2024-02-01", config={"model": {"until": "2024-02-10"}})


@pytest.mark.full
def test_a_run_over_a_range_shows_which(tmp_path, monkeypatch):
    trained = deploy_trained(tmp_path, monkeypatch)

    def shown(first: str, last: str | None) -> str | None:
        result = trained.run("features", "predictions", first=first, last=last)
        assert result.success
        run = trained.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run.tags.get(PARTITIONS_TAG)

    assert shown("2024-02-01", "2024-02-03") == "2024-02-01...2024-02-03"
    assert shown("2024-02-04", "2024-02-04") == "2024-02-04"
    assert shown("2024-02-05", None) is None, "Dagster shows one partition itself"
