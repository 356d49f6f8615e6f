"""BATCH_PLATFORM_LOG=json: everything but reports is a line of JSON, of Dagster's processes too."""

import json
import logging
from typing import Any

import pytest

from batch_platform.cli import terminal
from batch_platform.declaration.redaction import LOG_VARIABLE


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers])
    yield
    logging.captureWarnings(capture=False)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_a_run_says_is_lines_of_json(project, cli, monkeypatch):
    monkeypatch.setenv(LOG_VARIABLE, "json")
    told = lines(cli(project, "run", "small", "--partition", "2024-02-29", "--force").out)
    assert {frozenset(line) for line in told} == {frozenset({"time", "level", "message"})}
    assert "1 of 1 partitions scored: 40 rows in, 40 scored, 0 rejected." in [line["message"] for line in told]
    failed = cli(project, "run", "smal")
    (error,) = lines(failed.err)
    assert (failed.code, failed.out, error["level"]) == (2, "", "error")
    assert error["message"] == "There is no pipeline 'smal'; there is only small. Hint: did you mean 'small'?"


@pytest.mark.unit
def test_pythons_logging_and_warnings_are_lines_too_without_secrets(monkeypatch, capfd):
    monkeypatch.setenv(LOG_VARIABLE, "json")
    monkeypatch.setenv("CRM_PASSWORD", "not for anybody")
    terminal.log_as_declared()
    try:
        int("not for anybody")
    except ValueError:
        logging.getLogger("shop").exception("login with %s failed", "not for anybody")
    logging.getLogger("py.warnings").warning("odd\nlines")
    failed, odd = lines(capfd.readouterr().err)
    assert (failed["level"], failed["logger"], failed["message"]) == (
        "error",
        "shop",
        "login with $CRM_PASSWORD failed",
    )
    assert failed["exception"].endswith("invalid literal for int() with base 10: '$CRM_PASSWORD'")
    assert odd["message"] == "odd\nlines"


def test_f59_no_secret_changes_the_rows_of_a_query(project, cli, monkeypatch):
    monkeypatch.setenv(LOG_VARIABLE, "json")
    for name, value in {"ENABLE_AUTH": "true", "SHOP_TOKEN": "token-of-2024-02-29"}.items():
        monkeypatch.setenv(name, value)
    query = "SELECT true AS yes, 'token-of-2024-02-29' AS text"
    (line,) = lines(cli(project, "sql", "small", query).out)
    assert line["row"] == {"yes": True, "text": "token-of-2024-02-29"}
