"""The outcome of a trial is kept in the home, and only a note that this user's processes wrote there spares another trial."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.models import trial
from batch_platform.models.flavours.known import FLAVOURS
from batch_platform.warehouse.home import Home

INTERPRETER = """#!/bin/sh
touch {}
kill -9 $$
"""


@pytest.fixture
def is_tried(tmp_path, monkeypatch):
    """Whether a new process would try the file, by an interpreter that takes note and is killed as one beyond its limits is."""
    tried, interpreter, file = (tmp_path / name for name in ("tried", "interpreter", "model.onnx"))
    interpreter.write_text(INTERPRETER.format(tried))
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    file.write_bytes(b"a model")

    def call(home: Home | None) -> bool:
        trial._found_here.clear()
        tried.unlink(missing_ok=True)
        with pytest.raises(DataError, match="needs more than"):
            trial.require_harmless(FLAVOURS["onnx"], str(file), home)
        return tried.exists()

    yield call
    trial._found_here.clear()


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").create()


def notes(home: Home) -> list[Path]:
    return sorted(home.trials.glob("*.json"))


def test_a_file_is_tried_once_and_again_when_its_bytes_or_the_limits_change(is_tried, home, tmp_path, monkeypatch):
    assert is_tried(home)
    assert not is_tried(home)
    (tmp_path / "model.onnx").write_bytes(b"another model")
    assert is_tried(home)
    monkeypatch.setenv(trial.LIMIT, "5")
    assert is_tried(home)
    assert len(notes(home)) == 3


def test_a_note_that_another_program_forged_is_no_reason_to_trust_a_file(is_tried, home):
    assert is_tried(home)
    (note,) = notes(home)
    stated = json.loads(note.read_text())
    for forged in ({**stated, "problem": None}, {"problem": None, "proof": "0" * 64}, {"problem": None}, [], None):
        note.write_text(json.dumps(forged))
        assert is_tried(home), forged
        assert not is_tried(home)


def test_a_key_that_others_can_read_and_a_copied_home_are_not_trusted(is_tried, home, tmp_path):
    assert is_tried(home)
    copied = Home(tmp_path / "copied")
    shutil.copytree(home.root, copied.root)
    assert is_tried(copied)
    for spoil in (lambda key: key.chmod(0o644), lambda key: key.unlink() or key.symlink_to(copied.trials / "key")):
        spoil(home.trials / "key")
        assert is_tried(home)
        assert is_tried(home), "nothing is kept under such a key either"


def test_without_a_home_nothing_is_written(is_tried, tmp_path):
    assert is_tried(None)
    assert is_tried(Home(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_process_tries_no_file_again_for_another_home_and_notes_the_outcome_there(is_tried, home, tmp_path):
    assert is_tried(home)
    (tmp_path / "tried").unlink()
    other = Home(tmp_path / "other").create()
    with pytest.raises(DataError, match="needs more than"):
        trial.require_harmless(FLAVOURS["onnx"], str(tmp_path / "model.onnx"), other)
    assert not (tmp_path / "tried").exists()
    assert len(notes(other)) == 1
