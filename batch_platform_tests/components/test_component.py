import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest
import yaml
from deltalake import write_deltalake
from pydantic import ValidationError

from batch_platform.components import BatchInference
from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.broken import VALIDATION_VARIABLE
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.components.dg_command import CHECKOUT, accepted, command, environment
from batch_platform_tests.harness.command_line import run_command
from batch_platform_tests.harness.dagster_project import (
    PACKAGE,
    pipeline_folder,
    write_dagster_project,
    write_defs_yaml,
)
from batch_platform_tests.harness.declared_keys import OTHER_OF_TWO, blocks_of, given_keys, keys_of
from batch_platform_tests.harness.small_pipeline import small_declaration, small_events, small_spec

EVERYTHING: dict[str, Any] = {  # every key that can be used, over files that are there
    "name": "small",
    "description": "Whether an order comes back.",
    "owners": ["team:shop"],
    "partitions": {
        "every": "day",
        "start": "2024-01-01",
        "end": "2024-03-01",
        "timezone": "Europe/Berlin",
        "end_offset": 1,
    },
    "sources": {
        "events": {"parquet": "daily/{partition_key}.parquet", "number_rows": True},
        "prices": {
            "csv": "prices.csv",
            "delimiter": ";",
            "decimal": ",",
            "encoding": "latin-1",
            "types": {"item": "BIGINT"},
        },
        "visits": {"json": "visits.jsonl"},
        "stores": {"arrow": "stores.feather"},
        "stock": {"duckdb": "stock.duckdb", "table": "main.stock", "time": "ts", "late": "1 day", "asset": "raw/stock"}
        | {"wait": "1 minute"},
        "returns": {"delta": "returns", "version": 0},
        "repairs": {"iceberg": {"catalog": "lake", "table": "shop.repairs", "snapshot": 7}},
        "fees": {"sql": {"uri": "sqlite:///fees.sqlite", "query": "fees.sql", "version": "SELECT max(fee) FROM fees"}},
        "shops": {"python": f"{PACKAGE}.defs.small.functions.shops"},
    },
    "features": {
        "sql": "features.sql",
        "key": ["id"],
        "time": "ts",
        "driving": {"source": "events", "time": "ts"},
        "columns": {
            "amount": {
                "type": "float",
                "nullable": True,
                "min": 0,
                "max": 1e5,
                "feature": True,
                "description": "In euros.",
            }
        },
        "max_rejected": {"share": "1%", "rows": 5},
        "timeout": "10 minutes",
    },
    "labels": {"sql": "labels.sql", "column": "returned", "delay": "1 day", "outcomes": ["refunded"], "positive": True}
    | {"weight": "worth"},
    "model": {
        "allow_suspected_leaks": ["items"],
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "params": {"max_iter": 5},
        "calibrate": "isotonic",
        "card": {"intended_use": "The warehouse prepares for returns.", "limits": "Not for gifts."},
        "search": {"params": {"learning_rate": [0.03, 0.1]}, "trials": 2},
        "allow_pickle": False,
        "publish": "mlflow",
        "train": {
            "every": "month",
            "start": "2024-02-01",
            "window": "40 days",
            "max_rows": 100_000,
            "sample": "balanced",
            "evaluate": "7 days",
            "group": ["shop"],
            "schedule": "15 * * * *",
            "retrain": "never",
        },
        "promote": {"metric": "roc_auc", "at_least": 0.5, "tolerance": 0.05, "baseline": True, "manual": False},
        "refit": True,
    },
    "challengers": [
        {
            "name": "linear",
            "estimator": "sklearn.linear_model.LogisticRegression",
            "params": {"max_iter": 200},
            "calibrate": "sigmoid",
            "search": {"params": {"C": [0.5, 1.0]}, "trials": 2},
        },
        {"name": "previous", "version": "2024-02-01-3f9c1a2b", "allow_pickle": False},
    ],
    "predictions": {
        "keep": ["shop"],
        "schedule": "0 6 * * *",
        "store": "parquet",
        "rescore": "never",
        "limit": 10,
        "interval": "90%",
        "decide": {"costs": {"false_positive": 1, "false_negative": 8}},
        "reasons": {"count": 2, "above": 0.5},
        "refine": ["batch_platform_tests.models.test_refinements_conformance.BOUNDED"],
        "deliver": [
            {"parquet": "out/small", "name": "small", "of": "predictions", "columns": {"id": "order", "score": "risk"}},
            {"csv": "out/rejected", "of": "rejected_rows"},
            {"delta": "out/table"},
            {"sql": {"uri": "sqlite:///out/late.db", "table": "late"}},
            {"iceberg": {"catalog": "lake", "table": "sales.late"}},
        ],
    },
    "monitoring": {
        "performance": {"warn_below": 0.6},
        "metrics": ["batch_platform_tests.monitoring.test_pooled.cost"],
        "segments": ["shop"],
        "unit": "shop",
        "notify": ["json://127.0.0.1/alerts"],
        "notify_values": True,
        "rows": False,
        "allow_empty": ["2024-01-07"],
        "drift": {"warn": 0.1, "fail": 0.3, "ignore": ["items"], "columns": {"shop": {"warn": 0.2, "fail": 0.4}}},
        "fresh_by": "07:00",
        "max_champion_age": "90 days",
    },
    "report": {"every": "week", "schedule": "30 7 * * 1", "compare": False},
    "retention": {"features": "90 days", "predictions": "3 years", "rejected_rows": "90 days"},
    "automation": "on_arrival",
    "dagster": {
        "pool": "warehouse",
        "retry": {"times": 2, "delay": "30 seconds"},
        "max_partitions_per_run": 31,
        "executor": "project",
        "keep_runs": "30 days",
    },
    "engine": {
        "name": "spark",
        "spark": {
            "master": "local[2]",
            "conf": {"spark.driver.memory": "2g", "spark.speculation": True},
            "wait_for_executors": "1 hour",
            "rows_per_task": 1_000_000,
            "staging": "s3://bucket/staging",
            "resource": "pyspark",
        },
    },
}
RESOURCES = """\
import dagster as dg


@dg.definitions
def resources():
    return dg.Definitions(resources={"pyspark": dg.ResourceDefinition.none_resource()})
"""
FUNCTIONS = """\
import polars as pl


def shops():
    return pl.DataFrame({"shop": ["a"]})


def features(events):
    return events.select("id", "ts", "amount")


def forest(params):
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(**params)
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    folder = write_dagster_project(tmp_path / "project")
    (pipeline_folder(folder) / "functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def load(project: Path) -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=project)


def refusal(project: Path) -> str:
    """All that a failed validation says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VALIDATION_VARIABLE, "1")
        with pytest.raises(Exception) as refused:  # noqa: PT011 - of Dagster's
            load(project)
    messages: list[str] = []
    error: BaseException | None = refused.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    return "\n".join(messages)


