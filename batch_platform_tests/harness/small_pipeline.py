"""A small pipeline over generated tables with odd values, which most tests build on.

Its source holds two months of forty orders a day in Berlin; the model learns whether an order comes back. Everything is
drawn from one seed, so the same call gives the same bytes.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import Plan, make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.steps import STEPS
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.harness.starting_points import made_once

BERLIN = ZoneInfo("Europe/Berlin")
FIRST_DAY, LAST_DAY = date(2024, 1, 1), date(2024, 2, 29)
ROWS_PER_DAY = 40
# Of an order: the key of its partition.
LOCAL_DAY = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().cast(pl.String)
SHOPS = ["Zürich", "O'Brien", 'say "hi"', "'; DROP TABLE events; --", " ", "متجر"]

FEATURES_SQL = """\
SELECT id, ts, amount, items, shop, known
FROM events
WHERE ts >= $partition_start AND ts < $partition_end
"""

LABELS_SQL = """\
SELECT id, returned
FROM events
WHERE ts >= $partition_start AND ts < $partition_end AND returned IS NOT NULL
"""

LABELS_BY_DAY: dict[str, Any] = {  # with `write_labels_by_day`
    "sources": {"returns": {"parquet": "returns/{partition_key}.parquet"}},
    "labels_sql": "SELECT id, returned FROM returns WHERE returned IS NOT NULL",
}

FILES = ("events", "features_sql", "labels_sql")  # what tests override beside the declaration
DECLARATION: dict[str, Any] = {
    "name": "small",
    "description": "Whether an order comes back.",
    "partitions": {"every": "day", "start": "2024-01-01", "end": "2024-03-01", "timezone": "Europe/Berlin"},
    "sources": {"events": {"parquet": "events.parquet"}},
    "features": {"sql": "features.sql", "key": ["id"], "time": "ts"},
    "labels": {"sql": "labels.sql", "column": "returned", "delay": "1 day"},
    "model": {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "params": {"max_iter": 5, "max_leaf_nodes": 7, "early_stopping": False},
        "train": {"every": "month", "window": "all", "evaluate": "7 days"},
    },
    "predictions": {"keep": ["shop"]},
}


def small_declaration(**overrides: Any) -> dict[str, Any]:
    """The attributes as the YAML would hold them. A mapping is merged into the block of its name; None removes the key."""
    return _merged(DECLARATION, overrides)


def small_spec(**overrides: Any) -> PipelineSpec:
    """The pipeline as declared; overrides as for `small_declaration`."""
    return PipelineSpec.model_validate(small_declaration(**overrides))


def small_events(first: date = FIRST_DAY, last: date = LAST_DAY, rows_per_day: int = ROWS_PER_DAY) -> pl.DataFrame:
    """The orders of each local day from the first to the last; `returned` can be learned from the other columns.

    A tenth of the amounts and a few labels are null. `id` counts from 1 in order of time.
    """
    return _drawn_events(first, last, rows_per_day).clone()


@cache  # most tests of a process draw the same
def _drawn_events(first: date, last: date, rows_per_day: int) -> pl.DataFrame:
    random = np.random.default_rng(20240101)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    starts = np.repeat([_midnight(day) for day in days], rows_per_day)
    n = len(starts)
    seconds = np.sort(random.integers(0, 23 * 3600, (len(days), rows_per_day)), axis=1).ravel()
    amount = random.gamma(2.0, 40.0, n).round(2)
    shop = random.integers(0, len(SHOPS), n)
    known = random.random(n) < 0.5
    returned = (amount > 80) ^ (known & (shop < 2)) ^ (random.random(n) < 0.1)
    return pl.DataFrame(
        {
            "id": pl.Series(range(1, n + 1), dtype=pl.Int64),
            "ts": pl.Series(
                [start + timedelta(seconds=int(s)) for start, s in zip(starts, seconds, strict=True)],
                dtype=pl.Datetime("us", "UTC"),
            ),
            "amount": pl.Series(np.where(random.random(n) < 0.1, np.nan, amount)).fill_nan(None),
            "items": pl.Series(random.integers(1, 9, n), dtype=pl.Int32),
            "shop": [SHOPS[number] for number in shop],
            "known": known,
            "returned": [None if lost else bool(r) for r, lost in zip(returned, random.random(n) < 0.02, strict=True)],
        }
    )


def permuted_labels(events: pl.DataFrame, since: datetime, until: datetime) -> pl.DataFrame:
    """The orders, of which those between two instants have each other's labels."""
    wrong = (events["ts"] >= since) & (events["ts"] < until)
    labels = events["returned"].filter(wrong).sample(fraction=1, shuffle=True, seed=0)
    return events.with_columns(returned=events["returned"].scatter(wrong.arg_true(), labels))


