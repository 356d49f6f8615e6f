"""The report as one HTML file that needs neither network nor JavaScript: the numbers of the published copy as text, tables and charts.

The paragraph that opens it says what happened to the model, what broke and was repaired, and what is needed of the reader.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batch_platform.declaration.errors import BatchPlatformError, number
from batch_platform.declaration.operating import ReportEvery
from batch_platform.declaration.redaction import redact
from batch_platform.pipeline.status import status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.reports import wording
from batch_platform.reports.figures import Figures, read_figures
from batch_platform.reports.performance import LEAST_POSITIVES, RATES, comparable, ordered
from batch_platform.warehouse.published import open_published

if TYPE_CHECKING:
    from batch_platform.pipeline.pipeline import Pipeline
    from batch_platform.reports.charts import Chart

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl

from batch_platform.declaration.errors import counted
from batch_platform.models.gate import BY_LESS
from batch_platform.monitoring.catalogue import FailedCheck, grouped, texts_in_short
from batch_platform.monitoring.measures.drift import DRIFT
from batch_platform.monitoring.measures.evaluated import INTERVAL_COVERAGE
from batch_platform.monitoring.measures.health import REJECTED_SHARE, VOLUME
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.reports.measures import STRUCTURE
from batch_platform.reports.wording import (
    GUESSING,
    alike,
    capital,
    dates,
    ends,
    figure,
    of_length,
    percent,
    plain,
    term,
    when,
    words,
)

if TYPE_CHECKING:
    from batch_platform.reports.figures import Figures

TEMPLATE = "report.html"


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written, and its numbers."""

    file: Path
    figures: Figures


def write_report(  # noqa: PLR0913 - of which pipeline and window, how it is summed up, and where it is written
    pipeline: "Pipeline",
    now: datetime,
    first: str | None = None,
    last: str | None = None,
    *,
    every: ReportEvery = "month",
    file: Path | None = None,
) -> WrittenReport:
    """Write the report on the scored partitions from `first` to `last`, by default the newest, at most a year of days.

    A long window is summed up by its newest week or month, as `every` says; what is open is what `status` says `now`. Waits for
    no writer, and leaves the file complete or as it was.

    Raises:
        DataError: No partition of the window is scored.
        NothingPublishedError: Nothing is published yet.
    """
    from batch_platform.reports.charts import charts_of

    spec, home = pipeline.spec, pipeline.home
    with open_published(home) as con:
        status = status_at(pipeline, PlanRequest(now))
        figures = read_figures(con, spec, first, last, every=every, status=status)
    zone = spec.partitions.calendar.zone
    target = (file or home.reports(spec.name) / f"{figures.window.all_keys[-1]}.html").expanduser().absolute()
    page = html(figures, charts_of(figures, zone), zone)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # may be a link
        unfinished.write_text(page, encoding="utf-8")
        return WrittenReport(unfinished.replace(target), figures)
    except OSError as error:
        msg = f"The report {target} cannot be written ({error.strerror})."
        raise BatchPlatformError(msg, hint="name a file elsewhere with --out, or make room on the disk.") from error


def html(figures: Figures, charts: "Mapping[str, Chart]", zone: ZoneInfo) -> str:
    """Return the page, every value escaped; times are shown on the clocks of `zone`."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters = {"number": number, "redacted": redact, "ordered": ordered, "local": partial(_local, zone=zone)}
    worded = {name: value for name, value in vars(wording).items() if not name.startswith("_")}
    environment.filters.update(worded, **filters)
    environment.globals.update(worded)
    template = environment.from_string((files("batch_platform.reports") / TEMPLATE).read_text(encoding="utf-8"))
    segments = comparable(figures.segments)
    return template.render(
        of=figures,
        every=figures.unit,
        summary=in_words(figures),
        on_average=on_average(figures),
        charts=charts,
        rates=RATES,
        compared={*segments.select("segment_column", "segment").iter_rows()} if segments.height else (),
        least_positives=LEAST_POSITIVES,
    )


def _local(instant: datetime, zone: ZoneInfo) -> str:
    """Format a time on the clocks of a zone, to the minute, with the zone's name."""
    return f"{instant.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}"


