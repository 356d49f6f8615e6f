import importlib
import subprocess
import sys

import pytest
import yaml

import batch_platform
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.small_pipeline import small_declaration, write_small_project


@pytest.mark.parametrize("name", batch_platform.__all__)
def test_every_public_name_exists_and_is_that_of_its_room(name):
    public = getattr(batch_platform, name)
    assert public.__name__ == name
    assert getattr(importlib.import_module(public.__module__), name) is public


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="'batch_platform' has no attribute 'Warehouse'"):
        _ = batch_platform.Warehouse


@pytest.mark.full
def test_the_public_names_are_imported_by_a_star():
    code = f"from batch_platform import *; print(all(name in globals() for name in {batch_platform.__all__!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_notebook_of_the_guide_builds_what_is_due(tmp_path, monkeypatch, capsys):
    (cells,) = [block for block in blocks("python", GUIDE["acting"]) if "make_plan" in block]
    folder = write_small_project(tmp_path / "pipelines" / "defs" / "churn")
    (folder / "defs.yaml").write_text(yaml.safe_dump({"attributes": small_declaration()}))
    monkeypatch.chdir(tmp_path)
    exec(compile(cells, "notebook", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("2024-01-01 40", "2024-02-29 40")
    assert "2024-02-10 40" in lines
