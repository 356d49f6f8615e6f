"""The ONNX flavour: files from any library, run by ONNX Runtime on one thread a call.

A file takes one tensor [n, columns] of numbers, or one tensor [n, 1] a column, of text too. It gives values, or labels
and probabilities, as a tensor or as one map a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, listed
from batch_platform.models.contract import Contract
from batch_platform.models.flavours.extras import needed
from batch_platform.models.flavours.outputs import BLOCK_ROWS, as_scores, in_blocks
from batch_platform.models.signature import ClassLabel, Found, Input, InputKind, Signature, decoded

FLAVOUR = "onnx"
MODEL_FILE = "model.onnx"
LIBRARIES = ("onnxruntime", "numpy")
UNPICKLES: tuple[str, ...] = ()
DETAILS: Mapping[str, Any] = {"evaluated": "by ONNX Runtime on the CPU"}
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


@dataclass(frozen=True)
class OnnxPredictor:
    """A session, and the one of its outputs that scoring takes."""

    session: Any
    output: str
    signature: Signature
    block: int  # rows given at a time: what the file fixes, or as many as suit

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        return as_scores(in_blocks(matrix, self._run, self.block), len(matrix), self.signature)

    def _run(self, block: NDArray[np.float64]) -> NDArray[Any]:
        (raw,) = self.session.run([self.output], _fed(self.session.get_inputs(), block, self.signature.contract))
        if isinstance(raw, list):  # a map a row
            return np.array([[row[label] for label in sorted(row)] for row in raw])
        return raw


def save(model: bytes, folder: Path) -> list[str]:
    """Write a file as it is; gives its name."""
    (folder / MODEL_FILE).write_bytes(model)
    return [MODEL_FILE]


def load(files: Mapping[str, bytes], signature: Signature) -> OnnxPredictor:
    """Open a session.

    Raises:
        DataError: ONNX Runtime cannot read the file.
        WrongUseError: It is not installed.
    """
    session = _session(files[MODEL_FILE])
    classified = signature.task in ("binary", "multiclass")
    fixed = [shape[0] for shape in (one.shape for one in session.get_inputs()) if shape and isinstance(shape[0], int)]
    return OnnxPredictor(session, _output(session, classified=classified), signature, min([BLOCK_ROWS, *fixed]))


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a file has no parameters
    """Read a file's signature.

    Raises:
        DataError: It is none, or takes or gives what no table holds.
        WrongUseError: ONNX Runtime is not installed.
    """
    data = Path(reference).read_bytes()
    session = _session(data)
    asked, given = session.get_inputs(), session.get_outputs()
    details = {
        "inputs": {one.name: f"{one.type} {list(one.shape)}" for one in asked},
        "outputs": {one.name: f"{one.type} {list(one.shape)}" for one in given},
        "precision": "float64" if all(one.type != "tensor(float)" for one in asked) else "float32",
    }
    classes = _classes_told(session, asked, given)
    task = None if classes is None else "binary" if len(classes) == 2 else "multiclass"  # noqa: PLR2004 - two
    return Found(data, _inputs(asked, reference), task, classes, details)


def _session(data: bytes) -> Any:
    with needed("onnxruntime", extra=FLAVOUR):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        msg = f"ONNX Runtime cannot read the model: {' '.join(str(error).split())}"
        raise DataError(msg, hint="give a file that `onnx.checker` finds valid, in one piece.") from error


def _inputs(asked: Sequence[Any], reference: str) -> list[Input] | None:
    """The columns; None where one tensor takes as many as there are."""
    if other := [f"{one.name} ({one.type})" for one in asked if one.type not in (*_NUMBERS, _TEXT)]:
        msg = f"{reference}: its inputs {listed(other)} are no columns of numbers or text."
        raise DataError(msg, hint="export it with one tensor of numbers, or one tensor a column.")
    width = asked[0].shape[1] if len(asked[0].shape) == 2 else 1  # noqa: PLR2004 - a table
    if len(asked) > 1 or (width == 1 and asked[0].type == _TEXT):
        return [Input(one.name, _kind(one)) for one in asked]
    return [Input("", _kind(asked[0]))] * width if isinstance(width, int) else None


def _kind(asked: Any) -> InputKind:
    return "text" if asked.type == _TEXT else "whole" if asked.type in _WHOLE else "number"


def _fed(asked: Sequence[Any], block: NDArray[np.float64], contract: Contract) -> dict[str, NDArray[Any]]:
    """The tensors of a block of rows; text that is null is empty."""
    if len(asked) == 1 and asked[0].type in _NUMBERS:
        return {asked[0].name: _numbers(block, asked[0])}
    rows = decoded(block, contract)
    if len(asked) == 1:
        return {asked[0].name: np.column_stack([_text(rows[name]) for name in contract.names])}
    return {
        one.name: _text(rows[one.name])[:, None] if one.type == _TEXT else _numbers(block[:, [at]], one)
        for at, one in enumerate(asked)
    }


def _text(values: pl.Series) -> NDArray[Any]:
    return np.array(values.fill_null("").to_list(), dtype=object)


def _numbers(part: NDArray[np.float64], asked: Any) -> NDArray[Any]:
    if asked.type in _WHOLE and np.isnan(part).any():
        msg = f"The model's input {asked.name!r} takes whole numbers, of which none is null; a row has a null there."
        raise DataError(msg, hint="reject such rows with features.columns.<name>.nullable: false.")
    return np.ascontiguousarray(part, dtype=_NUMBERS[asked.type])


def _output(session: Any, *, classified: bool) -> str:
    """The name of the probabilities, else of the first output."""
    given = session.get_outputs()
    if classified:
        for one in given:
            if one.type.startswith(_MAPS) or "prob" in one.name.lower():
                return one.name
        if len(given) > 1:
            return given[1].name
    return given[0].name


def _classes_told(session: Any, asked: Sequence[Any], given: Sequence[Any]) -> list[ClassLabel] | None:
    """The keys of the map of probabilities, which are the same for every row."""
    maps = [one for one in given if one.type.startswith(_MAPS)]
    if not maps:
        return None
    zeros = {
        one.name: np.full(
            _shape(one), "" if one.type == _TEXT else 0, dtype=object if one.type == _TEXT else _NUMBERS[one.type]
        )
        for one in asked
    }
    (rows,) = session.run([maps[0].name], zeros)
    return sorted(rows[0])


def _shape(one: Any) -> list[int]:
    return [size if isinstance(size, int) else 1 for size in one.shape]
