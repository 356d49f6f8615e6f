"""`status`, `trace` and `models`: what they say to people and to programs."""

import json
import re
import shutil
from datetime import date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.command_line import (
    OVERRIDES,
    REJECTED_DAY,
    REJECTED_ID,
    published,
    write_project,
)
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import SHOPS, small_declaration, small_events
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


def test_status_of_every_partition_is_a_table(cli, project):
    lines = cli(project, "status", "--all").out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith(REJECTED_DAY)]
    assert row == [REJECTED_DAY, "scored", version_of(project), "39", "1"]


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


def test_status_of_an_empty_home_says_what_is_due(cli, tmp_path):
    answer = cli(write_project(tmp_path / "project"), "status")
    assert answer.out.splitlines() == [
        "small: 29 missing, 31 warm-up",
        "  health: warn: 2024-02-29 is not scored, which was expected by 2024-03-02 00:00; nothing is scored yet",
        "  champion: none",
        "  last commit: none",
        "  due now: build features of 59 partitions, train 1 model, score 29 partitions, evaluate 29 partitions",
        "  2024-01-01 to 2024-01-31 (31): warm-up, the first model serves from 2024-02-01",
        "  2024-02-01 to 2024-02-29 (29): missing",
    ]


def test_status_says_why_partitions_are_stale(cli, project):
    file = pipeline_folder(project) / "features.sql"
    file.write_text(file.read_text(encoding="utf-8") + "AND amount < 1000\n", encoding="utf-8")
    lines = cli(project, "status").out.splitlines()
    assert lines[0] == "small: 29 stale, 31 warm-up"
    assert lines[-1] == "  2024-02-01 to 2024-02-29 (29): stale, the SQL or its declaration changed"


def test_an_old_row_that_was_corrected_is_found_on_demand_and_scored_again(cli, project):
    events = pipeline_folder(project) / "events.parquet"
    of_day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date() == date(2024, 2, 7)
    pl.read_parquet(events).with_columns(pl.col("items") + of_day.cast(pl.Int32)).write_parquet(events)
    assert "stale" not in cli(project, "status").out
    assert "  2024-02-07: stale, rows of source 'events' changed" in cli(project, "status", "--recheck").out
    assert "everything asked for is up to date" in cli(project, "run", "small").out
    assert cli(project, "run", "small", "--partition", "2024-02-07", "--json").json["scored_now"] == 1
    assert "to do" not in cli(project, "run", "small", "--recheck").out


def test_what_the_users_code_prints_is_not_part_of_a_report(cli, project):
    definitions = project / "shop" / "definitions.py"
    definitions.write_text(definitions.read_text() + "print('loading the shop')\n", encoding="utf-8")
    for args in (("check",), ("status",), ("run", "small", "--from", "2024-02-01"), ("models", "small", "list")):
        answer = cli(project, *args, "--json")
        assert answer.err == "loading the shop\n"
        assert json.loads(answer.out)


def test_status_lists_every_pipeline_of_a_project(cli, tmp_path):
    folder = write_project(tmp_path / "project")
    for file in pipeline_folder(folder).iterdir():
        target = pipeline_folder(folder, "other") / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    write_defs_yaml(folder, small_declaration(name="other"), "other")
    assert [report["pipeline"] for report in cli(folder, "status", "--json").json] == ["other", "small"]
    assert [report["pipeline"] for report in cli(folder, "status", "other", "--json").json] == ["other"]


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
    assert reports["other"]["aspects"][0] | {"text": ""} == {
        "name": "fresh",
        "level": "fail",
        "text": "",
        "partition": "2024-02-29",
        "numbers": {},
    }
    (folder / "defs.yaml").write_text("type: batch_platform.components.BatchInference\nattributes: {}\n")
    assert cli(project, "status", "--fail-on", "warn").code == 3, "a pipeline that cannot be loaded is not healthy"


