"""What the UI shows of a pipeline: descriptions, schemas and the metadata of each event."""

import ast
import html
import importlib.util
import inspect
import json
import re
import resource
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.features.sources.opening import SourceState
from batch_platform.models.registry import Version, read_registry
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.charts import Point, bars, curve, histogram
from batch_platform.monitoring.metrics import default_metric
from batch_platform.monitoring.performance import asked_of
from batch_platform.monitoring.scores import ScoreDistribution
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.pipeline import Built
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.engines.local import LOCAL
from batch_platform.scoring.run import Committed

ROW_COUNT = "dagster/row_count"
DIGITS = 6  # of a metric, where it is shown


def source(wiring: Wiring, name: str) -> str:
    """A raw source: in the words of its own function, if there are any, and where it is read."""
    declared = wiring.spec.sources[name]
    where = declared.python or declared.parquet or declared.csv or declared.duckdb or ""
    reader = {
        "python": "the Python function",
        "parquet": "the Parquet files",
        "csv": "the CSV files",
        "duckdb": f"table `{declared.table}` of the DuckDB file",
    }[declared.kind]
    own = docstring_of(declared.python) if declared.python else None
    text = f"Read from {reader} `{redact(where)}`; observed, never changed. Its data version changes when its content may have."
    return f"{own or f'The raw table `{name}`.'}\n\n{text}"


def features(wiring: Wiring) -> str:
    """The features: the first words of the SQL's own comment, what holds for all of them, and the SQL, which the UI folds."""
    spec = wiring.spec
    query = wiring.pipeline().builder.query
    own, sql = opening_comment(query.text) if query else (docstring_of(spec.features.python or ""), "")
    key = ", ".join(spec.features.key)
    text = (
        f"One row for each `{key}`, built from the sources as they are known when the partition starts, and kept as one "
        "Parquet file for each partition. Keys are unique; times lie inside the partition."
    )
    made = f"```sql\n{sql}\n```" if query else f"Made by `{spec.features.python}`."
    return "\n\n".join([*([own] if own else []), text, made])


def model(wiring: Wiring) -> str:
    """The model, with its parameters below."""
    declared = wiring.spec.model
    train, promote = declared.train, declared.promote
    period = f"for each {train.every}" if train.every else "for all partitions from its training on"
    if declared.import_ is not None:
        return (
            f"Imported from `{redact(declared.import_)}` {period}. Its contract is learnt from the features before its serving "
            "period; where labels are known by then, the gate judges it, and a version that does not pass never serves."
        )
    bar = [] if promote.at_least is None else [asked_of(promote.metric, promote.at_least)]
    bar += [] if promote.tolerance is None else [f"no worse than the champion by {promote.tolerance:g}"]
    gate = f" ({', '.join(bar)})" if bar else ""
    text = (
        f"A {(declared.estimator or declared.build or '').rpartition('.')[2]} {period}. It is trained on "
        f"{_history(train.window)} before its serving period, with the labels known by then, and evaluated on the last "
        f"{train.evaluate} of it. A version that does not pass the gate{gate} is kept and never serves."
    )
    return f"{text}\n\n{_parameters(redacted(declared.params))}" if declared.params else text


def model_kind(wiring: Wiring) -> str:
    """The library that the UI shows beside the model."""
    declared = wiring.spec.model
    told = declared.flavour or (declared.estimator or "").partition(".")[0] or "python"
    return {"sklearn": "scikitlearn", "keras": "tensorflow"}.get(told, told)


def _history(window: str) -> str:
    return "all history" if window == "all" else f"the {window}"


def model_code_version(wiring: Wiring) -> str:
    """Changes when training would give another model from the same data."""
    builder = wiring.pipeline().builder
    declared = wiring.spec.model_dump_json(
        include={
            "labels": True,
            "model": {
                "estimator": True,
                "build": True,
                "import_": True,
                "flavour": True,
                "task": True,
                "classes": True,
                "params": True,
                "train": {"window", "evaluate", "max_rows"},
            },
        }
    )
    labels = builder.labels_query.text if builder.labels_query else ""
    return sha256(f"{builder.code_version}\0{labels}\0{declared}".encode()).hexdigest()[:12]


def predictions(wiring: Wiring) -> str:
    """The predictions, with the query that reads them."""
    name = wiring.spec.name
    return (
        f"{wiring.spec.description or 'The predictions.'} Every row of the features is either here or in "
        f"`{name}.rejected_rows` with a reason; each names the model and the run that made it. A partition is scored by the "
        "champion as of its start and replaced in one transaction. *Metadata → Plots → Events* draws the scores, the rows and "
        "the speed, partition by partition.\n\n"
        f"```sql\n-- published.duckdb, which no run ever locks\nFROM {name}.predictions WHERE partition_key = '…'\n```"
    )


