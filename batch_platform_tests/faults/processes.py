"""Runs, daemons and clocks that fail while partitions are worked on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_platform.cli.instance import DAGSTER_YAML
from batch_platform.components import wiring
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import (
    NOW,
    SCORED,
    assert_others_unchanged,
    assert_survived,
    days,
    held,
    prepared,
)
from batch_platform_tests.faults.writes import task_arguments
from batch_platform_tests.harness.command_line import COMMAND, clean_environment, copy_of, run_command, start_command
from batch_platform_tests.harness.dagster_project import PACKAGE, write_dagster_project
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.served import (
    BACKFILL,
    BACKFILL_STATUS,
    PATIENCE,
    Ui,
    answers,
    finished,
    free_port,
    launch,
    session_of,
)
from batch_platform_tests.harness.served import served as served_by_the_command
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_spec
from batch_platform_tests.harness.starting_points import made_once
from batch_platform_tests.harness.workspace import workspace_of

SELECTION = [{"path": ["small", "features"]}, {"path": ["small", "predictions"]}]
TERMINATE = "mutation ($id: String!) {terminateRun(runId: $id) {__typename ... on TerminateRunFailure {message}}}"
ENDLESS = "SELECT id, ts, sum(n) AS n FROM events CROSS JOIN range(1000000000000) r(n) GROUP BY id, ts"

HELD_SOURCE = """
import os
import time
from pathlib import Path

import polars as pl

PROJECT = Path(__file__).parents[1]


def events(partition):
    hold = PROJECT / "hold"
    while hold.exists() and partition.key in hold.read_text().split():
        (PROJECT / "reached").write_text(str(os.getpid()))
        time.sleep(0.05)
    return pl.scan_parquet(PROJECT / "shop/defs/small/events.parquet")
"""


@dataclass(frozen=True)
class Project:
    """A user's project whose source waits while a file names the partition it is read for."""

    folder: Path

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the project, without Dagster."""
        sys.path.insert(0, str(self.folder))
        spec = small_spec(**OVERRIDES)
        return Pipeline(spec, self.folder / PACKAGE / "defs" / "small", Home(self.folder / ".batch_platform"))

    def run(self, *arguments: str) -> None:
        """Run `batch-platform run small`, which must succeed."""
        answer = run_command(self.folder, "run", "small", *arguments)
        assert answer.code == 0, answer.err

    def hold(self, *keys: str) -> None:
        """Make the source wait when it is read for these partitions."""
        (self.folder / "hold").write_text(" ".join(keys))

    def release(self) -> None:
        """Let every waiting source go on."""
        (self.folder / "hold").unlink()

    def reached(self) -> int:
        """Wait until a process waits in the source; returns its id."""
        path = self.folder / "reached"
        return int(wait(lambda: path.exists() and path.read_text()))  # the waiting process writes again and again

    @contextmanager
    def instance(self) -> Generator[dg.DagsterInstance]:
        """What Dagster has recorded."""
        with dg.DagsterInstance.from_config(str(self.folder / ".batch_platform" / "dagster")) as instance:
            yield instance

    def waits_for_the_pool(self) -> bool:
        """Whether the newest run waits for a slot of its pool."""
        with self.instance() as instance:
            (run,) = instance.get_runs(limit=1)
            return any("pool" in entry.message for entry in instance.all_logs(run.run_id))

    def statuses(self) -> list[str]:
        """The statuses of the runs, oldest first."""
        with self.instance() as instance:
            return [run.status.value for run in reversed(instance.get_runs())]


OVERRIDES: dict[str, Any] = {
    "sources": {"events": {"parquet": None, "python": f"{PACKAGE}.waiting.events"}},
    "partitions": {"end": "2024-03-11"},
    "dagster": {"pool": "warehouse"},
}


def wait(look: Callable[[], Any]) -> Any:
    """Repeat a look until it returns something true; returns that."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.1)
    pytest.fail(f"waited {PATIENCE:.0f} s in vain")


