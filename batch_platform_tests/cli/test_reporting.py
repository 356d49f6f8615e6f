"""`status`, `trace` and `models`: what they say to people and to programs."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import duckdb

from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.command_line import OVERRIDES, REJECTED_DAY, REJECTED_ID, published
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import small_declaration
from batch_platform_tests.harness.ticks import in_a_long_commit


def version_of(project):
    ((version,),) = published(project, "SELECT version FROM batch_platform.model_versions")
    return version


def test_status_says_what_is_scored_and_what_no_model_serves(cli, project):
    answer = cli(project, "status", "small")
    lines = answer.out.splitlines()
    assert answer.err == ""
    assert lines[0] == "small: 29 scored, 31 warm-up"
    assert re.fullmatch(
        r"  health: good: fresh \(2024-02-29\); drift is not judged; roc_auc 0\.\d{4} on 2024-02-29; the model is 29 days old",
        lines[1],
    )
    assert lines[2].startswith(f"  champion: {version_of(project)} (accuracy 0.")
    assert lines[3].startswith("  last commit: 20")
    assert lines[4:] == [
        "  due now: nothing; the partitions end on 2024-03-01 (partitions.end)",
        "  2024-01-01 to 2024-01-31 (31): warm-up, the first model serves from 2024-02-01",
        "  2024-02-01 to 2024-02-29 (29): scored",
    ]


def test_status_reports_as_json(cli, project):
    (report,) = cli(project, "status", "--json").json
    assert report["counts"] == {"scored": 29, "warm-up": 31}
    assert report["champion"] == version_of(project)
    assert set(report["champion_metrics"]) >= {"roc_auc", "log_loss"}
    assert report["due"] == {}
    of = {line["partition"]: line for line in report["partitions"]}
    scored = of[REJECTED_DAY]
    assert (scored["rows_in"], scored["rows_scored"], scored["rows_rejected"], scored["evaluated"]) == (40, 39, 1, True)
    assert datetime.fromisoformat(scored["committed_at"]).tzinfo is not None
    assert of["2024-01-01"]["condition"] == "warm-up"


def test_status_computes_what_is_stale_and_writes_nothing(cli, project):
    home = project / ".batch_platform"
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in home.iterdir() if file.is_file()}
    declared = {**OVERRIDES, "predictions": {"keep": ["items", "known"], "rescore": "never"}}
    write_defs_yaml(project, small_declaration(**declared))
    (report,) = cli(project, "status", "--json").json
    assert (report["counts"], report["due"]) == ({"stale": 29, "warm-up": 31}, {})
    assert before == {
        file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in home.iterdir() if file.is_file()
    }


def test_f32_a_report_answers_while_a_long_commit_holds_the_warehouse(cli, project):
    version = version_of(project)
    reports = (
        ("status", "--json"),
        ("models", "small", "list", "--json"),
        ("models", "small", "show", version, "--json"),
        ("models", "small", "compare", version, version, "--json"),
    )
    expected = [cli(project, *args).json for args in reports]
    with in_a_long_commit(Home(project / ".batch_platform")) as process:
        answers = [cli(project, *args, BATCH_PLATFORM_LOCK_TIMEOUT="0.1").json for args in reports]
        process.stdin.close()
    for answer in (*expected, *answers):
        answer[0].pop("at", None) if isinstance(answer, list) else None
    assert answers == expected


def test_what_the_users_code_prints_is_not_part_of_a_report(cli, project):
    definitions = project / "shop" / "definitions.py"
    definitions.write_text(definitions.read_text() + "print('loading the shop')\n", encoding="utf-8")
    for args in (("check",), ("status",), ("run", "small", "--from", "2024-02-01"), ("models", "small", "list")):
        answer = cli(project, *args, "--json")
        assert answer.err == "loading the shop\n"
        assert json.loads(answer.out)


def test_status_of_several_pipelines_is_short_and_ends_with_3_if_the_health_is_so_bad(cli, project):
    folder = pipeline_folder(project, "other")
    shutil.copytree(pipeline_folder(project), folder)
    declared = small_declaration(**OVERRIDES, name="other", monitoring={"fresh_by": "07:00"})
    write_defs_yaml(project, declared, "other")
    assert cli(project, "status", "small", "--fail-on", "warn").code == 0
    answer = cli(project, "status", "--fail-on", "fail")
    assert answer.code == 3
    assert answer.err == ""
    other, small = answer.out.split("small: ")
    assert len(other.splitlines()) == 3
    assert other.splitlines()[1] == (
        "  health: fail: 2024-02-29 is not scored, which was expected by 2024-03-01 07:00; nothing is scored yet"
    )
    assert len(small.splitlines()) == 3
    assert small.splitlines()[1].startswith("  health: good: fresh (2024-02-29); ")
    reports = {report["pipeline"]: report["health"] for report in cli(project, "status", "--json").json}
    assert {name: health["level"] for name, health in reports.items()} == {"other": "fail", "small": "none"}
    (folder / "defs.yaml").write_text("type: batch_platform.components.BatchInference\nattributes: {}\n")
    assert cli(project, "status", "--fail-on", "warn").code == 3, "a pipeline that cannot be loaded is not healthy"


def test_trace_of_a_scored_row_names_all_that_produced_it(cli, project):
    (traced,) = cli(project, "trace", "small", "id=1500", "--json").json
    assert set(traced) == {"outcome", "row", "commit", "model", "features", "reasons", "sources"}
    assert traced["reasons"] is None
    assert traced["outcome"] == "scored"
    assert traced["row"]["id"] == 1500
    assert 0 < traced["row"]["score"] < 1
    assert traced["commit"]["partition_key"] == traced["row"]["partition_key"] == "2024-02-07"
    assert traced["commit"]["run_id"] == traced["row"]["run_id"]
    assert traced["model"]["version"] == traced["row"]["model_version"] == version_of(project)
    assert traced["model"]["decision"].startswith("approved by gate: ")
    assert traced["features"]["sha256"] == traced["commit"]["input_hash"]
    name = f"2024-02-07.{traced['features']['sha256'][:12]}.parquet"
    assert traced["features"]["file"] == f"{project}/.batch_platform/lake/small/features/{name}"
    (explained,) = cli(project, "trace", "small", "id=1500", "--reasons", "--json").json
    reasons = explained.pop("reasons")
    assert explained == {name: value for name, value in traced.items() if name != "reasons"}
    assert {reason["feature"] for reason in reasons["largest"]} == {"amount", "items", "known"}
    text = cli(project, "trace", "small", "id=1500", "--reasons").out
    assert "reasons, computed now: " in text
    assert "\nsource events (parquet):\n" in text
    Path(traced["features"]["file"]).write_bytes(b"damaged")
    (traced,) = cli(project, "trace", "small", "id=1500", "--json").json
    assert (traced["features"]["row"], traced["row"]["id"]) == (None, 1500)


def test_trace_of_a_rejected_row_gives_the_reason_and_the_row(cli, project):
    (traced,) = cli(project, "trace", "small", f"id={REJECTED_ID}", "--json").json
    assert (traced["outcome"], traced["row"]["column_name"], traced["row"]["row"]["amount"]) == (
        "rejected",
        "amount",
        -1,
    )


def test_trace_of_a_row_that_is_not_there_says_where_to_look(cli, project):
    answer = cli(project, "trace", "small", "id=1500", "shop=none=such")
    assert answer.code == 1
    assert answer.error == (
        "small: no scored or rejected row has id=1500, shop=none=such. "
        "Hint: batch-platform status small shows which partitions are scored; batch-platform run small --recheck finds rows "
        "that came later than `late` says."
    )


def test_models_lists_and_shows_versions(cli, project):
    version, args = version_of(project), ("models", "small", "list")
    header, row = cli(project, *args).out.splitlines()
    assert header.split() == ["version", "champion", "decision", "rows", "accuracy", "brier", "log_loss", "roc_auc"]
    assert row.split()[:4] == [version, "*", "approved", "1,174"]
    (listed,) = cli(project, *args, "--json").json
    assert (listed["version"], listed["champion"], listed["serving_period"]) == (version, True, "2024-02-01")
    report = cli(project, "models", "small", "show", version, "--json").json
    assert report["manifest"]["task"] == "binary"
    assert [column["name"] for column in report["manifest"]["contract"]] == ["amount", "items", "known"]
    assert [event["action"] for event in report["decisions"]] == ["approved"]
    assert report["engines"] == ["local"]
    text = cli(project, "models", "small", "show", version).out
    assert "estimator: sklearn.ensemble.HistGradientBoostingClassifier" in text
    assert " approved by gate: " in text.splitlines()[-1]
    nearest = cli(project, "models", "small", "show", version[:-1])
    assert (nearest.code, nearest.error.endswith(f"Hint: did you mean {version!r}?")) == (2, True)


def test_trace_of_a_source_lists_the_predictions_that_depend_on_it(cli, project):
    dependents = cli(project, "trace", "small", "--source", "events", "--partition", "2024-02-07", "--json").json
    assert [line["through"] for line in dependents["partitions"]] == [["features", "model"]] * 29
    text = cli(project, "trace", "small", "--source", "events").out
    assert text.startswith("small: 29 partitions, 1,159 rows, depend on events\n")
    assert f"2024-02-01 to 2024-02-29 (29): through its features and its model, scored by {version_of(project)}" in text


def test_status_reads_warehouse_and_copy_as_a_whole_and_fails_where_they_differ(project, cli):
    cli(project, "run", "small", "--partition", "2024-02-02")
    out = cli(project, "status", "--verify").out
    assert re.search(
        r"The warehouse was read as a whole: [\d,]+ rows in \d+ tables\.\nThe published copy holds the same\.", out
    )
    with duckdb.connect(str(project / ".batch_platform" / "published.duckdb")) as con:
        con.execute("UPDATE small.predictions SET score = 0")
    refused = cli(project, "status", "--verify")
    assert "holds other rows than the warehouse in small.predictions. Hint: remove" in refused.err
