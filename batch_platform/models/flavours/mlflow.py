"""The MLflow flavour: any model that MLflow can load as a Python function, from a registry, a run or a folder.

Such a model may contain pickles, so opening its bundle needs trust. Its signature is enforced twice: by the contract, and by MLflow
on every call. The bundle holds the model's whole folder; scoring needs no server.
"""

import os
import re
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.declaration.importing import needed
from batch_platform.declaration.redaction import redact
from batch_platform.models.contract import Contract, ForeignModel, Input, InputKind, Signature, decoded
from batch_platform.models.flavours.flavour import Flavour, PredictorInTurns

MODEL_FILE = "model.zip"
TRACKING = "MLFLOW_TRACKING_URI"
_REFERENCE = re.compile(r"(models|runs|mlflow-artifacts):/.*|.*/")
_TYPES: dict[str, tuple[InputKind, str]] = {  # kind of a column, and the dtype that MLflow takes, by MLflow's type
    "double": ("number", "float64"),
    "float": ("number", "float32"),
    "long": ("whole", "int64"),
    "integer": ("whole", "int32"),
    "boolean": ("whole", "bool"),
    "string": ("text", "object"),
}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file in an archive, so that the same folder gives the same bytes


def _table(schema: Any, contract: Contract, matrix: NDArray[np.float64]) -> Any:
    """The argument of a model with an input schema: a tensor, or a data frame."""
    if schema.is_tensor_spec():
        return np.ascontiguousarray(matrix, dtype=schema.inputs[0].type)
    rows = decoded(matrix, contract)
    dtypes = {spec.name: _TYPES[spec.type.name][1] for spec in schema.inputs}
    return data_frame({name: rows[name].to_numpy().astype(dtype) for name, dtype in dtypes.items()})


def library() -> Any:
    """Import MLflow with its telemetry off; raises WrongUseError if it is not installed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with needed("mlflow", extra="mlflow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own code
        import mlflow
    return mlflow


def data_frame(columns: Mapping[str, Any], index: Any = None) -> Any:
    """Build a pandas data frame, which is what MLflow's Python functions take and return."""
    import pandas as pd

    return pd.DataFrame(dict(columns), index=index)


def require_server(purpose: str) -> None:
    """Require a tracking server; without one, MLflow would create a database in the current folder. Raises WrongUseError."""
    if not os.environ.get(TRACKING):
        msg = f"{purpose} needs MLflow's tracking server, and {TRACKING} is not set."
        raise WrongUseError(msg, hint=f"export {TRACKING}, e.g. {TRACKING}=http://127.0.0.1:5000.")


def _fetched(mlflow: Any, reference: str, scratch: str) -> Path:
    require_server(f"model.import: {reference}")
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=scratch))
    except Exception as error:  # errors of MLflow, the network and the disk share no class
        msg = f"model.import: {reference} cannot be fetched from {redact(os.environ[TRACKING])}: {' '.join(str(error).split())}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="check its name, version or alias in MLflow.") from error


def _inputs(schema: Any, reference: str) -> Sequence[Input]:
    if schema.is_tensor_spec():
        shape = schema.inputs[0].shape
        if len(schema.inputs) > 1 or len(shape[1:]) != 1:
            shapes = [tensor.shape for tensor in schema.inputs]
            msg = f"model.import: {reference} takes tensors of shapes {shapes}, not a table."
            raise DataError(msg, hint="log it with a signature of columns.")
        return [Input("", "number")] * shape[1]
    types = {spec.name or str(at): getattr(spec.type, "name", str(spec.type)) for at, spec in enumerate(schema.inputs)}
    if unknown := [f"{name} ({kind})" for name, kind in types.items() if kind not in _TYPES]:
        msg = f"model.import: {reference} takes {listed(unknown)}, which are not columns of numbers or text."
        raise DataError(msg, hint=f"log it with columns of type {listed(_TYPES)}.")
    return [Input(name, _TYPES[kind][0]) for name, kind in types.items()]


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


class _MLflow(Flavour):
    name = "mlflow"
    libraries = ("mlflow", "pandas", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"evaluated": "by MLflow's Python function, one call at a time"}
    pickle_files = (MODEL_FILE,)

    def save(self, model: bytes) -> dict[str, bytes]:
        return {MODEL_FILE: model}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> PredictorInTurns:
        mlflow = library()
        folder = Path(tempfile.mkdtemp(prefix="batch-platform-"))
        try:
            _unpack(files[MODEL_FILE], folder)
            model = mlflow.pyfunc.load_model(str(folder))
        except BaseException:
            shutil.rmtree(folder)
            raise
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return PredictorInTurns(model, partial(_table, model.metadata.signature.inputs, signature.contract), signature)

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        mlflow = library()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(reference) if Path(reference).is_dir() else _fetched(mlflow, reference, scratch)
            if not (folder / "MLmodel").is_file():
                msg = f"model.import: {reference} has no file MLmodel."
                raise WrongUseError(msg, hint="name the folder that mlflow.<flavour>.save_model wrote.")
            model = mlflow.models.Model.load(str(folder))
            packed = _packed(folder)
        if model.signature is None or model.signature.inputs is None:
            msg = f"model.import: {reference} has no signature to check the features against."
            raise DataError(msg, hint="log it with `signature=mlflow.models.infer_signature(inputs, outputs)`.")
        details = {
            "flavors": sorted(model.flavors),
            "run_id": model.run_id,
            "model_id": model.model_id,
            "mlflow_version": model.mlflow_version,
            "signature": model.signature.to_dict(),
        }
        return ForeignModel(packed, _inputs(model.signature.inputs, reference), details=details)

    def recognises(self, folder: Path, reference: str) -> bool:
        return bool(_REFERENCE.fullmatch(reference)) or (folder / reference / "MLmodel").is_file()

    def locate(self, folder: Path, reference: str) -> str:
        return str(folder / reference) if (folder / reference).is_dir() else reference

    def is_remote(self, located: str) -> bool:
        return not Path(located).is_dir()

    def runs_code(self, located: str) -> bool:
        del located
        return True


FLAVOUR = _MLflow()