def loaded_spec(definitions: dg.Definitions) -> PipelineSpec:
    (wiring,) = [wiring for spec in definitions.resolve_all_asset_specs() if (wiring := Wiring.of(spec))]
    return wiring.spec


def shown(definitions: dg.Definitions) -> dict[str, Any]:
    """What a user sees of definitions."""
    graph = definitions.resolve_asset_graph()
    return {
        "assets": {
            spec.key: (
                {dep.asset_key: repr(dep.partition_mapping) for dep in spec.deps},
                spec.group_name,
                spec.kinds,
                spec.owners,
                spec.description,
                spec.code_version,
                spec.partitions_def,
            )
            for spec in definitions.resolve_all_asset_specs()
        },
        "checks": {key: graph.get(key).blocking for key in graph.asset_check_keys},
        "jobs": {job.name: (job.description, job.partitions_def) for job in definitions.resolve_all_job_defs()},
        "schedules": {
            schedule.name: (schedule.cron_schedule, schedule.execution_timezone, schedule.job_name)
            for schedule in definitions.schedules or []
        },
        "sensors": {sensor.name: sensor.default_status for sensor in definitions.sensors or []},
        "resources": set(definitions.resources or {}),
    }


def with_everything(project: Path) -> Path:
    folder = pipeline_folder(project)
    (folder.parent / "resources.py").write_text(RESOURCES)
    (folder / "prices.csv").write_text("item;price\n1;2,5\n")
    (folder / "visits.jsonl").write_text('{"item": 1, "visits": 3}\n')
    pl.DataFrame({"store": [1]}).write_ipc(folder / "stores.feather")
    write_deltalake(folder / "returns", pl.DataFrame({"item": [1]}).to_arrow())
    (folder / "fees.sql").write_text("SELECT * FROM fees")
    with closing(sqlite3.connect(folder / "fees.sqlite")) as fees:
        fees.execute("CREATE TABLE fees AS SELECT 1 AS item, 2.5 AS fee")
        fees.commit()
    with duckdb.connect(str(folder / "stock.duckdb")) as con:
        con.execute("CREATE TABLE stock AS SELECT 1 AS item, now() AS ts")
    (folder / "daily").mkdir()
    small_events().write_parquet(folder / "daily" / "2024-01-01.parquet")
    return folder


def changed(*path: str | Any) -> dict[str, Any]:
    """Everything declared, with the key of that path (but for the last item) set to the last item."""
    *keys, value = path
    declared = json.loads(json.dumps(EVERYTHING))
    block = declared
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    return declared


