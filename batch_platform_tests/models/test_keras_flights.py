"""Two neural networks on the shipped flights: the platform trains one through `build:` and imports the other.

They learn from a month of history and score a week of February; neither uses anything that became known later.
"""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import yaml

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import serving_calendar, training_window
from batch_platform.defs.flight_delays import sources
from batch_platform.models.bundle import read_manifest
from batch_platform.monitoring.metrics import measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.home import Home

pytestmark = pytest.mark.release

FOLDER = Path(sources.__file__).parent
NOW = datetime(2013, 2, 10, 12, tzinfo=UTC)
WEEK = [f"2013-02-0{day}" for day in range(1, 8)]
TRAIN = {"every": "month", "start": "2013-02-01", "window": "24 days", "evaluate": "7 days"}
IMPORTED = [  # in the order of the features, since a network names no columns
    "departure_minute",
    "origin_flights_so_far",
    "origin_late_1d",
    "hour_late_7d",
    "flight_delay_30d",
    "precip_24h",
]


DECLARED = {
    "build": "batch_platform_tests.models.test_keras_flights.network",
    "params": {"epochs": 4},
    "train": TRAIN,
    "promote": {"metric": "roc_auc", "at_least": 0.6},
}
ROOT = Path(__file__).parents[2]


def network(hidden: int = 32, epochs: int = 3, dropout: float = 0.2) -> Any:
    """A small network behind the interface of scikit-learn; the platform scales its inputs and fills missing values."""
    import keras

    keras.utils.set_random_seed(2013)

    def layers(X, y):  # noqa: N803 - Keras calls it so
        model = keras.Sequential(
            [
                keras.layers.Input((X.shape[1],)),
                keras.layers.Dense(hidden, activation="relu"),
                keras.layers.Dropout(dropout),
                keras.layers.Dense(y.shape[1], activation="softmax"),
            ]
        )
        model.compile(loss="categorical_crossentropy", optimizer="adam")
        return model

    return keras.wrappers.SKLearnClassifier(layers, fit_kwargs={"epochs": epochs, "batch_size": 128, "verbose": 0})


def flights(home: Home, folder: Path = FOLDER, **changes: Any) -> Pipeline:
    """The shipped pipeline with other blocks in its declaration."""
    declared = yaml.safe_load((FOLDER / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    return Pipeline(PipelineSpec.model_validate({**declared, **changes}), folder, home)


def carry_out(pipeline: Pipeline) -> None:
    """What `run --from 2013-02-01 --to 2013-02-07` does."""
    stamp = Stamp("keras", NOW)
    week = [pipeline.spec.partitions.calendar.named(key) for key in WEEK]
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW, week))
    list(pipeline.build_features([item.partition for item in plan.of("features")], stamp))
    for item in plan.of("model"):
        pipeline.train(item.partition, stamp)
    list(pipeline.score(week, stamp))
    list(pipeline.evaluate(week, stamp))
    pipeline.publish()