MOST_COLUMNS, MOST_COUNTS = 2, 2  # drifted columns and unusual counts of rows that the paragraph describes


def in_words(figures: "Figures") -> dict[str, list[str]]:
    """The sentences of the paragraph, by what they are about: the system may run well and the results be poor, or the other way round."""
    results = [*_of_doubtful(figures), *_of_decisions(figures), *_of_the_model(figures), *_of_doubts(figures)]
    card = figures.spec.model.card
    limits = [text for text in (card.intended_use, card.limits) if text] if card else []
    parts = {"Results": results, "Use and limits": limits}
    parts |= {"Data": [*_of_the_data(figures)], "System": [*_of_the_system(figures)]}
    return {about: sentences for about, sentences in parts.items() if sentences}


def _of_doubtful(figures: "Figures") -> Iterator[str]:
    """The partitions whose rows or labels are in doubt, why, and their own figures."""
    doubtful = figures.doubtful
    if doubtful is None:
        return
    for checks in grouped(doubtful.checks):
        yield f"{capital(_at(figures, checks))}: {texts_in_short(checks)}."
    count, together = len(doubtful.partitions), doubtful.together
    these, alone = (
        (f"This {figures.unit} is", "on it") if count == 1 else (f"These {count:,} {figures.unit}s are", "on them")
    )
    if not doubtful.left_out:
        yield f"All figures are of {these.removesuffix(' is').removesuffix(' are').lower()}, since the report holds no other."
    elif together is None:
        yield f"{these} left out of all other figures."
    else:
        quality = _quality(figures, together["metric"], together["value"], together["low"], together["high"])
        yield f"{these} left out of all other figures; {alone} alone, {quality}."


def _at(figures: "Figures", checks: Sequence[FailedCheck]) -> str:
    """The partitions that failed checks, such as "on 14 to 16 April 2013"."""
    return figures.window.at(figures.window.in_a_row({check.partition_key for check in checks}))


def _of_the_model(figures: "Figures") -> Iterator[str]:
    headline = next((item for item in figures.headlines if item.label == figures.metric), None)
    period, monthly = capital(figures.summed_up.in_words), figures.window.monthly
    if figures.groups is not None:
        newest = when(figures.groups.newest, monthly=monthly)
        yield figures.groups.in_words(newest, outliers=figures.task == "outliers")
        if figures.metric == "silhouette":
            apart = figures.performance["value"][-1]
            how = next((how for how, above in STRUCTURE.items() if apart > above), "hardly")
            yield f"The groups are {how} separated (silhouette {apart:.2f})."
    if figures.metric is None or headline is None:
        if figures.groups is not None:
            return
        yield f"{period}, no prediction could be compared with observed values: no label is known yet that the model has not learned from."
    else:
        yield f"{period}, {_quality(figures, figures.metric, headline.value, headline.low, headline.high)}."
        if headline.before is not None and figures.before is not None:
            before = figure(headline.before, headline.before_low, headline.before_high)
            verdict = f"Clearly {headline.verdict} than" if headline.verdict else "No clear change from"
            verdict = "It stands beside" if headline.lower_is_better is None else verdict
            yield f"{verdict} the {before} of {figures.before.dates}."


