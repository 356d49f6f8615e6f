"""From a table that a package ships to predictions: `new` and `run` as a user calls them, beside plain histogram trees.

The trees of scikit-learn are fitted with their defaults on the rows that our models learned from, and predict the rows that
these scored: of a snapshot the rows held out, else the rows of each serving period. They take the columns that `new` proposes
as features, texts as ordinal numbers, and the time as month, weekday, hour and day. The trivial model is the mean or the class shares.

A table misses the goal only if the whole 95% interval of the difference is beyond it: partitions are drawn again, or rows of a
snapshot, as in `monitoring.resampling`. A few scored rows do not show what a rare mistake costs, and no drawing of the same rows
brings one: with fewer than 200 there is no verdict.

The tables are made from installed packages; nothing is downloaded, and a table whose package is not installed is left out.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.history import never_learned_from
from batch_platform.kernels.native_threads import one_thread
from batch_platform.monitoring.resampling import reach_of
from batch_platform.sources.kind import SourceTable
from batch_platform.sources.opening import create_view_of
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import COMMAND, OURS, Result, run

TITLE = "From a table to predictions"
GOAL_WORSE, GOAL_SECONDS = 0.05, 30
EVER = {"partition_start": datetime(1700, 1, 1, tzinfo=UTC), "partition_end": datetime(2200, 1, 1, tzinfo=UTC)}
ENOUGH_JUDGED = 200  # rows; with fewer there is no verdict
_MINIMUM = 1e-12


@dataclass(frozen=True)
class Worse:
    """By how much we are worse than another model, as a share with its 95% interval; negative if better."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show it in percent."""
        return f"{self.share:+.0%} ({self.low:+.0%} to {self.high:+.0%})"


@dataclass(frozen=True)
class Table:
    """A table that a package ships, and what a user would say about it."""

    package: str
    licence: str
    frame: Callable[[], Any]  # a frame of pandas or Polars
    label: str | None = None  # answer to the question of `new`; None where it needs no answer
    without: tuple[str, ...] = ()  # columns that a user knows to be known only with the label


@dataclass(frozen=True)
class TableResult(Result):
    """How `new` and `run` did on a table; metrics are RMSE or log loss, the lower, the better."""

    columns: int = 0
    proposed: str = ""
    metric: str = ""
    rows_measured: int = 0
    ours: float | None = None  # None if `new` or `run` failed
    trees: float | None = None
    trivial: float | None = None
    worse_than_trees: Worse | None = None
    worse_than_trivial: Worse | None = None
    failure: str = ""


def _sklearn(name: str) -> Callable[[], Any]:
    def frame() -> Any:
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")(as_frame=True).frame

    return frame


def _flights() -> pl.DataFrame:
    from batch_platform.defs.flight_delays import sources

    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    known = sources.flights().filter(pl.col("arr_delay").is_not_null(), local.dt.month() <= 2)
    afterwards = ("arrived_at", "dep_delay", "arr_delay", "air_time", "time_hour", "scheduled_arrival")
    return known.with_columns(late=pl.col("arr_delay") >= 30).drop(afterwards).collect()


def _weather() -> pl.DataFrame:
    from batch_platform.defs.flight_delays import sources

    return sources.weather().filter(pl.col("time_hour").dt.month() <= 4).collect()


def _planes() -> pl.DataFrame:
    from batch_platform.defs.flight_delays import sources

    return sources.planes().collect()


def _packaged(module: str, function: str) -> Callable[[], Any]:
    """The frame that a function of an optional package returns."""

    def frame() -> Any:
        return attrgetter(function)(import_module(module))()

    return frame


def _statsmodels(name: str) -> Callable[[], Any]:
    return lambda: import_module(f"statsmodels.datasets.{name}").load_pandas().data


def _stocks() -> Any:
    import pandas as pd
    from matplotlib import get_data_path

    return pd.read_csv(Path(get_data_path(), "sample_data", "Stocks.csv"), comment="#")