def evaluation(wiring: Wiring) -> str:
    """The evaluation: what each measure says of a partition, and when it is computed."""
    labels = wiring.spec.labels
    when = f"{labels.delay} after the end of a partition, when its labels are known" if labels else "once it is scored"
    text = (
        f"{' '.join(measure.description for measure in MEASURES.values())} A partition is measured {when}. "
        "*Metadata → Plots → Events* plots each number, partition by partition."
    )
    challengers = " Rows of a challenger have its name in `challenger`; it is null for the model that serves."
    return text + (challengers if wiring.spec.challengers else "")


def evaluation_code_version(wiring: Wiring) -> str:
    """Changes when measuring the same predictions would give other numbers."""
    query = wiring.pipeline().builder.labels_query
    declared = wiring.spec.model_dump_json(include={"labels"}) + (query.text if query else "")
    return sha256(declared.encode()).hexdigest()[:12]


def table_schema(columns: Mapping[str, str]) -> dg.TableSchema:
    """A table's columns with their types."""
    return dg.TableSchema(columns=[dg.TableColumn(name=name, type=dtype) for name, dtype in columns.items()])


def source_state(state: SourceState) -> dict[str, Any]:
    """Metadata of a source as it was read."""
    return {
        ROW_COUNT: state.rows,
        "dagster/column_schema": table_schema(state.columns),
        "location": redact(state.location),
    }


def built(one: Built, file: Path) -> dict[str, Any]:
    """Metadata of a partition of features."""
    metadata: dict[str, Any] = {
        ROW_COUNT: one.build.rows,
        "dagster/uri": str(file),
        "sha256": one.build.sha256,
        "skipped": one.skipped,
    }
    if one.columns:
        metadata["dagster/column_schema"] = table_schema(one.columns)
    return metadata


def trained(wiring: Wiring, one: Trained) -> dict[str, Any]:
    """Metadata of a trained version."""
    version = one.version
    picture = versions_until(wiring, version)
    metadata: dict[str, Any] = {
        "version": version.version,
        "decision": f"{one.decision.action}: {one.decision.reason}",
        **({"versions": dg.MetadataValue.md(picture)} if picture else {}),
        **rounded(version.metric_values),
        "rows_trained": version.rows_trained,
        "rows_evaluated": version.rows_evaluated,
        "trained_from": _moment(wiring, version.trained_from),
        "trained_until": _moment(wiring, version.trained_until),
        "params": dg.MetadataValue.md(_parameters(json.loads(version.params))),
    }
    if one.suspicious:
        metadata["nearly_decide_the_label"] = dg.MetadataValue.md(
            "These features alone nearly decide the label; are they known when a row is scored? "
            + ", ".join(markdown(name) for name in one.suspicious)
        )
    return metadata


def _moment(wiring: Wiring, at: datetime) -> str:
    """An instant by the pipeline's own clock."""
    zone = wiring.spec.partitions.calendar.zone
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}"


def committed(one: Committed) -> dict[str, Any]:
    """Metadata of a partition of predictions: what came in and out, by which model, and its scores."""
    run = one.run
    metadata: dict[str, Any] = {
        ROW_COUNT: run.rows_scored,
        "rows_in": run.rows_in,
        "rows_rejected": run.rows_rejected,
    }
    if one.reasons:
        metadata["rejected"] = dg.MetadataValue.md(table(("reason", "rows"), one.reasons))
    metadata |= {
        "model_version": run.model_version,
        **({"scores": dg.MetadataValue.md(distribution(one.scores))} if one.scores else {}),
        **score_numbers(one.scores),
        "in_sample": run.in_sample,
        "skipped": one.skipped,
        **({"engine": run.engine} if run.engine != LOCAL else {}),
    }
    if one.unseen:
        metadata["unknown_categories"] = dg.MetadataValue.md(table(("column", "rows"), one.unseen))
    if one.ignored:
        metadata["ignored_columns"] = dg.MetadataValue.md(", ".join(markdown(name) for name in one.ignored))
    return metadata


def score_numbers(scores: ScoreDistribution | None) -> dict[str, float]:
    """Mean and quantiles of the scores, or the share of each class, as numbers to plot."""
    if scores is None:
        return {}
    return {f"{scores.column}_{name}": round(number, 6) for name, number in scores.numbers.items()}


def rows_version(one: Committed) -> str:
    """Data version of a partition of predictions: equal for equal model, features and declaration."""
    return "-".join((one.run.model_sha256[:8], one.run.input_hash[:8], one.run.code_version))


