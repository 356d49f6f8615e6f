"""What the UI shows of a pipeline: descriptions of its assets, and the metadata of each event."""

import ast
import html
import importlib.util
import json
import math
import re
import resource
from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.jobs import name_of_whole
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.engine import LOCAL
from batch_platform.declaration.errors import MOST_LISTED, counted
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.features.sources.kind import SourceState
from batch_platform.features.sources.opening import SOURCE_KINDS
from batch_platform.models.bundle import Manifest, read_manifest
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.drift import ColumnDrift
from batch_platform.monitoring.performance import asked_of
from batch_platform.monitoring.scores import ScoreDistribution
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.train import Trained, TrainedChallenger
from batch_platform.scoring.challenger_tables import ChallengerRun
from batch_platform.scoring.drift_tables import SegmentDrift, score_not_judged
from batch_platform.scoring.run import Committed
from batch_platform.warehouse.descriptions import OF_PIPELINES
from batch_platform.warehouse.sql import quoted, table_columns

ROW_COUNT = "dagster/row_count"  # of a table
PARTITION_ROWS = "dagster/partition_row_count"  # of a partition of a table
WORST_INDEX = "worst_psi"
DIGITS = 6  # significant digits of the numbers that are shown and plotted
BARS = "\u00a0▁▂▃▄▅▆▇█"  # bars by height, none for an empty range


def whole_job(wiring: Wiring) -> str:
    """Name the job that makes an asset and all that it needs."""
    return (
        f"**Launch the job `{name_of_whole(wiring.spec.name)}`** to bring partitions up to date: it makes features, models, "
        "predictions and performance in the right order, each only where it is due.\n\n"
    )


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
    challengers = _challengers(wiring)
    if declared.import_ is not None:
        return (
            f"Imported from `{redact(declared.import_)}` {period}. Its contract is learned from the features before its "
            "serving period. If labels are known by then, the gate judges it, and a version that fails never serves."
            f"{challengers}"
        )
    conditions = ["not worse than a trivial baseline"] if promote.baseline and not promote.manual else []
    conditions += [] if promote.at_least is None else [asked_of(promote.metric, promote.at_least)]
    if promote.tolerance is not None or not promote.manual:
        by = f"by more than {promote.tolerance:g} and " if promote.tolerance else ""
        conditions.append(f"not worse than the champion {by}beyond chance")
    gate = f" ({', '.join(conditions)})" if conditions else ""
    refit = " One that passes is fitted again on the whole window." if declared.refit else ""
    window = "all history" if train.window == "all" else f"the {train.window}"
    learned = (
        f"It is trained on {window} before its serving period, with the labels known by then, and evaluated on the last "
        f"{train.evaluate} of it."
    )
    if wiring.spec.partitions.snapshot:
        learned = (
            "It is trained on the rows with a label in the snapshot that it serves first, and evaluated on "
            f"{train.held_out:.0%} of them that no model learns from. A random split is optimistic where rows resemble each "
            "other or the future differs from the past."
        )
    text = (
        f"A {(declared.estimator or declared.build or '').rpartition('.')[2]} {period}. {learned} A version that does not pass "
        f"the gate{gate} is kept but never serves.{refit}"
    )
    parameters = f"\n\n{_parameters(redacted(declared.params))}" if declared.params else ""
    return f"{text}{parameters}{challengers}"


def _challengers(wiring: Wiring) -> str:
    names = ", ".join(f"`{challenger.name}`" for challenger in wiring.spec.challengers)
    name = wiring.spec.name
    if not names:
        return ""
    return (
        f"\n\nChallengers ({names}) score the same rows in the same pass into `{name}.challenger_scores` and never serve; "
        f"`{name}.challengers` says for each partition how far each challenger agrees with the champion."
    )


