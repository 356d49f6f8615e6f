"""The partitions that Dagster recorded as materialized, read from the SQLite files of the home's own instance without importing Dagster.

A test compares it with what Dagster answers. Wherever the files are not as Dagster makes them by default, or a run is not finished,
Dagster itself is asked.
"""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import yaml

from batch_platform.cli import terminal
from batch_platform.cli.instance import own_instance, records_elsewhere
from batch_platform.cli.project import Project
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.explaining import are_dagsters_records, explained
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.state import State
from batch_platform.warehouse.home import Home

_FINISHED = ("SUCCESS", "FAILURE", "CANCELED")


def materialized_in_dagster(
    project: Project, pipelines: Sequence[Pipeline], states: Sequence[State]
) -> dict[str, set[str]]:
    """The predictions that Dagster has as materialized; for those that a run holds now, what the ledger says.

    Without any for a home that may only be read, and with a warning where Dagster's records are damaged or do not answer.
    """
    recorded = materialized_partitions(project.home, [pipeline.spec.name for pipeline in pipelines])
    if recorded is not None:
        return recorded
    if not project.home.is_writable:  # Dagster cannot open its records without writing beside them
        return {}
    from batch_platform.cli.running import open_instance
    from batch_platform.components.runs import held

    materialized = dict[str, set[str]]()
    try:
        with open_instance(project) as instance:
            for pipeline, state in zip(pipelines, states, strict=True):
                wiring = project.pipeline(pipeline.spec.name)
                busy = {key for asset, key in held(wiring, instance) if asset == "predictions"}
                done = instance.get_materialized_partitions(wiring.key("predictions"))
                materialized[pipeline.spec.name] = (done - busy) | (busy & state.scores.keys())
    except Exception as error:
        if not are_dagsters_records(error):
            raise
        terminal.warn(str(explained(error)))
    return materialized


def materialized_partitions(home: Home, pipelines: Sequence[str]) -> dict[str, set[str]] | None:
    """The partitions of predictions that Dagster has as materialized, by pipeline; None where Dagster has to be asked."""
    if own_instance(home) is not None:
        return None
    try:
        settings = yaml.safe_load((home.dagster / "dagster.yaml").read_text(encoding="utf-8")) or {}
        if any("storage" in name for name in settings):
            return None
        with _reading(home.dagster / "history" / "runs.db") as con:
            unfinished = f"SELECT count(*) FROM runs WHERE status NOT IN {_FINISHED}"
            if con.execute(unfinished).fetchone()[0]:
                return None
        with _reading(home.dagster / "history" / "runs" / "index.db") as con:
            return {name: _materialized(con, json.dumps([name, "predictions"])) for name in pipelines}
    except (OSError, sqlite3.Error, yaml.YAMLError):
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


def _materialized(con: sqlite3.Connection, asset: str) -> set[str]:
    """The partitions of an asset that were materialized since it was last wiped."""
    wiped = con.execute("SELECT asset_details FROM asset_keys WHERE asset_key = ?", [asset]).fetchone()
    if wiped is not None and wiped[0] is not None:
        raise sqlite3.DataError
    query = (
        "SELECT DISTINCT partition FROM event_logs "
        "WHERE asset_key = ? AND dagster_event_type = 'ASSET_MATERIALIZATION' AND partition IS NOT NULL"
    )
    return {key for (key,) in con.execute(query, [asset])}