def test_project_without_a_pipeline_says_so(cli, tmp_path):
    folder = write_project(tmp_path / "project")
    (pipeline_folder(folder) / "defs.yaml").unlink()
    for args in (("check",), ("status",)):
        assert cli(folder, *args).out == f"{folder} declares no pipeline.\n"
    assert cli(folder, "run", "small").error == (
        "There is no pipeline 'small'; there are none. Hint: batch-platform new NAME --from FILE proposes one"
    )


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
    assert traced["model"]["params"]["max_iter"] == 5
    assert traced["model"]["trained_until"] == "2024-01-30T23:00:00+00:00"
    assert traced["model"]["decision"].startswith("approved by gate: ")
    assert traced["features"]["sha256"] == traced["commit"]["input_hash"]
    name = f"2024-02-07.{traced['features']['sha256'][:12]}.parquet"
    assert traced["features"]["file"] == f"{project}/.batch_platform/lake/small/features/{name}"
    assert set(traced["features"]["sources"]) == {"events"}
    true = small_events().filter(pl.col("id") == 1500).row(0, named=True)
    assert [traced["features"]["row"][name] for name in ("id", "amount", "items")] == [
        1500,
        true["amount"],
        true["items"],
    ]
    (explained,) = cli(project, "trace", "small", "id=1500", "--reasons", "--json").json
    reasons = explained.pop("reasons")
    assert explained == {name: value for name, value in traced.items() if name != "reasons"}
    assert {reason["feature"] for reason in reasons["largest"]} == {"amount", "items", "known"}
    lines = cli(project, "trace", "small", "id=1500", "--reasons").out.splitlines()
    (head,) = (line for line in lines if line.startswith("reasons, computed now: "))
    assert head.endswith(f"what moved the raw score (log-odds) from its base value {reasons['base']:.4g}:")
    first = reasons["largest"][0]
    assert lines[lines.index(head) + 1] == f"  {first['feature']} ({first['value']}): {first['contribution']:+.4g}"
    Path(traced["features"]["file"]).write_bytes(b"damaged")
    (traced,) = cli(project, "trace", "small", "id=1500", "--json").json
    assert (traced["features"]["row"], traced["row"]["id"]) == (None, 1500)


def test_trace_of_a_rejected_row_gives_the_reason_and_the_row(cli, project):
    (traced,) = cli(project, "trace", "small", f"id={REJECTED_ID}", "--json").json
    assert traced["outcome"] == "rejected"
    assert traced["row"]["column_name"] == "amount"
    assert traced["row"]["key"]["id"] == REJECTED_ID
    assert traced["row"]["row"]["amount"] == -1.0
    assert traced["commit"]["rows_rejected"] == 1
    text = cli(project, "trace", "small", f"id={REJECTED_ID}").out
    assert text.startswith("outcome: rejected\n")
    assert f"\n    id: {REJECTED_ID}\n" in text


@pytest.mark.full
def test_trace_takes_keys_of_any_characters(cli, project):
    for shop in SHOPS:
        rows = cli(project, "trace", "small", f"shop={shop}", "--json").json
        ((expected,),) = published(project, "SELECT count(*) FROM small.predictions WHERE shop = $shop", {"shop": shop})
        assert len([row for row in rows if row["outcome"] == "scored"]) == expected > 0
        assert {row["row"].get("shop", shop) for row in rows} == {shop}


@pytest.mark.full
def test_trace_takes_the_partition_among_its_keys(cli, project):
    every = cli(project, "trace", "small", f"shop={SHOPS[1]}", "--json").json
    days = {row["commit"]["partition_key"] for row in every}
    assert len(days) > 1, "a part of the key occurs on many days"
    day = min(days)
    one_day = cli(project, "trace", "small", f"shop={SHOPS[1]}", f"partition={day}", "--json").json
    assert one_day == [row for row in every if row["commit"]["partition_key"] == day]
    rejected = cli(project, "trace", "small", "partition=2024-02-19", "id=2000", "--json").json
    assert [row["outcome"] for row in rejected] == ["rejected"]
    assert (
        "no scored or rejected row has id=2000, partition=2024-02-20."
        in cli(project, "trace", "small", "id=2000", "partition=2024-02-20").error
    )
    assert "'soon' is not the key of a partition" in cli(project, "trace", "small", "id=2000", "partition=soon").error
    assert "a partition alone names no row." in cli(project, "trace", "small", f"partition={day}").error


def test_trace_of_a_row_that_is_not_there_says_where_to_look(cli, project):
    answer = cli(project, "trace", "small", "id=1500", "shop=none=such")
    assert answer.code == 1
    assert answer.error == (
        "small: no scored or rejected row has id=1500, shop=none=such. "
        "Hint: batch-platform status small shows which partitions are scored; batch-platform run small --recheck finds rows "
        "that came later than `late` says."
    )


def test_trace_before_anything_is_published_says_so(cli, tmp_path):
    answer = cli(write_project(tmp_path / "project"), "trace", "small", "id=1")
    assert answer.code == 1
    assert answer.error.startswith("Nothing is published in ")


