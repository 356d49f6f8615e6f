"""The charts of the report, drawn by Altair, and as pictures for paper and for readers without JavaScript.

Importing this module takes a second, so only a report that is drawn does. Colours are those of Okabe and Ito, which people with
any kind of colour vision can tell apart, and no chart says anything by colour alone.
"""

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import altair as alt
import polars as pl
import vl_convert

from batch_platform.reports.figures import Figures
from batch_platform.reports.wording import words

BLUE, ORANGE, GREY, DARK = "#0072B2", "#D55E00", "#6B6B6B", "#08306B"
PALE, FAINT = "#f7f7f7", "#e4e4e4"
_DAY = timedelta(hours=20)  # the shortest day has 23 hours
STRONG = 0.25  # index from which a drift is strong by common rule
ROW_HEIGHT = 18  # pixels, in the heat map
LEAST = 3  # fewer partitions make no line
MANY = 92  # more partitions have small dots
INSIDE, OUTSIDE = "within the interval", "outside of it"
WIDTH, HEIGHT = 720, 220  # pixels of a picture; a chart in a browser is as wide as its place
_IDENTIFIER = re.compile(r'( id="|url\(#)((?:gradient_|clip)\d+)')
BASELINES = {"reference": "the training data", "previous": "the partition before", "week_before": "the week before"}


@dataclass(frozen=True)
class Chart:
    """A chart with its title and the sentence that says what it shows."""

    name: str  # its element in the page is called chart-NAME
    title: str
    text: str
    specification: str  # JSON, safe inside of a script element
    picture: str  # SVG


def charts_of(figures: Figures, zone: ZoneInfo) -> dict[str, Chart]:
    """Draw the charts that the figures have numbers for, by name; partitions stand where they start on the clocks of `zone`.

    A chart over time needs three partitions.
    """
    starts = [f"{run.partition_start.astimezone(zone):%Y-%m-%dT%H:%M:%S}Z" for run in figures.window.runs]
    times = pl.DataFrame({"partition_key": figures.window.keys, "start": starts})
    over_time = (_volume, _scores, _performance, _estimates) if times.height >= LEAST else ()
    drawn = [*(draw(figures, times) for draw in over_time), _months(figures), _calibration(figures), _drift(figures)]
    return {chart.name: chart for chart in drawn if chart is not None}


@cache  # putting it together takes more than a second
def javascript() -> str:
    """Return the code that draws the charts in a browser, to be written into the page."""
    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code.replace("</script", "<\\/script")


def _volume(figures: Figures, times: pl.DataFrame) -> Chart:
    counts = [
        {"partition_key": run.partition_key, "kind": kind, "rows": rows}
        for run in figures.window.runs
        for kind, rows in (("scored", run.rows_scored), ("rejected", run.rows_rejected))
    ]
    colours = alt.Scale(domain=["scored", "rejected"], range=[BLUE, ORANGE])
    bars = alt.Chart().mark_bar(binSpacing=0)
    bars = bars.encode(
        x=_time(figures),
        y=alt.Y("rows:Q"),
        color=alt.Color("kind:N", scale=colours, legend=alt.Legend(orient="top", title=None)),
        tooltip=_tooltip("partition_key", "kind", "rows"),
    )
    text = "Scored and rejected rows of each partition."
    return _chart("volume", "Rows by partition", text, pl.DataFrame(counts).join(times, on="partition_key"), bars)


def _scores(figures: Figures, times: pl.DataFrame) -> Chart | None:
    ranged = [
        {"partition_key": key, **scores.numbers}
        for key, scores in sorted(figures.distributions.items())
        if "mean" in scores.numbers
    ]
    if not ranged:
        return _classes(figures, times)
    score, rows = figures.score, pl.DataFrame(ranged).join(times, on="partition_key")
    course = _course(figures, "mean", alt.Y("mean:Q", title=score), "p10", "p90", "p50")
    text = f"The mean {score} of each partition (line), and the range of eight of ten {score}s (band)."
    return _chart("scores", f"{score.capitalize()}s over time", text, rows, course)


