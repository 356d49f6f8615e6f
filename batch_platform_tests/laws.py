"""What the tests of the laws begin with: failures, readers, foreign files, and what is changed in a home."""

import hashlib
import json
import os
import pickle
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.predictions import DUCKDB, PARQUET
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, feature_file, small_events, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
STAMP = Stamp("again", NOW)
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC).timestamp()


def score_in_files(pipeline: Pipeline) -> None:
    """Score again, with predictions in files, what is scored."""
    in_files = small_pipeline(pipeline.home.root.parent, predictions={"store": PARQUET})
    partitions = [day(in_files, f"2024-02-{n:02}") for n in range(1, 30)]
    list(in_files.score(partitions, Stamp("in files", NOW), force=True))
    carry_out(in_files, NOW)


def predictions(pipeline: Pipeline, *, without: tuple[str, ...] = ()) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        frame = con.sql("FROM small.predictions ORDER BY id").pl()
    return frame.drop(without)


def day(pipeline: Pipeline, key: str):
    return pipeline.spec.partitions.calendar.named(key)


def changed_events(tmp_path: Path, change, store: str = DUCKDB) -> Pipeline:
    """The same home with other source rows."""
    return small_pipeline(tmp_path, events=change(small_events()), predictions={"store": store})


def on(key: str) -> pl.Expr:
    return key == LOCAL_DAY


def without_features(pipeline: Pipeline) -> None:
    feature_file(pipeline, "2024-02-02").unlink()
    list(pipeline.score([day(pipeline, "2024-02-02")], STAMP))


def training_without_features(pipeline: Pipeline) -> None:
    for number in (7, 9):
        feature_file(pipeline, f"2024-01-0{number}").unlink()
    pipeline.train(pipeline.spec.partitions.calendar.named("2024-02-01"), STAMP)


def without_a_model(pipeline: Pipeline) -> None:
    list(pipeline.score([day(pipeline, "2024-01-02")], STAMP))


def of_an_unknown_version(pipeline: Pipeline) -> None:
    list(pipeline.score([day(pipeline, "2024-02-02")], STAMP, version="2024-02-01-ffffffff"))


def before_scoring(pipeline: Pipeline) -> None:
    list(pipeline.evaluate([day(pipeline, "2024-01-02")], STAMP))


FAILURES = [
    (without_features, ["small", "partition 2024-02-02", "features are not built", "run small --partition 2024-02-02"]),
    (
        training_without_features,
        [
            "small, serving period 2024-02-01",
            "the features of 2024-01-07, 2024-01-09 are missing",
            "batch-platform train small --period 2024-02-01",
        ],
    ),
    (
        without_a_model,
        ["small", "partition 2024-01-02", "no model serves it", "serves from 2024-02-01 on", "--model VERSION"],
    ),
    (of_an_unknown_version, ["small", "no version '2024-02-01-ffffffff'", "there is only 2024-02-01-"]),
    (before_scoring, ["small", "partition 2024-01-02", "not scored yet", "run small --partition 2024-01-02"]),
]


READ = """
import select, sys, duckdb
counts = set()
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    with duckdb.connect(sys.argv[1], read_only=True) as con:
        con.execute("SET enable_progress_bar = false")  # a query that takes long would draw it on standard output
        rows = con.execute(
            "SELECT p.partition_key, count(*), count(DISTINCT p.run_id), any_value(r.rows_scored) "
            "FROM small.predictions p JOIN (FROM batch_platform.score_runs "
            "QUALIFY row_number() OVER (PARTITION BY partition_key ORDER BY seq DESC) = 1) r USING (partition_key, run_id) "
            "GROUP BY ALL"
        ).fetchall()
        assert len(rows) == 29, rows
        assert all(count == scored and runs == 1 for _, count, runs, scored in rows), rows
        counts.add(con.execute("SELECT max(seq) FROM batch_platform.score_runs").fetchall()[0][0])
print(len(counts))
"""


BY_A_FUNCTION = {"sql": None, "python": f"{__name__}.inside"}


def inside(events: pl.LazyFrame, partition: Partition) -> pl.LazyFrame:
    """The features of a partition."""
    return events.filter(pl.col("ts").is_between(partition.start, partition.end, closed="left")).drop("returned")


