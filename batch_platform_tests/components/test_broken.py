"""A pipeline that cannot be loaded is one failing asset, and every other pipeline of its project is served."""

import inspect
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._cli import definitions as validation

from batch_platform.components import load_from_defs_folder
from batch_platform.components.broken import VALIDATION_VARIABLE, broken_in
from batch_platform.declaration.explaining import explained
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.components.users_assets import OF_A_USER
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder

BROKEN = {  # pipelines by name: the file that is changed, what in it, and what the error says
    "misspelt": ("defs.yaml", "evaluate:", "evalute:", "did you mean 'evaluate'"),
    "no_select": ("features.sql", "SELECT", "SELEKT", 'syntax error at or near "SELEKT"'),
    "no_module": ("defs.yaml", "sklearn.", "nosuch_library.", "nosuch_library"),
    "unknown_type": ("defs.yaml", "BatchInference", "BatchInferenc", "no attribute `BatchInferenc`"),
    "unreadable": ("defs.yaml", "attributes:", "attributes: [", "the file is not valid YAML"),
}
MADE = ("features", "model", "predictions", "performance")  # it declares neither drift nor a report
AS_CHECKED = ("no_module",)  # loads, since estimators are not imported then


def problems_counted(checked: str) -> list[str]:
    """The lines of `check` that say how many problems a pipeline has."""
    return [line for line in checked.splitlines() if not line.startswith("  ")]


def add(project: Path, name: str) -> None:
    """Add a broken pipeline to a project."""
    file, right, wrong, _ = BROKEN[name]
    folder = shutil.copytree(pipeline_folder(project), pipeline_folder(project, name))
    declared = folder / "defs.yaml"
    declared.write_text(declared.read_text().replace("name: small", f"name: {name}"))
    (folder / file).write_text((folder / file).read_text().replace(right, wrong))


@pytest.fixture
def user_project(fresh, monkeypatch, tmp_path) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(fresh))
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    yield fresh
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def groups(definitions: dg.Definitions) -> set[str | None]:
    dg.Definitions.validate_loadable(definitions)
    return {spec.group_name for spec in definitions.resolve_all_asset_specs()}


def test_a_location_loads_all_others_and_shows_each_broken_pipeline_as_failing_assets(user_project, caplog):
    for name in BROKEN:
        add(user_project, name)
    with caplog.at_level(logging.ERROR):
        definitions = load_from_defs_folder(path_within_project=user_project)
    assert groups(definitions) == {"small", *BROKEN}
    broken = {item.name: item for item in broken_in(definitions)}
    assert broken.keys() == BROKEN.keys() - set(AS_CHECKED)
    for name, item in broken.items():
        assert BROKEN[name][-1] in str(item.error)
        assert str(pipeline_folder(user_project, name)) in item.error.message
        assert any(str(item.error) in record.getMessage() for record in caplog.records)
    shown = {spec.key: spec for spec in definitions.resolve_all_asset_specs() if spec.group_name == "misspelt"}
    assert shown.keys() == {dg.AssetKey(["misspelt", asset]) for asset in (*MADE, "cannot_be_loaded")}
    assert all(str(broken["misspelt"].error) in (spec.description or "") for spec in shown.values())
    asset = shown[dg.AssetKey(["misspelt", "predictions"])]
    with dg.DagsterInstance.ephemeral() as instance:
        failed = dg.materialize(
            [definitions.resolve_assets_def(asset.key)], instance=instance, raise_on_error=False
        ).get_step_failure_events()
    assert failed[0].step_failure_data.user_failure_data.description == str(broken["misspelt"].error)


def declare_again(project: Path) -> list[Path]:
    """Declare `small` a second and third time: below a folder with a YAML file of its own, and in Python, there twice."""
    group = pipeline_folder(project, "group")
    folder = shutil.copytree(pipeline_folder(project), group / "small")
    (group / "defs.yaml").write_text("type: dagster.DefsFolderComponent\n")
    in_python = pipeline_folder(project, "in_python.py")
    declared = yaml.safe_load((folder / "defs.yaml").read_text())["attributes"]
    in_python.write_text(
        "import dagster as dg\nfrom batch_platform.components import BatchInference\n"
        + "".join(
            f"@dg.component_instance\ndef {name}(context):\n    return BatchInference(**{declared!r})\n"
            for name in ("first", "second")
        )
    )
    return [folder / "defs.yaml", in_python, pipeline_folder(project) / "defs.yaml"]


@pytest.mark.parametrize("load", [dg.load_from_defs_folder, load_from_defs_folder])
def test_pipelines_that_share_a_name_are_set_apart_and_the_others_load(user_project, monkeypatch, load):
    files = declare_again(user_project)
    other = shutil.copytree(pipeline_folder(user_project), pipeline_folder(user_project, "other")) / "defs.yaml"
    other.write_text(other.read_text().replace("name: small", "name: other"))
    definitions = load(path_within_project=user_project)
    assert groups(definitions) == {"small", "other"}
    broken = broken_in(definitions)
    assert [item.name for item in broken] == ["small"] * 4
    assert {item.place for item in broken} == {"small", "group/small", "in_python.py.first", "in_python.py.second"}
    assert {item.error.message for item in broken} == {
        f"4 pipelines have the name 'small': {', '.join(sorted(map(str, files)))}."
    }
    assert definitions.resolve_job_def("other_bring_up_to_date")
    monkeypatch.setenv(VALIDATION_VARIABLE, "1")
    with pytest.raises(Exception, match="small") as raised:
        load(path_within_project=user_project)
    assert explained(raised.value).message == broken[0].error.message


