"""What must hold of a home at any moment, whoever works on it: checks that count themselves.

`inspect` looks at one database, `Memory` compares what was seen with what was seen before, `inspect_files` looks at what
the ledgers refer to. Nothing here raises on a defect: each one is listed.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from batch_platform.models.bundle import open_bundle
from batch_platform.models.registry import read_registry
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild, read_latest
from batch_platform.warehouse.sql import digest, has_table
from batch_platform_tests.faults.invariants import Held, look

LEDGERS = {
    "score_runs": ("seq", "pipeline", "partition_key", "model_version", "input_hash", "rows_in", "run_id"),
    "feature_builds": ("seq", "pipeline", "partition_key", "rows", "sha256", "run_id"),
    "evaluations": ("seq", "pipeline", "partition_key", "score_seq", "rows_labelled", "run_id"),
    "model_versions": ("seq", "pipeline", "version", "sha256", "run_id"),
    "promotions": ("seq", "pipeline", "version", "action", "reason"),
    "challenger_trainings": ("seq", "pipeline", "challenger", "version", "run_id"),
    "changes": ("seq", "schema_name", "table_name", "partition_key", "change_id"),
}

# Each query selects one column that names an offender; `{s}` is the schema of the pipeline.
OF_A_PIPELINE = {
    "a row once": "SELECT partition_key FROM {s}.predictions GROUP BY ALL HAVING count(*) > count(DISTINCT id)",
    "finite scores": "SELECT partition_key FROM {s}.predictions WHERE score IS NULL OR NOT isfinite(score)",
    "one transaction a write": """
        SELECT run_id FROM batch_platform.score_runs WHERE pipeline = '{s}' AND run_id LIKE 'write-%'
        GROUP BY ALL HAVING count(DISTINCT committed_at) > 1""",
    "a version with its decision": """
        SELECT version FROM batch_platform.model_versions WHERE pipeline = '{s}'
        EXCEPT SELECT version FROM batch_platform.promotions WHERE pipeline = '{s}'""",
    "scored by a registered version": """
        SELECT model_version FROM {s}.predictions EXCEPT SELECT version FROM batch_platform.model_versions""",
    "evaluations of what was scored": """
        SELECT partition_key FROM batch_platform.evaluations e WHERE pipeline = '{s}' AND NOT EXISTS (
            FROM batch_platform.score_runs r WHERE r.seq = e.score_seq AND r.partition_key = e.partition_key)""",
    "one status a partition": """
        SELECT partition_key FROM batch_platform.partition_status WHERE pipeline = '{s}' GROUP BY ALL HAVING count(*) > 1""",
}
OF_CHALLENGERS = {
    "challengers balance": """
        SELECT c.partition_key FROM {s}.challengers c LEFT JOIN (
            SELECT partition_key, challenger, count(*) AS n FROM {s}.challenger_scores GROUP BY ALL
        ) USING (partition_key, challenger)
        WHERE coalesce(n, 0) <> rows_scored OR (failure IS NULL AND rows_in <> rows_scored + rows_rejected)""",
    "no score of a challenger without its row": """
        SELECT partition_key FROM {s}.challenger_scores s WHERE NOT EXISTS (
            FROM {s}.challengers c WHERE c.partition_key = s.partition_key AND c.challenger = s.challenger)""",
}

Watermarks = dict[str, tuple[int, int, str]]  # by ledger: its newest number, the number of its rows, a digest of them


@dataclass
class Inspection:
    """What was checked, and what did not hold."""

    checks: Counter[str] = field(default_factory=Counter[str])  # by kind
    violations: list[str] = field(default_factory=list[str])

    def check(self, kind: str, offenders: Iterable[object], count: int = 1) -> None:
        """Count checks of a kind, and list its offenders."""
        self.checks[kind] += count
        self.violations += [f"{kind}: {offender}" for offender in offenders]

    def add(self, other: "Inspection", where: str) -> None:
        """Count the checks of another inspection, and say where its violations were seen."""
        self.checks.update(other.checks)
        self.violations += [f"{where}: {violation}" for violation in other.violations]


@dataclass
class Seen(Inspection):
    """One inspection of a database, and what it held."""

    where: str = ""
    states: dict[str, dict[str, Held]] = field(default_factory=dict[str, dict[str, Held]])  # by pipeline and partition
    watermarks: Watermarks = field(default_factory=Watermarks)


def inspect(con: duckdb.DuckDBPyConnection, where: str, pipelines: Sequence[str], earlier: Watermarks) -> Seen:
    """Look at all tables of a warehouse or a copy; the ledgers must still hold what they held at the earlier watermarks."""
    seen = Seen(where=where)
    con.execute("BEGIN")
    for pipeline in pipelines:
        if not has_table(con, pipeline, "predictions"):
            continue
        held = look(con, pipeline)
        seen.states[pipeline] = held
        broken = [f"{pipeline} {key}: {reason}" for key, row in held.items() if (reason := row.broken())]
        seen.check("a partition whole and balanced", broken, len(held))
        queries = dict(OF_A_PIPELINE)
        queries |= OF_CHALLENGERS if has_table(con, pipeline, "challenger_scores") else {}
        for kind, query in queries.items():
            offenders = con.execute(query.format(s=pipeline)).fetchall()
            seen.check(kind, [f"{pipeline} {offender}" for (offender,) in offenders], len(held))
    for table, columns in LEDGERS.items():
        name, content = f"batch_platform.{table}", digest(columns)
        if table in earlier:
            seq, *before = earlier[table]
            (now,) = con.execute(f"SELECT {content} FROM {name} WHERE seq <= $seq", {"seq": seq}).fetchall()
            same = [now[0], str(now[1])] == before
            seen.check("ledgers only grow", [] if same else [f"{table} up to {seq}: {before}, now {now}"])
        unique = "change_id" if table == "changes" else "seq"
        twice = f"SELECT {unique} FROM {name} GROUP BY ALL HAVING count(*) > 1"
        seen.check("numbers once", [f"{table} {number}" for (number,) in con.execute(twice).fetchall()])
        ((newest, rows, total),) = con.execute(f"SELECT coalesce(max(seq), 0), {content} FROM {name}").fetchall()
        seen.watermarks[table] = (newest, rows, str(total))
    con.execute("COMMIT")
    return seen


def inspect_files(
    con: duckdb.DuckDBPyConnection, home: Home, pipelines: Sequence[str], chance: random.Random
) -> Inspection:
    """Read the feature file of every partition and the bundle of one version drawn at random; the warehouse is held."""
    inspection = Inspection()
    for pipeline in pipelines:
        builds = read_latest(con, FeatureBuild, pipeline)
        for key, build in builds.items():
            file = home.feature_file(pipeline, key, build.sha256)
            intact = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == build.sha256
            inspection.check("features as recorded", [] if intact else [file])
        registry = read_registry(con, pipeline)
        removed = {event.version for event in registry.promotions if event.action == "removed"}
        present = [version for version in registry.versions if version.version not in removed]
        if present:
            version = chance.choice(present)
            inspection.check("bundles open", _unopened(home, pipeline, version.version, version.sha256))
        approved = {event.version for event in registry.promotions if event.action == "approved"}
        inspection.check("no promoted version removed", approved & removed, len(approved))
    return inspection


def _unopened(home: Home, pipeline: str, version: str, sha256: str) -> list[str]:
    try:
        bundle = open_bundle(home.bundle(pipeline, version), sha256)
        _ = bundle.judged, bundle.judged_fit
    except Exception as error:  # noqa: BLE001 - whatever it is, it is listed
        return [f"{pipeline} {version}: {error}"]
    return []


@dataclass
class Memory:
    """What was seen of partitions before: the same inputs and model must give the same rows, and nothing goes back."""

    contents: dict[tuple[str, ...], tuple[Any, ...]] = field(default_factory=dict[tuple[str, ...], tuple[Any, ...]])
    newest: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])

    def compare(self, seen: Seen, *, may_be_older: bool = False) -> None:
        """Check what was seen, list its violations there, and remember it; a copy `may_be_older` than what was seen last."""
        for pipeline, key, held in [(p, k, held) for p, states in seen.states.items() for k, held in states.items()]:
            inputs = (pipeline, key, held.model_version, held.input_hash)
            rows = (held.content, held.rows_in, held.rows_scored, held.rows_rejected)
            known = self.contents.setdefault(inputs, rows)
            seen.check("same inputs, same rows", [] if known == rows else [f"{inputs}: {known}, now {rows}"])
            if not may_be_older:
                last = self.newest.get((pipeline, key), 0)
                seen.check(
                    "never back", [] if (held.seq or 0) >= last else [f"{pipeline} {key}: {last}, now {held.seq}"]
                )
                self.newest[pipeline, key] = max(last, held.seq or 0)
        lost = [place for place in self.newest if place[0] in seen.states and place[1] not in seen.states[place[0]]]
        seen.check("no partition lost", lost, len(self.newest))
