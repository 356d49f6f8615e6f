"""The MLflow flavour: any model that MLflow can load as a Python function, from a registry, a run or a folder.

Such a model may unpickle: whoever opens its bundle asks for trust. Its own signature is enforced, by us on the contract
and by MLflow on every call. The whole folder is kept in the bundle; no server is needed to score.
"""

import os
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.declaration.redaction import redact
from batch_platform.models.flavours.extras import needed
from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.native_threads import one_thread
from batch_platform.models.signature import Found, Input, InputKind, Signature, decoded

FLAVOUR = "mlflow"
MODEL_FILE = "model.zip"
LIBRARIES = ("mlflow", "pandas", "numpy")
UNPICKLES = (MODEL_FILE,)
DETAILS: Mapping[str, Any] = {"evaluated": "by MLflow's Python function, one call at a time"}
TRACKING = "MLFLOW_TRACKING_URI"
_KINDS: dict[str, InputKind] = {
    "double": "number",
    "float": "number",
    "long": "whole",
    "integer": "whole",
    "boolean": "whole",
    "string": "text",
}
_STORED = {"double": "float64", "float": "float32", "long": "int64", "integer": "int32", "boolean": "bool"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of files in an archive, so that the same folder gives the same bytes


@dataclass(frozen=True)
class MlflowPredictor:
    """A Python function of MLflow; it is not asked to be safe with threads."""

    model: Any
    signature: Signature
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        with self._lock, one_thread():
            raw = self.model.predict(self._frame(matrix))
        return as_scores(raw, len(matrix), self.signature)

    def _frame(self, matrix: NDArray[np.float64]) -> Any:
        asked = self.model.metadata.signature.inputs
        if asked.is_tensor_spec():
            return np.ascontiguousarray(matrix, dtype=asked.inputs[0].type)
        import pandas as pd

        rows = decoded(matrix, self.signature.contract)
        stored = {spec.name: _STORED.get(spec.type.name, "object") for spec in asked.inputs}
        return pd.DataFrame({name: rows[name].to_numpy().astype(dtype) for name, dtype in stored.items()})


def save(model: bytes, folder: Path) -> list[str]:
    """Write an archive of a model's folder as it is; gives its name."""
    (folder / MODEL_FILE).write_bytes(model)
    return [MODEL_FILE]


def load(files: Mapping[str, bytes], signature: Signature) -> MlflowPredictor:
    """Unpack a model's folder and load it; the folder lives as long as the model.

    Raises:
        IntegrityError: The archive leads out of its folder.
        DataError: MLflow cannot load it.
        WrongUseError: MLflow is not installed.
    """
    mlflow = library()
    folder = Path(tempfile.mkdtemp(prefix="batch-platform-"))
    try:
        _unpack(files[MODEL_FILE], folder)
        model = mlflow.pyfunc.load_model(str(folder))
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return MlflowPredictor(model, signature)


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a finished model has no parameters
    """Fetch a model's folder and read its signature.

    Raises:
        WrongUseError: It is not there, no server is named, or MLflow is not installed.
        DataError: It has no signature, or one that no table meets.
    """
    mlflow = library()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(reference) if Path(reference).is_dir() else _fetched(mlflow, reference, scratch)
        if not (folder / "MLmodel").is_file():
            msg = f"model.import: {reference} holds no file MLmodel."
            raise WrongUseError(msg, hint="name the folder that mlflow.<flavour>.save_model wrote.")
        told = mlflow.models.Model.load(str(folder))
        packed = _packed(folder)
    if told.signature is None or told.signature.inputs is None:
        msg = f"model.import: {reference} has no signature, so nothing can be held against it."
        raise DataError(msg, hint="log it with `signature=mlflow.models.infer_signature(inputs, outputs)`.")
    details = {
        "flavors": sorted(told.flavors),
        "run_id": told.run_id,
        "model_id": told.model_id,
        "mlflow_version": told.mlflow_version,
        "signature": told.signature.to_dict(),
    }
    return Found(packed, _inputs(told.signature.inputs, reference), details=details)


def library() -> Any:
    """MLflow, which is not to call home.

    Raises:
        WrongUseError: It is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with needed("mlflow", extra=FLAVOUR), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own code
        import mlflow
    return mlflow


def require_server(what: str) -> None:
    """Check that a tracking server is named; MLflow would make a database of its own in the current folder.

    Raises:
        WrongUseError: None is.
    """
    if not os.environ.get(TRACKING):
        msg = f"{what} needs MLflow's tracking server, and {TRACKING} is not set."
        raise WrongUseError(msg, hint=f"export {TRACKING}=http://127.0.0.1:5000 or the like.")


def _fetched(mlflow: Any, reference: str, scratch: str) -> Path:
    require_server(f"model.import: {reference}")
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=scratch))
    except Exception as error:  # MLflow's own, those of the network and of the disk share no class
        msg = f"model.import: {reference} cannot be fetched from {redact(os.environ[TRACKING])}: {' '.join(str(error).split())}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="see its name, version or alias in MLflow.") from error


def _inputs(asked: Any, reference: str) -> Sequence[Input]:
    if asked.is_tensor_spec():
        shape = asked.inputs[0].shape
        if len(asked.inputs) > 1 or len(shape) != 2:  # noqa: PLR2004 - a table
            msg = f"model.import: {reference} takes tensors of the shapes {[spec.shape for spec in asked.inputs]}, no table."
            raise DataError(msg, hint="log it with a signature of columns.")
        return [Input("", "number")] * shape[1]
    types = {spec.name or str(at): getattr(spec.type, "name", str(spec.type)) for at, spec in enumerate(asked.inputs)}
    if other := [f"{name} ({kind})" for name, kind in types.items() if kind not in _KINDS]:
        msg = f"model.import: {reference} takes {listed(other)}, which are no columns of numbers or text."
        raise DataError(msg, hint=f"log it with columns of {listed(_KINDS)}.")
    return [Input(name, _KINDS[kind]) for name, kind in types.items()]


def _packed(folder: Path) -> bytes:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=_EPOCH)
            archive.writestr(entry, path.read_bytes())
    return data.getvalue()


def _unpack(data: bytes, folder: Path) -> None:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
        if outside := [name for name in names if not (folder / name).resolve().is_relative_to(folder.resolve())]:
            msg = f"{MODEL_FILE} holds the paths {listed(outside)}, which lead out of its folder; it is not loaded."
            raise IntegrityError(msg, hint="import the model again.")
        archive.extractall(folder)