@pytest.mark.parametrize("args", [("models", "small"), ("models", "small", "list")])
def test_models_lists_versions_with_the_champion_marked(cli, project, args):
    header, row = cli(project, *args).out.splitlines()
    assert header.split() == ["version", "champion", "decision", "rows", "accuracy", "brier", "log_loss", "roc_auc"]
    assert row.split()[:4] == [version_of(project), "*", "approved", "1,174"]
    (version,) = cli(project, *args, "--json").json
    assert (version["version"], version["champion"], version["serving_period"]) == (
        version_of(project),
        True,
        "2024-02-01",
    )


def test_models_of_an_untrained_pipeline_says_so(cli, tmp_path):
    folder = write_project(tmp_path / "project")
    assert cli(folder, "models", "small").out == "small has no trained version yet.\n"
    assert cli(folder, "models", "small", "--json").json == []


def test_models_show_gives_manifest_contract_and_decisions(cli, project):
    version = version_of(project)
    report = cli(project, "models", "small", "show", version, "--json").json
    assert report["version"] == version
    assert report["manifest"]["task"] == "binary"
    assert [column["name"] for column in report["manifest"]["contract"]] == ["amount", "items", "known"]
    assert [event["action"] for event in report["decisions"]] == ["approved"]
    assert report["engines"] == ["local"]
    text = cli(project, "models", "small", "show", version).out
    assert "estimator: sklearn.ensemble.HistGradientBoostingClassifier" in text
    assert "scored by: local" in text
    assert " approved by gate: " in text.splitlines()[-1]


def test_models_show_of_an_unknown_version_names_the_nearest(cli, project):
    version = version_of(project)
    answer = cli(project, "models", "small", "show", version[:-1])
    assert answer.code == 2
    assert answer.error.endswith(f"Hint: did you mean {version!r}?")


def test_a_changed_manifest_is_not_shown(cli, project):
    version = version_of(project)
    manifest = project / ".batch_platform" / "models" / "small" / version / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows"', '"rows "', 1))
    answer = cli(project, "models", "small", "show", version)
    assert answer.code == 1
    assert f"The manifest of {version} is not the one that was registered" in answer.error


def test_trace_shows_the_rows_of_the_sources(cli, project):
    (traced,) = cli(project, "trace", "small", "id=1500", "--json").json
    (source,) = traced["sources"]
    assert (source["name"], source["unchanged"], source["rows_of_key"]) == ("events", True, 1)
    assert source["columns"] == ["amount", "id", "items", "known", "shop", "ts"]
    assert source["rows"][0]["id"] == 1500
    text = cli(project, "trace", "small", "id=1500").out
    assert "\nsource events (parquet):\n" in text
    assert "\n  columns read: amount, id, items, known, shop, ts\n" in text


def test_trace_of_a_source_lists_the_predictions_that_depend_on_it(cli, project):
    dependents = cli(project, "trace", "small", "--source", "events", "--partition", "2024-02-07", "--json").json
    assert (dependents["source"], dependents["partition"], len(dependents["partitions"])) == (
        "events",
        "2024-02-07",
        29,
    )
    assert dependents["partitions"][0]["through"] == ["features", "model"]
    text = cli(project, "trace", "small", "--source", "events").out
    assert text.startswith("small: 29 partitions, 1,159 rows, depend on events\n")
    assert f"2024-02-01 to 2024-02-29 (29): through its features and its model, scored by {version_of(project)}" in text


def test_trace_takes_a_row_or_a_source(cli, project):
    for args in (
        (),
        ("id=1", "--source", "events"),
        ("id=1", "--partition", "2024-02-07"),
        ("--partition", "2024-02-07"),
    ):
        answer = cli(project, "trace", "small", *args)
        assert answer.code == 2
        assert answer.error.startswith("give either KEY=VALUE of a row, or --source")
    assert "did you mean 'events'?" in cli(project, "trace", "small", "--source", "event").error


def test_status_reads_warehouse_and_copy_as_a_whole_and_fails_where_they_differ(project, cli):
    cli(project, "run", "small", "--partition", "2024-02-02")
    out = cli(project, "status", "--verify").out
    assert re.search(
        r"The warehouse was read as a whole: [\d,]+ rows in \d+ tables\.\nThe published copy holds the same\.", out
    )
    with duckdb.connect(str(project / ".batch_platform" / "published.duckdb")) as con:
        con.execute("UPDATE small.predictions SET score = 0")
    refused = cli(project, "status", "--verify", code=1)
    assert "holds other rows than the warehouse in small.predictions. Hint: remove" in refused.err