def model_kind(wiring: Wiring) -> str:
    """The library that the UI shows beside the model."""
    declared = wiring.spec.model
    library = declared.flavour or (declared.estimator or "").partition(".")[0] or "python"
    return {"sklearn": "scikitlearn", "keras": "tensorflow"}.get(library, library)


def model_code_version(wiring: Wiring) -> str:
    """A version that changes when training on the same data would give another model."""
    builder = wiring.pipeline().builder
    learned = dict.fromkeys(("estimator", "build", "import_", "flavour", "task", "classes", "params"), True)
    train = {"train": {"window", "evaluate", "max_rows"}, "refit": True}
    declared = wiring.spec.model_dump_json(include={"labels": True, "model": {**learned, **train}})
    labels = builder.labels_query.text if builder.labels_query else ""
    return sha256(f"{builder.code_version}\0{labels}\0{declared}".encode()).hexdigest()[:12]


def predictions(wiring: Wiring) -> str:
    """The description of the predictions, with the query that reads them."""
    name = wiring.spec.name
    return (
        f"{wiring.spec.description or 'The predictions.'} Every row of the features is either here or in "
        f"`{name}.rejected_rows` with a reason, and names the model and the run that made it. A partition is scored by the "
        "champion as of its start and replaced in one transaction. *Metadata → Plots → Events* plots the scores, the rows and "
        "the speed, event by event.\n\n"
        f"```sql\n-- in published.duckdb, which no run ever locks\nFROM {name}.predictions WHERE partition_key = '…'\n```"
        f"{_challengers(wiring)}"
    )


def evaluation(wiring: Wiring) -> str:
    """The description of the evaluation: what each measure says of a partition, and when it is computed."""
    labels = wiring.spec.labels
    when = f"{labels.delay} after the end of a partition, when its labels are known" if labels else "once it is scored"
    text = (
        f"{' '.join(measure.description for measure in MEASURES.values())} A partition is measured {when}. "
        "*Metadata → Plots → Events* plots each number, event by event."
    )
    challengers = " Rows of a challenger have its name in `challenger`; it is null for the model that serves."
    return text + (challengers if wiring.spec.challengers else "")


def evaluation_code_version(wiring: Wiring) -> str:
    """A version that changes when measuring the same predictions would give other numbers."""
    query = wiring.pipeline().builder.labels_query
    declared = wiring.spec.model_dump_json(include={"labels"}) + (query.text if query else "")
    return sha256(declared.encode()).hexdigest()[:12]


def table_schema(columns: Mapping[str, str], descriptions: Mapping[str, str] | None = None) -> dg.TableSchema:
    """A table's columns with their types and, as far as they are described, what they hold."""
    described = descriptions or {}
    return dg.TableSchema(
        columns=[dg.TableColumn(name, dtype, description=described.get(name)) for name, dtype in columns.items()]
    )


def stored_table(wiring: Wiring, name: str) -> dict[str, Any]:
    """Metadata of a table of the warehouse as a whole, for the last partition that a run logs."""
    schema = wiring.spec.name
    with wiring.pipeline().warehouse.open() as con:
        columns = dict(table_columns(con, schema, name))
        ((rows,),) = con.execute(f"SELECT count(*) FROM {quoted(schema)}.{quoted(name)}").fetchall()
    return {ROW_COUNT: rows, "dagster/column_schema": table_schema(columns, OF_PIPELINES[name].columns)}


def source_state(state: SourceState, *, by_partition: bool) -> dict[str, Any]:
    """Metadata of a source, or of one partition of it, as it was read."""
    return {
        PARTITION_ROWS if by_partition else ROW_COUNT: state.rows,
        "dagster/column_schema": table_schema(state.columns),
        "location": redact(state.location),
    }


def built(features: Built, file: Path) -> dict[str, Any]:
    """Metadata of a partition of features."""
    metadata: dict[str, Any] = {
        PARTITION_ROWS: features.build.rows,
        "dagster/uri": str(file),
        "sha256": features.build.sha256,
        "skipped": features.skipped,
    }
    if features.findings:
        metadata["findings"] = "\n".join(features.findings)
    metadata |= _engine_page(features.link)
    return metadata | ({"dagster/column_schema": table_schema(features.columns)} if features.columns else {})