def copy_of_held_project(folder: Path) -> Project:
    """Copy the project with ten days scored into a test's folder; the original is made once per session."""

    def make(project: Path) -> None:
        write_dagster_project(project, events=small_events(last=date(2024, 3, 10)), **OVERRIDES)
        (project / PACKAGE / "waiting.py").write_text(HELD_SOURCE)
        Project(project).run("--from", SCORED[0], "--to", SCORED[-1])

    return Project(copy_of(made_once(folder, "held_project", make), folder / "project"))


def killed_run_of_the_command_line(folder: Path) -> None:
    """The only slot of its pool, for which another run waits, is free again as soon as somebody notices."""
    project = copy_of_held_project(folder)
    before = held(project.pipeline)
    with project.instance() as instance:
        instance.event_log_storage.set_concurrency_slots("warehouse", 1)
    project.hold("2024-02-13")
    arguments = ("run", "small", "--from", "2024-02-11", "--to", "2024-02-15")
    with ExitStack() as ending:
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = ending.enter_context(start_command(project.folder, *arguments, **output))
        assert project.reached() == process.pid
        other = ending.enter_context(
            start_command(project.folder, "run", "small", "--partition", "2024-02-16", **output)
        )
        ending.callback(other.kill)
        wait(lambda: "waits for a slot" if project.waits_for_the_pool() else None)
        process.kill()
        project.release()
        assert project.statuses()[-2:] == ["STARTED", "STARTED"], "nobody has noticed yet"
        assert run_command(project.folder, "status", "small").code == 0
        assert project.statuses()[-2] == "FAILURE"
        assert other.wait(PATIENCE) == 0
    project.run("--from", "2024-02-11", "--to", "2024-02-15")
    after = held(project.pipeline)
    assert_others_unchanged(before, after, set(after) - set(before))
    assert len(after) == 16


@contextmanager
def served(project: Project) -> Generator[tuple[Ui, "Daemon"]]:
    """Run webserver and daemon as separate processes, with run monitoring every second."""
    home, port = Home(project.folder / ".batch_platform"), free_port()
    config = home.dagster / "dagster.yaml"
    config.write_text(DAGSTER_YAML.replace("  enabled: true\n", "  enabled: true\n  poll_interval_seconds: 1\n"))
    daemon, log = Daemon(project.folder, home), project.folder / "ui.log"
    web = daemon.started("dagster_webserver", "-p", str(port), log=log)
    ui = Ui(web, f"http://127.0.0.1:{port}", log, home.root)
    try:
        daemon.start()
        ui.wait(lambda: answers(ui))
        yield ui, daemon
    finally:
        end_session(daemon.process)
        end_session(web)


@dataclass
class Daemon:
    """Dagster's daemon, with the code server that it starts."""

    folder: Path
    home: Home

    def started(self, *words: str, log: Path) -> "subprocess.Popen[Any]":
        """Start a module on the project, in a session of its own."""
        environment = clean_environment(DAGSTER_HOME=str(self.home.dagster), BATCH_PLATFORM_HOME=str(self.home.root))
        command = [sys.executable, "-m", *words, "-m", f"{PACKAGE}.definitions", "-d", str(self.folder)]
        with log.open("ab") as output:
            outputs = {"stdout": output, "stderr": output}
            return subprocess.Popen(command, env=environment, cwd=self.folder, start_new_session=True, **outputs)

    def start(self) -> None:
        """Start the daemon."""
        self.process = self.started("dagster._daemon", "run", log=self.folder / "daemon.log")

    def kill(self, *, with_its_code_server: bool) -> None:
        """Kill the daemon with SIGKILL, alone or together with the processes that it started."""
        if with_its_code_server:
            end_session(self.process)
        else:
            self.process.kill()
            self.process.wait()


