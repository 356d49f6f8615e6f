"""Find faults in real partitions: this project, Evidently and NannyML on the same tables with the same faults.

A model learns from the first half of a table, and the partitions of the second half are judged one by one. A fault goes on for three
partitions. Beside what was found stand the partitions until it was (0: the first), the clean partitions with an alarm, and the
core-seconds per million rows with faults; ours score and commit the rows too.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import OURS, Result, Spent, run, spent
from batch_platform_tests.harness.faulty_days import FAULTS, ID, KEY, LABEL, TIME, Table, faulty_partitions, tables
from batch_platform_tests.harness.small_pipeline import carry_out

TITLE = "Finding faults in real tables"
CLEAN = "clean"
PEERS = {"evidently": "evidently_days.py", "nannyml": "nannyml_days.py"}
SCRIPTS = Path(__file__).parent / "peers"
NOW = datetime(2014, 2, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Judged(Result):
    """The partitions of a table with one fault, and in which of them there was an alarm."""

    faults: int = 0  # stretches with the fault, or clean partitions
    found: int = 0  # stretches, or clean partitions, with an alarm
    delay: float = 0.0  # partitions until the alarm, on average of those found
    by_check: Mapping[str, int] = field(default_factory=dict[str, int])  # alarms by what gave them


def measure(options: Options) -> Iterator[Result]:
    """Judge every table, clean and with each fault."""
    for table in tables():
        for contender in options.chosen([OURS, *PEERS]):
            if contender == OURS:
                yield from _ours(table, options.folder / f"ours-{table.name}")
            else:
                yield from _peer(contender, table, options)


def conclude(results: Sequence[Result]) -> str:
    """A table of what was found."""
    judged = [result for result in results if isinstance(result, Judged)]
    contenders = list(dict.fromkeys(result.contender for result in judged))
    lines = ["| fault | " + " | ".join(contenders) + " |", "| --- |" + " ---: |" * len(contenders)]
    for fault in (*FAULTS, CLEAN):
        of_fault = [[r for r in judged if r.contender == name and r.workload.endswith(fault)] for name in contenders]
        cells = [f"{sum(r.found for r in of)} of {sum(r.faults for r in of)}" for of in of_fault]
        delays = [sum(r.delay * r.found for r in of) / max(1, sum(r.found for r in of)) for of in of_fault]
        cells = [f"{cell} ({delay:.1f})" if delay else cell for cell, delay in zip(cells, delays, strict=True)]
        lines.append(f"| {fault if fault != CLEAN else 'false alarms on clean partitions'} | {' | '.join(cells)} |")
    of = [[r for r in judged if r.contender == name and not r.workload.endswith(CLEAN)] for name in contenders]
    costs = [f"{sum(r.core_seconds for r in rs) / sum(r.rows for r in rs) * 1e6:.0f}" for rs in of]
    lines.append(f"| core-seconds per million rows | {' | '.join(costs)} |")
    return "\n".join(lines)


def _ours(table: Table, folder: Path) -> Iterator[Judged]:
    data = folder / "project" / "data"
    data.mkdir(parents=True)
    for (key,), rows in table.rows.partition_by(KEY, as_dict=True).items():
        rows.drop(KEY).write_parquet(data / f"{key}.parquet")
    columns = ", ".join([ID, TIME, *table.features])
    (folder / "project" / "features.sql").write_text(f"SELECT {columns} FROM rows")
    (folder / "project" / "labels.sql").write_text(f"SELECT {ID}, {LABEL} FROM rows")
    pipeline = _pipeline(table, folder / "project", folder / "home")
    cost = spent(lambda: carry_out(pipeline, NOW))
    yield _result(table, CLEAN, _alarms(pipeline), [[key] for key in table.served], cost)
    for fault in FAULTS:
        other = folder / "other"
        shutil.copytree(folder / "project", other / "project")
        shutil.copytree(folder / "home", other / "home")
        stretches = faulty_partitions(table, fault)
        for rows in (rows for stretch in stretches.values() for rows in stretch):
            rows.drop(KEY).write_parquet(other / "project" / "data" / f"{rows[KEY][0]}.parquet")
        faulty = _pipeline(table, other / "project", other / "home")
        keys = [[rows[KEY][0] for rows in stretch] for stretch in stretches.values()]
        cost = spent(lambda pipeline=faulty, keys=keys: _score_again(pipeline, [key for of in keys for key in of]))
        yield _result(table, fault, _alarms(faulty), keys, cost)
        shutil.rmtree(other)


def _score_again(pipeline: Pipeline, keys: Sequence[str]) -> None:
    """Score partitions by the models that are there: one trained again would learn from the faults before its month."""
    stamp = Stamp("faulty", NOW)
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in keys]
    for step in (pipeline.build_features, pipeline.score, pipeline.evaluate):
        list(step(partitions, stamp))
    pipeline.conclude(NOW)


def _pipeline(table: Table, project: Path, home: Path) -> Pipeline:
    first, last = table.keys[0], datetime.fromisoformat(table.keys[-1])
    zero = timedelta(days=7 if table.every == "week" else 1)
    nullable = {name: {"nullable": True} for name in table.features}
    spec = PipelineSpec.model_validate(
        {
            "name": "faulty",
            "partitions": {"every": table.every, "start": first, "end": f"{last + zero:%Y-%m-%d}", "timezone": "UTC"},
            "sources": {"rows": {"parquet": "data/{partition_key}.parquet"}},
            "features": {"sql": "features.sql", "key": [ID], "time": TIME, "columns": nullable},
            "labels": {"sql": "labels.sql", "column": LABEL, "delay": "0 days"},
            "model": {
                "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
                "params": {"max_iter": 50, "early_stopping": False},
                "train": {"every": "month", "start": f"{table.served[0][:7]}-01", "evaluate": "28 days"},
            },
            "monitoring": {"drift": {}},
        }
    )
    return Pipeline(spec, project.absolute(), Home(home.absolute()).create())


def _alarms(pipeline: Pipeline) -> dict[str, list[str]]:
    """The checks that gave an alarm, with their columns, by partition."""
    with open_published(pipeline.home) as con:
        query = "SELECT partition_key, check_name || ' ' || columns FROM faulty.health WHERE NOT passed"
        alarms = dict[str, list[str]]()
        for key, check in con.execute(query).fetchall():
            alarms.setdefault(key, []).append(check)
    return alarms


def _result(  # noqa: PLR0913 - a case, and what came of it
    table: Table, fault: str, alarms: Mapping[str, Sequence[str]], stretches: Sequence[Sequence[str]], cost: Spent,
    contender: str = OURS,
) -> Judged:  # fmt: skip
    """Count the stretches of partitions with an alarm, and after how many of them it came."""
    keys = [key for stretch in stretches for key in stretch]
    rows = table.rows.filter(pl.col(KEY).is_in(keys)).height
    places = [next((at for at, key in enumerate(stretch) if alarms.get(key)), None) for stretch in stretches]
    found = [place for place in places if place is not None]
    checks = [check.split()[0] for key in keys for check in alarms.get(key, ())]
    plain = cost.result(f"{table.name}: {fault}", contender, rows)
    return Judged(
        **vars(plain),
        faults=len(stretches),
        found=len(found),
        delay=sum(found) / max(1, len(found)),
        by_check={check: checks.count(check) for check in sorted({*checks})},
    )


def _peer(contender: str, table: Table, options: Options) -> Iterator[Judged]:
    folder = options.folder / f"{contender}-{table.name}"
    folder.mkdir(parents=True)
    reference = table.rows.filter(~pl.col(KEY).is_in(table.keys[len(table.keys) // 2 :]))
    reference.write_parquet(folder / "reference.parquet")
    cases = {CLEAN: {key: [table.rows.filter(pl.col(KEY) == key)] for key in table.served}}
    cases |= {fault: faulty_partitions(table, fault) for fault in FAULTS}
    for fault, stretches in cases.items():
        pl.concat([rows for stretch in stretches.values() for rows in stretch]).write_parquet(folder / "judged.parquet")
        facts = {"features": table.features, "key": KEY, "every": table.every}
        (folder / "facts.json").write_text(json.dumps(facts))
        python = options.environments.python(contender)
        cost = run([str(python), str(SCRIPTS / PEERS[contender]), str(folder)], folder)
        alarms = json.loads((folder / "alarms.json").read_text())
        keys = [[rows[KEY][0] for rows in stretch] for stretch in stretches.values()]
        yield _result(table, fault, alarms, keys, Spent(cost.seconds, cost.core_seconds), contender)