def trained(wiring: Wiring, training: Trained) -> dict[str, Any]:
    """Metadata of a trained version."""
    version = training.version
    manifest = read_manifest(wiring.pipeline().home.bundle(version.pipeline, version.version), version.sha256)
    zone = wiring.spec.partitions.calendar.zone
    metadata: dict[str, Any] = {
        "version": version.version,
        "decision": f"{training.decision.action}: {training.decision.reason}",
        **rounded(version.metric_values),
        **_beside_metrics(manifest),
        "rows_trained": version.rows_trained,
        "rows_evaluated": version.rows_evaluated,
        "trained_from": f"{version.trained_from.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}",
        "trained_until": f"{version.trained_until.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}",
        "params": dg.MetadataValue.md(_parameters(json.loads(version.params))),
    }
    if training.leaks:
        metadata["suspected_leaks"] = dg.MetadataValue.md(
            "\n".join(f"- {markdown(str(leak))}" for leak in training.leaks)
        )
    return metadata | trained_challengers(training.challengers)


def _beside_metrics(manifest: Manifest) -> dict[str, Any]:
    """Metadata beside the metrics of a version: which fit they are of, and the trivial baseline on the same rows."""
    of = "the fit that the gate judged; the model was then fitted again on all rows" if manifest.refit else "this fit"
    baseline = manifest.evaluation.baseline
    if baseline is None:
        return {"metrics_of": of}
    values = rounded({f"baseline_{name}": value for name, value in baseline.metrics.items()})
    return {"metrics_of": of, "baseline": baseline.name, **values}


def trained_challengers(challengers: Sequence[TrainedChallenger]) -> dict[str, Any]:
    """Metadata of the challengers of a serving period, after their training."""
    if not challengers:
        return {}
    rows: list[tuple[str, str, str]] = []
    metrics: dict[str, float] = {}
    for challenger in challengers:
        training, version, decision = challenger.training, challenger.version, challenger.decision
        remark = training.failure or (decision.reason if decision else "")
        rows.append((training.challenger, training.version or "-", markdown(remark)))
        if version is not None:
            metrics |= {f"{training.challenger}_{metric}": value for metric, value in version.metric_values.items()}
    return {"challengers": dg.MetadataValue.md(table(("challenger", "version", ""), rows)), **metrics}


def committed(partition: Committed) -> dict[str, Any]:
    """Metadata of a partition of predictions: rows in and out, the models, and the distribution of the scores."""
    run = partition.run
    metadata: dict[str, Any] = {
        PARTITION_ROWS: run.rows_scored,
        "rows_in": run.rows_in,
        "rows_rejected": run.rows_rejected,
    }
    if partition.reasons:
        metadata["rejected"] = dg.MetadataValue.md(listing(("reason", "rows"), partition.reasons))
    metadata |= {
        "model_version": run.model_version,
        **({"scores": dg.MetadataValue.md(distribution(partition.scores))} if partition.scores else {}),
        **score_numbers(partition.scores),
        **_estimates(partition),
        "in_sample": run.in_sample,
        "skipped": partition.skipped,
        **({"engine": run.engine} if run.engine != LOCAL else {}),
        **_engine_page(partition.link),
    }
    if partition.unseen:
        metadata["unknown_categories"] = dg.MetadataValue.md(listing(("column", "rows"), partition.unseen))
    if partition.ignored:
        metadata["ignored_columns"] = dg.MetadataValue.md(", ".join(markdown(name) for name in partition.ignored))
    return metadata | _scored_challengers(partition.challengers)


def _engine_page(link: str) -> dict[str, Any]:
    return {"engine_page": dg.MetadataValue.url(link)} if link else {}