def test_yaml_and_python_give_the_same_definitions(project, monkeypatch):
    by_yaml = shown(load(project))
    in_python = pipeline_folder(project) / "component.py"
    in_python.write_text(
        "import dagster as dg\n"
        "from batch_platform.components import BatchInference\n\n\n"
        "@dg.component_instance\n"
        f"def small(context):\n    return BatchInference(**{small_declaration()!r})\n"
    )
    (pipeline_folder(project) / "defs.yaml").unlink()
    by_component = shown(load(project))
    directly = shown(build_definitions(small_spec(), str(pipeline_folder(project))))
    alone = BatchInference(**small_declaration())
    with pytest.raises(SourceError, match=r"small: .*features\.sql cannot be read"):
        dg.build_defs_for_component(alone)
    monkeypatch.chdir(pipeline_folder(project))
    assert by_yaml == by_component == directly == shown(dg.build_defs_for_component(alone))
    assert len(by_yaml["assets"]) == 5
    assert len(by_yaml["schedules"]) == 4


def test_every_key_reaches_the_specification(project):
    with_everything(project)
    write_defs_yaml(project, EVERYTHING)
    definitions = load(project)
    assert loaded_spec(definitions) == BatchInference.model_validate(EVERYTHING)
    assert shown(definitions)["sensors"] == {"small_alerts": dg.DefaultSensorStatus.STOPPED}
    assert given_keys(EVERYTHING) | OTHER_OF_TWO == keys_of(PipelineSpec)


def test_functions_replace_sql_and_estimator(project):
    with_everything(project)
    declared = changed("features", {"python": f"{PACKAGE}.defs.small.functions.features", "key": ["id"], "time": "ts"})
    declared["model"] |= {"build": f"{PACKAGE}.defs.small.functions.forest", "estimator": None}
    write_defs_yaml(project, declared)
    definitions = load(project)
    assert loaded_spec(definitions).model.build == f"{PACKAGE}.defs.small.functions.forest"
    graph = definitions.resolve_asset_graph()
    features = graph.get(dg.AssetKey(["small", "features"]))
    assert {key.path[1] for key in features.parent_keys} == {"events"}
    specs = {spec.key.path[1]: spec for spec in definitions.resolve_all_asset_specs()}
    assert specs["features"].kinds == {"polars", "parquet"}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (changed("partitons", {}), ["attributes at", "'partitons'", "did you mean 'partitions'?"]),
        (changed("features", "columns", "amount", "mim", 0), ["attributes.features.columns.amount", "'mim'", "'min'"]),
        (
            changed("model", "promote", "metrc", "auc"),
            ["attributes.model.promote at", "allowed are at_least, baseline, manual, metric, tolerance", "'metric'"],
        ),
        (changed("predictions", "keep", "shop"), ["attributes.predictions.keep at", "valid array"]),
        (changed("partitions", "every", "dy"), ["attributes.partitions.every at", "'hour', 'day', 'week' or 'month'"]),
        (changed("model", "train", "schedule", "0 0 30 2 *"), ["attributes.model.train.schedule at", "not a cron"]),
        (
            changed("challengers", [{"name": "linear", "import": "model.onnx", "flavour": "skleran"}]),
            ["attributes.challengers.0.flavour at", "'skleran' is not a flavour", "did you mean 'sklearn'?"],
        ),
    ],
)
def test_what_is_wrong_is_refused_with_file_line_path_and_what_is_allowed(project, declared, says):
    file = write_defs_yaml(project, declared)
    message = refusal(project)
    assert f"{file}:" in message
    missing = [part for part in says if part not in message]
    assert not missing, message


def test_a_flavour_may_come_from_the_environment(project, monkeypatch):
    with_everything(project)
    model = {"import": "model.onnx", "flavour": "{{ env.MODEL_FLAVOUR }}"}
    write_defs_yaml(project, changed("model", model))
    monkeypatch.setenv("MODEL_FLAVOUR", "onnx")
    assert loaded_spec(load(project)).model.flavour == "onnx"
    monkeypatch.setenv("MODEL_FLAVOUR", "onyx")
    assert "small: model.flavour: '$MODEL_FLAVOUR' is not a flavour" in refusal(project)  # the value might be a secret


def test_the_schema_of_the_component_holds_every_key():
    schema = BatchInference.get_model_cls().model_json_schema()
    assert set(schema["required"]) == {"name", "partitions", "sources", "features", "model"}
    assert set(schema["properties"]) == {key.partition(".")[0] for key in keys_of(PipelineSpec)}
    model = schema["$defs"]["Model"]["properties"]
    assert set(model) == {key.split(".")[1] for key in keys_of(PipelineSpec) if key.startswith("model.")}
    (percent,) = [
        option for option in schema["$defs"]["Features"]["properties"]["max_rejected"]["anyOf"] if "pattern" in option
    ]
    assert percent["type"] == "string"