_BSD, _CC0, _MIT, _PUBLIC = "BSD-3-Clause", "CC0-1.0", "MIT", "public domain"
TABLES: dict[str, Table] = {
    "iris": Table("sklearn", _BSD, _sklearn("iris")),
    "wine": Table("sklearn", _BSD, _sklearn("wine")),
    "breast cancer": Table("sklearn", _BSD, _sklearn("breast_cancer")),
    "diabetes": Table("sklearn", _BSD, _sklearn("diabetes")),
    "digits": Table("sklearn", _BSD, _sklearn("digits")),
    "flights": Table("batch_platform", _CC0, _flights),
    "weather": Table("batch_platform", _CC0, _weather, label="temp", without=("dewp",)),
    "planes": Table("batch_platform", _CC0, _planes, label="seats"),
    "shares by month": Table("matplotlib", "PSF-based", _stocks, label="IBM"),
    "penguins": Table("palmerpenguins", _CC0, _packaged("palmerpenguins", "load_penguins"), label="species"),
    "tips": Table("plotly", _MIT, _packaged("plotly.data", "tips"), label="tip"),
    "gapminder": Table("plotly", _MIT, _packaged("plotly.data", "gapminder"), label="lifeExp"),
    "cars": Table("vega_datasets", _BSD, _packaged("vega_datasets", "local_data.cars"), label="Miles_per_Gallon"),
    "Seattle weather": Table(
        "vega_datasets", _BSD, _packaged("vega_datasets", "local_data.seattle_weather"), label="weather"
    ),
    "Seattle temperatures": Table("vega_datasets", _BSD, _packaged("vega_datasets", "local_data.seattle_temps")),
    "barley": Table("vega_datasets", _BSD, _packaged("vega_datasets", "local_data.barley"), label="yield"),
    "rossi": Table("lifelines", _MIT, _packaged("lifelines.datasets", "load_rossi"), label="arrest", without=("week",)),
    "breast cancer study": Table(
        "lifelines", _MIT, _packaged("lifelines.datasets", "load_gbsg2"), label="cens", without=("time",)
    ),
    "diabetes interval": Table("lifelines", _MIT, _packaged("lifelines.datasets", "load_diabetes"), label="gender"),
    "affairs": Table("statsmodels", _PUBLIC, _statsmodels("fair"), label="affairs"),
    "anes96": Table("statsmodels", _PUBLIC, _statsmodels("anes96"), label="vote"),
    "visits to the doctor": Table("statsmodels", _PUBLIC, _statsmodels("randhie"), label="mdvis"),
    "sunspots": Table("statsmodels", _PUBLIC, _statsmodels("sunspots"), label="SUNACTIVITY"),
    "investments": Table("statsmodels", _PUBLIC, _statsmodels("grunfeld"), label="invest"),
}


def measure(options: Options) -> Iterator[TableResult]:
    """Propose a pipeline for each table, run it, and compare its predictions."""
    for name, table in TABLES.items():
        if options.only and name not in options.only:
            continue
        if find_spec(table.package) is None:
            print(f"{name}: left out, {table.package} is not installed", file=sys.stderr, flush=True)
            continue
        folder = options.folder / name.replace(" ", "_")
        folder.mkdir()
        yield _measured(name, table, folder)


def _measured(name: str, table: Table, folder: Path) -> TableResult:
    file = folder / "table.parquet"
    frame = table.frame()
    frame = frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame.rename(columns=str))
    frame = frame.drop(table.without)
    frame.write_parquet(file)
    result = TableResult(name, OURS, 0.0, frame.height, 0.0, 0.0, columns=frame.width)
    label = [] if table.label is None else ["--label", table.label]
    try:
        proposal = run([COMMAND, "new", "table", "--from", file.name, *label, "--json"], folder)
        report = json.loads(proposal.output)
        if report["snapshot"]:
            _keep_the_judged_fit(Path(report["folder"], "defs.yaml"))
        work = run([COMMAND, "run", "table", "--json"], folder)
    except SystemExit as failure:
        return replace(result, failure=" ".join(str(failure.code).split())[-300:])
    rhythm = "snapshot" if report["snapshot"] else f"{report['every']}s"
    proposed = (
        f"{report['label']} of {len(report['features'])} columns, {rhythm}, {report['estimator'].rpartition('.')[2]}"
    )
    costs = {
        "seconds": proposal.seconds + work.seconds,
        "core_seconds": proposal.core_seconds + work.core_seconds,
        "peak_mib": max(proposal.peak_mib, work.peak_mib),
    }
    return replace(result, proposed=proposed, **costs, **_compared(folder, report))


def _keep_the_judged_fit(file: Path) -> None:
    """Declare that the fit which is judged serves: one that learns from all rows of a snapshot would know those held out."""
    declared = yaml.safe_load(file.read_text(encoding="utf-8"))
    declared["attributes"]["model"]["refit"] = False
    file.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")