def _estimates(partition: Committed) -> dict[str, Any]:
    """The expected metrics, to plot, with their intervals and how far such estimates were off so far, to read."""
    if not partition.estimates:
        return {}
    numbers = {f"estimated_{estimate.metric}": estimate.estimate for estimate in partition.estimates}
    rows = [
        (
            *(estimate.metric, f"{estimate.estimate:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"),
            str(partition.records.get(estimate.metric, "none has come true yet")),
        )
        for estimate in partition.estimates
    ]
    text = table(("metric", "expected", "95% interval", "estimates so far"), rows, ("expected",))
    return {**rounded(numbers), "estimates": dg.MetadataValue.md(text)}


def _scored_challengers(runs: Sequence[ChallengerRun]) -> dict[str, Any]:
    if not runs:
        return {}
    numeric = ("scored", "rejected", "rank correlation", "decisions flipped")
    rows = [
        (
            *(run.challenger, run.model_version or "-", f"{run.rows_scored:,}", f"{run.rows_rejected:,}"),
            *("-" if value is None else f"{value:.4f}" for value in (run.rank_correlation, run.decisions_flipped)),
            markdown(run.failure or ""),
        )
        for run in runs
    ]
    text = table(("challenger", "version", *numeric, "failure"), rows, numeric)
    return {"challengers": dg.MetadataValue.md(text), **challenger_numbers(runs)}


def challenger_numbers(runs: Sequence[ChallengerRun]) -> dict[str, float]:
    """How far each challenger agrees with the champion, as numbers to plot."""
    values = {
        f"{run.challenger}_{name}": value
        for run in runs
        for name, value in (
            ("rank_correlation", run.rank_correlation),
            ("decisions_flipped", run.decisions_flipped),
            ("rows_rejected", None if run.failure else run.rows_rejected),
        )
    }
    return {name: value for name, value in values.items() if value is not None}


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
    return {
        "speed": dg.MetadataValue.md(table(list(cells), [cells.values()], numeric=cells)),
        "rows_per_second": round(rate, 1),
        "peak_memory_mib": round(peak, 1),
        **{f"share_of_time_in_{name}": round(share, 4) for name, share in spent.shares.items()},
    }