def _classes(figures: Figures, times: pl.DataFrame) -> Chart | None:
    counts = [
        {"partition_key": key, "class": label, "rows": rows}
        for key, scores in sorted(figures.distributions.items())
        for label, rows in scores.bars
    ]
    if not counts:
        return None
    share = alt.Y("rows:Q", title="share of rows", axis=alt.Axis(format="%")).stack("normalize")
    bars = alt.Chart().mark_bar()
    bars = bars.encode(
        x=_time(figures),
        y=share,
        color=alt.Color("class:N", scale=alt.Scale(scheme="viridis")),
        tooltip=_tooltip("partition_key", "class", "rows"),
    )
    rows = pl.DataFrame(counts).join(times, on="partition_key")
    return _chart("scores", "Predicted classes over time", "The share of each predicted class.", rows, bars)


def _performance(figures: Figures, times: pl.DataFrame) -> Chart | None:
    if figures.metric is None or figures.performance.height <= 1:
        return None
    metric, rows = words(figures.metric), figures.performance.join(times, on="partition_key")
    course = _course(figures, "value", _metric("value", metric), "low", "high", "rows", "positives")
    text = f"The {metric} of each partition (line) with its 95% interval (band). Few rows make a wide band."
    return _chart("performance", "Performance over time", text, rows, course)


def _estimates(figures: Figures, times: pl.DataFrame) -> Chart | None:
    if figures.estimates is None or len(figures.estimates.partitions) <= 1:
        return None
    metric, lies = words(figures.estimates.metric), {True: INSIDE, False: OUTSIDE, None: None}
    rows = pl.DataFrame(
        [
            {
                "partition_key": row.partition_key,
                "estimate": row.estimate,
                "low": row.low,
                "high": row.high,
                "realised": row.realised,
                "lies": lies[row.within],
                "rows": row.rows,
            }
            for row in figures.estimates.partitions
        ],
        schema_overrides={"realised": pl.Float64, "lies": pl.String},
    )
    time = _time(figures)
    tooltip = _tooltip("partition_key", "estimate", "low", "high", "realised", "rows")
    line = alt.Chart().mark_line(color=DARK, strokeDash=[6, 4], strokeWidth=1.5)
    text = f"Estimated {metric} of each partition (dashed line) with its 95% interval (grey)."
    layers = [
        _band(figures, "low", "high", GREY),
        line.encode(x=time, y=_metric("estimate", metric), tooltip=tooltip),
    ]
    if rows["realised"].count():
        shapes = alt.Scale(domain=[INSIDE, OUTSIDE], range=["circle", "cross"])
        legend = alt.Legend(orient="top", title="what came true", titleLimit=300, columns=1)
        dots = alt.Chart().mark_point(filled=True, size=15 if rows.height > MANY else 45, opacity=1, color=BLUE)
        dots = dots.transform_filter("isValid(datum.realised)")
        shape = alt.Shape("lies:N", scale=shapes, legend=legend)
        layers.append(dots.encode(x=time, y=_metric("realised", metric), shape=shape, tooltip=tooltip))
        text += " A dot is what came true, a cross what came true outside of the interval."
    rows = rows.join(times, on="partition_key")
    return _chart("estimates", "Estimated performance over time", text, rows, alt.layer(*layers))


def _months(figures: Figures) -> Chart | None:
    if figures.metric is None or figures.months.height <= 1:
        return None
    metric = words(figures.metric)
    rows = figures.months.with_columns(month=pl.col("period_start").dt.strftime("%Y-%m")).drop("period_start")
    month = alt.X("month:O", title=None, axis=alt.Axis(labelAngle=-40))
    span = alt.Chart().mark_rule(color=GREY).encode(x=month, y=_metric("low", metric), y2="high")
    dots = alt.Chart().mark_point(filled=True, size=70, color=BLUE)
    dots = dots.encode(x=month, y=_metric("value", metric), tooltip=_tooltip("month", "value", "low", "high", "rows"))
    text = f"The {metric} of all rows of a month together, with its 95% interval."
    return _chart("months", "Performance by month", text, rows, alt.layer(span, dots))


def _calibration(figures: Figures) -> Chart | None:
    rows = figures.calibration
    if not rows.height:
        return None
    scale = alt.Scale(zero=False)
    x = alt.X("mean_score:Q", title="mean prediction", scale=scale)
    y = alt.Y("outcome:Q", title="mean of what came true", scale=scale)
    values = [*rows["mean_score"].to_list(), *rows["outcome"].to_list()]
    ends = [{"mean_score": end, "outcome": end} for end in (min(values), max(values))]
    diagonal = alt.Chart(alt.InlineData(values=ends)).mark_line(strokeDash=[4, 4], color=GREY).encode(x=x, y=y)
    dots = alt.Chart().mark_point(filled=True, color=BLUE)
    size = alt.Size("rows:Q", legend=None)
    dots = dots.encode(x=x, y=y, size=size, tooltip=_tooltip("rows", "mean_score", "outcome"))
    text = "Each point stands for rows with similar predictions. On the dashed line, what was predicted came true on average."
    return _chart("calibration", "Predicted and true", text, rows, alt.layer(diagonal, dots))