def speed(one: Committed) -> dict[str, Any]:
    """How fast a partition was scored and where the time went: a line to read, then the numbers that the UI plots.

    Nothing of a partition that was not scored as a whole.
    """
    if not one.spent.clock:
        return {}
    rate = one.run.rows_in / one.spent.clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of KiB: that is how Linux tells it
    shares = one.spent.shares
    line = {"rows/s": f"{rate:,.0f}", "peak memory": f"{peak:,.0f} MiB"}
    line |= {f"time to {name}": f"{share:.0%}" for name, share in shares.items()}
    return {
        "speed": dg.MetadataValue.md(_line(line)),
        "rows_per_second": round(rate, 1),
        "peak_memory_mib": round(peak, 1),
        **{f"share_of_time_in_{name}": round(share, 4) for name, share in shares.items()},
    }


def evaluated(partition: Evaluated) -> dict[str, Any]:
    """Metadata of an evaluated partition: the numbers of every measure, and those of challengers beside them."""
    return {
        ROW_COUNT: partition.run.rows_labelled,
        "model_version": partition.served.version.version,
        **rounded(partition.served.numbers),
        **{f"{model.challenger}_{name}": v for model in partition.challengers for name, v in model.numbers.items()},
    }


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers with as many digits as are read; the tables hold them whole."""
    return {name: float(f"{number:.{DIGITS}g}") for name, number in numbers.items()}


def evaluation_version(partition: Evaluated) -> str:
    """Data version of an evaluated partition."""
    return sha256(json.dumps([partition.run.score_seq, partition.served.numbers], sort_keys=True).encode()).hexdigest()[
        :16
    ]


def _parameters(params: Mapping[str, object]) -> str:
    if not params:
        return "none"
    return table(("parameter", "value"), {name: json.dumps(value) for name, value in sorted(params.items())})


def table(header: tuple[str, str], rows: Mapping[str, object]) -> str:
    """A table of names and values, as Markdown."""
    lines = [f"| {header[0]} | {header[1]} |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {markdown(name)} | {markdown(str(value))} |" for name, value in rows.items())])


def _line(cells: Mapping[str, str]) -> str:
    """A table of one row."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells, ["---:"] * len(cells), cells.values()))


def markdown(text: str) -> str:
    """Text of unknown origin as Markdown that shows it and does nothing else: no tags, no links, no cells of its own."""
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    return html.escape(_MARKUP.sub(r"\\\g<0>", shown), quote=False)


_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside of a word is none
MOST_VERSIONS = 18  # in one picture


def distribution(scores: ScoreDistribution) -> str:
    """The scores of one partition: a histogram, or the shares of the classes."""
    if scores.low is None or scores.high is None:
        return bars(scores.bars)
    return histogram([count for _, count in scores.bars], scores.low, scores.high)


def versions_until(wiring: Wiring, version: Version) -> str | None:
    """The gate's metric of every version up to a registered one, by serving period, refused ones in another colour.

    None where the metric has no value for that version.
    """
    promote = wiring.spec.model.promote
    metric = promote.metric or default_metric(version.task)
    if metric not in version.metric_values:
        return None
    with wiring.pipeline().warehouse.open() as con:
        registry = read_registry(con, wiring.spec.name)
    approved = {known.version for known in registry.approved()}
    earlier = [known for known in registry.of_model if known.version != version.version]
    earlier = [known for known in earlier if known.serving_start <= version.serving_start]
    points = [
        Point(known.serving_period, known.metric_values[metric], good=known.version in approved)
        for known in [*sorted(earlier, key=lambda known: (known.serving_start, known.seq)), version]
        if metric in known.metric_values
    ]
    bound = None if promote.at_least is None else Point("gate", promote.at_least)
    return f"{metric} of each version, by serving period\n\n{curve(points[-MOST_VERSIONS:], bound=bound)}"


def opening_comment(sql: str) -> tuple[str, str]:
    """The first paragraph of the comment that a query begins with, on one line, and the query without it."""
    lines = sql.strip().splitlines()
    words = [line.strip().removeprefix("--").strip() for line in takewhile(_is_comment, lines)]
    paragraph = list(takewhile(bool, words))
    rest = lines[len(paragraph) :]
    return " ".join(paragraph), "\n".join(dropwhile(lambda line: line.strip() in ("", "--"), rest))


def _is_comment(line: str) -> bool:
    return line.strip().startswith("--")


def docstring_of(function: str) -> str | None:
    """The docstring of a function by its import path; None where there is none or it cannot be found."""
    module, _, name = function.rpartition(".")
    try:
        found = importlib.util.find_spec(module)
        tree = (
            ast.parse(Path(found.origin).read_text(encoding="utf-8")) if found and found.origin else ast.Module([], [])
        )
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name and (text := ast.get_docstring(node)):
            return inspect.cleandoc(text)
    return None