def evaluated(partition: Evaluated) -> dict[str, Any]:
    """Metadata of an evaluated partition: the numbers of every measure, and those of challengers beside them."""
    return {
        PARTITION_ROWS: sum(
            table.height for model in (partition.served, *partition.challengers) for table in model.tables.values()
        ),
        "rows_labelled": partition.run.rows_labelled,
        "model_version": partition.served.version.version,
        "in_sample": partition.served.in_sample,
        **rounded(partition.served.numbers),
        **{f"{model.challenger}_in_sample": True for model in partition.challengers if model.in_sample},
        **{f"{model.challenger}_{name}": v for model in partition.challengers for name, v in model.numbers.items()},
    }


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers with as many digits as anybody reads; the tables hold all digits."""
    return {name: float(f"{number:.{DIGITS}g}") for name, number in numbers.items()}


def evaluation_version(partition: Evaluated) -> str:
    """Data version of an evaluated partition."""
    measured = json.dumps([partition.run.score_seq, partition.served.numbers], sort_keys=True)
    return sha256(measured.encode()).hexdigest()[:16]


def _parameters(params: Mapping[str, object]) -> str:
    if not params:
        return "none"
    return listing(("parameter", "value"), {name: json.dumps(value) for name, value in sorted(params.items())})


def drifted(row: ColumnDrift) -> str:
    """A column that differs from its baseline, in a few words."""
    index = f"{row.column_name} {row.unusual:.2f}"
    return f"{index} ({'; '.join(row.changes)})" if row.changes else index


def drifted_segments(worst_first: Sequence[SegmentDrift]) -> list[str]:
    """The worst segment of each column whose predictions differ, and how many more do."""
    by_column = dict[str, list[SegmentDrift]]()
    for row in worst_first:
        by_column.setdefault(row.segment_column, []).append(row)
    return [
        f"{worst.predictions} {worst.unusual:.2f}" + (f" and {counted(len(others), 'more segment')}" if others else "")
        for worst, *others in by_column.values()
    ]


def alarming(rows: Sequence[ColumnDrift]) -> list[ColumnDrift]:
    """The columns that give a warning or an error, in the same order."""
    return [row for row in rows if row.level in ("warn", "fail")]


def most_drifted(worst_first: Sequence[ColumnDrift]) -> dg.MarkdownMetadataValue:
    """A table of the columns that differ most from their baseline."""
    rows = worst_first[:MOST_LISTED]
    baseline = rows[0].baseline if rows else "reference"
    return dg.MetadataValue.md(listing(("column", baseline), {row.column_name: drifted(row) for row in rows}))


def partition_drift(partition: Committed) -> dict[str, Any]:
    """Metadata of a partition of drift: the worst columns first, and numbers to plot; few where no column is judged."""
    judged = [row for row in partition.drift if row.level is not None]
    metadata: dict[str, Any] = {PARTITION_ROWS: len(partition.drift), "model_version": partition.run.model_version}
    if not judged:
        return metadata
    if reason := score_not_judged(partition.drift):
        metadata["not_judged"] = reason
    levels = [row.level for row in judged]
    numbers = {"columns_over_warn": len(alarming(judged)), "columns_over_fail": levels.count("fail")}
    return {"the_worst": most_drifted(judged), **rounded({WORST_INDEX: judged[0].unusual}), **numbers, **metadata}


def drift_version(partition: Committed) -> str:
    """Data version of a partition of drift: equal for the same rows."""
    measured = [(row.column_name, row.role, row.baseline, row.psi, row.level) for row in partition.drift]
    return sha256(json.dumps(sorted(measured)).encode()).hexdigest()[:16]


def drift(wiring: Wiring) -> str:
    """The description of the drift, with the query that reads it."""
    name = wiring.spec.name
    return (
        "How far the features and the predictions of each partition are from the training data, the partition before and the same "
        f"time of the week before. The rows are written in the transaction of the predictions, by the same step. `{WORST_INDEX}` is "
        "the population stability index of the worst column that is judged, beyond what chance and the training data explain; "
        "`columns_over_warn` and `columns_over_fail` count the columns beyond the limits of monitoring.drift.\n\n"
        f"```sql\n-- in published.duckdb, which no run ever locks\nFROM {name}.drift WHERE partition_key = '…'\n```"
    )


def listing(columns: tuple[str, str], values: Mapping[str, object]) -> str:
    """A table of names and values of unknown origin, as Markdown."""
    return table(columns, [map(markdown, (name, str(value))) for name, value in values.items()], columns[1:])


def table(columns: Sequence[str], rows: Iterable[Iterable[str]], numeric: Container[str] = ()) -> str:
    """A table as Markdown, of cells that are Markdown; numeric columns are aligned to the right."""
    rule = ["---:" if column in numeric else "---" for column in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def markdown(text: str) -> str:
    """Text of unknown origin as Markdown that only shows it: without tags, links or cells of its own."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return html.escape(_MARKUP.sub(r"\\\g<0>", shown), quote=False)


_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is no markup


def distribution(scores: ScoreDistribution) -> str:
    """The scores of one partition as text: a bar for each range of equal width, or the rows of each class."""
    if scores.low is None or scores.high is None:
        return listing(("class", "rows"), {label: f"{count:,}" for label, count in scores.bars})
    most = max(count for _, count in scores.bars)
    bars = "".join(BARS[math.ceil(count / most * (len(BARS) - 1))] for _, count in scores.bars)
    return f"{scores.low:.3g} `{bars}` {scores.high:.3g}"


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
            return text
    return None
