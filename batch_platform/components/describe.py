"""What the UI shows of a pipeline: descriptions of its assets, and the metadata of each event."""

import ast
import html
import importlib.util
import inspect
import json
import re
import resource
from collections.abc import Mapping
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.features.sources.opening import SOURCE_KINDS, SourceState
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
DIGITS = 6  # significant digits of the numbers that are shown and plotted


def source(wiring: Wiring, name: str) -> str:
    """The description of a raw source: the docstring of its own function, if it has one, and where it is read from."""
    declared = wiring.spec.sources[name]
    kind = SOURCE_KINDS[declared.kind]
    function = kind.function(declared)
    title = (docstring_of(function) if function else None) or f"The raw table `{name}`."
    text = "observed, never changed. Its data version changes when its content may have changed."
    return f"{title}\n\nRead from {kind.description(declared)}; {text}"


def features(wiring: Wiring) -> str:
    """The description of the features: the opening comment of the SQL, what holds for every pipeline, and the SQL."""
    spec = wiring.spec
    query = wiring.pipeline().builder.query
    comment, sql = opening_comment(query.text) if query else (docstring_of(spec.features.python or ""), "")
    text = (
        f"One row for each `{', '.join(spec.features.key)}`, built from the sources as they are known when the partition "
        "starts, and kept as one Parquet file per partition. Keys are unique, and times lie inside the partition."
    )
    made = f"```sql\n{sql}\n```" if query else f"Made by `{spec.features.python}`."
    return "\n\n".join([*([comment] if comment else []), text, made])


def model(wiring: Wiring) -> str:
    """The description of the model, with a table of its parameters."""
    declared = wiring.spec.model
    train, promote = declared.train, declared.promote
    period = f"for each {train.every}" if train.every else "for all partitions after its training"
    if declared.import_ is not None:
        return (
            f"Imported from `{redact(declared.import_)}` {period}. Its contract is learned from the features before its "
            "serving period. If labels are known by then, the gate judges it, and a version that fails never serves."
        )
    conditions = [] if promote.at_least is None else [asked_of(promote.metric, promote.at_least)]
    conditions += [] if promote.tolerance is None else [f"no worse than the champion by {promote.tolerance:g}"]
    gate = f" ({', '.join(conditions)})" if conditions else ""
    window = "all history" if train.window == "all" else f"the {train.window}"
    text = (
        f"A {(declared.estimator or declared.build or '').rpartition('.')[2]} {period}. It is trained on {window} before its "
        f"serving period, with the labels known by then, and evaluated on the last {train.evaluate} of it. A version that "
        f"does not pass the gate{gate} is kept but never serves."
    )
    return f"{text}\n\n{_parameters(redacted(declared.params))}" if declared.params else text


def model_kind(wiring: Wiring) -> str:
    """The library that the UI shows beside the model."""
    declared = wiring.spec.model
    library = declared.flavour or (declared.estimator or "").partition(".")[0] or "python"
    return {"sklearn": "scikitlearn", "keras": "tensorflow"}.get(library, library)


def model_code_version(wiring: Wiring) -> str:
    """A version that changes when training on the same data would give another model."""
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
    """The description of the predictions, with the query that reads them."""
    name = wiring.spec.name
    return (
        f"{wiring.spec.description or 'The predictions.'} Every row of the features is either here or in "
        f"`{name}.rejected_rows` with a reason, and names the model and the run that made it. A partition is scored by the "
        "champion as of its start and replaced in one transaction. *Metadata → Plots → Events* plots the scores, the rows "
        "and the speed, partition by partition.\n\n"
        f"```sql\n-- in published.duckdb, which no run ever locks\nFROM {name}.predictions WHERE partition_key = '…'\n```"
    )


def evaluation(wiring: Wiring) -> str:
    """The description of the evaluation: what each measure says of a partition, and when it is computed."""
    labels = wiring.spec.labels
    when = f"{labels.delay} after the end of a partition, when its labels are known" if labels else "once it is scored"
    text = (
        f"{' '.join(measure.description for measure in MEASURES.values())} A partition is measured {when}. "
        "*Metadata → Plots → Events* plots each number, partition by partition."
    )
    challengers = " Rows of a challenger have its name in `challenger`; it is null for the model that serves."
    return text + (challengers if wiring.spec.challengers else "")


def evaluation_code_version(wiring: Wiring) -> str:
    """A version that changes when measuring the same predictions would give other numbers."""
    query = wiring.pipeline().builder.labels_query
    declared = wiring.spec.model_dump_json(include={"labels"}) + (query.text if query else "")
    return sha256(declared.encode()).hexdigest()[:12]


def table_schema(columns: Mapping[str, str]) -> dg.TableSchema:
    """A table's columns with their types."""
    return dg.TableSchema(columns=[dg.TableColumn(name=name, type=dtype) for name, dtype in columns.items()])


def source_state(state: SourceState) -> dict[str, Any]:
    """Metadata of a source, as it was read."""
    return {
        ROW_COUNT: state.rows,
        "dagster/column_schema": table_schema(state.columns),
        "location": redact(state.location),
    }


def built(features: Built, file: Path) -> dict[str, Any]:
    """Metadata of a partition of features."""
    metadata: dict[str, Any] = {
        ROW_COUNT: features.build.rows,
        "dagster/uri": str(file),
        "sha256": features.build.sha256,
        "skipped": features.skipped,
    }
    return metadata | ({"dagster/column_schema": table_schema(features.columns)} if features.columns else {})