def end_session(leader: "subprocess.Popen[Any]") -> None:
    """Kill a process and everything in its session."""
    for _ in range(3):
        for pid in session_of(leader.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    leader.wait(PATIENCE)


def killed_run_of_the_daemon(folder: Path) -> None:
    """The process of a run dies alone, and another together with the code server that would have noticed."""
    project = copy_of_held_project(folder)
    before = held(project.pipeline)
    with served(project) as (ui, daemon):
        terminated_from_the_ui(ui, project, "2024-02-11")
        first = launched(ui, project, "2024-02-11")
        os.kill(project.reached(), signal.SIGKILL)
        assert ui.wait(lambda: finished(ui, first))["status"] == "FAILURE"
        (project.folder / "reached").unlink()
        second = launched(ui, project, "2024-02-11")
        project.reached()
        daemon.kill(with_its_code_server=True)
        project.release()
    assert project.statuses()[-3:] == ["CANCELED", "FAILURE", "STARTED"]
    project.run("--partition", "2024-02-11")
    with project.instance() as instance:
        assert instance.get_run_by_id(second).status == dg.DagsterRunStatus.FAILURE
    after = held(project.pipeline)
    assert_others_unchanged(before, after, {"2024-02-11"})
    assert after["2024-02-11"].rows_in == 40


def terminated_from_the_ui(ui: Ui, project: Project, key: str) -> None:
    """F27: *Terminate* interrupts SQL that would run for weeks."""
    sql = project.pipeline.folder / "features.sql"
    text = sql.read_text(encoding="utf-8")
    sql.write_text(ENDLESS, encoding="utf-8")
    run_id = launched(ui, project, key)
    project.reached()
    project.release()
    time.sleep(1)  # the query is under way
    assert ui.ask(TERMINATE, id=run_id)["__typename"] == "TerminateRunSuccess"
    assert ui.wait(lambda: finished(ui, run_id))["status"] == "CANCELED"
    sql.write_text(text, encoding="utf-8")
    (project.folder / "reached").unlink()


def launched(ui: Ui, project: Project, key: str) -> str:
    """Launch a run of one partition from the UI, whose source waits; returns the id of the run."""
    project.hold(key)
    return launch(ui, "__ASSET_JOB", {"assetSelection": SELECTION}, partition=key)


def killed_daemon(folder: Path, *, with_its_code_server: bool) -> None:
    """The daemon dies during a backfill of 30 partitions, ten of them done; in the end each is committed once."""
    project = copy_of_held_project(folder)
    before = held(project.pipeline)
    keys = [str(date(2024, 2, 1) + timedelta(days=n)) for n in range(30)]
    project.hold(keys[17])
    with served(project) as (ui, daemon):
        launched = ui.ask(BACKFILL, backfillParams={"assetSelection": SELECTION, "partitionNames": keys, "tags": []})
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        project.reached()
        daemon.kill(with_its_code_server=with_its_code_server)
        daemon.start()
        project.release()
        if with_its_code_server:
            project.run("--from", keys[0], "--to", keys[-1])

        def ended() -> dict[str, Any] | None:
            backfill = ui.ask(BACKFILL_STATUS, id=launched["backfillId"])
            return backfill if backfill["status"].startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        backfill = ui.wait(ended)
    if backfill["status"] != "COMPLETED_SUCCESS":
        project.run("--from", keys[0], "--to", keys[-1])
    assert set(project.statuses()) <= {"SUCCESS", "FAILURE"}, "nothing is left in between"
    after = held(project.pipeline)
    assert_others_unchanged(before, after, keys[10:])
    assert set(keys) == {key for key in after if key in keys}
    with project.pipeline.warehouse.open() as con:
        commits = con.execute(
            "SELECT count(*), count(DISTINCT partition_key) FROM batch_platform.score_runs"
        ).fetchall()
    assert commits == [(30, 30)], "no partition was computed twice"
    with project.instance() as instance:
        materialized = instance.get_materialized_partitions(dg.AssetKey(["small", "predictions"]))
    assert materialized == set(keys)


DIES_BEFORE_TELLING = """
import os, signal, sys
from batch_platform.components.events import PartitionLog
committed = PartitionLog.committed
def dies(self, *args, **kwargs):
    if self._asset.path[-1] == "predictions":
        os.kill(os.getpid(), signal.SIGKILL)
    committed(self, *args, **kwargs)
PartitionLog.committed = dies
from batch_platform.cli import main
sys.argv = ["batch-platform", "run", "small", "--from", "2024-02-11", "--to", "2024-02-13"]
main()
"""


def dies_before_telling(project: Project) -> list[str]:
    """Commit three partitions and die before their events are logged; returns their keys."""
    done = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_TELLING],
        cwd=project.folder,
        env=clean_environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return ["2024-02-11", "2024-02-12", "2024-02-13"]