@pytest.mark.parametrize("definitions", ["its own", "none"])
def test_the_command_serves_the_others_where_dagsters_own_loader_stops(cli, fresh, definitions):
    module = fresh / PACKAGE / "definitions.py"
    if definitions == "none":
        module.unlink()
    else:
        module.write_text(module.read_text().replace("from batch_platform.components import", "from dagster import"))
    add(fresh, "unreadable")
    add(fresh, "misspelt")
    checked = cli(fresh, "check")
    assert problems_counted(checked.out) == ["misspelt: 1 problem", "small: ok", "unreadable: 1 problem"]
    assert re.search(rf"{pipeline_folder(fresh, 'unreadable')}/defs\.yaml:\d+: ", checked.error)
    assert cli(fresh, "status").out.startswith("small: ")


@pytest.mark.parametrize(
    ("declared", "hint"),
    [
        ("batch_platform.components.BatchInferenc", "did you mean 'batch_platform.components.BatchInference'?"),
        ("batch_platform.Batchinference", "did you mean 'batch_platform.components.BatchInference'?"),
        ("BatchInference", "the type of a pipeline is batch_platform.components.BatchInference."),
    ],
)
def test_the_command_names_a_type_that_cannot_be_loaded_and_the_right_one(cli, fresh, declared, hint):
    file = pipeline_folder(fresh) / "defs.yaml"
    file.write_text(file.read_text().replace("batch_platform.components.BatchInference", declared))
    checked = cli(fresh, "check")
    assert checked.code == 2
    assert checked.error.startswith(f"{file}: type: '{declared}' cannot be loaded: ")
    assert f" Hint: {hint}" in checked.error


def test_dagsters_own_message_names_the_file_and_line_of_what_it_cannot_read(user_project):
    add(user_project, "unreadable")
    place = rf'in "{pipeline_folder(user_project, "unreadable")}/defs\.yaml", line \d+'
    with pytest.raises(yaml.YAMLError, match=place):
        dg.load_from_defs_folder(path_within_project=user_project)


@pytest.mark.parametrize(
    ("right", "wrong"), [("evaluate:", "evalute:"), ("evaluate:", "evaluate: ["), ("Berlin", "Berlim")]
)
def test_what_refers_to_a_broken_pipeline_loads_and_the_error_of_the_pipeline_is_the_one_that_is_reported(
    cli, user_project, right, wrong
):
    file = pipeline_folder(user_project) / "defs.yaml"
    file.write_text(file.read_text().replace(right, wrong))
    pipeline_folder(user_project, "mine.py").write_text(OF_A_USER)
    definitions = load_from_defs_folder(path_within_project=user_project)
    dg.Definitions.validate_loadable(definitions)
    with dg.DagsterInstance.ephemeral() as instance:
        (failed,) = (
            definitions.resolve_implicit_global_asset_job_def()
            .execute_in_process(instance=instance, asset_selection=[dg.AssetKey("counts")], raise_on_error=False)
            .get_step_failure_events()
        )
    assert "its pipeline cannot be loaded. Hint: batch-platform check" in str(failed.step_failure_data)
    for command in (["check"], ["run", "small"], ["status"]):
        answer = cli(user_project, *command)
        assert answer.error.startswith(f"{file}:")
    schedule = definitions.resolve_schedule_def("small_score_when_due")
    assert schedule.evaluate_tick(dg.build_schedule_context()).skip_message.startswith(f"{file}:")


@pytest.mark.full
def test_every_command_serves_the_others(cli, fresh):
    for name in BROKEN:
        add(fresh, name)
    checked = cli(fresh, "check")
    assert checked.code == 1
    assert problems_counted(checked.out) == [
        f"{name}: {'ok' if name == 'small' else '1 problem'}" for name in sorted({*BROKEN, "small"})
    ]
    assert all(says in checked.error for *_, says in BROKEN.values())
    status = cli(fresh, "status")
    assert status.code == 0
    assert status.out.startswith("no_module: ")
    assert "\nsmall: 29 missing, 31 warm-up\n" in status.out
    assert status.err.count("Warning: ") == 4
    assert f"Warning: unreadable cannot be loaded: {pipeline_folder(fresh, 'unreadable')}" in status.err
    listed = json.loads(cli(fresh, "status", "--json").out)
    assert [item["pipeline"] for item in listed if "error" not in item] == ["no_module", "small"]
    left_out = {item["pipeline"]: item["error"] for item in listed if "error" in item}
    assert left_out.keys() == BROKEN.keys() - set(AS_CHECKED)
    assert all(str(pipeline_folder(fresh, name)) in error for name, error in left_out.items())
    ran = cli(fresh, "run", "small", "--partition", "2024-01-01")
    assert "no model serves" in ran.error
    for name in BROKEN.keys() - set(AS_CHECKED):
        refused = cli(fresh, "run", name)
        assert BROKEN[name][-1] in refused.error
    assert "cannot be loaded" not in cli(fresh, "status", "small").err
    assert "own loader" not in checked.error


def test_a_type_may_be_written_by_its_public_name(cli, fresh):
    file = pipeline_folder(fresh) / "defs.yaml"
    file.write_text(
        file.read_text().replace("batch_platform.components.BatchInference", "batch_platform.BatchInference")
    )
    assert cli(fresh, "check").out.startswith("small: ok\n")


def test_dagster_sets_the_variable_by_which_a_load_knows_that_it_is_validated():
    assert f'os.environ["{VALIDATION_VARIABLE}"] = "1"' in inspect.getsource(validation)