def _of_decisions(figures: "Figures") -> Iterator[str]:
    """The rows that were chosen, how many of them rightly, how many were missed, and what the decisions cost; of several classes, how many were right."""
    if figures.task == "multiclass" and figures.confusion.height:
        rows, decided, came_true = (pl.col(name) for name in ("rows", "decided", "came_true"))
        known, right = figures.confusion.select(rows.sum(), right=rows.filter(decided == came_true).sum()).row(0)
        most = figures.confusion.group_by("came_true").agg(rows.sum()).sort("rows", "came_true").row(-1)
        yield (
            f"For {percent(right / known)} of the {known:,} rows whose outcome is known, the decided class came true; always "
            f"deciding the most frequent ({most[0]}) would be right for {percent(most[1] / known)}."
        )
    if figures.task != "binary":
        return
    if rows := sum(figures.decided.values()):
        acted = f"{figures.decided.get('true', 0):,} of {rows:,} rows"
        yield f"{capital(figures.summed_up.in_words)}, {acted} were chosen (rule: {of_length(figures.rule, figures.unit)})."
    known, overall = Counter[tuple[bool, bool]](), figures.overall
    for decided, came_true, count in figures.confusion.iter_rows():
        known[decided == figures.positive, came_true == figures.positive] += count
    chosen, real = known[True, True] + known[True, False], known[True, True] + known[False, True]
    if known and figures.spec.predictions.decide is None:
        of_known = f"{chosen:,} of the {known.total():,} rows whose outcome is known"
        yield f"No rule of decision is declared; {of_length(figures.rule, figures.unit)} would choose {of_known}."
    if chosen and real:
        right, recall = overall["precision"], overall["recall"]
        is_so = _is_positive(figures)
        when_chosen = "" if rows and figures.summed_up == figures.window else f" {figures.window.in_words}"
        yield (
            f"Of the {chosen:,} chosen{when_chosen} whose outcome is known, {percent(right['value'])} were right "
            f"({is_so}{_interval(right['low'], right['high'], percent)}), against {percent(real / known.total())} of all rows."
        )
        yield f"Of the {real:,} rows where {is_so}, {percent(recall['value'])} were chosen and {known[False, True]:,} were missed."
    if "decision_cost" in overall:
        cost = overall["decision_cost"]
        cheapest = min(("always", "never"), key=lambda name: overall[f"decision_cost_{name}"]["value"])
        other = number(overall[f"decision_cost_{cheapest}"]["value"], ".2g")
        spent = f"{figure(cost['value'], cost['low'], cost['high'])} a row{_interval(cost['low'], cost['high'])}"
        yield f"The decisions cost {spent}; the cheaper of always and never acting ({cheapest}) would have cost {other}."


def _of_doubts(figures: "Figures") -> Iterator[str]:
    """Findings on the results that stand, however well the system runs."""
    at, monthly = figures.window.at, figures.window.monthly
    if figures.no_better_than_guessing:
        yield f"{capital(at(figures.no_better_than_guessing))} the model ranked no better than chance."
    if others := [key for key in figures.missed if key not in figures.no_better_than_guessing]:
        yield f"It was worse than the declared limit, by more than chance, {at(others)}."
    if figures.guesses:
        simple = ", ".join(dict.fromkeys(figures.guesses.values()))
        verdict = f"not clearly better, when approved, than a simple guess ({simple})"
        yield f"{_models([*figures.guesses], monthly=monthly)} {verdict}."
    first = {service.version: service.first for service in figures.services}
    worse = {
        first[row["version"]]: row["reason"].partition(BY_LESS)[2].partition(";")[0]
        for row in figures.decisions.iter_rows(named=True)
        if row["action"] == "approved" and row["version"] in first and BY_LESS in row["reason"]
    }
    if worse:
        verdict = f"approved although worse than the one before, within the tolerance of {[*worse.values()][-1]}"
        yield f"{_models([*worse], monthly=monthly)} {verdict}."
    if _leaning(figures):
        yield on_average(figures)
    yield from (measure.finding for measure in figures.measures if measure.finding)


def _models(keys: Sequence[str], *, monthly: bool) -> str:
    """The models that came into use with some partitions, as the beginning of a sentence."""
    models, were = ("model", "was") if len(keys) == 1 else ("models", "were")
    return f"The {models} that served from {dates(keys, monthly=monthly)} {were}"


def _is_positive(figures: "Figures") -> str:
    return f"{figures.spec.labels and figures.spec.labels.column} is {figures.positive}"