def crash_before_the_event(folder: Path) -> None:
    """`status` shows what Dagster does not know; the next run computes nothing and logs it."""
    project = copy_of_held_project(folder)
    keys = dies_before_telling(project)
    after = held(project.pipeline)
    assert set(keys) <= set(after)
    (report,) = run_command(project.folder, "status", "small", "--json").json
    assert report["only_in_ledger"] == [], "a report shows what is published, which the run did not come to"
    project.pipeline.publish()  # as the next run does, of whichever pipeline
    status = run_command(project.folder, "status", "small")
    assert f"{', '.join(keys)}: in the ledger, but not materialized in Dagster; the next run records them" in status.out
    (report,) = run_command(project.folder, "status", "small", "--json").json
    assert (report["only_in_ledger"], report["only_in_dagster"]) == (keys, [])
    project.run("--from", keys[0], "--to", keys[-1])
    assert held(project.pipeline) == after, "nothing was computed again"
    (report,) = run_command(project.folder, "status", "small", "--json").json
    assert (report["only_in_ledger"], report["only_in_dagster"]) == ([], [])


def crash_before_the_event_and_a_retry(folder: Path) -> None:
    """The same run again skips what is committed, and logs each partition as materialized."""
    with pytest.MonkeyPatch.context() as patch:
        prepared(folder)
        deployment = deploy(folder, patch)
        before = held(deployment.pipeline)
        result = deployment.run("predictions", first=SCORED[0], last=SCORED[-1])
        assert result.success
        assert held(deployment.pipeline) == before
        logged = deployment.materializations("predictions", result.run_id)
    assert [entry.asset_materialization.partition for entry in logged] == SCORED
    assert all(entry.asset_materialization.metadata["skipped"].value for entry in logged)
    assert_survived(deployment.pipeline, before, {SCORED[0]})


def jumping_clock(folder: Path, jump: timedelta) -> None:
    """The clock jumps whenever it is read: model and rows are the same, only the recorded times differ."""
    with pytest.MonkeyPatch.context() as patch:
        prepared(folder)
        deployment = deploy(folder, patch)
        before = held(deployment.pipeline)
        times = iter(NOW + jump * n for n in range(10_000))
        patch.setattr(wiring, "now", lambda: next(times))
        config = {"features": {"force": True}, "predictions": {"force": True}}
        result = deployment.run("features", "predictions", first=SCORED[0], last=SCORED[4], config=config)
        assert result.success
        after = held(deployment.pipeline)
    assert {after[key].run_id for key in SCORED[:5]} == {result.run_id}
    assert {key: (partition.content, partition.model_version) for key, partition in after.items()} == {
        key: (partition.content, partition.model_version) for key, partition in before.items()
    }
    assert_others_unchanged(before, after, SCORED[:5])
    assert_survived(deployment.pipeline, before, SCORED[:5])


