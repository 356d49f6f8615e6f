"""The model card of a version: one page that says what it predicts, for whom, from what, how well, and who decided what about it.

The sections follow Mitchell and others, Model Cards for Model Reporting (FAT* 2019). A section that a version has nothing for is
left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl

from batch_platform.declaration.errors import DataError, counted, listed, number
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.bundle import Manifest
from batch_platform.models.judged import JudgedScores
from batch_platform.models.registry import Registry, Version
from batch_platform.monitoring.decisions import CELLS
from batch_platform.monitoring.measure import Markdown, markdown, table
from batch_platform.monitoring.metrics import default_metric, without_details
from batch_platform.monitoring.outcomes import CLASSIFICATION, UnitRule
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.monitoring.resampling import REASONS, Interval, NoInterval, intervals_or_reasons
from batch_platform.reports.wording import capital, figure, plain, words
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA

TEMPLATE = "card.html"
WEIGHTED = "Rows count by their declared weight."
MOST_SEGMENTS = 12  # segments of a column that are shown, those with most rows


@dataclass(frozen=True)
class Section:
    """A heading, what is said below it, and a table."""

    title: str
    sentences: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()

    @property
    def cells(self) -> list[list[str]]:
        """The rows of the table as texts; a value before the ends of its interval has the digits that these support."""
        at = self.columns.index("low") if "low" in self.columns else None
        return [[_cell(row, place, at) for place in range(len(row))] for row in self.rows]


def _cell(row: Sequence[Any], place: int, low: int | None) -> str:
    if low is not None and low - 1 <= place <= low + 1:
        return figure(row[place], row[low], row[low + 1])
    return number(row[place])


@dataclass(frozen=True)
class Card:
    """A model card."""

    title: str
    sections: Sequence[Section]

    def to_markdown(self) -> Markdown:
        """The card as Markdown."""
        lines = [f"# {markdown(self.title)}"]
        for section in self.sections:
            lines += [f"## {markdown(section.title)}", *map(markdown, section.sentences)]
            if section.rows:
                cells = ([markdown(cell) for cell in row] for row in section.cells)
                lines.append(table(section.columns, cells, section.columns[1:]))
        return Markdown("\n\n".join(lines) + "\n")

    def to_html(self) -> str:
        """The card as a page that needs no network, every value escaped."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string((files("batch_platform.reports") / TEMPLATE).read_text(encoding="utf-8"))
        return template.render(card=self)


def card_of(  # noqa: PLR0913 - a version, and what is known of it
    spec: PipelineSpec,
    registry: Registry,
    version: Version,
    manifest: Manifest,
    judged: JudgedScores | None,
    served: Section | None = None,
) -> Card:
    """The card of a version by what was recorded of it; `served` says how it did since, see `since_it_serves`."""
    zone = spec.partitions.calendar.zone
    sections = [
        _purpose(spec, manifest),
        _data(spec, manifest, zone),
        *_metrics(manifest, judged),
        *_calibration(judged),
        *_refinements(spec, manifest),
        *([served] if served else []),
        _features(manifest),
        _limits(spec, registry, version, manifest),
        _decisions(registry, version, zone),
    ]
    return Card(f"{spec.name}: model {version.version}", sections)


def since_it_serves(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, version: Version) -> Section | None:
    """The gate's metric of a version on the partitions that it scored, by segment too; None if none was measured yet.

    `con` is a connection to the published copy.
    """
    metric, by = spec.model.promote.metric or default_metric(version.task), spec.monitoring.segments
    query = f"""
        SELECT min(partition_key), max(partition_key) FROM {LEDGERS_SCHEMA}.partition_status
        WHERE pipeline = $pipeline AND model_version = $version
    """
    values = {"pipeline": spec.name, "version": version.version}
    ((first, last),) = con.execute(query, values).fetchall()
    if first is None:
        return None
    with one_thread():
        try:
            pooled = pooled_performance(
                con, spec.name, first, last, by=by, only=[metric], of_segments=[metric], unit=UnitRule.of(spec)
            )
        except DataError:
            return None
    served = pooled.filter(pl.col("challenger").is_null())
    own = served.filter(pl.col("model_version") == version.version)
    if own.height == 1 and own["rows"][0] == served.filter(pl.col("segment_column").is_null())["rows"].max():
        own = pl.concat([own, served.filter(pl.col("segment_column").is_not_null())])  # no other version scored there
    rows: list[tuple[object, ...]] = []
    for row in own.sort("segment_column", "rows", descending=[False, True]).iter_rows(named=True):
        column, shown = row["segment_column"], sum(row["segment_column"] == other[0] for other in rows)
        if column is None or shown < MOST_SEGMENTS:
            rows.append((column, row["segment"], row["value"], row["low"], row["high"], row["rows"]))
    if not rows:
        return None
    named = [("all rows" if column is None else f"{column}: {value}", *numbers) for column, value, *numbers in rows]
    return Section(
        "How it did since it serves",
        [
            f"{capital(plain(metric))}, on partitions that it scored and whose labels are known, with 95% intervals.",
            *([WEIGHTED] if spec.labels and spec.labels.weight else []),
        ],
        ("rows of", plain(metric), "low", "high", "rows"),
        named,
    )


