import json

import duckdb
import pytest

from batch_platform.declaration import redaction
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.redaction import protect, redact, redacted
from batch_platform_tests.command_line import run_command
from batch_platform_tests.dagster_project import pipeline_folder, write_dagster_project

MARKER = "s3cr3t-marker-0815"
SOURCES = """\
import os

import polars as pl


def events():
    {body}
"""


@pytest.fixture(autouse=True)
def nothing_protected(monkeypatch):
    monkeypatch.setattr(redaction, "_named", set())


@pytest.mark.parametrize(
    "name",
    ["DB_PASSWORD", "API_TOKEN", "aws_secret_access_key", "STORE_KEY", "MY_APIKEY", "PG_DSN", "DB_PWD", "OAUTH_PAT"],
)
def test_a_variable_with_the_name_of_a_secret_is_a_secret(monkeypatch, name):
    monkeypatch.setenv(name, MARKER)
    assert redact(f"cannot log in with {MARKER}!") == f"cannot log in with ${name}!"


@pytest.mark.parametrize("name", ["PWD", "HOME", "KEYBOARD", "PATH_TO_DATA", "AUTHOR"])
def test_other_variables_are_not_secrets(monkeypatch, name):
    monkeypatch.setenv(name, MARKER)
    assert redact(MARKER) == MARKER


@pytest.mark.parametrize(
    "template",
    ["{{ env.LOCATION }}", "x-{{ env('LOCATION', 'y') }}", '{{env["LOCATION"]}}', "{{ env.LOCATION | upper }}"],
)
def test_a_variable_that_a_declaration_names_is_a_secret(monkeypatch, template):
    monkeypatch.setenv("LOCATION", MARKER)
    assert redact(MARKER) == MARKER
    protect({"sources": {"a": [{"parquet": template}]}})
    assert redact(MARKER) == "$LOCATION"


def test_a_value_too_short_to_be_a_secret_is_not_redacted(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "a")
    assert redact("a cat sat") == "a cat sat"


def test_a_secret_that_is_part_of_a_longer_secret_leaves_nothing_of_it_behind(monkeypatch):
    monkeypatch.setenv("A_TOKEN", MARKER)
    monkeypatch.setenv("B_TOKEN", f"{MARKER}-and-more")
    assert redact(f"{MARKER}-and-more {MARKER}") == "$B_TOKEN $A_TOKEN"


def test_containers_keep_their_shape(monkeypatch):
    monkeypatch.setenv("A_TOKEN", MARKER)
    value = {"a": [MARKER, 1, None, 2.5, True], "b": {"c": f"<{MARKER}>"}}
    assert redacted(value) == {"a": ["$A_TOKEN", 1, None, 2.5, True], "b": {"c": "<$A_TOKEN>"}}


def test_no_error_of_this_project_holds_a_secret(monkeypatch):
    monkeypatch.setenv("A_TOKEN", MARKER)
    error = DataError(f"it is {MARKER}", hint=f"try {MARKER}")
    assert MARKER not in f"{error} {error.args} {error.message} {error.hint}"


def everything_written(folder) -> bytes:
    """The bytes of all files of a home, and what its database holds as text: DuckDB compresses."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    published = folder / "published.duckdb"
    if published.exists():
        with duckdb.connect(str(published), read_only=True) as con:
            tables = con.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            for schema, table in tables:
                content += str(con.execute(f'FROM "{schema}"."{table}"').fetchall()).encode()
    return content


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_secret_in_the_path_of_a_failing_source_is_in_no_output_and_no_file(tmp_path, debug):
    """The source's own error text quotes the secret, as drivers of databases do."""
    body = "raise RuntimeError(f'cannot connect with {os.environ[\"SHOP_PASSWORD\"]}')"
    folder = write_dagster_project(tmp_path, sources={"events": {"parquet": None, "python": "shop.raw.events"}})
    (folder / "shop" / "raw.py").write_text(SOURCES.format(body=body), encoding="utf-8")
    answer = run_command(folder, *debug, "run", "small", "--partition", "2024-02-02", SHOP_PASSWORD=MARKER)
    assert answer.code == 1
    assert "cannot connect with $SHOP_PASSWORD" in answer.err
    assert MARKER not in answer.out + answer.err
    assert MARKER.encode() not in everything_written(folder / ".batch_platform")


def test_a_secret_of_the_declaration_is_in_no_output_and_no_file_of_a_successful_run(tmp_path):
    parquet = "{{ env.SHOP_FOLDER }}/events.parquet"
    params = {"note": "{{ env.SHOP_FOLDER }}", "max_iter": None, "max_leaf_nodes": None, "early_stopping": None}
    model = {"estimator": None, "build": "shop.made.build", "params": params}
    folder = write_dagster_project(tmp_path, sources={"events": {"parquet": parquet}}, model=model)
    (folder / "shop" / "made.py").write_text(
        "from sklearn.tree import DecisionTreeClassifier\n\n\ndef build(note):\n    return DecisionTreeClassifier(max_depth=2)\n",
        encoding="utf-8",
    )
    place = pipeline_folder(folder) / MARKER
    place.mkdir()
    (pipeline_folder(folder) / "events.parquet").rename(place / "events.parquet")
    environment = {"SHOP_FOLDER": str(place)}
    output = ""
    for words in (["check"], ["run", "small"], ["status", "--json"], ["models", "small", "--json"]):
        answer = run_command(folder, *words, **environment)
        assert answer.code == 0, answer.err
        output += answer.out + answer.err
    (version,) = json.loads(run_command(folder, "models", "small", "list", "--json", **environment).out)
    output += run_command(folder, "models", "small", "show", version["version"], **environment).out
    assert "$SHOP_FOLDER" in output
    assert MARKER not in output
    assert MARKER.encode() not in everything_written(folder / ".batch_platform")
    (place / "events.parquet").unlink()
    answer = run_command(folder, "run", "small", "--partition", "2024-02-02", "--force", **environment)
    assert (answer.code, "there is no file $SHOP_FOLDER/events.parquet" in answer.err) == (1, True)
    assert MARKER not in answer.out + answer.err
    assert MARKER.encode() not in everything_written(folder / ".batch_platform")