def promoted_in_the_middle(folder: Path) -> None:
    """A backfill ends with the model that it began with; what it scored is then due for the new champion."""
    pipeline = prepared(folder)
    before = held(pipeline)
    (old,) = pipeline.state().registry.versions
    with Nursery() as nursery:
        backfill = nursery.fork("write", **task_arguments(pipeline, SCORED, "backfill"), pause=True)
        backfill.wait_for("committing")
        pipeline.train(days(pipeline, SCORED[0])[0], Stamp("promotes", NOW), params={"max_iter": 9})
        new = pipeline.state().registry.versions[-1]
        os.kill(backfill.pid, signal.SIGCONT)
        assert backfill.bury() == 0
    after = held(pipeline)
    assert {(partition.run_id, partition.model_version, *partition.models) for partition in after.values()} == {
        ("backfill", old.version, old.version)
    }
    plan = carry_out(pipeline, NOW, "next")
    assert {item.reason for item in plan.of("predictions")} == {
        f"scored by {old.version}, the champion is {new.version}"
    }
    assert {(partition.model_version, *partition.models) for partition in held(pipeline).values()} == {
        (new.version, new.version)
    }
    assert_survived(pipeline, before, SCORED)


TERMINATE_AS = """
mutation ($id: String!, $policy: TerminateRunPolicy!) {terminateRun(runId: $id, terminatePolicy: $policy) {__typename}}"""


def terminated(folder: Path, *command: str, policy: str = "SAFE_TERMINATE") -> None:
    """F41: the process of a run that no code server started stops at once, and the run stays canceled."""
    project = copy_of_held_project(folder)
    before = held(project.pipeline)
    project.hold("2024-02-13")
    variables = {
        "DAGSTER_HOME": str(project.folder / ".batch_platform" / "dagster"),
        "BATCH_PLATFORM_HOME": str(project.folder / ".batch_platform"),
    }
    environment = clean_environment(**({} if command[0] == COMMAND else variables))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ending:
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=project.folder, env=environment, text=True, **output)
        ending.callback(process.kill)
        project.reached()
        with workspace_of(project.folder, patch) as location:
            (run,) = location.instance.get_runs(limit=1)
            location.ask(TERMINATE_AS, id=run.run_id, policy=policy)
            _, errors = process.communicate(timeout=PATIENCE)
            assert location.recorded(run.run_id).status == dg.DagsterRunStatus.CANCELED
    assert process.returncode != 0
    if command[0] == COMMAND:
        assert process.returncode == 1
        message = f"Error: small: run {run.run_id} was terminated in Dagster."
        assert next(line for line in errors.splitlines() if line.startswith("Error: ")).startswith(message), errors
    project.release()
    after = held(project.pipeline)
    assert after == before
    project.run("--from", "2024-02-11", "--to", "2024-02-15")
    assert_others_unchanged(before, held(project.pipeline), [f"2024-02-{day}" for day in range(11, 16)])


TOOLS = Path(sys.executable).parent
RANGE = {"dagster/asset_partition_range_start": "2024-02-11", "dagster/asset_partition_range_end": "2024-02-15"}
BY_FORCE = "MARK_AS_CANCELED_IMMEDIATELY"
OF_THE_COMMAND = (COMMAND, "run", "small", "--from", "2024-02-11", "--to", "2024-02-15")
OF_DG = (str(TOOLS / "dg"), "launch", "--assets", "key:small/features", "--partition-range", "2024-02-11...2024-02-15")
OF_A_JOB = (
    *(str(TOOLS / "dagster"), "job", "execute", "-m", f"{PACKAGE}.definitions", "-j", "small_score"),
    *("--tags", json.dumps(RANGE)),
)

WAITING_ASSET = """
import time
from pathlib import Path

import dagster as dg

PROJECT = Path(__file__).parents[2]


def wait_while_held(where):
    while (PROJECT / where).exists():
        (PROJECT / "reached").write_text(where)
        time.sleep(0.05)


class Printer(dg.ConfigurableResource):
    def setup_for_execution(self, context):
        wait_while_held("before the first step")


@dg.asset(
    deps=[dg.AssetKey(["small", "features"])],
    backfill_policy=dg.BackfillPolicy.single_run(),
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-03-11", timezone="Europe/Berlin"),
)
def letters(printer: Printer):
    wait_while_held("between two steps")


@dg.definitions
def defs():
    return dg.Definitions(assets=[letters], resources={"printer": Printer()})
"""