EARLY = {"n_estimators": 50, "early_stopping_rounds": 3}
WATCHED = {"early_stopping": True, "n_iter_no_change": 3}
STOPS_EARLY = {  # by whether the labels that it watches are predicted any better
    "sklearn.ensemble.HistGradientBoostingClassifier": WATCHED | {"max_iter": 50},
    "sklearn.ensemble.GradientBoostingClassifier": {"n_estimators": 50, "n_iter_no_change": 3},
    "sklearn.neural_network.MLPClassifier": WATCHED | {"hidden_layer_sizes": [8], "max_iter": 20},
    "sklearn.linear_model.SGDClassifier": WATCHED | {"loss": "log_loss"},
    "lightgbm.LGBMClassifier": EARLY | {"verbose": -1},
    "xgboost.XGBClassifier": EARLY,
}
RENAMINGS = {  # the names of classes 0, 1 and 2; of two classes, the rows of class 1 are fewer
    "from 1": (1, 2, 3),
    "far apart": (10, 20, 30),
    "texts in the same order, the rarer one last": ("kept", "returned", "swapped"),
    "texts in the other order": ("z", "y", "x"),
}


WRITTEN = (  # files of the home that are written in place
    "warehouse.lock",
    ".warehouse.rollback",
    ".published.json",
    "warehouse.duckdb.wal",
    "dagster/.prepare.lock",
)
FOREIGN = (
    "notes",
    "published-notes.duckdb",
    ".published-notes",
    "warehouse.duckdb-notes",
    "staging/notes",
    "staging/my-notes/a",
    "lake/notes",
    "lake/small/notes",
    "lake/small/features/notes.parquet",
    "lake/small/features/.notes.parquet",
    "lake/small/features/2024-02-03.notes.parquet",
    "lake/small/features/notes/a",
    "lake/small/predictions/notes",
    "lake/small/predictions/2024-02-03/notes.parquet",
    "models/notes",
    "models/small/notes/manifest.json",
    "spark/notes.log",
    "reports/small/notes.html",
    "dagster/notes",
    "odd ; names\n\\/*?",
)


def no_tables(path: Path) -> None:
    """Make a DuckDB file that nothing was written into."""
    duckdb.connect(str(path)).close()


def tables_of_another_program(path: Path) -> None:
    """Make a DuckDB file with a table that this project does not know."""
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE t AS SELECT 1 AS a")


def tables_of_another_home(path: Path) -> None:
    """Make a warehouse that has its own ledgers."""
    with Warehouse(Home(path.with_name("another"))).open():
        pass
    shutil.copyfile(path.with_name("another") / "warehouse.duckdb", path)


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def plant_a_pickle(pipeline: Pipeline, canary: Path, *, trees: bool) -> None:
    """Put a pickle in the place of the only model, with all hashes adjusted; without `trees`, no kept trees score in its place."""
    (version,) = pipeline.state().registry.versions
    folder = pipeline.home.bundle("small", version.version)
    data = pickle.dumps(Canary(canary))
    (folder / "model.skops").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.skops"] = hashlib.sha256(data).hexdigest()
    if not trees:
        del manifest["files"]["trees.npz"]
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    with pipeline.warehouse.transaction() as con:
        con.execute(
            "UPDATE batch_platform.model_versions SET sha256 = $hash", {"hash": hashlib.sha256(text).hexdigest()}
        )


def plant_links(home: Home, outside: Path) -> list[Path]:
    """Let links lead out of the home, to files and folders with names of its own; returns those that nothing may remove."""
    for name in (f"{'0' * 32}.parquet", "2024-02-03.0123456789ab.parquet", "notes", "version/manifest.json"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("precious")
        os.utime(outside / name, (LONG_AGO, LONG_AGO) if "/" in name else None)
    os.utime(outside / "version", (LONG_AGO, LONG_AGO))
    predictions_of_others = home.lake / "theirs" / "predictions"
    predictions_of_others.mkdir(parents=True)
    theirs = home.table_folder("small", "predictions")
    links = [predictions_of_others / "2024-02-03", theirs / "2024-03-01", home.staging / "killed", home.lake / "linked"]
    for link in (*links, home.models / "small" / "2024-02-01-ffffffff"):
        link.symlink_to(outside)
    return links
