"""A version with a suspected leak waits for a person, and every command that shows it says why."""

import json

import polars as pl
import pytest

from batch_platform.features.row_checks import made_from_outcomes
from batch_platform_tests.harness.command_line import LABELS_SQL, OVERRIDES, published, write_project
from batch_platform_tests.harness.dagster_project import write_defs_yaml
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_declaration, small_events, small_pipeline

UNKNOWN = pl.col("id") % 25 == 0
EVENTS = small_events().with_columns(
    returned=pl.when(~UNKNOWN).then(pl.col("returned").fill_null(value=False)),
    handled_by=pl.when(~UNKNOWN).then(pl.col("id") % 3),
    calls=pl.col("id") % 7,
)
FEATURES = FEATURES_SQL.replace(" known", " known, handled_by, calls + 1 AS attention, amount / 2 AS half")
LABELS = {"sql": "labels.sql", "outcomes": ["calls"]}
MADE = "attention is made from the outcome events.calls (features.sql, line 1)"
NULL = "handled_by is null exactly where the label is (48 rows) (features.sql, line 1)"


@pytest.mark.full
def test_a_version_that_may_know_the_outcome_waits_and_every_command_says_why(cli, tmp_path):
    overrides = {**OVERRIDES, "labels": LABELS, "features": {**OVERRIDES["features"], "max_rejected": "10%"}}
    project = write_project(tmp_path / "project", **{**overrides, "events": EVENTS, "features_sql": FEATURES})
    run = cli(project, "run", "small", "--to", "2024-02-02")
    assert run.code == 1
    ((version,),) = published(project, "SELECT version FROM batch_platform.model_versions")
    reason = f"meets the gate; a leak is suspected: {MADE}; a leak is suspected: {NULL}; waits for promotion"
    assert f"waiting: {reason}" in run.out
    assert "declare model.allow_suspected_leaks: [attention, handled_by]" in run.out
    assert "If not, take them out of the features' SQL in the lines named above" in run.out
    leaks = published(
        project, "SELECT model_version, column_name, reason, allowed FROM small.suspected_leaks ORDER BY 2"
    )
    assert leaks == [(version, "attention", MADE, False), (version, "handled_by", NULL, False)]
    assert f"{version}: {reason}; batch-platform models small promote {version}" in cli(project, "status", "small").out
    (listed,) = cli(project, "models", "small", "--json").json
    assert (listed["decision"], listed["reason"]) == ("waiting", reason)
    assert [leak["columns"] for leak in listed["suspected_leaks"]] == [["attention"], ["handled_by"]]
    shown = cli(project, "models", "small", "show", version)
    assert f"suspected_leaks: {MADE}; {NULL}" in shown.out
    manifest = json.loads((project / ".batch_platform/models/small" / version / "manifest.json").read_text())
    assert [leak["columns"] for leak in manifest["suspected_leaks"]] == [["attention"], ["handled_by"]]

    assert cli(project, "models", "small", "promote", version, "--reason", "they are known").code == 0
    status = cli(project, "status", "small", "--json").json[0]
    assert (status["champion"], status["champion_leaks"], status["waiting"]) == (version, [MADE, NULL], {})

    model = {"allow_suspected_leaks": ["attention", "handled_by"]}
    write_defs_yaml(project, small_declaration(**overrides, model=model))
    assert "is approved: meets the gate" in cli(project, "train", "small", "--force").out
    *_, (action, why) = published(project, "SELECT action, reason FROM batch_platform.promotions ORDER BY seq")
    assert action == "approved"
    assert f"a leak is suspected (allowed): {MADE}" in why
    assert published(project, "SELECT count(*) FROM small.suspected_leaks WHERE allowed") == [(2,)]


def test_what_the_sql_makes_from_the_source_of_the_label_is_suspected_only_in_the_rows_of_the_partition(tmp_path):
    label = LABELS_SQL.replace(", shop", "").replace("returned\n", "calls > 3 AS returned\n")
    pipeline = small_pipeline(tmp_path, events=EVENTS, features_sql=FEATURES, labels_sql=label)
    made = made_from_outcomes(pipeline.builder)
    assert list(made) == ["attention"]
    earlier = FEATURES.replace("$partition_start", "$partition_start - INTERVAL 7 DAY")
    for features, labels in ((earlier, label), (FEATURES, label.replace("calls > 3", "calls > amount"))):
        pipeline = small_pipeline(tmp_path, events=EVENTS, features_sql=features, labels_sql=labels)
        assert made_from_outcomes(pipeline.builder) == {}