def every_process_killed_outside_a_step(folder: Path) -> None:
    """F49: one run has not begun its first step, another one, of a backfill, is between two steps."""
    project = copy_of_held_project(folder)
    home = project.folder / ".batch_platform"
    before = held(project.pipeline)
    (project.folder / PACKAGE / "defs" / "letters.py").write_text(WAITING_ASSET)
    chosen = [{"path": ["small", "features"]}, {"path": ["letters"]}]

    def reached(where: str) -> None:
        wait(lambda: (project.folder / "reached").exists() and (project.folder / "reached").read_text() == where)

    with served_by_the_command(project.folder, home) as ui:
        (project.folder / "between two steps").touch()
        params = {"assetSelection": chosen, "partitionNames": ["2024-02-11"], "tags": []}
        backfill = ui.ask(BACKFILL, backfillParams=params)["backfillId"]
        reached("between two steps")
        (project.folder / "before the first step").touch()
        config = "{execution: {config: {in_process: {}}}}"  # which makes the resources before the first step
        run_id = launch(ui, "__ASSET_JOB", {"assetSelection": chosen}, partition="2024-02-12", config=config)
        reached("before the first step")
        end_session(ui.process)
    assert project.statuses()[-2:] == ["STARTED", "STARTED"], "nobody has noticed yet"
    for where in ("between two steps", "before the first step"):
        (project.folder / where).unlink()
    with served_by_the_command(project.folder, home) as ui:
        assert ui.wait(lambda: finished(ui, run_id))["status"] == "FAILURE"
        ended = ui.wait(lambda: it if (it := ui.ask(BACKFILL_STATUS, id=backfill))["status"] != "REQUESTED" else None)
        assert [run["status"] for run in ended["runs"]] == ["FAILURE"], ended
        again = launch(ui, "__ASSET_JOB", {"assetSelection": [*chosen, *SELECTION[1:]]}, partition="2024-02-12")
        assert ui.wait(lambda: finished(ui, again))["status"] == "SUCCESS"
    project.run("--from", "2024-02-11", "--to", "2024-02-12")
    after = held(project.pipeline)
    assert_others_unchanged(before, after, ["2024-02-11", "2024-02-12"])
    assert len(after) == 12


CASES: dict[str, Case] = {
    "F2 a run of the command line": killed_run_of_the_command_line,
    "F2 a run of the daemon, without and with its code server": killed_run_of_the_daemon,
    "F3 the daemon alone": lambda folder: killed_daemon(folder, with_its_code_server=False),
    "F3 the daemon and its code server": lambda folder: killed_daemon(folder, with_its_code_server=True),
    "F4 then another run": crash_before_the_event,
    "F4 then a retry": crash_before_the_event_and_a_retry,
    "F41 a run of the command line": lambda folder: terminated(folder, *OF_THE_COMMAND),
    "F41 a run of the command line, by force": lambda folder: terminated(folder, *OF_THE_COMMAND, policy=BY_FORCE),
    "F41 a run of dg, by force, whose steps are processes": lambda folder: terminated(folder, *OF_DG, policy=BY_FORCE),
    "F41 a run of dagster job execute": lambda folder: terminated(folder, *OF_A_JOB),
    "F49 before the first step, and between two steps": every_process_killed_outside_a_step,
    "F18 forward": lambda folder: jumping_clock(folder, timedelta(days=1)),
    "F18 backward": lambda folder: jumping_clock(folder, timedelta(days=-1)),
    "F20 while the backfill is about to commit": promoted_in_the_middle,
}
