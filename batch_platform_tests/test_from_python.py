"""What a script or a notebook calls: each docstring's example runs as it stands on a real project."""

import doctest
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest
import yaml

import batch_platform
from batch_platform import api
from batch_platform.cli import terminal
from batch_platform_tests.harness.command_line import OWN_VARIABLES
from batch_platform_tests.harness.small_pipeline import small_declaration, write_small_project
from batch_platform_tests.make_reference import FOLDER


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the small pipeline, named churn."""
    root = tmp_path_factory.mktemp("shop")
    folder = write_small_project(root / "pipelines" / "defs" / "churn")
    (root / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "pipelines"\n'
    )
    for package in (root / "pipelines", root / "pipelines" / "defs"):
        (package / "__init__.py").write_text("")
    small = {"name": "small", "estimator": "sklearn.ensemble.HistGradientBoostingClassifier", "params": {"max_iter": 2}}
    declared = {
        "type": "batch_platform.BatchInference",
        "attributes": small_declaration(name="churn", challengers=[small]),
    }
    (folder / "defs.yaml").write_text(yaml.safe_dump(declared))
    return root


@pytest.fixture(autouse=True)
def nothing_names_a_home(monkeypatch):
    for name in OWN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def in_project(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    for name in [it for it in sys.modules if it.partition(".")[0] == "pipelines"]:
        monkeypatch.delitem(sys.modules, name)
    return project


@pytest.mark.full
@pytest.mark.usefixtures("in_project")
def test_the_examples_of_the_docstrings_run_in_the_order_of_the_module():
    public = {name: getattr(batch_platform, name) for name in batch_platform.__all__}
    examples = [it for it in doctest.DocTestFinder().find(api, "api", extraglobs=public) if it.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    before = [os.environ.get(name) for name in ("BATCH_PLATFORM_HOME", "DAGSTER_HOME")]
    for example in sorted(examples, key=lambda it: it.lineno or 0):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
    assert {it.name.removeprefix("api.") for it in examples} == {
        *("Pipeline", "Pipeline.run", "Pipeline.score", "Pipeline.train", "Pipeline.status"),
        *("load_pipeline", "read_predictions", "compare_models"),
    }
    assert [os.environ.get(name) for name in ("BATCH_PLATFORM_HOME", "DAGSTER_HOME")] == before
    assert not terminal.is_json()


@pytest.mark.full
def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    cells = json.loads((FOLDER / "from_python.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["summary"].scored == names["status"].counts["scored"] == 28
    assert names["scores"].collect().height == 224
    assert names["comparison"].verdict.word == "worse"
    assert {path.name for path in tmp_path.iterdir()} == {names["folder"].name}


def test_reading_a_pipeline_needs_no_dagster(in_project):
    api.load_pipeline("churn").run(to="2024-02-20")
    code = (
        "import sys; from batch_platform import load_pipeline, read_predictions, compare_models; pipeline = load_pipeline('churn');"
        "status = pipeline.status(); read_predictions(pipeline).collect();"
        "compare_models(pipeline, status.champion, status.challengers[0].version);"
        "print('dagster' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=in_project, text=True).strip() == "False"
