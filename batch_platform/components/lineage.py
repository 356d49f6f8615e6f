"""Origin of columns, as Dagster's column lineage and as a table to read, and links to source code.

The definitions hold what the SQL shows. What only a run knows (the columns of a source behind a star, the columns of a model) is
logged with the newest partition of the run.
"""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.describe import table
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.predictions import DECISION, ENDS
from batch_platform.features.origins import ROWS, ColumnLineage, Lineage, SourceColumn
from batch_platform.features.query import Select
from batch_platform.models.bundle import read_manifest
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.pipeline import Committed, Pipeline
from batch_platform.sources.known import SOURCE_KINDS

LINEAGE, READABLE, CODE = "dagster/column_lineage", "where_columns_come_from", "dagster/code_references"
ADDED = ("partition_key", "model_version", "scored_at", "run_id")  # columns that a run adds to the predictions


def source(wiring: Wiring, name: str) -> dict[str, Any]:
    """Link a raw table to the user's function that reads it, if there is one."""
    declared = wiring.spec.sources[name]
    dotted = SOURCE_KINDS[declared.kind].function(declared)
    return {} if dotted is None else _code(_function(dotted, f"sources.{name}.{declared.kind}"))


def features(wiring: Wiring) -> dict[str, Any]:
    """Metadata of the features, as far as the SQL shows the origin of columns."""
    declared, builder = wiring.spec.features, wiring.pipeline().builder
    code = _file(builder.query) if builder.query else _function(declared.python or "", "features.python")
    return {**_shown(wiring, builder.lineage), **_code(code)}


def built(wiring: Wiring, build: Built, newest: Partition) -> dict[str, Any]:
    """Metadata of a run's newest partition of features, if the SQL does not show the columns of the sources."""
    builder = wiring.pipeline().builder
    if build.partition != newest or build.skipped or builder.query is None or builder.lineage.complete:
        return {}
    return _shown(wiring, builder.asked_lineage(newest))


def labelled(wiring: Wiring) -> dict[str, Any]:
    """Link what reads the labels to their SQL."""
    query = wiring.pipeline().builder.labels_query
    return {} if query is None else _code(_file(query))


def predictions(wiring: Wiring) -> dict[str, Any]:
    """Metadata of the predictions until a run logs the columns that the model reads and returns."""
    lineage = wiring.pipeline().builder.lineage
    if not lineage.complete:
        return {}
    spec = wiring.spec.features
    left_out = {*spec.key, spec.time, *(name for name, rule in spec.columns.items() if not rule.feature)}
    reads = dict.fromkeys(column.column for column in lineage.columns if column.column not in left_out)
    return _of_predictions(wiring, [*reads], ["prediction"])


def scored(wiring: Wiring, pipeline: Pipeline, committed: Committed, newest: Partition) -> dict[str, Any]:
    """Metadata of a run's newest partition of predictions, by the model that made it."""
    if committed.partition != newest or committed.skipped:
        return {}
    run = committed.run
    model = read_manifest(pipeline.home.bundle(wiring.spec.name, run.model_version), run.model_sha256)
    reads = [str(column["name"]) for column in model.contract]
    decided = [DECISION] if wiring.spec.predictions.decide else []
    return _of_predictions(wiring, reads, [*prediction_columns(model.task, model.classes), *decided])


def performance(wiring: Wiring) -> dict[str, Any]:
    """Metadata of the performance: every value is measured on predictions, against the label."""
    spec, label = wiring.spec, wiring.pipeline().builder.labels_lineage
    predicted = dg.TableColumnDep(wiring.key("predictions"), "prediction")
    outcome = label.of(spec.labels.column) if spec.labels else ColumnLineage("", (), known=True)
    deps = {"value": [predicted, *_deps(wiring, outcome.reads)], "rows_labelled": _deps(wiring, outcome.reads)}
    made = f"`{spec.labels.column}` by `labels.sql`, from {_names(outcome)}" if spec.labels else "no label"
    rows = [("value", f"`prediction` and the scores; {made}"), ("rows_labelled", made)]
    known = {} if spec.labels and not outcome.known else {LINEAGE: dg.TableColumnLineage(deps)}
    return {**known, READABLE: dg.MetadataValue.md(_table("made from", rows)), **labelled(wiring)}


