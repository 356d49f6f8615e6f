"""Bundles in MLflow's model registry, with their metrics, signature and origin.

MLflow stores the bundle itself and loads it with this module: the bundle is hashed before it is parsed, rows are checked against its
contract, and nothing is unpickled unless the pipeline allows it.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from batch_platform import __version__
from batch_platform.declaration.errors import DataError, listed
from batch_platform.models.bundle import Bundle, Manifest, open_bundle, read_manifest
from batch_platform.models.contract import REASON, ContractColumn
from batch_platform.models.flavours.mlflow import data_frame, library, require_server

CHAMPION = "champion"
_NOTE = "published.json"
_TYPES = {"float": "double", "integer": "long", "boolean": "boolean", "category": "string"}


def publish_bundle(folder: Path, sha256: str, *, decision: str, reason: str, allow_pickle: bool = False) -> None:
    """Register a bundle under the name of its pipeline, and move the alias `champion` to it if it may serve.

    An older serving period does not take the alias from a newer one. Raises IntegrityError if the bundle differs from what was
    registered here, and WrongUseError if no server is set or MLflow is not installed.
    """
    require_server("model.publish: mlflow")
    mlflow = library()
    manifest = read_manifest(folder, sha256)
    tags = _tags(manifest, folder.name, sha256) | {"decision": decision, "reason": reason}
    mlflow.set_experiment(manifest.pipeline)
    with mlflow.start_run(run_name=folder.name, tags=tags) as run, tempfile.TemporaryDirectory() as scratch:
        mlflow.log_params(manifest.params)
        mlflow.log_metrics(manifest.evaluation.metrics)
        data = Path(scratch) / "bundle"
        shutil.copytree(folder, data / folder.name)
        note = {"version": folder.name, "sha256": sha256, "allow_pickle": allow_pickle}
        (data / _NOTE).write_text(json.dumps(note), encoding="utf-8")
        mlflow.pyfunc.log_model(
            name="model",
            loader_module=__name__,
            data_path=str(data),
            signature=_signature(mlflow, manifest),
            pip_requirements=[f"batch-platform=={__version__}", *(f"{k}=={v}" for k, v in manifest.libraries.items())],
        )
        entry = mlflow.register_model(f"runs:/{run.info.run_id}/model", manifest.pipeline, tags=tags)
    client = mlflow.MlflowClient()
    if decision == "approved":
        holder = client.get_registered_model(manifest.pipeline).aliases.get(CHAMPION)
        tags = {} if holder is None else client.get_model_version(manifest.pipeline, holder).tags
        if tags.get("serving_start", "") <= manifest.serving_start:
            client.set_registered_model_alias(manifest.pipeline, CHAMPION, entry.version)


def _tags(manifest: Manifest, version: str, sha256: str) -> dict[str, str]:
    window = {f"training_{key}": str(value) for key, value in asdict(manifest.training).items()}
    facts = (
        "serving_period",
        "serving_start",
        "estimator",
        "flavour",
        "task",
        "features_code_version",
        "run_id",
        "refit",
    )
    tags = {name: str(getattr(manifest, name)) for name in ("pipeline", *facts)}
    return {**window, **tags, "version": version, "sha256": sha256}


def _signature(mlflow: Any, manifest: Manifest) -> Any:
    column_spec, schema = mlflow.types.ColSpec, mlflow.types.Schema
    inputs: list[Any] = [
        column_spec(_type(ContractColumn(**column)), name=column["name"], required=not column["nullable"])
        for column in manifest.contract
    ]
    outputs: list[Any] = [column_spec(_label_type(manifest), name="prediction")]
    outputs += [column_spec("double", name=name) for name in _score_names(manifest)]
    return mlflow.models.ModelSignature(inputs=schema(inputs), outputs=schema(outputs))


def _type(column: ContractColumn) -> str:
    """The MLflow type of a column; its integers and booleans cannot be null."""
    return "double" if column.nullable and column.type in ("integer", "boolean") else _TYPES[column.type]


def _label_type(manifest: Manifest) -> str:
    if manifest.task in ("clustering", "outliers"):
        return "integer"
    kinds = {bool: "boolean", int: "long", float: "double", str: "string"}
    return kinds[type(manifest.classes[0])] if manifest.classes else "double"


def _score_names(manifest: Manifest) -> list[str]:
    if manifest.task in ("binary", "outliers"):
        return ["score"]
    return [f"score_{label}" for label in manifest.classes]


@dataclass(frozen=True)
class _PublishedModel:
    """The model that MLflow calls: a table in, a table of `prediction` and scores out."""

    bundle: Bundle

    def predict(self, model_input: Any) -> Any:
        split = self.bundle.contract.split(pl.from_pandas(model_input))
        if split.rejected.height:
            msg = f"{split.rejected.height} of {len(model_input)} rows break the contract: {listed(set(split.rejected[REASON]))}."
            raise DataError(msg, hint="check the model's signature; in a pipeline such rows are rejected one by one.")
        raw = self.bundle.predictor.predict(self.bundle.contract.encode(split.kept))
        manifest = self.bundle.manifest
        if manifest.task == "outliers":
            flags = np.where(raw > 0, -1, 1).astype(np.int32)
            return data_frame({"prediction": flags, "score": raw}, index=model_input.index)
        if not manifest.classes:
            return data_frame({"prediction": raw}, index=model_input.index)
        labels = np.array(manifest.classes)[raw.argmax(axis=1)]
        shown = raw[:, 1:] if manifest.task == "binary" else raw
        scores = dict(zip(_score_names(manifest), shown.T, strict=True))
        return data_frame({"prediction": labels, **scores}, index=model_input.index)


def _load_pyfunc(path: str) -> _PublishedModel:  # pyright: ignore[reportUnusedFunction] - MLflow calls it by its name
    note = json.loads((Path(path) / _NOTE).read_text(encoding="utf-8"))
    bundle = open_bundle(Path(path) / note["version"], note["sha256"], allow_pickle=note["allow_pickle"])
    return _PublishedModel(bundle)
