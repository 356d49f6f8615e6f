"""Texts of a pipeline for the UI: descriptions of its assets, and the metadata of each event."""

import inspect
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.jobs import name_of_whole
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.engine import LOCAL
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.models.bundle import read_judged, read_manifest
from batch_platform.models.registry import Registry
from batch_platform.monitoring.catalogue import evaluated_measures, measures_on
from batch_platform.monitoring.measure import Asset, Markdown, listing, markdown, rounded, table
from batch_platform.monitoring.measures.drift import WORST_INDEX
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.train import Trained, TrainedChallenger
from batch_platform.reports.card import card_of
from batch_platform.scoring.run import Committed
from batch_platform.sources.kind import SourceState
from batch_platform.sources.known import SOURCE_KINDS

ROW_COUNT = "dagster/row_count"  # rows of a table
PARTITION_ROWS = "dagster/partition_row_count"  # rows of a partition of a table


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
    docstring = inspect.getdoc(import_function(function, f"sources.{name}.{declared.kind}")) if function else None
    title = docstring or f"The raw table `{name}`."
    text = "observed, never changed. Its data version changes when its content may have changed."
    return f"{title}\n\nRead from {kind.description(declared)}; {text}"


def features(wiring: Wiring) -> str:
    """The description of the features: the opening comment of the SQL, what holds for every pipeline, and the SQL."""
    spec = wiring.spec
    query = wiring.pipeline().builder.query
    made_by = spec.features.python
    docstring = inspect.getdoc(import_function(made_by, "features.python")) if made_by else None
    comment, sql = opening_comment(query.text) if query else (docstring, "")
    text = (
        f"One row for each `{', '.join(spec.features.key)}`, built from the sources as they are known when the partition "
        "starts, and kept as one Parquet file per partition. Keys are unique, and times lie inside the partition."
    )
    made = f"```sql\n{sql}\n```" if query else f"Made by `{spec.features.python}`."
    return "\n\n".join([*([comment] if comment else []), text, made])


def model(wiring: Wiring) -> str:
    """The description of the model, with a table of all that is declared of it, defaults included."""
    declared = wiring.spec.model
    period = f"for each {declared.train.every}" if declared.train.every else "for all partitions after its training"
    if declared.import_ is None:
        made = f"A {(declared.estimator or declared.build or '').rpartition('.')[2]}"
        learned = "It learns from what was known before its serving period."
    else:
        made, learned = "Imported", "Its contract is learned from the features before its serving period."
    keys = _flat(redacted(declared.model_dump(mode="json", by_alias=True, exclude_none=True)))
    return (
        f"{made} {period}. {learned} A version that does not pass the gate (`promote`) is kept but never serves.\n\n"
        f"{listing(('key', 'value'), dict(keys))}{_challengers(wiring)}"
    )


