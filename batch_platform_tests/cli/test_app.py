"""What the command says of wrong use and of bad input: one paragraph, the right exit code, nothing half-written."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import batch_platform
from batch_platform.cli.app import COMMANDS, app, explain
from batch_platform.declaration.errors import DataError
from batch_platform_tests.harness.checkout import GUIDE
from batch_platform_tests.harness.command_line import clean_environment, run_command, write_project
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_declaration, small_pipeline

DAY = "2024-02-10"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("--partition", "10 February"),
            "'10 February' is not the key of a partition: day partitions have keys like '2024-01-01'.",
        ),
        (("--from", ""), "--from has an empty value. Hint: leave the option out"),
        (
            ("--partition", "2023-12-31"),
            "Partition '2023-12-31' lies before the first one, '2024-01-01'. Hint: partitions.start",
        ),
        (
            ("--partition", DAY, "--from", DAY),
            "--partition selects a single partition and cannot be combined with --from or --to.",
        ),
        (("--from", "2024-02-11", "--to", DAY), "small: --from 2024-02-11 is later than --to 2024-02-10."),
        (("--partition", DAY, "--model", "nosuch"), "small has no version 'nosuch'; there is only 2024-02-01-"),
    ],
)
def test_impossible_partitions_and_versions_are_refused(cli, project, args, says):
    answer = cli(project, "run", "small", *args)
    assert answer.code == 2
    assert answer.error.startswith(says)


def test_partition_in_the_future_names_the_newest_that_is_due(cli, tmp_path):
    folder = write_project(tmp_path / "project", partitions={"end": None})
    answer = cli(folder, "run", "small", "--partition", "2999-01-01")
    assert answer.code == 2
    assert re.match(
        r"small: partition '2999-01-01' lies in the future; the newest partition that is due is '20\d\d-\d\d-\d\d'\. Hint: ",
        answer.error,
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "every: day",
            "every: days",
            "attributes.partitions.every: must be 'hour', 'day', 'week' or 'month', not 'days'.",
        ),
        ("    keep:\n    - items\n", "    keep: !!set {items}\n", "keep: the tag !set creates an object. Hint: remove"),
        ("  name: small\n", "\tname: small\n", "Hint: indent with spaces: YAML takes no tabs."),
        (
            "name: small\n",
            "name: small\n  monitoring: {notify: ['json://localhost', 'slack://nope', 'json://localhost:none']}\n",
            "attributes.monitoring.notify: Apprise cannot read address 2, 3 of the list. Hint: its documentation",
        ),
    ],
)
def test_a_wrong_value_is_told_in_plain_words_with_what_is_expected(cli, fresh, old, new, says):
    file = pipeline_folder(fresh) / "defs.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    answer = cli(fresh, "check")
    assert (answer.code, says in answer.error) == (2, True), answer.error
    assert str(file) in answer.error


def test_check_looks_for_the_columns_that_the_declaration_names(cli, tmp_path):
    project = write_project(tmp_path / "project", predictions={"keep": ["shopp"]})
    answer = cli(project, "check")
    assert answer.code == 1
    file = pipeline_folder(project) / "features.sql"
    assert f"{file} gives no column 'shopp'; it gives amount, id, items, " in answer.error
    assert "Hint: 'shopp': did you mean 'shop'?" in answer.error


def test_check_reports(cli, fresh):
    assert cli(fresh, "check").out.splitlines()[0] == "small: ok"
    report = cli(fresh, "check", "--json").json
    assert report == {"project": str(fresh), "pipelines": ["small"], "ok": True, "problems": []}


def test_check_travels_in_time_and_fails_where_features_know_the_future(cli, fresh):
    *_, last = cli(fresh, "check", "--time-travel", "--partitions", "1").out.splitlines()
    assert last == "  time travel: 1 partition computed without the rows of events after the end"
    file = pipeline_folder(fresh) / "features.sql"
    file.write_text(FEATURES_SQL.replace("amount,", "(SELECT sum(b.amount) FROM events AS b) AS amount,"))
    answer = cli(fresh, "check", "--time-travel", "--partitions", "2", "--json")
    assert answer.code == 1
    (leak,) = json.loads(answer.out)["time_travel"]["small"]["leaks"]
    assert (leak["source"], leak["column"], leak["rows"]) == ("events", "amount", leak["of"])
    assert "without the rows of source 'events' after the partition's end, the columns 'amount' change" in answer.error


def test_a_pipeline_that_reads_one_in_another_time_zone_is_refused_before_it_runs(cli, fresh):
    shutil.copytree(pipeline_folder(fresh), pipeline_folder(fresh, "reader"))
    sources = {"events": {"asset": "small/predictions", "parquet": "events.parquet"}}
    declared = small_declaration(name="reader", sources=sources)
    file = write_defs_yaml(fresh, declared, "reader")
    assert cli(fresh, "check").code == 0
    write_defs_yaml(fresh, declared | {"partitions": declared["partitions"] | {"timezone": "UTC"}}, "reader")
    says = (
        "sources.events: the partitions of small/predictions begin on the clocks of Europe/Berlin, and those of reader in UTC. "
        "Hint: give both the same partitions.timezone, or leave asset out"
    )
    for args in (("check",), ("run", "reader")):
        answer = cli(fresh, *args)
        assert (answer.code, says in answer.error) == (2, True), answer.error
    assert re.match(rf"{file}:\d+: attributes\.sources\.events: ", cli(fresh, "check").error)


def test_check_tells_every_problem_of_every_pipeline(cli, fresh):
    other = shutil.copytree(pipeline_folder(fresh), pipeline_folder(fresh, "other"))
    write_defs_yaml(fresh, small_declaration(name="other", model={"params": {"max_itr": 5}}), "other")
    (other / "labels.sql").write_text("SELECT id FROM events", encoding="utf-8")
    file = pipeline_folder(fresh) / "features.sql"
    file.write_text(FEATURES_SQL.replace("amount,", "\n amout,"), encoding="utf-8")
    answer = cli(fresh, "check")
    assert (answer.code, answer.out) == (1, "other: 2 problems\nsmall: 1 problem\n")
    says = "attributes.model.params: HistGradientBoostingClassifier has no parameter"
    assert re.match(rf"3 problems\. \(1\) {other}/defs\.yaml:\d+: {says}", answer.error)
    assert f" (2) other: {other}/labels.sql gives no column 'returned'" in answer.error
    assert f" (3) small, partition 2024-02-29: the SQL of {file}:2 fails: " in answer.error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("bogus",), "No such command 'bogus'. Hint: batch-platform --help"),
        (("rnu", "small"), "No such command 'rnu'. Hint: did you mean 'run'?"),
        (("run",), "Missing argument 'PIPELINE'. Hint: batch-platform run --help"),
        (("run", "small", "--retrain", "--model", "v"), "--retrain trains a model, and --model scores with a version"),
        (("run", "smal"), "There is no pipeline 'smal'; there is only small. Hint: did you mean 'small'?"),
        (("trace", "small"), "give either KEY=VALUE of a row, or --source, to which --partition may be added."),
        (("trace", "small", "17"), "'17' is not KEY=VALUE. Hint: batch-platform trace small id=… shop=…"),
        (("trace", "small", "idd=17"), "small has no key column 'idd'; its key is id, shop. Hint: did you mean 'id'?"),
        (("models", "small", "compre"), "No such command 'compre'. Hint: did you mean 'compare'?"),
        (
            ("models", "compare", "small"),
            "No such command 'small'. Hint: the pipeline comes first: batch-platform models small compare",
        ),
        (
            ("export", "small", "--to", "s3://lake/a.csv"),
            "s3://lake/a.csv is an address, and not a path on this machine.",
        ),
        (("--project", "nosuch", "check"), "{cwd}/nosuch is not a folder."),
        (("--project", ".", "demo"), "demo runs the shipped pipeline. Hint: leave --project out"),
    ],
)
def test_wrong_use_is_one_paragraph(cli, fresh, args, says):
    answer = cli(fresh, *args)
    assert answer.code == 2
    assert answer.error.startswith(says.format(cwd=fresh))


def test_pyproject_that_leads_nowhere_is_named(cli, fresh):
    (fresh / "pyproject.toml").write_text("[tool.dg.project]\nroot_module = 'nosuch_module'\n", encoding="utf-8")
    answer = cli(fresh, "check")
    assert answer.code == 2
    assert str(fresh / "pyproject.toml") in answer.error
    assert "the module 'nosuch_module.definitions' cannot be imported" in answer.error


def test_debug_shows_the_traceback(cli, project):
    (pipeline_folder(project) / "features.sql").write_text(
        FEATURES_SQL.replace("SELECT id", "SELECT 7 AS id"), encoding="utf-8"
    )
    answer = cli(project, "--debug", "run", "small", "--partition", DAY)
    assert answer.code == 1
    assert "Traceback (most recent call last)" in answer.err
    assert "require_unique" in answer.err
    assert answer.err.splitlines()[-1].startswith("Error: small, partition")


def test_project_is_found_from_a_folder_below_it_and_by_name(cli, fresh, tmp_path):
    assert cli(pipeline_folder(fresh), "check", "--json").json["project"] == str(fresh)
    assert cli(tmp_path, "--project", "project", "check", "--json").json["project"] == str(fresh)


def test_outside_of_any_project_the_shipped_pipelines_are_served(cli, tmp_path):
    (status,) = cli(tmp_path, "status", "--json").json
    assert status["pipeline"] == "flight_delays"
    assert cli(tmp_path, "run", "orders").error == (
        f"No Dagster project lies around {tmp_path}, and the shipped examples have no pipeline 'orders'; there is only "
        "flight_delays. Hint: change to the project, whose pyproject.toml has [tool.dg.project], or name it: "
        "batch-platform --project FOLDER"
    )


def test_where_a_pipeline_is_not_found_those_that_cannot_be_loaded_are_named(cli, fresh):
    (pipeline_folder(fresh) / "defs.yaml").write_text("type: [", encoding="utf-8")
    answer = cli(fresh, "run", "orders")
    assert answer.error.startswith("There is no pipeline 'orders'; there are none. Hint: ")
    assert answer.error.endswith("small cannot be loaded: batch-platform check says why")


@pytest.mark.parametrize("args", [("status",), ("check",), ("trace", "flight_delays", "flight_id=1")])
def test_a_report_outside_of_a_project_creates_nothing_and_says_what_to_do(cli, tmp_path, args):
    answer = cli(tmp_path, *args)
    assert not [*tmp_path.iterdir()]
    if args[0] == "trace":
        assert "Hint: run a pipeline first" in answer.error
    else:
        last = f"No Dagster project lies around {tmp_path}: this is the pipeline shipped as an example"
        assert answer.out.splitlines()[-1].startswith(last)


def test_check_names_the_partitions_that_no_model_will_ever_serve_and_why(cli, tmp_path):
    partitions = {"start": "2024-01-11", "end": "2024-02-01"}
    folder = write_project(tmp_path / "project", partitions=partitions)
    assert cli(folder, "check").out.splitlines()[1] == (
        "  no model will ever serve 21 partitions (2024-01-11 to 2024-01-31): no serving period (model.train.every: month) "
        "begins before 2024-02-01 with twice model.train.evaluate plus labels.delay of partitions before it"
    )
    folder = write_project(tmp_path / "single", model={"train": {"every": None}})
    assert "warm-up, no model has enough to learn from before 2024-01-" in cli(folder, "check").out.splitlines()[1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from batch_platform.cli import main; sys.argv = ['batch-platform', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'dagster', 'sklearn', 'polars', 'duckdb', 'pydantic'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_hints_name_commands_that_exist():
    package = Path(batch_platform.__file__).parent
    named = [
        (file.name, command)
        for file in [*package.rglob("*.py"), *package.rglob("*.md"), package.parent / "README.md"]
        for command in re.findall(
            r"(?<!of )(?<!by )batch-platform (?:--project \S+ )?([a-z]+)", file.read_text(encoding="utf-8")
        )
    ]
    assert [(file, command) for file, command in named if command not in COMMANDS] == []
    assert len(named) > 10


def test_the_error_that_adds_where_it_happened_is_reported(capfd):
    located = DataError("small: column x")
    located.__cause__ = DataError("column x")
    located.__cause__.__cause__ = ValueError("innermost")
    wrapped = RuntimeError("Dagster says a step failed")
    wrapped.__cause__ = located
    assert explain(wrapped) == 1
    assert capfd.readouterr().err == "Error: small: column x\n"


@pytest.mark.parametrize("error", [ValueError("it broke"), DataError("it broke", hint="mend it")])
def test_f56_an_error_and_dagsters_own_about_it_that_are_each_others_cause_are_explained_once(capfd, error):
    step = RuntimeError("Dagster says a step failed")
    step.__cause__, error.__context__ = error, step
    assert explain(error) == 1
    assert re.match(
        r"Error: (ValueError: it broke\. Hint: to see the traceback|it broke Hint: mend it)", capfd.readouterr().err
    )


def test_a_command_is_called_as_the_list_of_commands_names_it(tmp_path):
    context = click.Context(app)
    assert [app.get_command(context, name).name for name in COMMANDS] == list(COMMANDS)
    assert run_command(tmp_path, "--help").out.count("  gc ") == 1


def test_in_a_workspace_of_dg_its_projects_are_listed_and_nothing_is_made(cli, tmp_path):
    workspace = tmp_path / "work"
    (workspace / "sub").mkdir(parents=True)
    projects = (
        '[[{0}workspace.projects]]\npath = "projects/sales"\n[[{0}workspace.projects]]\npath = "projects/churn"\n'
    )
    for file, text in (
        ("pyproject.toml", '[tool.dg]\ndirectory_type = "workspace"\n' + projects.format("tool.dg.")),
        ("dg.toml", 'directory_type = "workspace"\n' + projects.format("")),
    ):
        (workspace / file).write_text(text)
        answer = cli(workspace / "sub", "status")
        assert answer.code == 2
        assert answer.error == (
            f"{workspace} is a workspace of dg, and {workspace}/sub lies in none of its projects: projects/churn, "
            "projects/sales. Hint: name the project: batch-platform --project ../projects/churn …"
        )
        (workspace / file).unlink()
    assert [path.name for path in workspace.rglob("*")] == ["sub"]


SINGLE_FILE = """
from pathlib import Path

from batch_platform.components import BatchInference, build_definitions

defs = build_definitions(BatchInference(**{declared!r}), Path({folder!r}))
"""


def test_a_single_file_of_definitions_is_a_project_as_the_guide_shows(tmp_path):
    (declared,) = re.findall(r"```toml\n(\[tool.dg.project\]\n.*?)```", GUIDE["production"], re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(declared, encoding="utf-8")
    folder = str(small_pipeline(tmp_path / "orders").folder)
    definitions = SINGLE_FILE.format(declared=small_declaration(name="orders"), folder=folder)
    (tmp_path / "definitions.py").write_text(definitions, encoding="utf-8")
    answer = run_command(tmp_path, "check")
    assert (answer.out.splitlines()[0], answer.err) == ("orders: ok", "")