def lying_in_the_checkout() -> set[Path]:
    return {*CHECKOUT.iterdir(), *(CHECKOUT / "batch_platform" / "defs").rglob("*")}


@pytest.mark.full
def test_dagsters_own_commands_accept_the_shipped_project(tmp_path):
    env = environment(tmp_path)
    before = lying_in_the_checkout()
    assert "loaded successfully" in accepted("dg", "check", "defs", cwd=CHECKOUT, env=env)
    listed = json.loads(command("dg", "list", "defs", "--json", cwd=CHECKOUT, env=env).stdout)
    assert {"flight_delays/features", "flight_delays/predictions"} <= {asset["asset_key"] for asset in listed["assets"]}
    output = accepted("dagster", "definitions", "validate", "-w", "workspace.yaml", cwd=CHECKOUT, env=env)
    assert "All code locations passed validation" in output
    assert "does not match the name" not in output
    assert lying_in_the_checkout() == before


NAME = "batch_platform.components.BatchInference"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("batch_platform", {"dagster", "sklearn", "numba", "polars", "duckdb", "scipy", "pandas"}),
        pytest.param(
            "batch_platform.components",
            {"sklearn", "numba", "scipy", "pandas", "dagster_webserver"},
            marks=pytest.mark.full,
        ),
        pytest.param(
            "batch_platform.definitions",
            {"sklearn", "numba", "scipy", "pandas", "dagster_webserver"},
            marks=pytest.mark.full,
        ),
    ],
)
def test_imports_bring_nothing_heavy_and_no_warning(tmp_path, modules, absent):
    then = "batch_platform.definitions.defs()" if modules.endswith("definitions") else "pass"
    script = f"import sys, {modules}\n{then}\nprint(*set({sorted(absent)!r}) & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
    assert done.stderr == ""


def described_keys(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the schema says of each key, by block and key."""
    return {
        f"{name}.{key}": about
        for name, block in {"": schema, **schema["$defs"]}.items()
        for key, about in block.get("properties", {}).items()
    }


def chosen_from_a_list(about: dict[str, Any]) -> bool:
    """Whether the schema itself tells every value that can be given."""
    types = [about, *about.get("anyOf", [])]
    return any("enum" in kind or "const" in kind or kind.get("type") == "boolean" for kind in types)


def test_every_key_of_the_schema_is_described_for_editors_with_an_example():
    schema = BatchInference.get_model_cls().model_json_schema()
    assert len(schema["$defs"]) > 8
    keys = described_keys(schema)
    assert [key for key, about in keys.items() if not about.get("description")] == []
    lacking = {key for key, about in keys.items() if not about.get("examples") and not chosen_from_a_list(about)}
    assert lacking == set()


def test_every_example_can_be_given():
    examples = [
        (block, field.alias or name, example)
        for block in dict.fromkeys(block for _, block in blocks_of(PipelineSpec))
        for name, field in block.model_fields.items()
        for example in field.examples or []
    ]
    assert len(examples) > 100
    wrong: list[object] = []
    for block, key, example in examples:
        try:
            block.model_validate({key: example})
        except ValidationError as error:  # of the keys that the example leaves out, too
            wrong += [(block, key, example) for detail in error.errors() if detail["loc"][:1] == (key,)]
    assert wrong == []


@pytest.mark.full
def test_a_scaffolded_pipeline_loads_and_passes_the_check_once_its_source_is_there(tmp_path, monkeypatch):
    folder = write_dagster_project(tmp_path / "project")
    env = environment(tmp_path / "home", PYTHONPATH=os.pathsep.join((str(folder), str(CHECKOUT))))
    accepted("dg", "scaffold", "defs", NAME, "churn-2", cwd=folder, env=env)
    made = pipeline_folder(folder, "churn-2")
    assert {file.name for file in made.iterdir()} == {"defs.yaml", "features.sql", "labels.sql"}
    text = (made / "defs.yaml").read_text()
    assert PipelineSpec.model_validate(yaml.safe_load(text)["attributes"]).name == "churn_2"
    loose = "\n".join(re.sub(r"^( *)# (\w+: .*)$", r"\1\2", line) for line in text.splitlines())
    assert set(PipelineSpec.model_validate(yaml.safe_load(loose)["attributes"]).features.columns) == {"amount"}
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.syspath_prepend(folder)
    keys = {spec.key.to_user_string() for spec in load(folder).resolve_all_asset_specs()}
    assert {"churn_2/features", "churn_2/predictions", "small/predictions"} <= keys
    with duckdb.connect() as con:
        columns = "1 AS id, TIMESTAMPTZ '2026-01-01' AS happened_at, 2.0 AS amount, true AS label"
        con.execute(f"COPY (SELECT {columns}) TO '{made / 'events.parquet'}'")
    assert "churn_2: ok" in run_command(folder, "check").out