def _purpose(spec: PipelineSpec, manifest: Manifest) -> Section:
    declared, labels = spec.model.card, spec.labels
    predicted = (
        f"It predicts {labels.column}, {_TASKS[manifest.task]}." if labels else f"It finds {_TASKS[manifest.task]}."
    )
    sentences = [spec.description, declared.intended_use if declared else "", predicted]
    if manifest.task == "binary":
        sentences.append(f"The score is the probability of {manifest.positive!r}.")
    if spec.owners:
        sentences.append(f"{listed(spec.owners)} {'own' if len(spec.owners) > 1 else 'owns'} it.")
    return Section("Purpose", [redact(sentence) for sentence in sentences if sentence])


def _data(spec: PipelineSpec, manifest: Manifest, zone: ZoneInfo) -> Section:
    window, evaluation, sampled = manifest.training, manifest.evaluation, manifest.sampled
    start, end = (_local(text, zone) for text in (window.start, window.end))
    if manifest.imported_from:
        learned = f"It was made elsewhere and imported from {manifest.imported_from}."
    else:
        learned = f"It learned from {counted(window.rows, 'row')} of {counted(window.partitions, 'partition')}, from {start} until {end}."
    sentences = [learned, f"Estimator: {manifest.estimator or 'imported'}, with {_settings(manifest.params)}."]
    if sampled is not None:
        how = (
            "each class with its share"
            if sampled.stratified
            else "by class, and corrected for it"
            if manifest.task in CLASSIFICATION
            else "at random"
        )
        sentences.append(f"They are a sample of {counted(sampled.rows_before, 'row')}, {how}.")
    if window.rows_rejected:
        sentences.append(f"{counted(window.rows_rejected, 'row')} could not be learned from.")
    if evaluation.rows:
        judged = f"It was judged on {counted(evaluation.rows, 'row')}"
        place = "" if spec.partitions.snapshot else f", until {_local(evaluation.end, zone)}"
        if manifest.judged_fit is None:
            sentences.append(f"{judged} that the fit had not seen{place}.")
        else:
            learned = counted(manifest.judged_fit.training.rows, "other row")
            sentences.append(
                f"{judged}{place}, as a fit that had learned from {learned}. The fit that serves learned from all of them."
            )
    return Section("Data", sentences)


def _settings(params: dict[str, object]) -> str:
    return listed(f"{name} = {value}" for name, value in sorted(params.items())) if params else "default parameters"


def _local(text: str, zone: ZoneInfo) -> str:
    return f"{datetime.fromisoformat(text).astimezone(zone):%Y-%m-%d %H:%M} {zone.key}"


def _metrics(manifest: Manifest, judged: JudgedScores | None) -> Iterator[Section]:
    """The metrics on the evaluation rows, with their intervals, beside those of guessing."""
    metrics, baseline = without_details(manifest.evaluation.metrics), manifest.evaluation.baseline
    if not metrics:
        return
    ends, weighted = dict[str, Interval | NoInterval](), judged is not None and judged.outcomes.weights is not None
    if judged is not None:
        with one_thread():
            ends = intervals_or_reasons(judged.outcomes, metrics)
    guessing = {} if baseline is None else baseline.metrics
    rows = [
        (
            capital(plain(name)),
            value,
            *((end.low, end.high) if isinstance(end := ends.get(name), Interval) else (None, None)),
            guessing.get(name),
        )
        for name, value in sorted(metrics.items())
    ]
    sentences = [f"On the {counted(manifest.evaluation.rows, 'evaluation row')}, with 95% intervals."]
    sentences += [
        f"{capital(plain(name))} has no interval: {REASONS[end]}."
        for name, end in sorted(ends.items())
        if not isinstance(end, Interval)
    ]
    sentences += [WEIGHTED] if weighted else []
    if baseline is not None:
        sentences.append(f"Guessing is a trivial model: {baseline.name}.")
    yield Section("How good it is", sentences, ("metric", "value", "low", "high", "guessing"), rows)


