"""A process tries a model file that was made elsewhere before it opens it."""

import sys

import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.models import trial
from batch_platform.models.flavours.known import FLAVOURS

INTERPRETER = """#!/bin/sh
touch {}
kill -9 $$
"""


@pytest.fixture
def is_tried(tmp_path, monkeypatch):
    """Whether the file is tried, by an interpreter that takes note and is killed as one beyond its limits is."""
    tried, interpreter, file = (tmp_path / name for name in ("tried", "interpreter", "model.onnx"))
    interpreter.write_text(INTERPRETER.format(tried))
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    file.write_bytes(b"a model")

    def call() -> bool:
        tried.unlink(missing_ok=True)
        with pytest.raises(DataError, match="needs more than"):
            trial.require_harmless(FLAVOURS["onnx"], str(file))
        return tried.exists()

    return call


def test_a_process_tries_a_file_once_and_again_when_its_bytes_or_the_limits_change(is_tried, tmp_path, monkeypatch):
    assert is_tried()
    assert not is_tried()
    (tmp_path / "model.onnx").write_bytes(b"another model")
    assert is_tried()
    monkeypatch.setenv(trial.LIMIT, "5")
    assert is_tried()