def _quality(figures: "Figures", metric: str, share: float, low: float | None, high: float | None) -> str:
    value, between = figure(share, low, high), _interval(low, high)
    if metric == "roc_auc":
        return (
            f"of one row where {_is_positive(figures)} and one where it is not, picked at random, the first had the higher score in "
            f"{share:.0%} of cases (chance alone: 50%; ROC AUC {value}{between})"
        )
    if metric == "mae":
        return f"predictions were {value} off on average ({term(metric)}{between})"
    if metric == "rmse":
        return f"the typical error was {value}, large ones counting more ({term(metric)}{between})"
    chance = f"; chance alone: {GUESSING[metric]:g}" if metric in GUESSING else ""
    return f"the {plain(metric)} was {value}{between}{chance}"


def _interval(low: float | None, high: float | None, form: Callable[[float], str] | None = None) -> str:
    """An interval as the end of a clause; empty without one."""
    if low is None or high is None:
        return ""
    return f", 95% interval {f'{form(low)} to {form(high)}' if form else ends(low, high)}"


def _leaning(figures: "Figures") -> str:
    """The direction in which predictions are off on average; empty where chance explains it, or nobody knows."""
    bias = figures.overall.get("bias")
    if not bias or bias["low"] is None or bias["low"] <= 0 <= bias["high"]:
        return ""
    return "too high" if bias["low"] > 0 else "too low"


def on_average(figures: "Figures") -> str:
    """Say if predictions are too high or too low, on average over all rows whose outcome is known; empty without any."""
    if not figures.calibration.height:
        return ""
    means = figures.calibration.select(pl.col("mean_score", "outcome").dot("weight") / pl.sum("weight")).row(0)
    form = percent if figures.task == "binary" else partial(number, form=alike(means))
    verdict = _leaning(figures) or "neither clearly too high nor too low"
    return f"On average, {figures.score}s were {verdict}: {form(means[0])} was predicted, {form(means[1])} came true."


def _of_the_data(figures: "Figures") -> Iterator[str]:
    drift, at, monthly = figures.drift, figures.window.at, figures.window.monthly
    for item in drift.worst[:MOST_COLUMNS] if drift else ():
        text = f"{item.column} was unusual {at(item.alarms)} ({item.change})"
        if len(item.alarms) > 1:
            first = when(item.alarms[0], monthly=monthly)
            text = f"{item.column} was unusual in {len(item.alarms):,} {figures.unit}s since {first} ({at([item.partition_key])}, {item.change})"
        again = f"as usual again from {when(item.again, monthly=monthly)}" if item.again else "the newest one included"
        yield f"{text}, {'and ' if item.again else ''}{again}."
    if drift and drift.drifted > MOST_COLUMNS:
        yield f"{drift.drifted:,} columns drifted in all."
    for check in figures.unusual[:MOST_COUNTS]:
        yield f"{capital(check.text)}."
    if (more := len(figures.unusual) - MOST_COUNTS) > 0:
        yield f"{counted(more, 'more count')} of rows {'is' if more == 1 else 'are'} unusual."
    for checks in grouped([check for check in figures.failed_checks if not _is_described(figures, check)]):
        yield f"The check {words(checks[0].check)} gave a warning {_at(figures, checks)}: {texts_in_short(checks)}."


def _is_described(figures: "Figures", check: FailedCheck) -> bool:
    """Return whether other sentences of the paragraph describe a failed check."""
    if check.doubtful or check.check in (VOLUME.name, REJECTED_SHARE.name):
        return True
    if check.partition_key not in figures.window.keys:
        return False
    if check.check == DRIFT.name:
        return figures.drift is not None and any(check.partition_key in item.alarms for item in figures.drift.worst)
    return check.check in (PERFORMANCE.name, INTERVAL_COVERAGE.name)


def _of_the_system(figures: "Figures") -> Iterator[str]:
    """The issues of `status`; nothing if it was not asked."""
    if figures.status is None:
        return
    if figures.issues:
        needed = "; ".join(f"{issue.what} ({issue.where})" if issue.where else issue.what for issue in figures.issues)
        yield f"Action needed: {needed}."
        if any(partition.condition in ("missing", "stale") for partition in figures.status.partitions):
            yield f"Whoever runs the system catches up with: batch-platform run {figures.spec.name}."
    else:
        checks = f"no check of the newest {figures.unit} warns"
        yield f"Everything ran: all that is due has been scored, nothing failed, and {checks}."
