"""Commands that only report read the pipelines without Dagster, and find what Dagster would find."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.cli.instance import materialized_partitions, prepare_instance
from batch_platform.cli.project import Project, find_project, shipped_project
from batch_platform.components.dagster_internals import is_valid_cron_string
from batch_platform.declaration.errors import WrongUseError
from batch_platform.pipeline.declared import CRON
from batch_platform.pipeline.shipped import ALL, DEMOS_VARIABLE, shipped
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform_tests.harness.checkout import ROOT
from batch_platform_tests.harness.command_line import REJECTED_ID, clean_environment
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder

HEAVY = ("dagster", "sklearn", "numba", "scipy", "pandas", "sqlalchemy")
REPORTS = (
    ("status",),
    ("models", "small"),
    ("trace", "small", f"id={REJECTED_ID - 1}"),
    ("rejected", "small"),
    ("sql", "small", "FROM predictions"),
)
AN_ASSET = "import dagster as dg\n@dg.asset\ndef other(): ...\n"


def replaced(*pairs: str) -> Callable[[Path], None]:
    """A change of the declaration: texts, each followed by the text that takes its place."""

    def change(project: Path) -> None:
        file = pipeline_folder(project) / "defs.yaml"
        text = file.read_text()
        for before, after in zip(pairs[::2], pairs[1::2], strict=True):
            assert before in text
            text = text.replace(before, after)
        file.write_text(text)

    return change


def attribute(line: str) -> Callable[[Path], None]:
    """A change of the declaration: one more attribute."""
    return replaced("attributes:\n", f"attributes:\n  {line}\n")


def described(text: str) -> Callable[[Path], None]:
    """A change of the declaration: another description, as YAML."""
    return replaced("description: Whether", f"description: {text} # Whether")


def written(path: str, text: str, *, below: str = f"{PACKAGE}/defs") -> Callable[[Path], None]:
    """A change of the project: one more file, or another text in one."""

    def change(project: Path) -> None:
        file = project / below / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    return change


def second(name: str) -> Callable[[Path], None]:
    """A change of the project: one more pipeline, in a folder of a folder."""

    def change(project: Path) -> None:
        folder = copytree(pipeline_folder(project), pipeline_folder(project, "group") / "second")
        file = folder / "defs.yaml"
        file.write_text(file.read_text().replace("name: small", f"name: {name}"))

    return change


PLAIN: dict[str, Callable[[Path], None]] = {  # projects that are read without Dagster
    "as it is": lambda _: None,
    "a second pipeline, deeper": second("another"),
    "a template": described('"{{ env.PLACE }} and {{ env.PLACE }}"'),
    "a text that could be a number": replaced("column: returned", "column: returned\n    positive: '1'"),
    "receivers": attribute('monitoring: {notify: ["{{ env.ALERTS }}"]}'),
    "the public type": replaced("batch_platform.components.BatchInference", "batch_platform.BatchInference"),
    "Dagster's own loader": written(
        "definitions.py",
        "from pathlib import Path\n\nfrom dagster import definitions, load_from_defs_folder\n\n\n@definitions\n"
        "def defs():\n    return load_from_defs_folder(path_within_project=Path(__file__).parent)\n",
        below=PACKAGE,
    ),
    "no definitions": lambda project: (project / PACKAGE / "definitions.py").unlink(),
}
LEFT_TO_DAGSTER: dict[str, Callable[[Path], None]] = {  # projects that only Dagster can load
    "a Python asset": written("others.py", AN_ASSET),
    "code in a package": written("__init__.py", "import os\nos.environ['PLACE'] = 'here'\n"),
    "another component": written("folder/defs.yaml", "type: dagster.DefsFolderComponent\n"),
    "post-processing": replaced("attributes:\n", "post_processing: {}\nattributes:\n"),
    "a call in a template": described("\"{{ env('PLACE') }}\""),
    "a schedule by name": attribute('report: {schedule: "0 5 * * mon"}'),
    "definitions of its own": written("definitions.py", "from shop.all import defs\n", below=PACKAGE),
}
BROKEN: dict[str, Callable[[Path], None]] = {  # projects with a pipeline that Dagster refuses
    "an unset variable beside text": described('"to {{ env.NOWHERE }}"'),
    "a wrong key": replaced("timezone:", "timezon:"),
    "one name twice": second("small"),
    "no YAML": written("small/defs.yaml", "attributes: ["),
    "an hour of 99": attribute('report: {schedule: "0 99 * * *"}'),
    "an owner that is neither team nor address": attribute('owners: ["somebody"]'),
    "no SQL": lambda project: (pipeline_folder(project) / "features.sql").unlink(),
    "a broken pipeline beside it": written("other/defs.yaml", "a: b"),
}


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv(HOME_VARIABLE, str(folder / ".batch_platform"))
    monkeypatch.setenv("PLACE", "the shop")
    monkeypatch.setenv("ALERTS", "json://127.0.0.1:9")
    monkeypatch.syspath_prepend(str(folder))
    return find_project(folder)


def assert_read_as_dagster_loads(project: Project) -> None:
    assert project._plain is not None
    assert "_loaded" not in vars(project)
    assert not project._loaded[1]
    read = [(key, it.folder, it.spec.model_dump_json()) for key, it in project.declared.items()]
    assert read == [(key, it.folder, it.spec.model_dump_json()) for key, it in project.pipelines.items()]


@pytest.mark.parametrize("name", PLAIN)
def test_pipelines_read_without_dagster_are_those_that_dagster_loads(fresh, monkeypatch, name):
    PLAIN[name](fresh)
    assert_read_as_dagster_loads(loaded(fresh, monkeypatch))


def test_every_shipped_pipeline_is_read_as_dagster_loads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(DEMOS_VARIABLE, ALL)
    project = shipped_project()
    assert_read_as_dagster_loads(project)
    assert [*project.declared] == sorted(shipped())


@pytest.mark.parametrize("name", LEFT_TO_DAGSTER)
def test_what_leaves_a_doubt_is_left_to_dagster(fresh, monkeypatch, name):
    LEFT_TO_DAGSTER[name](fresh)
    assert loaded(fresh, monkeypatch)._plain is None


@pytest.mark.parametrize("name", BROKEN)
def test_what_dagster_refuses_is_never_read_without_it(fresh, monkeypatch, name):
    BROKEN[name](fresh)
    project = loaded(fresh, monkeypatch)
    assert project._plain is None
    assert project.broken


@given(st.from_regex(CRON, fullmatch=True))
def test_dagster_takes_every_schedule_that_is_read_without_it(cron):
    assert is_valid_cron_string(cron)


def test_a_command_that_runs_one_pipeline_loads_no_other(fresh, monkeypatch):
    second("another")(fresh)
    project = replace(loaded(fresh, monkeypatch), only="small")
    assert [*project.pipelines] == ["small"]
    assert {spec.group_name for spec in project.definitions.resolve_all_asset_specs()} == {"small"}
    with pytest.raises(WrongUseError, match="There is no pipeline 'smal'; there are another, small"):
        replace(project, only="smal").pipeline("smal")


def imported(project: Path, command: Sequence[str]) -> list[str]:
    """The heavy libraries that a process of the command has imported when it ends without an error."""
    script = f"""