def _calibration(judged: JudgedScores | None) -> Iterator[Section]:
    """The mean probability beside the share of positives, in cells of equal width."""
    if judged is None or judged.outcomes.task != "binary":
        return
    (positive, score), weights = judged.outcomes.positive_and_score, judged.outcomes.row_weights
    cells = np.clip((score * CELLS).astype(np.int64), 0, CELLS - 1)
    rows = [
        (
            f"{at / CELLS:.0%} to {(at + 1) / CELLS:.0%}",
            float(np.average(score[here], weights=weights[here])),
            float(np.average(positive[here], weights=weights[here])),
            int(here.sum()),
        )
        for at in range(CELLS)
        if weights[here := cells == at].any()
    ]
    sentence = "A well calibrated score of 30% comes true in 30% of the rows."
    yield Section("Calibration", [sentence], ("score", "mean score", "observed", "rows"), rows)


def _refinements(spec: PipelineSpec, manifest: Manifest) -> Iterator[Section]:
    """The facts that were recorded of refinements, and the rule by which rows are decided now."""
    rows = [
        (f"{name}: {words(fact)}", str(value) if isinstance(value, bool) else value)
        for name, facts in manifest.refinements.items()
        for fact, value in facts.items()
        if not isinstance(value, Mapping)
    ]
    rule = spec.predictions.decide
    sentences = [f"{str(rule)[:1].upper()}{str(rule)[1:]}."] if rule else []
    if rows or sentences:
        yield Section("From score to decision", sentences, ("refinement", "value"), rows)


def _features(manifest: Manifest) -> Section:
    """The columns that the model takes; those that move its raw score most come first, if that was measured."""
    moved: dict[str, float] = manifest.refinements.get("reasons", {}).get("importance", {})
    columns = sorted(manifest.contract, key=lambda column: -moved.get(column["name"], 0.0))
    rows = [
        (
            column["name"],
            column["type"],
            "yes" if column["nullable"] else "no",
            _values(column),
            moved.get(column["name"]),
        )
        for column in columns
    ]
    titles = ("feature", "type", "may be missing", "values in training", "moves the raw score by, on average")
    return (
        Section("Features", (), titles, rows)
        if moved
        else Section("Features", (), titles[:4], [row[:4] for row in rows])
    )


def _values(column: dict[str, object]) -> str:
    categories, low, high = column["categories"], column["lowest"], column["highest"]
    if isinstance(categories, Sequence) and categories:
        return counted(len(categories), "category")
    return "" if low is None else f"{number(low)} to {number(high)}"


def _limits(spec: PipelineSpec, registry: Registry, version: Version, manifest: Manifest) -> Section:
    """The declared limits, and what training found that a reader should know."""
    declared = spec.model.card
    suspected = (
        f"A leak is suspected{' and was allowed' if leak.allowed else ''}: {leak}."
        for leak in registry.suspected_leaks(version.version)
    )
    guesses = registry.not_better_than_guessing(version.version)
    sentences = [
        declared.limits if declared else "",
        *(f"{remark[:1].upper()}{remark[1:]}." for remark in manifest.remarks),
        *suspected,
        f"It was {guesses}." if guesses else "",
        "It knows what was known before the end of its data. If the world or the data change, its metrics no longer hold: see the drift and performance of each partition.",
    ]
    return Section("Limits", [redact(sentence) for sentence in sentences if sentence])


def _decisions(registry: Registry, version: Version, zone: ZoneInfo) -> Section:
    """The decisions on the version, and the partitions that it serves."""
    rows = [
        (f"{event.decided_at.astimezone(zone):%Y-%m-%d %H:%M}", event.action, event.actor, event.reason)
        for event in registry.promotions
        if event.version == version.version
    ]
    stretches = (stretch for stretch in registry.timeline.stretches if stretch.version.version == version.version)
    serves = [
        f"It serves from {stretch.begin.astimezone(zone):%Y-%m-%d %H:%M} "
        f"{f'until {stretch.end.astimezone(zone):%Y-%m-%d %H:%M}' if stretch.end else 'on'}."
        for stretch in stretches
    ]
    return Section("Decisions", serves or ["It serves no partition."], ("when", "decision", "by", "reason"), rows)


_TASKS = {
    "binary": "one of two classes",
    "multiclass": "one of several classes",
    "regression": "a number",
    "clustering": "groups of rows that resemble each other",
    "outliers": "rows that do not resemble the others",
}
