"""Where the columns of a pipeline's tables come from, as Dagster keeps it and as a table to read; and the source code.

What the SQL alone tells stands on the definitions, so that no event repeats it. What only a run knows (the columns of
a source behind a star, the columns of a model) is logged with the newest partition of the run.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.functions import import_function
from batch_platform.features.lineage.records import ROWS, ColumnLineage, Lineage, SourceColumn
from batch_platform.features.sources.opening import SOURCE_KINDS
from batch_platform.models.bundle import read_manifest
from batch_platform.pipeline.pipeline import Built, Committed, Pipeline
from batch_platform.scoring.batch import prediction_columns

LINEAGE, READABLE, CODE = "dagster/column_lineage", "where_columns_come_from", "dagster/code_references"
ADDED = ("partition_key", "model_version", "scored_at", "run_id")  # to the predictions, from no column
_UNKNOWN = "unknown"


def source(wiring: Wiring, name: str) -> dict[str, Any]:
    """Link a raw table to the user's function that reads it, if there is one."""
    declared = wiring.spec.sources[name]
    dotted = SOURCE_KINDS[declared.kind].function(declared)
    return {} if dotted is None else _code(_function(dotted, f"sources.{name}.{declared.kind}"))


def features(wiring: Wiring) -> dict[str, Any]:
    """Of the features, as far as the SQL alone tells."""
    declared = wiring.spec.features
    code = [wiring.folder / declared.sql] if declared.sql else _function(declared.python or "", "features.python")
    return {**_shown(wiring, wiring.pipeline().builder.lineage), **_code(code)}


def built(wiring: Wiring, one: Built, newest: Partition) -> dict[str, Any]:
    """Of a run's newest partition of features, where the sources had to be asked for their columns."""
    builder = wiring.pipeline().builder
    if one.partition != newest or one.skipped or builder.query is None or builder.lineage.complete:
        return {}
    return _shown(wiring, builder.asked_lineage(newest))


def labelled(wiring: Wiring) -> dict[str, Any]:
    """Of what reads the labels: their SQL."""
    labels = wiring.spec.labels
    return {} if labels is None else _code([wiring.folder / labels.sql])


def predictions(wiring: Wiring) -> dict[str, Any]:
    """Of the predictions, for as long as no run has told what the model reads and gives."""
    lineage = wiring.pipeline().builder.lineage
    if not lineage.complete:
        return {}
    spec = wiring.spec.features
    apart = {*spec.key, spec.time, *(name for name, rule in spec.columns.items() if not rule.feature)}
    reads = [one.column for one in lineage.columns if one.column not in apart]
    return _of_predictions(wiring, reads, ["prediction"])


def scored(wiring: Wiring, pipeline: Pipeline, one: Committed, newest: Partition) -> dict[str, Any]:
    """Of a run's newest partition of predictions, by the model that made it."""
    if one.partition != newest or one.skipped:
        return {}
    model = read_manifest(pipeline.home.bundle(wiring.spec.name, one.run.model_version), one.run.model_sha256)
    reads = [str(column["name"]) for column in model.contract]
    return _of_predictions(wiring, reads, prediction_columns(model.task, model.classes))


def performance(wiring: Wiring) -> dict[str, Any]:
    """Of the performance: every value is measured on predictions, against the label."""
    spec, label = wiring.spec, wiring.pipeline().builder.labels_lineage
    predicted = dg.TableColumnDep(wiring.key("predictions"), "prediction")
    outcome = label.of(spec.labels.column) if spec.labels else ColumnLineage("", (), known=True)
    deps = {"value": [predicted, *_deps(wiring, outcome.reads)], "rows_labelled": _deps(wiring, outcome.reads)}
    made = f"`{spec.labels.column}` by `labels.sql`, from {_names(outcome)}" if spec.labels else "no label"
    rows = [("value", f"`prediction` and the scores; {made}"), ("rows_labelled", made)]
    known = {} if spec.labels and not outcome.known else {LINEAGE: _lineage(deps)}
    return {**known, READABLE: dg.MetadataValue.md(_table("made from", rows)), **labelled(wiring)}


