"""The paragraph that opens the report: what happened to the model, what broke and was repaired, and what is needed of the reader."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from batch_platform.declaration.errors import counted
from batch_platform.declaration.wording import number
from batch_platform.models.gate import BY_LESS
from batch_platform.reports.groups import STRUCTURE
from batch_platform.reports.wording import GUESSING, capital, dates, ends, figure, plain, when

if TYPE_CHECKING:
    from batch_platform.reports.figures import Figures, Headline

MOST_COLUMNS, MOST_COUNTS = 2, 2  # drifted columns and unusual counts of rows that the paragraph describes


def in_words(figures: "Figures") -> list[str]:
    """The sentences of the paragraph."""
    return [*_of_the_model(figures), *_of_decisions(figures), *_of_the_data(figures), *_of_the_reader(figures)]


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
        yield f"{period}, no prediction could be compared with observed values: no label is known yet."
    else:
        yield f"{period}, {_quality(figures.metric, headline)}."
        if headline.before is not None and figures.before is not None:
            before = figure(headline.before, headline.before_low, headline.before_high)
            verdict = f"Clearly {headline.verdict} than" if headline.verdict else "No clear change from"
            verdict = "It stands beside" if headline.lower_is_better is None else verdict
            yield f"{verdict} the {before} of {figures.before.in_words.partition(' ')[2]}."
    on = "in" if monthly else "on"
    if figures.no_better_than_guessing:
        yield f"{capital(on)} {dates(figures.no_better_than_guessing, monthly=monthly)} the model was no better than guessing."
    if others := [key for key in figures.missed if key not in figures.no_better_than_guessing]:
        yield f"It was worse than the declared limit, by more than chance, {on} {dates(others, monthly=monthly)}."


def _of_decisions(figures: "Figures") -> Iterator[str]:
    """The decisions on the rows of the newest partition, and the models that were approved although they were worse."""
    newest, monthly = figures.window.keys[-1], figures.window.monthly
    if figures.task == "binary" and (rows := sum(figures.decided.values())):
        at = figures.threshold and f" (threshold: a score of at least {number(figures.threshold, '.3g')})"
        positive = figures.decided.get("true", 0)
        yield f"Of the {rows:,} rows of {when(newest, monthly=monthly)}, {positive:,} were decided true{at or ''}."
    first = {service.version: service.first for service in figures.services}
    worse = {
        first[row["version"]]: row["reason"].partition(BY_LESS)[2].partition(";")[0]
        for row in figures.decisions.iter_rows(named=True)
        if row["action"] == "approved" and row["version"] in first and BY_LESS in row["reason"]
    }
    if worse:
        models, were, each = ("model", "was", "it") if len(worse) == 1 else ("models", "were", "each")
        yield (
            f"The {models} in use from {dates([*worse], monthly=monthly)} {were} approved although {each} was worse than the "
            f"one before, within the tolerance of {[*worse.values()][-1]}."
        )


def _quality(metric: str, headline: "Headline") -> str:
    value, between = figure(headline.value, headline.low, headline.high), ""
    if headline.low is not None:
        between = f", 95% interval {ends(headline.low, headline.high)}"
    if metric == "roc_auc":
        return (
            f"the scores put {headline.value:.0%} of all pairs of a positive and a negative row in the right order, where "
            f"guessing gets 50% (ROC AUC {value}{between})"
        )
    guessing = f"; guessing has {GUESSING[metric]:g}" if metric in GUESSING else ""
    return f"the {plain(metric)} was {value}{between}{guessing}"


def _of_the_data(figures: "Figures") -> Iterator[str]:
    drift, monthly = figures.drift, figures.window.monthly
    on = "in" if monthly else "on"
    for item in drift.worst[:MOST_COLUMNS] if drift else ():
        if len(item.alarms) == 1:
            text = f"{item.column} was unusual {on} {when(item.alarms[0], monthly=monthly)}"
        else:
            text = f"{item.column} was unusual in {len(item.alarms):,} partitions since {when(item.alarms[0], monthly=monthly)}"
        again = (
            f", and as usual again from {when(item.again, monthly=monthly)}"
            if item.again
            else ", the newest one included"
        )
        change = item.change.replace(f" {on} {item.partition_key}", "") if len(item.alarms) == 1 else item.change
        yield f"{text} ({change}){again}."
    if drift and drift.drifted > MOST_COLUMNS:
        yield f"{drift.drifted:,} columns drifted in all."
    for aspect in figures.unusual[:MOST_COUNTS]:
        yield f"{capital(aspect.text)}."
    if (more := len(figures.unusual) - MOST_COUNTS) > 0:
        yield f"{counted(more, 'more count')} of rows {'is' if more == 1 else 'are'} unusual."


def _of_the_reader(figures: "Figures") -> Iterator[str]:
    """The open issues and warnings of `status`; nothing if it was not asked."""
    if figures.status is None:
        return
    alarms = figures.status.health.alarms
    if not figures.issues and not alarms:
        yield "No action needed: everything that is due has been scored, nothing failed, and no check of the newest partition warns."
        return
    needed = [
        f"{issue.what} ({issue.where.partition(',')[0]}{' and others' if ',' in issue.where else ''})"
        for issue in figures.issues
    ]
    needed += [alarm.text.partition(": ")[0] for alarm in alarms]
    yield f"Action needed: {'; '.join(needed)}."
