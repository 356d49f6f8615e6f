import json
import logging
import os
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batch_platform.declaration import redaction
from batch_platform.declaration.redaction import protect, redact, redacted_output
from batch_platform_tests.faults.invariants import everything_written
from batch_platform_tests.harness.command_line import run_command
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_dagster_project
from batch_platform_tests.harness.tiers import examples

MARKER = "s3cr3t-marker-0815"


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
    "value",
    ["true", "disabled", "PRODUCTION", "Required", "100000000", "1.5e-9", "2026-01-01 00:00:00", "00:15:00", "secret1"],
)
def test_f59_a_variable_that_holds_no_secret_changes_no_text(monkeypatch, value):
    for name in ("ENABLE_AUTH", "TOKENIZERS_PARALLELISM", "MAX_TOKENS"):
        monkeypatch.setenv(name, value)
    text = f'{{"churned": {value}, "label": "churned is {value}"}}'
    assert redact(text) == text


@pytest.mark.parametrize(
    "template",
    ["{{ env.LOCATION }}", "x-{{ env('LOCATION', 'y') }}", '{{env["LOCATION"]}}', "{{ env.LOCATION | upper }}"],
)
def test_a_variable_that_a_declaration_names_is_a_secret(monkeypatch, template):
    monkeypatch.setenv("LOCATION", MARKER)
    assert redact(MARKER) == MARKER
    protect({"sources": {"a": [{"parquet": template}]}})
    assert redact(MARKER) == "$LOCATION"


def test_a_short_value_is_a_secret_where_it_stands_alone_if_it_is_declared(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "a")
    assert redact("a cat sat") == "a cat sat"
    protect("{{ env.DB_PASSWORD }}")
    assert redact("a cat sat 'a'") == "$DB_PASSWORD cat sat '$DB_PASSWORD'"


def test_the_password_in_any_url_is_a_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://shop:p%40ss-0815@models.example/path")
    shown = redact("https://shop:p%40ss-0815@models.example/path refuses shop with p@ss-0815")
    assert shown == "https://shop:$MLFLOW_TRACKING_URI@models.example/path refuses shop with $MLFLOW_TRACKING_URI"


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "JSON": json.dumps,
    "JSON in Unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "one line": lambda text: " ".join(text.split()),
    "percent": lambda text: quote(text, safe=""),
    "percent but slashes": quote,
    "form": quote_plus,
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 for URLs": lambda text: urlsafe_b64encode(text.encode()).decode(),
}
MARKERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=200).filter(
    lambda text: len(text.strip()) >= 4
)


@pytest.mark.parametrize("name", ["A_TOKEN", "DECLARED"])
@given(marker=MARKERS | st.text("'\"\\\n\t/ a%+", min_size=4, max_size=20).filter(lambda text: len(text.strip()) >= 4))
@examples(150)
def test_no_usual_form_of_a_secret_is_left_in_a_text(name, marker):
    with pytest.MonkeyPatch.context() as patch:
        for other in [other for other in os.environ if other != name]:
            patch.delenv(other)
        patch.setenv(name, marker)
        patch.setattr(redaction, "_named", {"DECLARED"})
        assume(name == "DECLARED" or redaction._can_be_secret(marker.strip()))
        for encoding, encode in ENCODINGS.items():
            encoded = encode(marker.strip()).strip("'\"")
            assume(encoded not in f"<<{name}>>")
            shown = redact(f"<<{encode(marker.strip())}>>")
            assert encoded not in shown, encoding
            assert f"${name}" in shown, encoding


def test_what_a_step_prints_and_logs_is_redacted(monkeypatch, capsys, caplog):
    monkeypatch.setenv("A_TOKEN", MARKER)
    with redacted_output():
        print(MARKER[:5], MARKER[5:], sep="")
        print("password:", MARKER, file=sys.stderr)
        sys.stdout.write(f"no end {MARKER}")
        logging.getLogger("shop").error("cannot log in with %s", MARKER, exc_info=RuntimeError(MARKER))
    captured = capsys.readouterr()
    assert captured.out == "$A_TOKEN\nno end $A_TOKEN"
    assert captured.err == "password: $A_TOKEN\n"
    assert "cannot log in with $A_TOKEN" in caplog.text
    assert "RuntimeError: $A_TOKEN" in caplog.text
    assert MARKER not in caplog.text


def test_a_library_that_closes_the_stream_it_was_given_leaves_that_of_the_process_open():
    script = """
import sys
from batch_platform.declaration.redaction import redacted_output
with redacted_output():
    kept = sys.stderr
    print("within", file=kept, end="")
kept.close()  # as the log handlers of some libraries do when the process ends
print(" and after", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "within and after\n")


@pytest.mark.unit
def test_a_secret_that_is_part_of_a_longer_secret_leaves_nothing_of_it_behind(monkeypatch):
    monkeypatch.setenv("A_TOKEN", MARKER)
    monkeypatch.setenv("B_TOKEN", f"{MARKER}-and-more")
    assert redact(f"{MARKER}-and-more {MARKER}") == "$B_TOKEN $A_TOKEN"


@pytest.mark.full
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
        answer = run_command(folder, *words, own=environment)
        assert answer.code == 0, answer.err
        output += answer.out + answer.err
    (version,) = json.loads(run_command(folder, "models", "small", "list", "--json", own=environment).out)
    output += run_command(folder, "models", "small", "show", version["version"], own=environment).out
    assert "$SHOP_FOLDER" in output
    assert MARKER not in output
    assert MARKER.encode() not in everything_written(folder / ".batch_platform")
    (place / "events.parquet").unlink()
    answer = run_command(folder, "run", "small", "--partition", "2024-02-02", "--force", own=environment)
    assert (answer.code, "there is no file $SHOP_FOLDER/events.parquet" in answer.err) == (1, True)
    assert MARKER not in answer.out + answer.err
    assert MARKER.encode() not in everything_written(folder / ".batch_platform")