def trained(wiring: Wiring, training: Trained) -> dict[str, Any]:
    """Metadata of a trained version."""
    version = training.version
    picture = versions_until(wiring, version)
    zone = wiring.spec.partitions.calendar.zone
    metadata: dict[str, Any] = {
        "version": version.version,
        "decision": f"{training.decision.action}: {training.decision.reason}",
        **({"versions": dg.MetadataValue.md(picture)} if picture else {}),
        **rounded(version.metric_values),
        "rows_trained": version.rows_trained,
        "rows_evaluated": version.rows_evaluated,
        "trained_from": f"{version.trained_from.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}",
        "trained_until": f"{version.trained_until.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}",
        "params": dg.MetadataValue.md(_parameters(json.loads(version.params))),
    }
    if training.suspicious:
        metadata["nearly_decide_the_label"] = dg.MetadataValue.md(
            "Each of these features alone nearly decides the label. Are they known when a row is scored? "
            + ", ".join(markdown(name) for name in training.suspicious)
        )
    return metadata


def committed(partition: Committed) -> dict[str, Any]:
    """Metadata of a partition of predictions: rows in and out, the model, and the distribution of the scores."""
    run = partition.run
    metadata: dict[str, Any] = {
        ROW_COUNT: run.rows_scored,
        "rows_in": run.rows_in,
        "rows_rejected": run.rows_rejected,
    }
    if partition.reasons:
        metadata["rejected"] = dg.MetadataValue.md(table(("reason", "rows"), partition.reasons))
    metadata |= {
        "model_version": run.model_version,
        **({"scores": dg.MetadataValue.md(distribution(partition.scores))} if partition.scores else {}),
        **score_numbers(partition.scores),
        "in_sample": run.in_sample,
        "skipped": partition.skipped,
        **({"engine": run.engine} if run.engine != LOCAL else {}),
    }
    if partition.unseen:
        metadata["unknown_categories"] = dg.MetadataValue.md(table(("column", "rows"), partition.unseen))
    if partition.ignored:
        metadata["ignored_columns"] = dg.MetadataValue.md(", ".join(markdown(name) for name in partition.ignored))
    return metadata


def score_numbers(scores: ScoreDistribution | None) -> dict[str, float]:
    """Mean and quantiles of the scores, or the share of each class, as numbers to plot."""
    if scores is None:
        return {}
    return {f"{scores.column}_{name}": round(number, DIGITS) for name, number in scores.numbers.items()}


def rows_version(partition: Committed) -> str:
    """Data version of a partition of predictions: equal for the same model, features and declaration."""
    run = partition.run
    return "-".join((run.model_sha256[:8], run.input_hash[:8], run.code_version))


def speed(partition: Committed) -> dict[str, Any]:
    """How fast a partition was scored and where the time went: one line to read, and numbers to plot.

    Empty for a partition that was not scored as a whole.
    """
    spent = partition.spent
    if not spent.clock:
        return {}
    rate = partition.run.rows_in / spent.clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux gives KiB
    cells = {"rows/s": f"{rate:,.0f}", "peak memory": f"{peak:,.0f} MiB"}
    cells |= {f"time to {name}": f"{share:.0%}" for name, share in spent.shares.items()}
    lines = (cells, ["---:"] * len(cells), cells.values())
    return {
        "speed": dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines)),
        "rows_per_second": round(rate, 1),
        "peak_memory_mib": round(peak, 1),
        **{f"share_of_time_in_{name}": round(share, 4) for name, share in spent.shares.items()},
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
    """Numbers with as many digits as anybody reads; the tables hold all digits."""
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


def markdown(text: str) -> str:
    """Text of unknown origin as Markdown that only shows it: without tags, links or cells of its own."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return html.escape(_MARKUP.sub(r"\\\g<0>", shown), quote=False)


_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is no markup
MAX_VERSIONS = 18  # in one chart


def distribution(scores: ScoreDistribution) -> str:
    """The scores of one partition as a chart: a histogram, or the shares of the classes."""
    if scores.low is None or scores.high is None:
        return bars(scores.bars)
    return histogram([count for _, count in scores.bars], scores.low, scores.high)


def versions_until(wiring: Wiring, version: Version) -> str | None:
    """A chart of the gate's metric up to a version, by serving period, with refused versions in another colour.

    None if the version has no value of that metric.
    """
    promote = wiring.spec.model.promote
    metric = promote.metric or default_metric(version.task)
    if metric not in version.metric_values:
        return None
    with wiring.pipeline().warehouse.open() as con:
        registry = read_registry(con, wiring.spec.name)
    approved = {approved.version for approved in registry.approved()}
    earlier = [
        other
        for other in registry.of_model
        if other.version != version.version and other.serving_start <= version.serving_start
    ]
    points = [
        Point(drawn.serving_period, drawn.metric_values[metric], good=drawn.version in approved)
        for drawn in [*sorted(earlier, key=lambda drawn: (drawn.serving_start, drawn.seq)), version]
        if metric in drawn.metric_values
    ]
    bound = None if promote.at_least is None else Point("gate", promote.at_least)
    return f"{metric} of each version, by serving period\n\n{curve(points[-MAX_VERSIONS:], bound=bound)}"


def opening_comment(sql: str) -> tuple[str, str]:
    """The first paragraph of the comment that a query starts with, on one line, and the query without that paragraph."""
    lines = sql.strip().splitlines()
    comment = takewhile(lambda line: line.strip().startswith("--"), lines)
    paragraph = list(takewhile(bool, (line.strip().removeprefix("--").strip() for line in comment)))
    rest = dropwhile(lambda line: line.strip() in ("", "--"), lines[len(paragraph) :])
    return " ".join(paragraph), "\n".join(rest)


def docstring_of(function: str) -> str | None:
    """The docstring of a function given by its import path, read without importing it; None if it has none or is not found."""
    module, _, name = function.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
        source_code = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        tree = ast.parse(source_code)
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name and (text := ast.get_docstring(node)):
            return inspect.cleandoc(text)
    return None