def _flat(block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a block and of the blocks within it, with their values as JSON."""
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value)


def _challengers(wiring: Wiring) -> str:
    names = ", ".join(f"`{challenger.name}`" for challenger in wiring.spec.challengers)
    name = wiring.spec.name
    if not names:
        return ""
    return (
        f"\n\nChallengers ({names}) score the same rows in the same pass into `{name}.challenger_scores`, and none serves unless it is promoted; "
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
        f"{' '.join(measure.description for measure in evaluated_measures(wiring.spec).values())} A partition is measured {when}. "
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


def source_state(state: SourceState, *, by_partition: bool) -> dict[str, Any]:
    """Metadata of a source, or of one partition of it, as it was read."""
    return {
        PARTITION_ROWS if by_partition else ROW_COUNT: state.rows,
        "dagster/column_schema": table_schema(state.columns),
        "location": redact(state.location),
    }


def built(features: Built, file: Path, descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of a partition of features, whose columns have descriptions."""
    metadata: dict[str, Any] = {
        PARTITION_ROWS: features.build.rows,
        "dagster/uri": str(file),
        "sha256": features.build.sha256,
        "skipped": features.skipped,
    }
    if features.findings:
        metadata["findings"] = "\n".join(features.findings)
    metadata |= _engine_page(features.link)
    schema = {"dagster/column_schema": table_schema(features.columns, descriptions)}
    return metadata | (schema if features.columns else {})


def trained(wiring: Wiring, training: Trained) -> dict[str, Any]:
    """Metadata of a trained version: numbers to plot, its parameters, and the card that says all else."""
    version = training.version
    folder = wiring.pipeline().home.bundle(version.pipeline, version.version)
    manifest = read_manifest(folder, version.sha256)
    zone = wiring.spec.partitions.calendar.zone
    metadata: dict[str, Any] = {
        "version": version.version,
        "decision": f"{training.decision.action}: {training.decision.reason}",
        **rounded(version.metric_values),
        "rows_trained": version.rows_trained,
        "rows_evaluated": version.rows_evaluated,
        "trained_until": f"{version.trained_until.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}",
        "params": dg.MetadataValue.md(_parameters(json.loads(version.params))),
    }
    decided = Registry(version.pipeline, [version], [training.decision])
    card = card_of(wiring.spec, decided, version, manifest, read_judged(folder, manifest))
    metadata["model_card"] = dg.MetadataValue.md(card.to_markdown())
    return metadata | trained_challengers(training.challengers)


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
    shown: dict[str, Any] = {
        PARTITION_ROWS: run.rows_scored,
        "rows_in": run.rows_in,
        "rows_rejected": run.rows_rejected,
        "model_version": run.model_version,
        **of_measures("predictions", partition.measures),
        "in_sample": run.in_sample,
        "skipped": partition.skipped,
        **({"engine": run.engine} if run.engine != LOCAL else {}),
        **_engine_page(partition.link),
    }
    if partition.unseen:
        shown["unknown_categories"] = dg.MetadataValue.md(listing(("column", "rows"), partition.unseen))
    if partition.ignored:
        shown["ignored_columns"] = dg.MetadataValue.md(", ".join(markdown(name) for name in partition.ignored))
    return shown


def of_measures(asset: Asset, values: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the measures of a partition that an asset shows."""
    return {
        name: shown
        for measure in measures_on(asset).values()
        if measure.name in values
        for name, shown in metadata(measure.shown(values[measure.name])).items()
    }


def metadata(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts, Markdown and mappings of a measure, as Dagster shows them."""
    return {name: _shown(value) for name, value in shown.items()}


def _shown(value: object) -> Any:  # noqa: ANN401 - a value of metadata
    match value:
        case Markdown():
            return dg.MetadataValue.md(str(value))
        case Mapping():
            return dg.MetadataValue.json(dict(value))
        case _:
            return value


def _engine_page(link: str) -> dict[str, Any]:
    return {"engine_page": dg.MetadataValue.url(link)} if link else {}


def rows_version(partition: Committed) -> str:
    """Data version of a partition of predictions: equal for the same model, features and declaration."""
    run = partition.run
    return "-".join((run.model_sha256[:8], run.input_hash[:8], run.code_version))


def speed(partition: Committed) -> dict[str, Any]:
    """The speed at which a partition was scored and where the time went: one line to read, and numbers to plot.

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


def evaluation_version(partition: Evaluated) -> str:
    """Data version of an evaluated partition."""
    measured = json.dumps([partition.run.score_seq, partition.served.numbers], sort_keys=True)
    return sha256(measured.encode()).hexdigest()[:16]


def _parameters(params: Mapping[str, object]) -> str:
    if not params:
        return "none"
    return listing(("parameter", "value"), {name: json.dumps(value) for name, value in sorted(params.items())})


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


def opening_comment(sql: str) -> tuple[str, str]:
    """The first paragraph of the comment that a query starts with, on one line, and the query without that paragraph."""
    lines = sql.strip().splitlines()
    comment = takewhile(lambda line: line.strip().startswith("--"), lines)
    paragraph = list(takewhile(bool, (line.strip().removeprefix("--").strip() for line in comment)))
    rest = dropwhile(lambda line: line.strip() in ("", "--"), lines[len(paragraph) :])
    return " ".join(paragraph), "\n".join(rest)
