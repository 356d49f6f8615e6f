"""MLflow with a tracking server of its own: versions trained here are registered there, and can be imported back."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import PublishingError, WrongUseError
from batch_platform.declaration.model import Model
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.declared_model import read_import
from batch_platform.models.flavours.mlflow import TRACKING, library
from batch_platform.models.publishing import CHAMPION
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)  # the model of February is due, and two days that it serves


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a tracking server on SQLite, in a process of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/files"]
    # Jobs would be six more processes, which a registry does not need.
    switched_off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **switched_off}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health") as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def tracking(server, monkeypatch):
    monkeypatch.setenv(TRACKING, server)
    library().set_tracking_uri(server)
    return library()


@pytest.fixture(scope="module")
def published(server, tmp_path_factory):
    """A pipeline with all that is due done, its models published."""
    pipeline = small_pipeline(tmp_path_factory.mktemp("published"), model={"publish": "mlflow"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACKING, server)
        library().set_tracking_uri(server)
        carry_out(pipeline, NOW)
    return pipeline


def small_rows() -> pl.DataFrame:
    return small_events().tail(50).drop("id", "ts", "returned")


@pytest.mark.full
def test_a_version_trained_here_is_registered_with_metrics_signature_and_lineage(published, tracking):
    (version,) = published.state().registry.versions
    client = tracking.MlflowClient()
    entry = client.get_model_version_by_alias("small", CHAMPION)
    assert entry.tags["version"] == version.version
    assert entry.tags["sha256"] == version.sha256
    assert entry.tags["decision"] == "approved"
    assert entry.tags["training_features_sha256"] == published.bundle(version).manifest.training.features_sha256
    assert client.get_run(entry.run_id).data.metrics == pytest.approx(version.metric_values)
    signature = tracking.models.get_model_info(f"models:/small@{CHAMPION}").signature
    assert signature.inputs.input_names() == ["amount", "items", "shop", "known"]
    assert [spec.name for spec in signature.outputs.inputs] == ["prediction", "score"]


@pytest.mark.full
def test_mlflow_scores_it_as_the_platform_does(published, tracking):
    (version,) = published.state().registry.versions
    bundle = published.bundle(version)
    model = tracking.pyfunc.load_model(f"models:/small@{CHAMPION}")
    rows = small_rows()
    frame = rows.with_columns(pl.col("items").cast(pl.Int64)).to_pandas()
    expected = bundle.predictor.predict(bundle.contract.encode(bundle.contract.split(rows).kept))[:, 1]
    np.testing.assert_array_equal(model.predict(frame)["score"], expected)


@pytest.mark.full
def test_a_registered_model_serves_with_its_signature_enforced(tracking, tmp_path):
    from sklearn.linear_model import LogisticRegression

    rows = small_events().filter(pl.col("returned").is_not_null(), pl.col("amount").is_not_null())
    frame = rows.select("amount", pl.col("items").cast(pl.Int64)).to_pandas()
    fitted = LogisticRegression().fit(frame, rows["returned"].to_numpy())
    with tracking.start_run() as run:
        tracking.sklearn.log_model(
            fitted,
            name="model",
            signature=tracking.models.infer_signature(frame, fitted.predict_proba(frame)),
            pyfunc_predict_fn="predict_proba",
            pip_requirements=["scikit-learn"],
        )
        entry = tracking.register_model(f"runs:/{run.info.run_id}/model", "churn")
    tracking.MlflowClient().set_registered_model_alias("churn", CHAMPION, entry.version)
    declared = {"import": f"models:/churn@{CHAMPION}", "task": "binary", "classes": [False, True], "allow_pickle": True}
    sql = "SELECT id, ts, items, coalesce(amount, 0) AS amount FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    declared |= {"estimator": None, "params": None}
    pipeline = small_pipeline(tmp_path, model=declared, features_sql=sql, predictions=None)
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.versions
    bundle = pipeline.bundle(version)
    assert bundle.contract.names == ["amount", "items"], "in the order of its signature"
    assert bundle.manifest.details["run_id"] == run.info.run_id
    assert bundle.manifest.pickle
    asked = rows.select("amount", "items").tail(20)
    np.testing.assert_array_equal(
        bundle.predictor.predict(bundle.contract.encode(bundle.contract.split(asked).kept)),
        fitted.predict_proba(frame.tail(20)),
    )


@pytest.mark.full
def test_the_alias_moves_to_newer_serving_periods_and_never_back(published, tracking):
    client = tracking.MlflowClient()
    standing = client.get_model_version_by_alias("small", CHAMPION)
    client.set_model_version_tag("small", standing.version, "serving_start", "2024-02-01")
    published.train(published.spec.periods.serving.named("2024-02-01"), Stamp("again", NOW))
    assert client.get_model_version_by_alias("small", CHAMPION).version == standing.version
    client.set_model_version_tag("small", standing.version, "serving_start", "2024-01-01")
    published.train(published.spec.periods.serving.named("2024-02-01"), Stamp("newer", NOW))
    assert int(client.get_model_version_by_alias("small", CHAMPION).version) > int(standing.version)


@pytest.mark.full
@pytest.mark.usefixtures("tracking")
def test_a_model_that_is_not_in_the_registry_is_refused_with_its_name(tmp_path):
    model = Model.model_validate({"import": "models:/nothing@champion", "task": "regression", "allow_pickle": True})
    with pytest.raises(WrongUseError, match="models:/nothing@champion cannot be fetched"):
        read_import(model, tmp_path, {})


@pytest.mark.full
def test_a_version_that_mlflow_rejects_is_still_registered_here(tmp_path, monkeypatch):
    monkeypatch.delenv(TRACKING, raising=False)
    pipeline = small_pipeline(tmp_path, model={"publish": "mlflow"})
    with pytest.raises(
        PublishingError, match=rf"is registered here \(approved\), but not in MLflow: .*{TRACKING} is not set"
    ):
        carry_out(pipeline, NOW)
    assert len(pipeline.state().registry.approved()) == 1