def _compared(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The metrics of our predictions, of the trees and of the trivial model on the same rows."""
    rows, spec = _rows(report)
    with duckdb.connect(str(folder / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        predictions = con.sql('FROM "table".predictions').pl()
        versions = con.sql(
            "SELECT version, trained_from, trained_until, classes, task FROM batch_platform.model_versions"
        ).pl()
    scored = rows.join(predictions, on=spec.features.key, how="inner", coalesce=True)
    is_numbers = versions["task"][0] == "regression"
    measured, groups = list[NDArray[np.float64]](), list[str]()
    for version in versions.iter_rows(named=True):
        served = scored.filter(pl.col("model_version") == version["version"])
        if spec.partitions.snapshot:
            apart = never_learned_from(spec, rows)
            fitted, served = rows.filter(~apart), served.filter(never_learned_from(spec, served))
        else:
            at = pl.col("__at")
            fitted = rows.filter((at >= version["trained_from"]) & (at < version["trained_until"]))
        if served.is_empty() or fitted.is_empty():
            continue
        if is_numbers:
            part = _errors_of_numbers(fitted, served, served["prediction"].to_numpy())
            known = np.full(served.height, fill_value=True)
        else:
            classes = json.loads(version["classes"])
            part, known = _errors_of_classes(fitted, served, _chances(served), classes)
        measured.append(part)
        groups += served.filter(pl.Series(known))["partition_key"].to_list()
    losses = np.concatenate(measured)
    ours, trees, trivial = np.sqrt(losses.mean(axis=0)) if is_numbers else losses.mean(axis=0)
    drawn: Sequence[object] = range(len(losses)) if spec.partitions.snapshot else groups
    return {
        "metric": "RMSE" if is_numbers else "log loss",
        "rows_measured": len(losses),
        "ours": float(ours),
        "trees": float(trees),
        "trivial": float(trivial),
        "worse_than_trees": worse_by(losses[:, [0, 1]], drawn, squared=is_numbers),
        "worse_than_trivial": worse_by(losses[:, [0, 2]], drawn, squared=is_numbers),
    }


def worse_by(losses: NDArray[np.float64], drawn: Sequence[object], *, squared: bool) -> Worse:
    """By how much the mean of the first losses is above that of the second [rows, 2], without each group of rows in turn."""
    names, group = np.unique(np.array(drawn), return_inverse=True)
    sums = np.column_stack([np.bincount(group, column, len(names)) for column in losses.T])

    def share(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = totals[..., 0] / np.maximum(totals[..., 1], _MINIMUM)
        return (np.sqrt(ratio) if squared else ratio) - 1

    centre = float(share(sums.sum(axis=0)))
    half = reach_of(share(sums.sum(axis=0) - sums), "row", len(names)).half
    return Worse(centre, centre - half, centre + half)


def _rows(report: dict[str, Any]) -> tuple[pl.DataFrame, PipelineSpec]:
    """Every row that has a label: what the pipeline reads, `__label`, `__at` and the columns for the trees, named `__x…`."""
    own = Path(report["folder"])
    spec = PipelineSpec.model_validate(yaml.safe_load((own / "defs.yaml").read_text())["attributes"])
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        for name, source in spec.sources.items():
            create_view_of(con, SourceTable("", name, source, own))
        bound = {} if spec.partitions.snapshot else EVER
        features, labels = (
            con.sql((own / file).read_text(), params=bound).pl() for file in ("features.sql", "labels.sql")
        )
    assert spec.labels is not None
    key = spec.features.key
    inputs = [pl.col(name).alias(f"__x{name}") for name in report["features"]]
    if spec.features.time is not None:
        times = features[spec.features.time]
        times = times.cast(pl.Datetime("us")) if times.dtype == pl.Date else times
        times = (
            times.dt.convert_time_zone("UTC")
            if getattr(times.dtype, "time_zone", None)
            else times.dt.replace_time_zone("UTC")
        )
        features = features.with_columns(times.alias("__at"))
        at = pl.col("__at")
        parts = [at.dt.month(), at.dt.weekday(), at.dt.hour(), at.dt.epoch("d")]
        inputs += [at, *(part.alias(f"__x_part_{place}") for place, part in enumerate(parts))]
    labels = labels.select(*key, pl.col(spec.labels.column).alias("__label"))
    return features.with_columns(inputs).join(labels, on=key, coalesce=True), spec


def _matrices(fitted: pl.DataFrame, served: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The inputs of the trees, texts as their place among the sorted values that were learned from."""
    left, right = list[Any](), list[Any]()
    for name in (name for name in fitted.columns if name.startswith("__x")):
        learned, scored = fitted[name], served[name]
        if learned.dtype in (pl.String, pl.Categorical, pl.Enum):
            names = learned.cast(pl.String).drop_nulls().unique().sort()
            learned, scored = (
                values.cast(pl.String).cast(pl.Enum(names), strict=False).to_physical() for values in (learned, scored)
            )
        left.append(learned.cast(pl.Float64).fill_null(np.nan).to_numpy())
        right.append(scored.cast(pl.Float64).fill_null(np.nan).to_numpy())
    return np.column_stack(left), np.column_stack(right)


def _errors_of_numbers(fitted: pl.DataFrame, served: pl.DataFrame, ours: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squared errors of our predictions, of the trees and of the mean [rows, 3]."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    learned, scored = _matrices(fitted, served)
    target, truth = (frame["__label"].cast(pl.Float64).to_numpy() for frame in (fitted, served))
    with one_thread():
        trees = HistGradientBoostingRegressor(random_state=0).fit(learned, target).predict(scored)
    predicted = np.column_stack([ours, trees, np.full(len(truth), target.mean())])
    return (predicted - truth[:, None]) ** 2


def _chances(served: pl.DataFrame) -> NDArray[np.float64]:
    """The probabilities of the classes as they were scored [rows, classes]."""
    if "score" in served.columns:
        high = served["score"].to_numpy()
        return np.column_stack([1 - high, high])
    return served.select(name for name in served.columns if name.startswith("score_")).to_numpy()


def _errors_of_classes(
    fitted: pl.DataFrame, served: pl.DataFrame, ours: NDArray[np.float64], classes: Sequence[Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The log losses of our probabilities, of the trees and of the shares [known rows, 3], and which rows are of a known class."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    learned, scored = _matrices(fitted, served)
    known = {value: place for place, value in enumerate(classes)}
    target, truth = ([known.get(value, -1) for value in frame["__label"].to_list()] for frame in (fitted, served))
    shares = np.tile([target.count(place) / len(target) for place in range(len(classes))], (len(truth), 1))
    trees = shares.copy()
    if len(set(target)) > 1:
        with one_thread():
            model = HistGradientBoostingClassifier(random_state=0).fit(learned, target)
            chances = model.predict_proba(scored)
        trees[:, :] = 0
        trees[:, model.classes_[model.classes_ >= 0]] = chances[:, model.classes_ >= 0]
    there = np.array(truth) >= 0
    at = (np.arange(len(truth))[there], np.array(truth)[there])
    losses = [-np.log(np.clip(chances[at], _MINIMUM, 1)) for chances in (ours, trees, shares)]
    return np.column_stack(losses), there


def conclude(results: Sequence[Result]) -> str:
    """The metrics as a table, and whether the goal is reached."""
    measured = [result for result in results if isinstance(result, TableResult)]
    lines = [
        "| table | rows | proposed | metric | ours | histogram trees | trivial | worse than the trees (95%) | rows measured |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in measured:
        numbers = (
            ["failed"]
            if result.ours is None
            else [
                *(f"{value:.3g}" for value in (result.ours, result.trees, result.trivial)),
                str(result.worse_than_trees),
                f"{result.rows_measured:,}",
            ]
        )
        lines.append(
            f"| {result.workload} | {result.rows:,} | {result.proposed} | {result.metric} | {' | '.join(numbers)} |"
        )
    judged = [result for result in measured if result.rows_measured >= ENOUGH_JUDGED]
    than_trees = [(result.workload, result.worse_than_trees, GOAL_WORSE) for result in judged]
    than_trivial = [(result.workload, result.worse_than_trivial, 0.0) for result in judged]
    missed, useless = (
        ", ".join(f"{name} {worse}" for name, worse, goal in compared if worse is not None and worse.low > goal)
        for compared in (than_trees, than_trivial)
    )
    failed = [f"{result.workload}: {result.failure}" for result in measured if result.failure]
    seconds = median(result.seconds for result in measured)
    verdict = (
        f"{len(measured) - len(failed)} of {len(measured)} tables run, {len(judged)} with enough rows for a verdict. Worse than the trees by more than {GOAL_WORSE:.0%}, "
        f"beyond chance: {missed or 'none'}. Worse than the trivial model, beyond chance: {useless or 'none'}. Median time from `new` to predictions: {seconds:.0f} s (goal: {GOAL_SECONDS} s)."
    )
    return "\n".join([*lines, "", *failed, verdict])
