"""What leaves a home in a storm: partitions are dropped, customers erased; rows are exported, reported and delivered.

All of it happens to one pipeline. As its commands do, a drop and an erasure wait until nothing else works on it.
"""

import contextlib
import fcntl
import random
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.errors import WarehouseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.drop import drop_partitions
from batch_platform.operations.erase import erase_subject
from batch_platform.operations.export import export
from batch_platform.pipeline.deliver import deliver
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.artifacts import undelivered
from batch_platform.reports.report import write_report
from batch_platform.warehouse.dropping import read_dropped
from batch_platform.warehouse.home import Home, partition_of
from batch_platform.warehouse.marks import published_copies
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.sql import quoted, table_columns, tables
from batch_platform_tests.faults.inspection import Seen
from batch_platform_tests.faults.invariants import NOW, SCORED, days, held
from batch_platform_tests.harness.small_pipeline import ROWS_PER_DAY, carry_out, small_spec, write_small_project
from batch_platform_tests.pipeline.customers import CUSTOMERS, customers, declared, holding

NAME = "passing"
PROJECT, OUTSIDE = "third", "outside"
MOST_SEARCHED = 6  # erased customers, and dropped partitions, whose bytes are searched at a time
BESIDE = {"dropped_partitions", "deliveries", "failures"}  # tables that may name a partition which is gone


def prepare(home: Home) -> None:
    """Write the sources, and files outside the home."""
    folder, outside = home.root.parent / PROJECT, home.root.parent / OUTSIDE
    write_small_project(folder, events=customers(), features_sql=CUSTOMERS["features_sql"])
    (outside / "folder").mkdir(parents=True)
    for name in ("2024-02-03.0123456789ab.parquet", "folder/manifest.json", f"folder/{'0' * 32}.parquet"):
        (outside / name).write_text("precious")


def plant_links(home: Home) -> None:
    """Let links lead out of the home, which has a warehouse."""
    links = {
        "lake/orders/features/2024-02-03.0123456789ab.parquet": "2024-02-03.0123456789ab.parquet",
        "lake/passing/predictions/2024-03-01": "folder",
        "models/orders/2024-02-01-ffffffff": "folder",
        "reports/notes": "folder",
    }
    for link, target in links.items():
        (home.root / link).parent.mkdir(parents=True, exist_ok=True)
        (home.root / link).symlink_to(home.root.parent / OUTSIDE / target)


def passing(root: str) -> Pipeline:
    """The pipeline."""
    home = Home(Path(root))
    to = {"deliver": [{"parquet": str(home.root.parent / "delivered"), "name": "late"}]}
    spec = small_spec(name=NAME, **declared("parquet", **to))
    return Pipeline(spec, home.root.parent / PROJECT, home)