def _of_predictions(wiring: Wiring, reads: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    spec, source = wiring.spec, wiring.key("features")
    scores = [*scores, *(ENDS if spec.predictions.interval is not None else ())]
    taken = [*spec.features.key_and_time, *spec.predictions.keep]
    deps = {name: [dg.TableColumnDep(source, name)] for name in taken}
    deps |= {name: [dg.TableColumnDep(source, column) for column in reads] for name in scores}
    origins = {name: f"`{name}` of the features" for name in taken} | dict.fromkeys(scores, f"as `{scores[0]}`")
    origins[scores[0]] = f"all {len(reads)} columns that the model reads: {', '.join(map(_quoted, reads))}"
    text = _table("comes from", [*origins.items(), *((name, "the run") for name in ADDED)])
    if spec.challengers:
        names = ", ".join(_quoted(challenger.name) for challenger in spec.challengers)
        text += (
            f"\n\nThe challengers {names} read the same features; their scores go to `{spec.name}.challenger_scores`."
        )
    return {LINEAGE: dg.TableColumnLineage(deps), READABLE: dg.MetadataValue.md(text)}


def _shown(wiring: Wiring, lineage: Lineage) -> dict[str, Any]:
    """Dagster's lineage of the columns that are known, and a table of all columns to read."""
    origins = [(column.column, _names(column)) for column in lineage.columns]
    text = _table("made from", origins) if origins else ""
    if lineage.deciders:
        text += f"\n\nFilters, joins and groups select the rows by {_listed(lineage.deciders)}."
    if lineage.reason:
        text += f"\n\nThe origin of the columns is unknown: {lineage.reason}."
    elif not lineage.complete:
        text += "\n\nThe SQL does not show the other columns; a run looks them up in the sources."
    deps = {column.column: _deps(wiring, column.reads) for column in lineage.columns if column.known}
    shown: dict[str, Any] = {READABLE: dg.MetadataValue.md(text.strip())}
    return {LINEAGE: dg.TableColumnLineage(deps), **shown} if deps else shown


def _deps(wiring: Wiring, reads: Iterable[SourceColumn]) -> list[dg.TableColumnDep]:
    return [dg.TableColumnDep(wiring.source_key(read.source), read.column) for read in reads if read.column != ROWS]


def _names(column: ColumnLineage) -> str:
    if not column.known:
        return "unknown"
    copied = " unchanged" if column.copy_of else ""
    return f"{_listed(column.reads)}{copied}" if column.reads else "no source column"


def _listed(reads: Iterable[SourceColumn]) -> str:
    """List columns by source: `orders`: `id`, `amount`; `customers`: its rows."""
    by_source: dict[str, list[str]] = {}
    for read in reads:
        by_source.setdefault(read.source, []).append("its rows" if read.column == ROWS else _quoted(read.column))
    return "; ".join(f"`{source}`: {', '.join(names)}" for source, names in by_source.items())


def _quoted(name: str) -> str:
    fence = "``" if "`" in name else "`"
    return f"{fence}{name}{fence}"


def _table(header: str, rows: Iterable[tuple[str, str]]) -> str:
    return table(("column", header), [(_quoted(_cell(name)), _cell(text)) for name, text in rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _code(files: Iterable[Path | tuple[Path, int]]) -> dict[str, Any]:
    """Link to source code, each file with its line; Dagster itself links to the YAML."""
    lines = [file if isinstance(file, tuple) else (file, 1) for file in files]
    references = [
        dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=path.name) for path, line in lines
    ]
    return {CODE: dg.CodeReferencesMetadataValue(code_references=[*references])} if references else {}


def _file(query: Select) -> list[Path]:
    return [] if query.file is None else [query.file]


def _function(dotted: str, key: str) -> list[tuple[Path, int]]:
    """File and line of a function; empty if Python does not know them."""
    function = import_function(dotted, key)
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (OSError, TypeError):  # written in C, or made at run time
        return []
    return [(Path(file), line)] if file else []