def write_small_project(
    folder: Path, *, events: pl.DataFrame | None = None, features_sql: str = FEATURES_SQL, labels_sql: str = LABELS_SQL
) -> Path:
    """Write the source and the SQL files into a folder, which is created if missing; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (small_events() if events is None else events).write_parquet(folder / "events.parquet")
    (folder / "features.sql").write_text(features_sql, encoding="utf-8")
    (folder / "labels.sql").write_text(labels_sql, encoding="utf-8")
    return folder


def write_events_by_day(folder: Path, *, without: Collection[str] = ()) -> None:
    """Write a file of the orders of each day, but for some, into the folder `days` below."""
    (folder / "days").mkdir(exist_ok=True)
    for (key,), rows in small_events().group_by(LOCAL_DAY, maintain_order=True):
        if key not in without:
            rows.write_parquet(folder / "days" / f"{key}.parquet")


def write_labels_by_day(folder: Path, *, without: Collection[str] = ()) -> None:
    """Write a file of labels for each day that has none, but for some, as LABELS_BY_DAY declares."""
    (folder / "returns").mkdir(exist_ok=True)
    for (key,), rows in small_events().group_by(LOCAL_DAY, maintain_order=True):
        file = folder / "returns" / f"{key}.parquet"
        if key not in without and not file.exists():
            rows.select("id", "returned").write_parquet(file)


def small_pipeline(tmp_path: Path, **overrides: Any) -> Pipeline:
    """The pipeline with its files under `tmp_path/project` and its home under `tmp_path/home`.

    `events`, `features_sql` and `labels_sql` go to the files, all other overrides are as for `small_declaration`.
    """
    write_small_project(tmp_path / "project", **{name: overrides[name] for name in FILES if name in overrides})
    return _in_folder(tmp_path, **overrides)


def _in_folder(tmp_path: Path, **overrides: Any) -> Pipeline:
    """The pipeline whose files are there."""
    spec = small_spec(**{name: value for name, value in overrides.items() if name not in FILES})
    return Pipeline(spec, (tmp_path / "project").absolute(), Home((tmp_path / "home").absolute()).create())


def finished_pipeline(
    tmp_path: Path,
    now: datetime,
    *,
    before: Callable[[Path], object] | None = None,
    after: Callable[[Pipeline], object] | None = None,
    **overrides: Any,
) -> Pipeline:
    """`small_pipeline` with everything done that is due at a time, made once per session and copied into `tmp_path`.

    `before` is called with the folder of its files before anything is done, and `after` with the finished pipeline. Both
    are functions of a module, which name the starting point.
    """

    def make(folder: Path) -> None:
        pipeline = small_pipeline(folder, **overrides)
        if before is not None:
            before(pipeline.folder)
        carry_out(pipeline, now)
        if after is not None:
            after(pipeline)

    plain = {name: value for name, value in overrides.items() if name != "events"}
    events = overrides["events"].write_ipc(None).getvalue() if "events" in overrides else b""
    steps = [f"{step.__module__}.{step.__qualname__}" for step in (before, after) if step is not None]
    name = f"finished-{sha256(repr((now, steps, plain)).encode() + events).hexdigest()[:16]}"
    # Keeps the times of files, by which tables are recognized.
    copytree(made_once(tmp_path, name, make), tmp_path, dirs_exist_ok=True, symlinks=True)
    return _in_folder(tmp_path, **overrides)


def feature_file(pipeline: Pipeline, key: str) -> Path:
    """The feature file of the newest build of a partition."""
    return pipeline.history.file(pipeline.warehouse.latest(FeatureBuild, pipeline.spec.name)[key])


def carry_out(pipeline: Pipeline, now: datetime, run_id: str = "run", *, force: bool = False) -> Plan:
    """Do everything that is due at a time, in order, as the schedules would; returns the plan."""
    stamp = Stamp(run_id, now)
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(now))
    due = {kind: [item.partition for item in plan.of(kind)] for kind in STEPS}
    list(pipeline.build_features(due["features"], stamp, force=force))
    for period in due["model"]:
        pipeline.train(period, stamp)
    for period in due["challengers"]:
        pipeline.challenge(period, stamp)
    list(pipeline.score(due["predictions"], stamp, force=force))
    list(pipeline.evaluate(due["performance"], stamp))
    pipeline.conclude(now)
    return plan


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), BERLIN).astimezone(UTC)


LINEAR = {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}
