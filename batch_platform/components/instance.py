"""The Dagster instance of a home: its dagster.yaml and databases, created on first use."""

import fcntl
import os
from pathlib import Path

import dagster as dg

from batch_platform.warehouse.home import Home

DAGSTER_YAML = """\
# Written by batch-platform on first use; yours to change.
telemetry:
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


def prepare_instance(home: Home) -> Path:
    """Create the Dagster home if it is new; only once, even if several processes ask at the same time."""
    home.create()
    os.environ["DAGSTER_HOME"] = str(home.dagster)
    config, prepared = home.dagster / "dagster.yaml", home.dagster / ".prepared"
    with (home.dagster / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not config.exists():
            config.write_text(DAGSTER_YAML, encoding="utf-8")
        if not prepared.exists():
            with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
                instance.get_runs(limit=1)
                instance.get_asset_keys(limit=1)
                instance.all_instigator_state()
            prepared.touch()
    return home.dagster
