"""The Dagster instance that records the runs: the user's own if DAGSTER_HOME names one, otherwise that of the home.

The home's own, with its dagster.yaml and databases, is created on first use. Only Dagster writes to the user's own. Commands that
only read take what it recorded from its SQLite files, without importing Dagster; wherever these are not as Dagster makes them by
default, Dagster is asked.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import BatchPlatformError, WrongUseError
from batch_platform.warehouse.home import Home

VARIABLE = "DAGSTER_HOME"

DAGSTER_YAML = """\
# Written by batch-platform on first use; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
  max_resume_run_attempts: 0
  free_slots_after_run_end_seconds: 60
run_queue:
  max_concurrent_runs: 4
schedules:
  use_threads: true
  num_workers: 4
"""


_own: set[str] = set()  # values to which this process itself set the variable


def own_instance(home: Home) -> Path | None:
    """The folder of the user's own instance, which DAGSTER_HOME names; None if it names the home's, or nothing.

    Raises:
        WrongUseError: The folder does not exist, or the path is relative.
    """
    named = os.environ.get(VARIABLE, "")
    if not named or named in _own or named == str(home.dagster):
        return None
    folder = Path(named).expanduser()
    if not (folder.is_absolute() and folder.is_dir()):
        msg = f"{VARIABLE} names {named!r}, which is not the absolute path of a folder."
        raise WrongUseError(msg, hint=f"correct it, or unset it: runs are then recorded in {home.dagster}.")
    return folder


def records_elsewhere(home: Home) -> str | None:
    """Say where Dagster's records are if they are not in SQLite files of the home; None if they are, or if there are none."""
    if (own := own_instance(home)) is not None:
        return f"they are in the instance {own}, which {VARIABLE} names"
    settings = _settings(home)
    return f"they are where {_file(home)} says" if any("storage" in name for name in settings) else None


def _file(home: Home) -> Path:
    return home.dagster / "dagster.yaml"


def _settings(home: Home) -> dict[str, Any]:
    """The settings of the home's own instance; empty where it is not made yet. Raises WrongUseError if the file cannot be read."""
    import yaml

    try:
        settings = yaml.safe_load(_file(home).read_text(encoding="utf-8")) if _file(home).exists() else None
        if settings is None or isinstance(settings, dict):
            return settings or {}
        reason = "it holds no keys"
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    msg = f"The settings of Dagster in {_file(home)} cannot be read: {reason}."
    raise WrongUseError(msg, hint="correct the file, or move it away: batch-platform run NAME writes it anew.")


def materialized_partitions(home: Home, pipelines: Sequence[str]) -> dict[str, set[str]] | None:
    """The partitions of predictions that Dagster has as materialized, by pipeline; None where Dagster has to be asked.

    It has to be while a run is not finished, and for an asset that was ever wiped.
    """
    if records_elsewhere(home) is not None:
        return None
    try:
        with _reading(home.dagster / "history" / "runs.db") as con:
            unfinished = "SELECT count(*) FROM runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')"
            if con.execute(unfinished).fetchone()[0]:
                return None
        with _reading(home.dagster / "history" / "runs" / "index.db") as con:
            assets = {name: json.dumps([name, "predictions"]) for name in pipelines}
            wiped = "SELECT count(*) FROM asset_keys WHERE asset_key = ? AND asset_details IS NOT NULL"
            if any(con.execute(wiped, [asset]).fetchone()[0] for asset in assets.values()):
                return None
            query = (
                "SELECT DISTINCT partition FROM event_logs "
                "WHERE asset_key = ? AND dagster_event_type = 'ASSET_MATERIALIZATION' AND partition IS NOT NULL"
            )
            return {name: {key for (key,) in con.execute(query, [asset])} for name, asset in assets.items()}
    except sqlite3.Error:
        return None


def last_heartbeat(home: Home) -> datetime | None:
    """The time at which Dagster's daemon last reported, in UTC; None if it never did, or if there are no records.

    Raises:
        BatchPlatformError: The records are in a database that cannot be reached.
    """
    if records_elsewhere(home) is None:
        try:
            with _reading(home.dagster / "history" / "runs.db") as con:
                ((last,),) = con.execute("SELECT max(timestamp) FROM daemon_heartbeats")
        except sqlite3.Error:
            return None
        return None if last is None else datetime.fromisoformat(last).replace(tzinfo=UTC)
    import dagster as dg

    folder = own_instance(home) or home.dagster
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            times = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    except Exception as error:  # each database has errors of its own
        msg = f"Dagster's records of {folder} cannot be read: {type(error).__name__}."
        raise BatchPlatformError(msg, hint="see that their database can be reached.") from error
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _reading(file: Path) -> "closing[sqlite3.Connection]":
    return closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True))


def settings_that_matter(folder: Path) -> list[str]:
    """Describe the settings of a user's own instance that decide how runs end, are repeated and share the machine."""
    import dagster as dg

    with dg.DagsterInstance.from_config(str(folder)) as instance:
        monitored, retried = instance.run_monitoring_enabled, instance.run_retries_enabled
        queue = instance.get_concurrency_config().run_queue_config
    at_once = "as many runs as are launched" if queue is None else f"at most {queue.max_concurrent_runs} runs"
    return [
        "run_monitoring is on: the daemon ends runs whose process died."
        if monitored
        else "run_monitoring is off: a run whose process died is only ended by the next tick or command of a pipeline.",
        "run_retries is on: Dagster repeats a failed run as a whole, and schedules wait for it."
        if retried
        else "run_retries is off: the schedules try again what failed.",
        f"concurrency: {at_once} work at the same time, each on all cores.",
    ]


def prepare_instance(home: Home) -> Path:
    """The folder of the instance that records the runs, which from now on is the instance of this process.

    The home's own is created if it is new; only once, even if several processes ask at the same time.
    """
    home.create()
    if (own := own_instance(home)) is not None:
        return own
    os.environ[VARIABLE] = str(home.dagster)
    _own.add(str(home.dagster))
    _settings(home)  # Dagster's own error would name no file
    config, prepared = _file(home), home.dagster / ".prepared"
    with (home.dagster / ".prepare.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not config.exists():
            config.write_text(DAGSTER_YAML, encoding="utf-8")
        if not prepared.exists():
            import dagster as dg

            with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
                instance.get_runs(limit=1)
                instance.get_asset_keys(limit=1)
                instance.all_instigator_state()
            prepared.touch()
    return home.dagster


@contextmanager
def only_service(home: Home, address: str) -> Generator[Path]:
    """Be the only webserver and daemon of a home until the block ends; gives the workspace file that they read.

    The operating system drops the lock with this process, however it ends. A webserver and a daemon that outlived such a
    process are killed first: two daemons would do each tick twice.

    Raises:
        WrongUseError: Another process serves the home.
    """
    with (home.dagster / ".service.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            msg = f"batch-platform ui already serves {home.root} at {file.read()}."
            hint = "open that address, or end that process first; batch-platform ui --read-only --port PORT runs beside it."
            raise WrongUseError(msg, hint=hint) from error
        file.truncate(0)
        file.write(f"{address} (process {os.getpid()})")
        file.flush()
        from batch_platform.components.processes import kill_readers_of

        workspace = home.dagster / "workspace.yaml"
        kill_readers_of(workspace)
        yield workspace