import atexit, json, sys
sys.argv = ["batch-platform", *{list(command)!r}]
from batch_platform.cli import main
atexit.register(lambda: print(json.dumps(sorted(set({HEAVY!r}) & sys.modules.keys())), file=sys.stderr))
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project,
        env=clean_environment(PYTHONPATH=os.pathsep.join((str(project), str(ROOT)))),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    "command",
    [pytest.param(it, marks=() if it[0] in ("status", "trace") else pytest.mark.full) for it in REPORTS],
    ids=" ".join,
)
def test_a_report_imports_neither_dagster_nor_the_libraries_of_models(project, command):
    assert not imported(project, command)


@pytest.mark.full
def test_a_run_of_one_partition_imports_no_library_of_models_and_no_compiler(project):
    ran = imported(project, ["run", "small", "--partition", "2024-02-20", "--force", "--json"])
    assert ran == ["dagster", "scipy", "sqlalchemy"], "SciPy's special functions, for the intervals of its performance"


def test_what_dagster_recorded_is_read_as_dagster_reads_it(project):
    home = Home(project / ".batch_platform")
    key = dg.AssetKey(["small", "predictions"])
    with dg.DagsterInstance.from_config(str(prepare_instance(home))) as instance:
        keys = instance.get_materialized_partitions(key)
        assert keys
        assert materialized_partitions(home, ["small", "none"]) == {"small": keys, "none": set()}
        instance.wipe_assets([key])
        assert materialized_partitions(home, ["small"]) is None


def test_dagster_is_asked_while_a_run_is_not_finished_or_where_its_storage_is_elsewhere(project):
    home = Home(project / ".batch_platform")

    @dg.job
    def waiting() -> None: ...

    settings = home.dagster / "dagster.yaml"
    declared = settings.read_text()
    settings.write_text(f"{declared}storage: {{sqlite: {{base_dir: {json.dumps(str(project))}}}}}\n")
    assert materialized_partitions(home, ["small"]) is None
    settings.write_text(declared)
    assert materialized_partitions(home, ["small"])
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        instance.create_run_for_job(waiting)
    assert materialized_partitions(home, ["small"]) is None
