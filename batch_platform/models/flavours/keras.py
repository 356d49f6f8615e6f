"""The Keras flavour: networks as `.keras` archives, opened in safe mode and run by TensorFlow on one thread of the CPU.

A network computes in float32, and its last digits depend on how many rows it is given at a time: it is always given
the same number.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError
from batch_platform.models.flavours.extras import needed
from batch_platform.models.flavours.outputs import as_scores, in_blocks
from batch_platform.models.flavours.steps import Transform, last_of, load_steps, save_steps
from batch_platform.models.signature import Found, Input, Signature, Task

FLAVOUR = "keras"
MODEL_FILE = "model.keras"
LIBRARIES = ("keras", "tensorflow", "numpy")
UNPICKLES: tuple[str, ...] = ()
DETAILS: Mapping[str, Any] = {"evaluated": "by Keras on TensorFlow, on the CPU", "precision": "float32"}
_ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


@dataclass(frozen=True)
class KerasPredictor:
    """A network, and the transformers in front of it."""

    network: Any
    transform: Transform | None
    signature: Signature

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values [n]."""
        given = matrix if self.transform is None else self.transform(matrix)
        raw = in_blocks(np.ascontiguousarray(given, dtype=np.float32), self._run)
        return as_scores(raw, len(matrix), self.signature)

    def _run(self, block: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self.network(block, training=False))


def save(model: Any, folder: Path) -> list[str]:
    """Write a fitted wrapper for scikit-learn, or a network; gives the names of the files."""
    last = last_of(model)
    getattr(last, "model_", last).save(folder / MODEL_FILE)
    return [MODEL_FILE, *save_steps(model, folder)]


def load(files: Mapping[str, bytes], signature: Signature) -> KerasPredictor:
    """Read a network.

    Raises:
        IntegrityError: It is no archive, or asks for code that safe mode does not run.
        WrongUseError: Keras or TensorFlow is not installed.
    """
    return KerasPredictor(_network(files[MODEL_FILE], MODEL_FILE), load_steps(files), signature)


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a file has no parameters
    """Read an archive that Keras wrote.

    Raises:
        DataError: It takes or gives something else than a table.
        IntegrityError: It is no archive, or asks for code that safe mode does not run.
        WrongUseError: Keras or TensorFlow is not installed.
    """
    network = _network(Path(reference).read_bytes(), reference)
    asked, given = network.input_shape, network.output_shape
    if not (_is_table(asked) and _is_table(given)):
        msg = f"{reference} takes {asked} and gives {given}; it must take and give one table, [rows, columns]."
        raise DataError(msg, hint="build it with one Input of as many numbers as there are columns, and one output.")
    last = getattr(getattr(network.layers[-1], "activation", None), "__name__", "")
    told: Task | None = None
    if (last == "sigmoid" and given[1] == 1) or (last == "softmax" and given[1] > 1):
        told = "binary" if given[1] <= 2 else "multiclass"  # noqa: PLR2004 - two classes are binary
    details = {"inputs": str(asked), "outputs": str(given), "parameters": int(network.count_params())}
    return Found(network, [Input("", "number")] * asked[1], told, details=details)


def _is_table(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[1], int)  # noqa: PLR2004 - rows, columns


def _network(data: bytes, name: str) -> Any:
    keras = _library()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(data)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # what is wrong with an archive comes as any of Python's own errors
            msg = f"Keras does not open {name}: {' '.join(str(error).split())}"
            hint = "give a .keras archive of Keras 3 without code of its own (Lambda layers, custom objects)."
            raise IntegrityError(msg.rstrip(".") + ".", hint=hint) from error


def prepare() -> None:
    """Say how TensorFlow is to compute, before anybody starts it: a network that is fitted scores as one that is loaded."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@cache
def _library() -> Any:
    """Keras, on TensorFlow for the CPU and one thread; where something else has started it before, it stays as it is.

    Raises:
        WrongUseError: It or TensorFlow is not installed.
    """
    prepare()
    with needed("keras and tensorflow", extra=FLAVOUR):
        import keras
        import tensorflow as tf
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.set_visible_devices([], "GPU")
    return keras
