"""`health`: one quick answer for probes, whatever runs meanwhile."""

import os
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from batch_platform.cli.health import DAEMON_LIMIT
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import TIMEOUT_VARIABLE


def home_of(project) -> Home:
    return Home(project / ".batch_platform")


def test_a_home_in_which_all_is_done_is_healthy(project, cli):
    answer = cli(project, "health", "--json").json
    published_at = datetime.fromtimestamp(home_of(project).published.stat().st_mtime, UTC)
    assert answer == {
        "healthy": True,
        "problems": [],
        "home": str(home_of(project).root),
        "published_at": published_at.isoformat(),
        "behind": False,
        "lock_holder": None,
        "lock_since": None,
        "daemon_at": None,
        "overdue": {},
    }
    assert cli(project, "health").out.startswith("healthy: published ")


def test_a_home_in_which_nothing_has_run_is_healthy_and_stays_untouched(fresh, cli):
    assert cli(fresh, "health").out == "healthy: nothing is published yet\n"
    assert not home_of(fresh).root.exists()


def test_a_run_that_holds_the_warehouse_is_named_and_a_problem_once_others_have_waited_in_vain(
    project, cli, monkeypatch
):
    with Warehouse(home_of(project)).open():
        answer = cli(project, "health", "--json").json
        assert (answer["healthy"], answer["lock_holder"]) == (True, str(os.getpid()))
        monkeypatch.setenv(TIMEOUT_VARIABLE, "0")
        hung = cli(project, "health")
        assert (hung.code, hung.out) == (1, "")
        assert hung.error.startswith(
            f"Process {os.getpid()} has held the warehouse {home_of(project).warehouse} since "
        )
        assert hung.error.endswith("Hint: end that process; what it committed stays.")
    assert cli(project, "health").code == 0


def test_a_home_that_has_lost_its_warehouse_is_not_healthy(project, cli):
    home_of(project).warehouse.unlink()
    answer = cli(project, "health")
    assert (answer.code, "warehouse.duckdb" in answer.error) == (1, True)


def beat(folder: str, ago: timedelta) -> None:
    with dg.DagsterInstance.from_config(folder) as instance:
        at = (datetime.now(UTC) - ago).timestamp()
        instance.add_daemon_heartbeat(DaemonHeartbeat(at, "SCHEDULER", "daemon", None))
        assert {heartbeat.timestamp for heartbeat in instance.get_daemon_heartbeats().values()} == {at}


def test_a_daemon_that_reports_no_longer_is_a_problem(project, cli):
    folder = str(home_of(project).dagster)
    beat(folder, timedelta())
    assert cli(project, "health").out.endswith("; the daemon reported a few seconds ago\n")
    beat(folder, DAEMON_LIMIT * 2)
    late = cli(project, "health")
    assert (late.code, late.error.startswith("Dagster's daemon last reported about 10 min ago; ")) == (1, True)


@pytest.mark.full
def test_what_is_overdue_is_said_and_restarts_nothing(fresh, cli):
    assert cli(fresh, "run", "small", "--to", "2024-02-27").code == 0
    answer = cli(fresh, "health")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[-1].startswith(
        "small is overdue: 2024-02-29 is not scored, which was expected by 2024-03-"
    )
    overdue = cli(fresh, "health", "--json").json["overdue"]["small"]
    assert (overdue["level"], overdue["partition"]) == ("warn", "2024-02-29")