def _drift(figures: Figures) -> Chart | None:
    drift = figures.drift
    if drift is None or drift.cells["period"].n_unique() <= 1:
        return None
    columns = drift.cells.group_by("column").agg(pl.max("index")).sort("index", "column", descending=[True, False])
    x = alt.X("period:O", title=None, axis=alt.Axis(labelAngle=-40, labelOverlap=True))
    y = alt.Y("column:N", title=None, sort=columns["column"].to_list())
    tooltip = _tooltip("column", "period", "index", "alarms", "partitions")
    shades = alt.Scale(range=[PALE, DARK], domain=[0, STRONG], clamp=True)
    legend = alt.Legend(orient="top", title=f"index, strong from {STRONG:g}", titleLimit=300, gradientLength=200)
    cells = alt.Chart().mark_rect(stroke=FAINT, strokeWidth=0.5)
    cells = cells.encode(x=x, y=y, color=alt.Color("index:Q", scale=shades, legend=legend), tooltip=tooltip)
    alarms = alt.Chart().transform_filter("datum.alarms > 0")
    alarms = alarms.mark_point(shape="cross", filled=True, size=45, color=ORANGE, stroke="white", strokeWidth=0.5)
    alarms = alarms.encode(x=x, y=y, tooltip=tooltip)
    text = f"How far each column is from {BASELINES[drift.baseline]}, in each {drift.every}. A cross marks an alarm."
    return _chart("drift", "Drift", text, drift.cells, alt.layer(cells, alarms), ROW_HEIGHT * columns.height)


def _course(
    figures: Figures, name: str, y: alt.Y, low: str, high: str, *beside: str
) -> alt.LayerChart | alt.FacetChart:
    """Draw a value of each partition as a line in the band of its interval, with further numbers in the tooltip."""
    line = alt.Chart().mark_line(color=BLUE)
    line = line.encode(x=_time(figures), y=y, tooltip=_tooltip("partition_key", name, low, high, *beside))
    return alt.layer(_band(figures, low, high, BLUE), line)


def _band(figures: Figures, low: str, high: str, colour: str) -> alt.Chart:
    """Draw an interval of each partition."""
    return alt.Chart().mark_area(color=colour, opacity=0.25).encode(x=_time(figures), y=f"{low}:Q", y2=high)


def _time(figures: Figures) -> alt.X:
    first = figures.window.runs[0]
    hourly = first.partition_end - first.partition_start < _DAY
    axis = alt.X("start:T", title=None, axis=alt.Axis(labelSeparation=8))
    return axis.timeUnit("utcyearmonthdatehours" if hourly else "utcyearmonthdate")


def _metric(field: str, title: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def _tooltip(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:N", title=words(name.removesuffix("_key"))) for name in names]


def _chart(  # noqa: PLR0913 - what a chart is called, says and draws
    name: str,
    title: str,
    text: str,
    rows: pl.DataFrame,
    marks: alt.Chart | alt.LayerChart | alt.FacetChart,
    height: int = HEIGHT,
) -> Chart:
    """Finish a chart of some rows, for a page and as a picture."""
    chart: Any = marks.properties(
        data=alt.InlineData(values=json.loads(rows.write_json())), height=height, description=f"{title}. {text}"
    )
    chart = chart.configure(font="system-ui, sans-serif").configure_view(stroke=None)
    chart = chart.configure_axis(labelFontSize=12, titleFontSize=12)
    in_page = chart.properties(width="container", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    specification = json.dumps(in_page.to_dict()).replace("<", "\\u003c")
    picture: str = vl_convert.vegalite_to_svg(chart.properties(width=WIDTH).to_dict())
    return Chart(name, title, text, specification, _numbered(picture, name))


def _numbered(picture: str, name: str) -> str:
    """Number the gradients and clips of a picture from 0: Vega numbers them over all pictures that a process draws."""
    numbers: dict[str, str] = {}
    return _IDENTIFIER.sub(lambda match: f"{match[1]}{numbers.setdefault(match[2], f'{name}-{len(numbers)}')}", picture)
