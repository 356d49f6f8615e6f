"""The ONNX flavour: files from any library, run by ONNX Runtime on one thread per call.

A file takes one tensor of numbers [rows, columns], or one tensor [rows, 1] per column, which may hold text. It returns values, or
labels and probabilities, as a tensor or as one map per row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.importing import needed
from batch_platform.kernels.predictor import BLOCK_ROWS, in_blocks
from batch_platform.models.contract import (
    BINARY,
    ClassLabel,
    Contract,
    ForeignModel,
    Input,
    InputKind,
    Signature,
    decoded,
)
from batch_platform.models.flavours.flavour import Flavour, as_scores

MODEL_FILE = "model.onnx"
_NUMBERS: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_WHOLE = ("tensor(int64)", "tensor(int32)", "tensor(bool)")
_TEXT = "tensor(string)"
_MAPS = "seq(map("
_LOOP = b'"\x04Loop'  # the operator in the bytes of a file; it may go on without end


@dataclass(frozen=True)
class _OnnxPredictor:
    """A session and the name of the output that scoring reads."""

    session: Any
    output: str
    signature: Signature
    block: int  # rows per call

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        return as_scores(in_blocks(matrix, self._run, self.block), len(matrix), self.signature)

    def _run(self, block: NDArray[np.float64]) -> NDArray[Any]:
        (raw,) = self.session.run([self.output], _tensors(self.session.get_inputs(), block, self.signature.contract))
        if isinstance(raw, list):  # one map per row
            return np.array([[row[label] for label in sorted(row)] for row in raw])
        return raw


def _session(data: bytes) -> Any:
    with needed("onnxruntime", extra="onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        msg = f"ONNX Runtime cannot read the model: {' '.join(str(error).split())}"
        raise DataError(msg, hint="give a single file that `onnx.checker` accepts.") from error


def _columns(inputs: Sequence[Any], reference: str) -> list[Input] | None:
    """The columns; None if one tensor takes any number of them."""
    if unknown := [f"{tensor.name} ({tensor.type})" for tensor in inputs if tensor.type not in (*_NUMBERS, _TEXT)]:
        msg = f"{reference}: its inputs {listed(unknown)} are not columns of numbers or text."
        raise DataError(msg, hint="export it with one tensor of numbers, or one tensor per column.")
    first = inputs[0]
    width = first.shape[1] if len(first.shape[1:]) == 1 else 1
    if len(inputs) > 1 or (width == 1 and first.type == _TEXT):
        return [Input(tensor.name, _kind(tensor)) for tensor in inputs]
    return [Input("", _kind(first))] * width if isinstance(width, int) else None


def _kind(tensor: Any) -> InputKind:
    return "text" if tensor.type == _TEXT else "whole" if tensor.type in _WHOLE else "number"


def _tensors(inputs: Sequence[Any], block: NDArray[np.float64], contract: Contract) -> dict[str, NDArray[Any]]:
    """The input tensors for a block of rows; null text becomes empty text."""
    first = inputs[0]
    if len(inputs) == 1 and first.type in _NUMBERS:
        return {first.name: _numbers(block, first)}
    rows = decoded(block, contract)
    if len(inputs) == 1:
        return {first.name: np.column_stack([_text(rows[name]) for name in contract.names])}
    return {
        tensor.name: _text(rows[tensor.name])[:, None] if tensor.type == _TEXT else _numbers(block[:, [at]], tensor)
        for at, tensor in enumerate(inputs)
    }


def _text(values: pl.Series) -> NDArray[Any]:
    return np.array(values.fill_null("").to_list(), dtype=object)


def _numbers(values: NDArray[np.float64], tensor: Any) -> NDArray[Any]:
    if tensor.type in _WHOLE and np.isnan(values).any():
        msg = f"The model's input {tensor.name!r} takes integers, which cannot be null, but a row has a null there."
        raise DataError(msg, hint="reject such rows with features.columns.<name>.nullable: false.")
    return np.ascontiguousarray(values, dtype=_NUMBERS[tensor.type])


def _output(session: Any, *, classified: bool) -> str:
    """The name of the output that holds the probabilities, or of the first output if there are no classes."""
    outputs = session.get_outputs()
    likely = [tensor for tensor in outputs if tensor.type.startswith(_MAPS) or "prob" in tensor.name.lower()]
    return [*likely, *outputs[1:], *outputs][0].name if classified else outputs[0].name


def _classes(session: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[ClassLabel] | None:
    """The classes, which are the keys of every row's map of probabilities; None if there are no maps."""
    maps = [tensor.name for tensor in outputs if tensor.type.startswith(_MAPS)]
    if not maps:
        return None
    row: dict[str, NDArray[Any]] = {}
    for tensor in inputs:
        shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
        blank, dtype = ("", object) if tensor.type == _TEXT else (0, _NUMBERS[tensor.type])
        row[tensor.name] = np.full(shape, blank, dtype)
    (probabilities,) = session.run(maps[:1], row)
    return sorted(probabilities[0])


class _Onnx(Flavour):
    name = "onnx"
    libraries = ("onnxruntime", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"evaluated": "by ONNX Runtime on the CPU"}
    endings = (".onnx",)

    def save(self, model: bytes) -> dict[str, bytes]:
        return {MODEL_FILE: model}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> _OnnxPredictor:
        session = _session(files[MODEL_FILE])
        classified = signature.task in ("binary", "multiclass")
        fixed = [
            tensor.shape[0] for tensor in session.get_inputs() if tensor.shape and isinstance(tensor.shape[0], int)
        ]
        return _OnnxPredictor(session, _output(session, classified=classified), signature, min([BLOCK_ROWS, *fixed]))

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        data = Path(reference).read_bytes()
        if _LOOP in data:
            msg = f"{reference} contains the operator Loop, which may never end; it is not opened."
            raise DataError(msg, hint="export the model without control flow.")
        session = _session(data)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        details = {
            "inputs": {tensor.name: f"{tensor.type} {list(tensor.shape)}" for tensor in inputs},
            "outputs": {tensor.name: f"{tensor.type} {list(tensor.shape)}" for tensor in outputs},
            "precision": "float64" if all(tensor.type != "tensor(float)" for tensor in inputs) else "float32",
        }
        classes = _classes(session, inputs, outputs)
        task = None if classes is None else "binary" if len(classes) == BINARY else "multiclass"
        return ForeignModel(data, _columns(inputs, reference), task, classes, details)


FLAVOUR = _Onnx()
