"""The charts of the report, drawn by Altair as pictures that need no JavaScript: one for wide windows and one for narrow ones.

Importing this module takes a second, so only a report that is drawn does. Colours are those of Okabe and Ito, which people with
any kind of colour vision can tell apart, and no chart says anything by colour alone. The page's style swaps them where it is dark.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import altair as alt
import polars as pl
import vl_convert

from batch_platform.declaration.errors import number
from batch_platform.reports.drift import NOTICEABLE, Drifted
from batch_platform.reports.figures import Figures
from batch_platform.reports.performance import LEAST_OF_A_CLASS
from batch_platform.reports.wording import MOST_NAMED, capital, dates, plain, term, words

GROUPS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#6B6B6B")
BLUE, ORANGE, GREY, DARK = "#0072B2", "#D55E00", "#6B6B6B", "#08306B"
PALE, FAINT = "#f7f7f7", "#e4e4e4"
_DAY, _WEEK = timedelta(hours=20), timedelta(days=6)  # the shortest day has 23 hours
STRONG = 0.25  # index from which a drift is strong by common rule
ROW_HEIGHT = 18  # pixels, in the heat map
TOLD = "told:N"
LEAST = 3  # fewer partitions make no line
FEW = 31  # so few partitions have a dot each on a line
MANY = 92  # more partitions have small dots
INSIDE, OUTSIDE = "within the interval", "outside of it"
WIDE, NARROW, HEIGHT = 680, 270, 220  # pixels of a picture without its axis
_IDENTIFIER = re.compile(r'( id="|url\(#)((?:gradient_|clip)\d+)')
_MARK = re.compile(r'(<path )aria-label="([^"]*)"( role="graphics-symbol" [^>]*)/>')
LEAST_TICKS = 10  # so few days have a label each
_LABEL = "[utcFormat(datum.value, '{0}'), utcFormat(datum.value, '%Y')]"  # the year stands below
_NEEDLESS = re.compile(r' (role|aria-[a-z]+|pointer-events)="[^"]*"| (stroke-width|opacity)="1"')
_PLACE = re.compile(r' (?:d|transform|x2|y2)="[^"]*"')  # coordinates of a mark
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")


@dataclass(frozen=True)
class Chart:
    """A chart with its title and the sentence that says what it shows."""

    name: str  # its element in the page is called chart-NAME
    title: str
    text: str
    extremes: str  # its first, last, lowest and highest value in words; empty where it has no course
    wide: str  # SVG
    narrow: str


def charts_of(figures: Figures, zone: ZoneInfo) -> dict[str, Chart]:
    """Draw the charts that the figures have numbers for, by name; partitions stand where they start on the clocks of `zone`.

    A chart over time needs three partitions.
    """
    starts = [f"{run.partition_start.astimezone(zone):%Y-%m-%dT%H:%M:%S}Z" for run in figures.window.runs]
    times = pl.DataFrame({"partition_key": figures.window.keys, "start": starts})
    over_time = (_volume, _scores, _performance, _estimates) if times.height >= LEAST else ()
    drawn = [*(draw(figures, times) for draw in over_time), _calibration(figures), _drift(figures)]
    worst = figures.drift.worst if figures.drift else ()
    drawn += [_before_and_after(figures, f"column-{at}", item) for at, item in enumerate(worst)]
    return {chart.name: chart for chart in drawn if chart is not None}


def _volume(figures: Figures, times: pl.DataFrame) -> Chart | None:
    if figures.even:
        return None
    kinds = ("scored", "rejected") if figures.window.total("rows_rejected") else ("scored",)
    counts = [
        {"partition_key": run.partition_key, "rows": rows, "kind": kind}
        for run in figures.window.runs
        for kind, rows in zip(kinds, (run.rows_scored, run.rows_rejected), strict=False)
    ]
    colours = alt.Scale(domain=list(kinds), range=[BLUE, ORANGE])
    legend = alt.Legend(orient="top", title=None) if len(kinds) > 1 else None
    bars = alt.Chart().mark_bar(binSpacing=0)
    bars = bars.encode(
        x=_time(figures),
        y=alt.Y("rows:Q"),
        color=alt.Color("kind:N", scale=colours, legend=legend),
        description=TOLD,
    )
    text = "Scored and rejected rows" if len(kinds) > 1 else "Scored rows"
    rows = pl.DataFrame(counts).join(times, on="partition_key")
    text, course = f"{text} of each {figures.unit}.", "" if kinds[1:] else "rows"
    return _chart("volume", "Rows over time", text, rows, bars, course=course)


def _scores(figures: Figures, times: pl.DataFrame) -> Chart | None:
    ranged = [
        {"partition_key": key, **scores.numbers}
        for key, scores in sorted(figures.distributions.items())
        if "mean" in scores.numbers
    ]
    if not ranged:
        return _classes(figures, times)
    score, rows = figures.score, pl.DataFrame(ranged).select("partition_key", "mean", "p10", "p90")
    rows = rows.join(times, on="partition_key")
    course = _course(figures, alt.Y("mean:Q", title=score), "p10", "p90")
    text = f"The mean {score} of each {figures.unit} (line), and the middle 80% of its {score}s (band)."
    return _chart("scores", f"{score.capitalize()}s over time", text, rows, course, course="mean")


def _classes(figures: Figures, times: pl.DataFrame) -> Chart | None:
    counts = [
        {"partition_key": key, "class": label, "rows": rows}
        for key, scores in sorted(figures.distributions.items())
        for label, rows in scores.bars
    ]
    if not counts:
        return None
    share = alt.Y("rows:Q", title="share of rows", axis=alt.Axis(format="%")).stack("normalize")
    bars = alt.Chart().mark_bar(stroke="#ffffff", strokeWidth=0.7)
    kind = "group" if figures.task == "clustering" else "predicted class"
    legend = alt.Legend(orient="top", title=kind)
    colours = alt.Color("class:N", scale=alt.Scale(range=list(GROUPS)), legend=legend)
    bars = bars.encode(x=_time(figures), y=share, color=colours, description=TOLD)
    rows = pl.DataFrame(counts).join(times, on="partition_key")
    title = "Groups over time" if figures.task == "clustering" else "Predicted classes over time"
    return _chart("scores", title, f"The share of each {kind}.", rows, bars)


def _performance(figures: Figures, times: pl.DataFrame) -> Chart | None:
    if figures.metric is None or figures.performance.height < LEAST:
        return None
    rows = figures.performance.join(times, on="partition_key")
    course = _course(figures, _metric("value", term(figures.metric)), "low", "high")
    text = f"{capital(plain(figures.metric))}, of each {figures.unit} (line)"
    text += " with its 95% interval (band). With few rows the band is wider." if rows["low"].count() else "."
    text += _thin(figures)
    rows = rows.select("keys", "value", "low", "high", "start")
    return _chart("performance", "Performance over time", text, rows, course, course="value")


def _estimates(figures: Figures, times: pl.DataFrame) -> Chart | None:
    if figures.estimates is None or len(drawn := figures.estimates.drawn) < LEAST:
        return None
    metric, lies = plain(figures.estimates.metric), {True: INSIDE, False: OUTSIDE, None: None}
    rows = pl.DataFrame(
        [vars(row) | {"observed": row.realised, "lies": lies[row.within]} for row in drawn],
        schema_overrides={"observed": pl.Float64, "lies": pl.String},
    ).select("partition_key", "estimate", "low", "high", "observed", "lies")
    time, axis = _time(figures), term(figures.estimates.metric)
    line = alt.Chart().mark_line(color=DARK, strokeDash=[6, 4], strokeWidth=1.5)
    text = f"Estimated {metric} of each {figures.unit} (dashed line) with its 95% interval (grey)."
    layers = [_band(figures, "low", "high", GREY), line.encode(x=time, y=_metric("estimate", axis))]
    if rows["observed"].count():
        shapes = alt.Scale(domain=[INSIDE, OUTSIDE], range=["circle", "cross"])
        legend = alt.Legend(orient="top", title="observed", titleLimit=300, columns=1)
        dots = alt.Chart().mark_point(filled=True, size=25 if rows.height > MANY else 45, opacity=1, color=BLUE)
        dots = dots.transform_filter("isValid(datum.observed)")
        shape = alt.Shape("lies:N", scale=shapes, legend=legend)
        layers.append(dots.encode(x=time, y=_metric("observed", axis), shape=shape, description=TOLD))
        text += " A dot is the observed value, a cross one outside of the interval."
    if len(drawn) < len(figures.estimates.partitions):
        text += f"{_thin(figures)} Here they stand with their mean, so a dot may differ from the chart above."
    rows = rows.join(times, on="partition_key")
    together = {keys[len(keys) // 2]: f"{keys[0]} to {keys[-1]}" for keys in figures.estimates.measured if keys[1:]}
    rows = rows.with_columns(pl.col("partition_key").replace(together))
    return _chart("estimates", "Estimated performance over time", text, rows, alt.layer(*layers), course="estimate")


def _thin(figures: Figures) -> str:
    """Say which neighbouring partitions count as one, and why; empty if none do."""
    if not (together := [key for key in figures.performance["keys"] if " to " in key]):
        return ""
    few = f"fewer than {LEAST_OF_A_CLASS} rows{' of a class' if figures.task == 'binary' else ''}"
    named = f": {dates(together, monthly=figures.window.monthly)}" if len(together) <= MOST_NAMED else ""
    return f" Neighbouring {figures.unit}s with {few} are measured together{named}."


def _calibration(figures: Figures) -> Chart | None:
    rows = figures.calibration
    if not rows.height:
        return None
    scale = alt.Scale(zero=False)
    x = alt.X("mean_prediction:Q", title="mean prediction", scale=scale, axis=alt.Axis(tickCount=8))
    y = alt.Y("observed:Q", title="mean observed", scale=scale)
    values = [*rows["mean_score"].to_list(), *rows["outcome"].to_list()]
    corners = [{"mean_prediction": end, "observed": end} for end in (min(values), max(values))]
    diagonal = alt.Chart(alt.InlineData(values=corners)).mark_line(strokeDash=[4, 4], color=GREY).encode(x=x, y=y)
    dots = alt.Chart().mark_point(filled=True, color=BLUE, opacity=1)
    dots = dots.encode(x=x, y=y, size=alt.Size("rows:Q", legend=None), description=TOLD)
    text = "Each point stands for rows with similar predictions. On the dashed line, predictions were right on average."
    rows = rows.select(pl.col("mean_score").alias("mean_prediction"), pl.col("outcome").alias("observed"), "rows")
    return _chart("calibration", "Predicted and true", text, rows, alt.layer(diagonal, dots))


def _drift(figures: Figures) -> Chart | None:
    drift = figures.drift
    if drift is None or not drift.moved or drift.cells["period"].n_unique() <= 1 or (figures.thin and drift.judged):
        return None
    rows = drift.cells.filter(pl.col("column").is_in(drift.moved))
    rows = rows.with_columns(
        period=pl.col("period").replace({key: figures.window.named(key) for key in rows["period"]})
    )
    x = alt.X("period:O", title=None, sort=None, axis=alt.Axis(labelAngle=-40, labelOverlap=True))
    y = alt.Y("column:N", title=None, sort=drift.moved, axis=alt.Axis(labelLimit=110))
    shades = alt.Scale(range=[PALE, DARK], domain=[0, STRONG], clamp=True)
    legend = alt.Legend(orient="top", title=f"distance (index), strong from {STRONG:g}", titleLimit=300)
    cells = alt.Chart().mark_rect(stroke=FAINT, strokeWidth=0.5)
    cells = cells.encode(x=x, y=y, color=alt.Color("index:Q", scale=shades, legend=legend), description=TOLD)
    alarms = alt.Chart().transform_filter("datum.alarms > 0")
    alarms = alarms.mark_point(shape="cross", filled=True, size=45, color=ORANGE, stroke="white", strokeWidth=0.5)
    alarms = alarms.encode(x=x, y=y, description=TOLD)
    text = f"How far each column is from the training data, in each {drift.every}."
    text += " A cross marks an alarm." if drift.drifted else ""
    if len(drift.moved) < drift.columns:
        text += f" Shown are the {len(drift.moved)} of {drift.columns} columns that were far ({NOTICEABLE:g} or more)."
    return _chart("drift", "Drift", text, rows, alt.layer(cells, alarms), ROW_HEIGHT * len(drift.moved))


def _before_and_after(figures: Figures, name: str, item: Drifted) -> Chart | None:
    """Draw the shares of the values of a column in its worst partition over those of partitions without an alarm."""
    if not item.shares:
        return None
    rows = pl.DataFrame(item.shares, schema=["values", "usual", "then"], orient="row")
    x = alt.X("values:O", title=None, sort=None, axis=alt.Axis(labelAngle=-90, labelLimit=110, labelFontSize=10))
    share = alt.Y("usual:Q", title="share of rows", axis=alt.Axis(format="%"))
    bars = alt.Chart().mark_bar(color=GREY, opacity=0.45).encode(x=x, y=share, description=TOLD)
    marks = alt.Chart().mark_tick(color=ORANGE, thickness=4).encode(x=x, y="then:Q", description=TOLD)
    text = f"The values of {item.column}: lines show {figures.window.named(item.partition_key)}, grey bars the {figures.unit}s without an alarm together."
    return _chart(name, f"{item.column} before and after", text, rows, alt.layer(bars, marks), HEIGHT // 2)


def _course(figures: Figures, y: alt.Y, low: str, high: str) -> alt.LayerChart | alt.FacetChart:
    """Draw a value of each partition as a line in the band of its interval; a dot tells it to a pointer that rests there."""
    line = alt.Chart().mark_line(color=BLUE).encode(x=_time(figures), y=y)
    if len(figures.window.runs) > MANY:  # dots would make the page large
        return alt.layer(_band(figures, low, high, BLUE), line)
    dots = alt.Chart().mark_point(filled=True, color=BLUE, opacity=int(len(figures.window.runs) <= FEW), size=60)
    return alt.layer(_band(figures, low, high, BLUE), line, dots.encode(x=_time(figures), y=y, description=TOLD))


def _band(figures: Figures, low: str, high: str, colour: str) -> alt.Chart:
    """Draw an interval of each partition."""
    return alt.Chart().mark_area(color=colour, opacity=0.25).encode(x=_time(figures), y=f"{low}:Q", y2=high)


def _time(figures: Figures) -> alt.X:
    first = figures.window.runs[0]
    length = first.partition_end - first.partition_start
    if length >= _WEEK:
        return _axis("utcyearmonth", "%b") if figures.window.monthly else _axis("utcyearmonthdate", "%-d %b")
    few = alt.Undefined if len(figures.window.runs) > LEAST_TICKS else {"interval": "day", "step": 1}
    if length < _DAY:
        return alt.X("start:T", title=None, axis=alt.Axis(labelSeparation=12)).timeUnit("utcyearmonthdatehours")
    axis = alt.Axis(labelSeparation=12, labelExpr=_LABEL.format("%-d %b"), tickCount=few)
    return alt.X("start:T", title=None, axis=axis).timeUnit("utcyearmonthdate")


def _axis(unit: Literal["utcyearmonth", "utcyearmonthdate"], form: str) -> alt.X:
    """An axis with a place for each week or month; its year stands below."""
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=12, labelExpr=_LABEL.format(form))
    return alt.X("start:O", title=None, axis=axis).timeUnit(unit)


def _metric(field: str, title: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def _told(row: Mapping[str, Any]) -> str:
    """The values of a row in words, but for its place on the axis of time."""
    values = ((words(name), value) for name, value in row.items() if name != "start" and value is not None)
    return ", ".join(value if isinstance(value, str) else f"{name} {number(value, '.3g')}" for name, value in values)


def _chart(  # noqa: PLR0913 - what a chart is called, says and draws
    name: str,
    title: str,
    text: str,
    rows: pl.DataFrame,
    marks: alt.Chart | alt.LayerChart | alt.FacetChart,
    height: int = HEIGHT,
    *,
    course: str = "",
) -> Chart:
    """Finish a chart of some rows, whose marks tell the values of their row; `course` is a column with a value for each `start`."""
    rows = rows.with_columns(told=pl.Series([_told(row) for row in rows.iter_rows(named=True)], dtype=pl.String))
    values, extremes = rows.sort("start")[course].drop_nulls().to_list() if course else [], ""
    if values:
        first, last, *ends = (number(value, ".3g") for value in (values[0], values[-1], min(values), max(values)))
        extremes = f" First {first}, last {last}, lowest {ends[0]}, highest {ends[1]}."
    chart: Any = marks.properties(data=alt.InlineData(values=json.loads(rows.write_json())), height=height)
    chart = chart.configure(font="system-ui, sans-serif", background="transparent").configure_view(stroke=None)
    chart = chart.configure_area(aria=False).configure_line(aria=False).configure_rule(aria=False)
    chart = chart.configure_axis(labelFontSize=12, titlePadding=12, titleFontSize=12, titleFontWeight="normal")
    wide, narrow = (vl_convert.vegalite_to_svg(chart.properties(width=width).to_dict()) for width in (WIDE, NARROW))
    parts = (_as_part_of_a_page(wide, name), _as_part_of_a_page(narrow, f"{name}-narrow"))
    return Chart(name, title, text, extremes, *parts)


def _as_part_of_a_page(picture: str, name: str) -> str:
    """Let marks say their values where a pointer rests on them, leave out what the page says, and number gradients and clips from 0: Vega numbers them over all pictures of a process."""
    numbers: dict[str, str] = {}
    picture = _IDENTIFIER.sub(
        lambda match: f"{match[1]}{numbers.setdefault(match[2], f'{name}-{len(numbers)}')}", picture
    )
    picture = _NEEDLESS.sub("", _MARK.sub(r"\1\3><title>\2</title></path>", picture))
    return _PLACE.sub(lambda match: _DECIMALS.sub(r"\1", match[0]), picture)
