"""The Keras flavour: networks as `.keras` archives, opened in safe mode and run by TensorFlow on one CPU thread.

A network computes in float32, and its last digits depend on the number of rows per call, so every call gets the same number.
"""

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError
from batch_platform.declaration.importing import needed
from batch_platform.kernels.predictor import in_blocks
from batch_platform.models.contract import BINARY, ForeignModel, Input, Signature, Task
from batch_platform.models.flavours.flavour import Flavour, Transform, as_scores
from batch_platform.models.flavours.sklearn import last_of, load_steps, saved_steps

MODEL_FILE = "model.keras"
MOST_UNITS = 10_000_000  # size of a layer at most: Keras allocates what the archive declares, whatever weights it holds
# Parts of the names of numbers that are large and state no size: the identity of an object is its address in memory.
NO_SIZES = ("seed", "object_id")


@dataclass(frozen=True)
class _KerasPredictor:
    """A network with the preprocessing in front of it."""

    network: Any
    transform: Transform | None
    signature: Signature

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        return as_scores(in_blocks(matrix, self._run), len(matrix), self.signature)

    def _run(self, block: NDArray[np.float64]) -> NDArray[Any]:
        inputs = block if self.transform is None else self.transform(block)
        return np.asarray(self.network(np.ascontiguousarray(inputs, dtype=np.float32), training=False))


def _require_bounded(reference: str) -> None:
    """Raise DataError if a layer of an archive is declared larger than any network for tables; Keras refuses a damaged archive itself."""
    try:
        with ZipFile(reference) as archive:
            largest = max(_sizes(json.loads(archive.read("config.json"))), default=0)
    except (BadZipFile, EOFError, KeyError, RuntimeError, ValueError, zlib.error):
        return
    if largest > MOST_UNITS:
        msg = (
            f"{reference} declares a layer of size {largest:,}, more than the {MOST_UNITS:,} allowed; it is not opened."
        )
        raise DataError(msg, hint="it is damaged or hostile: save it again, and import only what you trust.")


def _sizes(config: Any, key: str = "") -> Iterator[int]:
    """All whole numbers of a configuration that may state a size."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _sizes(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _sizes(value, key)
    elif type(config) is int and not any(part in key for part in NO_SIZES):
        yield config


def _is_table(shape: Any) -> bool:
    return isinstance(shape, tuple) and [type(size) for size in shape[1:]] == [int]


def _network(data: bytes, name: str) -> Any:
    keras = _library()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(data)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # a damaged archive raises any of Python's own errors
            msg = f"Keras cannot open {name}: {' '.join(str(error).split())}"
            hint = "give a .keras archive of Keras 3 without code of its own (Lambda layers, custom objects)."
            raise IntegrityError(msg.rstrip(".") + ".", hint=hint) from error


@cache
def _library() -> Any:
    """Keras on TensorFlow, on one CPU thread unless other code has started TensorFlow before."""
    FLAVOUR.set_environment()
    with needed("keras and tensorflow", extra="keras"):
        import keras
        import tensorflow as tf
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.set_visible_devices([], "GPU")
    return keras


class _Keras(Flavour):
    name = "keras"
    libraries = ("keras", "tensorflow", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"evaluated": "by Keras on TensorFlow, on the CPU", "precision": "float32"}
    endings = (".keras",)
    # Set before training starts TensorFlow too: a network must be fitted by the same arithmetic that later scores.
    environment: ClassVar[Mapping[str, str]] = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }
    package = "keras"

    def save(self, model: Any) -> dict[str, bytes]:
        last = last_of(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_FILE
            getattr(last, "model_", last).save(path)
            return {MODEL_FILE: path.read_bytes(), **saved_steps(model)}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> _KerasPredictor:
        return _KerasPredictor(_network(files[MODEL_FILE], MODEL_FILE), load_steps(files), signature)

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        _require_bounded(reference)
        network = _network(Path(reference).read_bytes(), reference)
        inputs, outputs = network.input_shape, network.output_shape
        if not (_is_table(inputs) and _is_table(outputs)):
            msg = (
                f"{reference} takes {inputs} and returns {outputs}; it must take and return one table, [rows, columns]."
            )
            raise DataError(msg, hint="build it with a single Input of one number per column, and a single output.")
        activation = getattr(getattr(network.layers[-1], "activation", None), "__name__", "")
        task: Task | None = None
        if (activation == "sigmoid" and outputs[1] == 1) or (activation == "softmax" and outputs[1] > 1):
            task = "binary" if outputs[1] <= BINARY else "multiclass"
        details = {"inputs": str(inputs), "outputs": str(outputs), "parameters": int(network.count_params())}
        return ForeignModel(network, [Input("", "number")] * inputs[1], task, details=details)


FLAVOUR = _Keras()
