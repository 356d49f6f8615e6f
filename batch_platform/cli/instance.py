"""The Dagster instance that records the runs: the user's own if DAGSTER_HOME names one, otherwise that of the home.

The home's own, with its dagster.yaml and databases, is created on first use. Only Dagster writes to the user's own.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import WrongUseError
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