@contextlib.contextmanager
def _working_on_it(root: str, *, alone: bool = False) -> Generator[Pipeline]:
    """The pipeline, on which no process works meanwhile that wants to be alone."""
    with (Path(root).parent / "passing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        publish(Home(Path(root)))
        yield passing(root)


def write(of: Any, _: random.Random) -> None:
    """Make partitions, also dropped ones, and deliver them."""
    with _working_on_it(of.root) as pipeline:
        partitions = days(pipeline, *of.keys)
        list(pipeline.build_features(partitions, of.stamp(), force=True))
        if pipeline.state().registry.versions:
            list(pipeline.score(partitions, of.stamp(), force=True))
            list(deliver(pipeline, pipeline.spec.predictions.deliver[0], partitions, of.stamp()))


def drop(of: Any, _: random.Random) -> None:
    """Drop partitions."""
    with _working_on_it(of.root, alone=True) as pipeline:
        drop_partitions(pipeline, of.keys, "storm", of.stamp())


def erase(of: Any, chance: random.Random) -> None:
    """Erase a customer, and note the name once that is done."""
    with _working_on_it(of.root, alone=True) as pipeline:
        customer = chance.choice(customers()["customer"].slice(31 * ROWS_PER_DAY, len(SCORED) * ROWS_PER_DAY).to_list())
        held_rows = erase_subject(pipeline, {"customer": customer}, "storm", of.stamp())
        if held_rows.rows or held_rows.erased_at:
            (Path(of.root).parent / f"erased-{customer}").touch()


def take_out(of: Any, chance: random.Random) -> None:
    """Export and report what is published."""
    pipeline, to = passing(of.root), Path(of.root).parent / f"exported-{chance.randrange(3)}.parquet"
    export(pipeline, to, features=chance.random() < 0.5, overwrite=True)
    write_report(pipeline, of.stamp().at, file=to.with_suffix(".html"))


DEPARTURES = (write, drop, erase, take_out)


def look_at_departures(con: duckdb.DuckDBPyConnection, root: str) -> Seen:
    """Check a database for rows of partitions that are dropped, and for half a file outside."""
    seen, home = Seen(where="departures"), Home(Path(root))
    dropped = sorted(read_dropped(con, NAME))
    for schema, table in tables(con):
        of_partitions = schema == NAME and ("partition_key", "VARCHAR") in table_columns(con, NAME, table)
        if of_partitions and table not in BESIDE:
            query = f"SELECT DISTINCT partition_key FROM {quoted(NAME)}.{quoted(table)} WHERE partition_key IN $keys"
            left = con.execute(query, {"keys": dropped}).fetchall()
            seen.check("dropped rows nowhere", [f"{table} {key}" for (key,) in left], len(dropped))
    for file in home.root.parent.glob("exported-*.*"):
        whole = (
            pl.read_parquet(file).height if file.suffix == ".parquet" else file.read_text().rstrip().endswith("</html>")
        )
        seen.check("a file whole", [] if whole else [file])
    return seen


def calm_departures(root: str) -> Seen:
    """With nothing else running: bring the pipeline up to date and deliver it, and search the home for what has left it."""
    seen, home = Seen(), Home(Path(root))
    pipeline, run_id = passing(root), f"calm-{datetime.now(UTC).timestamp()}"
    stamp = Stamp(run_id, NOW)
    carry_out(pipeline, NOW, run_id)
    state, (delivery,) = pipeline.state(), pipeline.spec.predictions.deliver
    due = [key for key in state.scores if undelivered(state, delivery, key)]
    list(deliver(pipeline, delivery, days(pipeline, *sorted(due)), stamp))
    pipeline.conclude(NOW)
    held(pipeline)  # each partition is whole
    seen.check("no mark is left", [home.wiping] if home.wiping.exists() else [])
    with open_published(home) as con:
        published = con.sql(f"SELECT partition_key, id, score FROM {pipeline.spec.name}.predictions ORDER BY ALL").pl()
        seen.add(look_at_departures(con, root), "published")
    to = home.root.parent / "delivered"
    by_key = {key: (to / f"partition_key={key}").glob("*.parquet") for key in state.scores}
    files = [max(of_names, key=lambda file: file.stat().st_mtime_ns) for of_names in by_key.values()]
    received = pl.concat([pl.read_parquet(file, hive_partitioning=True) for file in files])
    same = received.select(published.columns).sort(published.columns).equals(published)
    seen.check("delivered as published", [] if same else ["the receiver"], len(files))
    erased = sorted(path.name.removeprefix("erased-") for path in home.root.parent.glob("erased-*"))
    seen.check("erased at the receiver", {*erased} & {*received["customer"]}, len(erased))
    seen.check("erased nowhere", holding(home, *erased[-MOST_SEARCHED:]) if erased else (), len(erased))
    seen.add(_dropped_nowhere(pipeline, state.dropped), "calm")
    seen.add(_older_backup(home), "calm")
    outside = {path.name: path.read_text() for path in (home.root.parent / OUTSIDE).rglob("*") if path.is_file()}
    seen.check("nothing outside touched", [] if [*outside.values()] == ["precious"] * 3 else [outside])
    return seen


def _dropped_nowhere(pipeline: Pipeline, dropped: Any) -> Seen:
    """Search the home for names of files, and bytes, of dropped partitions."""
    seen, lake = Seen(), pipeline.home.lake
    paths = [*(lake / NAME).rglob("*.parquet")]
    left = {path: {partition_of(path.name), path.parent.name} & {*dropped} for path in paths}
    # A killed write that was to make a partition again may have left its features, which `gc` removes after a day.
    later = {
        path
        for path, keys in left.items()
        for key in keys
        if path.stat().st_mtime > dropped[key].dropped_at.timestamp()
    }
    seen.check("dropped files nowhere", {path for path, keys in left.items() if keys} - later, len(dropped))
    made_again = {str(path.relative_to(pipeline.home.root)) for path in later}
    events = customers().with_columns(day=pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d"))
    once = events.filter(pl.len().over("customer") == 1)
    for key in sorted(dropped)[:MOST_SEARCHED]:
        of_day = once.filter(pl.col("day") == key)["customer"].to_list()[:3]
        seen.check("dropped bytes nowhere", holding(pipeline.home, *of_day) - made_again)
    return seen


def _older_backup(home: Home) -> Seen:
    """Put an older warehouse in the place of the newer one for a moment: it is refused, and changes nothing."""
    seen, older, newer = Seen(), home.root.parent / "older.duckdb", home.root.parent / "newer.duckdb"
    copies, content = published_copies(home), home.warehouse.read_bytes()
    if older.exists() and older.read_bytes() != content:
        home.warehouse.rename(newer)
        home.warehouse.write_bytes(older.read_bytes())
        try:
            publish(home)
            seen.check("an older warehouse is refused", ["it was published"])
        except WarehouseError as error:
            seen.check(
                "an older warehouse is refused", [] if "restore --from-published" in str(error) else [str(error)]
            )
        seen.check("its copies stay", {*copies} - {*published_copies(home)}, len(copies))
        newer.replace(home.warehouse)
    older.write_bytes(content)
    return seen