def auc(pipeline: Pipeline) -> float:
    """Over all flights of the week that landed: their scores against what happened, read from the source."""
    happened = sources.flights().filter(pl.col("arr_delay").is_not_null())
    late = happened.select("flight_id", late=pl.col("arr_delay") >= 30).collect()
    with duckdb.connect(str(pipeline.home.published.resolve()), read_only=True) as con:
        scored = con.sql("SELECT flight_id, score FROM flight_delays.predictions").pl()
    both = scored.join(late, on="flight_id")
    assert scored.height > both.height > 5_000
    probabilities = np.column_stack([1 - both["score"], both["score"]])
    return measure(Outcomes("binary", probabilities, both["late"].to_numpy(), [False, True]))["roc_auc"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Pipeline:
    pipeline = flights(Home(tmp_path_factory.mktemp("keras") / "home").create(), model=DECLARED)
    carry_out(pipeline)
    return pipeline


def test_a_network_is_trained_on_the_flights_passes_the_gate_and_ranks_the_flights_of_a_later_week(trained):
    (version,) = trained.state().registry.versions
    assert trained.state().registry.last_decision(version.version).action == "approved"
    assert version.trained_until <= trained.spec.partitions.calendar.named(WEEK[0]).start
    manifest = read_manifest(trained.home.bundle("flight_delays", version.version), version.sha256)
    assert (manifest.flavour, manifest.pickle, manifest.params) == ("keras", False, {"epochs": 4})
    fit = {"model.keras", "preprocessing.skops"}
    judged = {f"judged_{name}" for name in fit}
    assert fit | judged | {"profile.json", "evaluation.parquet"} == set(manifest.files)
    assert auc(trained) > 0.6


def test_its_partitions_are_scored_whole_and_evaluated(trained):
    state = trained.state()
    assert set(state.scores) == set(state.evaluations) == set(WEEK)
    assert all(run.rows_in == run.rows_scored > 600 for run in state.scores.values())
    with trained.warehouse.open() as con:
        query = "SELECT count(DISTINCT partition_key) FROM flight_delays.performance WHERE metric = 'roc_auc'"
        assert con.execute(query).fetchall() == [(len(WEEK),)]


AGAIN = """
import sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.declaration.stamp import Stamp
from batch_platform_tests.models.test_keras_flights import DECLARED, NOW, WEEK, flights
pipeline = flights(Home(Path(sys.argv[1])), model=DECLARED)
week = [pipeline.spec.partitions.calendar.named(key) for key in WEEK]
assert not any(scored.skipped for scored in pipeline.score(week, Stamp("again", NOW), force=True))
"""


def test_another_process_that_reads_the_network_from_disk_gives_the_same_bits(trained):
    query = "SELECT partition_key, flight_id, score, prediction FROM flight_delays.predictions ORDER BY ALL"

    def scores():
        with trained.warehouse.open() as con:
            return con.execute(query).fetchall()

    before, run = scores(), trained.state().scores[WEEK[0]].seq
    subprocess.run([sys.executable, "-c", AGAIN, str(trained.home.root)], check=True, cwd=ROOT)
    assert trained.state().scores[WEEK[0]].seq > run
    assert scores() == before


def test_a_network_made_elsewhere_is_imported_and_ranks_the_same_week(trained, tmp_path):
    import keras

    period = serving_calendar(trained.spec).named("2013-02-01")
    window = training_window(trained.spec, period.start)
    data = trained.history.training_data(trained.state().features, window, period.start, Stamp("elsewhere", NOW))
    rows = data.fit.select(IMPORTED).to_numpy().astype(np.float32)
    keras.utils.set_random_seed(1)
    scale = keras.layers.Normalization()
    scale.adapt(rows)
    dense = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.layers.Input((len(IMPORTED),)), scale, *dense])
    model.compile(loss="binary_crossentropy", optimizer="adam")
    model.fit(rows, data.fit["late"].to_numpy().astype(np.float32), epochs=3, batch_size=128, verbose=0)
    folder = tmp_path / "flight_delays"
    folder.mkdir()
    model.save(folder / "late.keras")
    for name in ("features.sql", "labels.sql"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    left_out = {name: {"feature": False} for name in data.fit.columns if name not in (*IMPORTED, "late")}
    features = {**trained.spec.features.model_dump(exclude_unset=True), "columns": left_out, "max_rejected": "1%"}
    pipeline = flights(
        Home(tmp_path / "home").create(),
        folder,
        features=features,
        model={
            "import": "late.keras",
            "classes": [False, True],
            "train": TRAIN,
            "promote": {"metric": "roc_auc", "at_least": 0.6},
        },
    )
    carry_out(pipeline)
    (version,) = pipeline.state().registry.versions
    assert (version.flavour, pipeline.state().registry.last_decision(version.version).action) == ("keras", "approved")
    assert auc(pipeline) > 0.6
