"""`models compare`, `promote`, `rollback` and `timeline`: what they say, what they record, and what SQL answers afterwards."""

import pytest

from batch_platform_tests.harness.command_line import copy_of, published, redeclare, run_command, write_project
from batch_platform_tests.harness.starting_points import made_once

STATUS = "SELECT DISTINCT condition, reason, model_version, champion FROM batch_platform.partition_status ORDER BY ALL"


@pytest.fixture
def weekly(tmp_path):
    """A project with a model for each week of February, the last two of them withdrawn by nobody yet."""

    def make(folder):
        train = {"every": "week", "start": "2024-02-04", "evaluate": "3 days"}
        project = write_project(folder, model={"train": train})
        answer = run_command(project, "run", "small", "--from", "2024-02-04", "--to", "2024-02-24")
        assert answer.code == 0, answer.err

    return copy_of(made_once(tmp_path, "weekly_project", make), tmp_path / "project")


def versions(folder):
    return [name for (name,) in published(folder, "SELECT version FROM batch_platform.model_versions ORDER BY seq")]


def test_a_rollback_is_recorded_listed_and_rescored_and_sql_distinguishes_then_from_now(cli, weekly):
    first, second, third = versions(weekly)
    lines = cli(weekly, "models", "small", "rollback", "--reason", "too many false alarms").out.splitlines()
    assert lines[0] == f"small: {third} is withdrawn from 2024-02-18 on: too many false alarms."
    assert lines[2] == "  scored by another version: 7 partitions (2024-02-18 to 2024-02-24)"
    assert published(weekly, STATUS) == [
        ("scored", None, first, first),
        ("scored", None, second, second),
        ("stale", f"scored by {third}, the champion is {second}", third, second),
    ]
    then_and_now = (
        "SELECT p.model_version, s.champion FROM small.predictions AS p "
        "JOIN batch_platform.partition_status AS s USING (partition_key) WHERE p.id = 1930"
    )
    assert published(weekly, then_and_now) == [(third, second)]
    rescored = cli(weekly, "run", "small", "--from", "2024-02-18", "--to", "2024-02-24")
    assert rescored.code == 0
    assert published(weekly, then_and_now) == [(second, second)]
    history = published(weekly, "SELECT action, version, reason FROM batch_platform.promotions ORDER BY seq")
    assert history[-1] == ("withdrawn", third, "too many false alarms")


def test_a_withdrawn_version_is_promoted_again_and_an_older_one_from_a_partition_on(cli, weekly):
    first, second, third = versions(weekly)
    cli(weekly, "models", "small", "rollback")
    report = cli(weekly, "models", "small", "promote", third, "--reason", "it was right", "--json").json
    assert (report["action"], report["champion_after"], report["partitions"]) == ("approved", third, [])
    assert {row[0] for row in published(weekly, STATUS)} == {"scored"}
    older = cli(weekly, "models", "small", "promote", first, "--from", "2024-02-15", "--json").json
    assert (older["champion_before"], older["champion_after"]) == (second, first)
    assert (older["until"], older["partitions"]) == (
        "2024-02-17T23:00:00+00:00",
        ["2024-02-15", "2024-02-16", "2024-02-17"],
    )
    lines = cli(weekly, "models", "small", "timeline", "--json").json
    assert [(line["first_partition"], line["version"], len(line["scored"]), line["stale"]) for line in lines] == [
        ("2024-02-04", first, 7, []),
        ("2024-02-11", second, 4, []),
        ("2024-02-15", first, 3, older["partitions"]),
        ("2024-02-18", third, 7, []),
    ]
    shown = cli(weekly, "models", "small", "timeline").out.splitlines()
    assert shown[3].split()[:5] == ["2024-02-15", first, "3", "3", "3"]
    assert cli(weekly, "run", "small", "--from", "2024-02-15", "--to", "2024-02-17").code == 0
    assert {row[0] for row in published(weekly, STATUS)} == {"scored"}
    by_hand = (
        "SELECT partition_key, s.model_version, s.hindsight, p.reason FROM batch_platform.score_runs AS s "
        "JOIN batch_platform.promotions AS p ON p.seq = s.decision_seq WHERE p.reason LIKE 'promoted%' ORDER BY ALL"
    )
    assert published(weekly, by_hand) == [(key, first, True, "promoted manually") for key in older["partitions"]]


def test_wrong_decisions_change_nothing(cli, weekly):
    first, *_ = versions(weekly)
    before = published(weekly, "FROM batch_platform.promotions")
    unknown = cli(weekly, "models", "small", "promote", first[:-1] + "x")
    assert (unknown.code, f"did you mean '{first}'?" in unknown.error) == (2, True)
    serving = cli(weekly, "models", "small", "promote", first)
    assert (serving.code, "already serves" in serving.error) == (2, True)
    nowhere = cli(weekly, "models", "small", "rollback", "--from", "2024-02-30")
    assert (nowhere.code, "is not the key of a partition" in nowhere.error) == (2, True)
    assert published(weekly, "FROM batch_platform.promotions") == before


def test_compare_holds_two_versions_against_each_other_on_the_rows_that_both_were_judged_on(cli, project):
    (good,) = versions(project)
    redeclare(project, params={"max_iter": 1, "max_leaf_nodes": 2, "early_stopping": False})
    assert cli(project, "train", "small").code == 1, "it is refused"
    _, worse = versions(project)
    report = cli(project, "models", "small", "compare", worse, good, "--json").json
    verdict = report["verdict"]
    assert report["metrics.roc_auc"] == {worse: verdict["value"], good: verdict["other"]}
    assert (verdict["word"], verdict["metric"]) == ("worse", "roc_auc")
    assert verdict["difference"]["high"] < 0
    *_, said = cli(project, "models", "small", "compare", worse, good).out.splitlines()
    assert said.startswith(f"{worse} is judged worse than {good}: roc_auc 0.")