def _of_predictions(wiring: Wiring, reads: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    spec, source = wiring.spec, wiring.key("features")
    taken = [*spec.features.key, *([spec.features.time] if spec.features.time else []), *spec.predictions.keep]
    deps = {name: [dg.TableColumnDep(source, name)] for name in dict.fromkeys(taken)}
    deps |= {name: [dg.TableColumnDep(source, column) for column in reads] for name in scores}
    rows = [*((name, f"`{name}` of the features") for name in dict.fromkeys(taken))]
    every = f"all {len(reads)} columns that the model reads: {', '.join(map(_quoted, reads))}"
    rows += [*((name, every if name == scores[0] else f"as `{scores[0]}`") for name in scores)]
    rows += [*((name, "the run") for name in ADDED)]
    text = _table("comes from", rows)
    if spec.challengers:
        names = ", ".join(_quoted(one.name) for one in spec.challengers)
        text += f"\n\nThe challengers {names} read the same features; what they give goes to `{spec.name}.challenger_scores`."
    return {LINEAGE: _lineage(deps), READABLE: dg.MetadataValue.md(text)}


def _shown(wiring: Wiring, lineage: Lineage) -> dict[str, Any]:
    """What is known, for Dagster, and all of it to read; a column of which nothing is known has no place in Dagster's."""
    text = _table("made from", [(one.column, _names(one)) for one in lineage.columns]) if lineage.columns else ""
    if lineage.deciders:
        text += f"\n\nWhich rows there are, by filters, joins and groups, is decided by {_listed(lineage.deciders)}."
    if lineage.reason:
        text += f"\n\nWhich column comes from which is unknown: {lineage.reason}."
    elif not lineage.complete:
        text += "\n\nThe SQL alone does not tell more; a run asks the sources for their columns."
    deps = {one.column: _deps(wiring, one.reads) for one in lineage.columns if one.known}
    shown: dict[str, Any] = {READABLE: dg.MetadataValue.md(text.strip())}
    return {LINEAGE: _lineage(deps), **shown} if deps else shown


def _lineage(deps: Mapping[str, Sequence[dg.TableColumnDep]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(deps_by_column=deps)


def _deps(wiring: Wiring, reads: Iterable[SourceColumn]) -> list[dg.TableColumnDep]:
    return [dg.TableColumnDep(wiring.key(one.source), one.column) for one in reads if one.column != ROWS]


def _names(one: ColumnLineage) -> str:
    if not one.known:
        return _UNKNOWN
    copied = " unchanged" if one.copy_of else ""
    return f"{_listed(one.reads)}{copied}" if one.reads else "no source column"


def _listed(reads: Iterable[SourceColumn]) -> str:
    """Columns by source: `orders`: `id`, `amount`; `customers`: its rows."""
    by_source: dict[str, list[str]] = {}
    for one in reads:
        by_source.setdefault(one.source, []).append("its rows" if one.column == ROWS else _quoted(one.column))
    return "; ".join(f"`{source}`: {', '.join(names)}" for source, names in by_source.items())


def _quoted(name: str) -> str:
    fence = "``" if "`" in name else "`"
    return f"{fence}{name}{fence}"


def _table(header: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = (f"| {_quoted(_cell(name))} | {_cell(text)} |" for name, text in rows)
    return "\n".join([f"| column | {header} |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _code(files: Iterable[Path | tuple[Path, int]]) -> dict[str, Any]:
    """Links to source code; Dagster adds the one to the YAML."""
    found = [one if isinstance(one, tuple) else (one, 1) for one in files]
    references = [
        dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=path.name) for path, line in found
    ]
    return {CODE: dg.CodeReferencesMetadataValue(code_references=[*references])} if references else {}


def _function(dotted: str, key: str) -> list[tuple[Path, int]]:
    """Where a function is written; nowhere where Python cannot tell."""
    function = import_function(dotted, key)
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (OSError, TypeError):  # written in C, or made at run time
        return []
    return [(Path(file), line)] if file else []
