"""The charts of the report, as Vega-Lite specifications and as pictures of them for paper and for readers without JavaScript.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart. No chart says anything by
colour alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from batch_platform.reports.figures import Figures
from batch_platform.reports.wording import words

BLUE, ORANGE, GREY, DARK = "#0072B2", "#D55E00", "#6B6B6B", "#08306B"
_DAY = timedelta(hours=20)  # the shortest day has 23 hours
STRONG = 0.25  # index from which a drift is strong by common rule
ROW_HEIGHT = 18  # of the heat map
FEW = 3  # partitions that make no line
INSIDE, OUTSIDE = "within the interval", "outside of it"
MANY = 92  # partitions, from which their points are small
_SHORT_BAR = {"type": "point", "shape": "stroke", "size": 400, "strokeWidth": 3, "opacity": 1}
WIDTH, HEIGHT = 720, 220  # of the pictures; a chart in a browser is as wide as its place


@dataclass(frozen=True)
class Chart:
    """A chart with its title and the sentence that says what it shows."""

    name: str  # of its element in the page
    title: str
    text: str
    specification: str  # JSON, safe inside of a script element
    picture: str  # SVG


def charts_of(figures: Figures, zone: ZoneInfo) -> dict[str, Chart]:
    """The charts that the figures have numbers for, by name; partitions stand where they start on the clocks of `zone`.

    A chart over time needs two partitions.
    """
    starts = {
        run.partition_key: f"{run.partition_start.astimezone(zone):%Y-%m-%dT%H:%M:%S}Z" for run in figures.window.runs
    }
    made = [_volume(figures, starts), _scores(figures, starts)] if len(starts) > 1 else []
    made += [
        _performance(figures, starts),
        _estimates(figures, starts),
        _months(figures),
        _calibration(figures),
        _drift(figures),
    ]
    return {chart.name: chart for chart in made if chart is not None}


@cache  # to put it together takes more than a second
def javascript() -> str:
    """The code that draws the charts in a browser, to be written into the page."""
    import vl_convert

    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code.replace("</script", "<\\/script")


def _volume(figures: Figures, starts: Mapping[str, str]) -> Chart:
    rows = pl.DataFrame(
        [
            {"partition": run.partition_key, "start": starts[run.partition_key], "rows": count, "kind": kind}
            for run in figures.window.runs
            for kind, count in (("scored", run.rows_scored), ("rejected", run.rows_rejected))
        ]
    )
    bars = {
        "mark": {"type": "bar", "binSpacing": 0},
        "encoding": {
            **_time(figures),
            "y": {"field": "rows", "type": "quantitative", "title": "rows"},
            "color": _colours(("scored", BLUE), ("rejected", ORANGE)),
            "tooltip": _tooltip("partition", "kind", "rows"),
        },
    }
    return _chart(
        "volume", "Rows by partition", "The rows that were scored, and those that were kept aside.", rows, bars
    )


def _scores(figures: Figures, starts: Mapping[str, str]) -> Chart | None:
    ranged = {key: of for key, of in figures.distributions.items() if "mean" in of.numbers}
    if not ranged:
        return _classes(figures, starts)
    rows = pl.DataFrame([{"partition": key, "start": starts[key], **of.numbers} for key, of in sorted(ranged.items())])
    shown = _tooltip("partition", "mean", "p10", "p50", "p90")
    band = _band(figures, rows, "p10", "p90", BLUE)
    score = figures.score
    y = {"field": "mean", "type": "quantitative", "title": score}
    line = {
        "mark": {"type": "line", "color": BLUE, "point": len(rows) < FEW},
        "encoding": {**_time(figures), "y": y, "tooltip": shown},
    }
    text = f"The mean {score} of each partition (line), and the range of eight of ten {score}s (band)."
    return _chart("scores", f"{score.capitalize()}s over time", text, rows, {"layer": [band, line]})


def _classes(figures: Figures, starts: Mapping[str, str]) -> Chart | None:
    rows = pl.DataFrame(
        [
            {"partition": key, "start": starts[key], "class": label, "rows": count}
            for key, of in sorted(figures.distributions.items())
            for label, count in of.bars
        ]
    )
    if not rows.height:
        return None
    bars = {
        "mark": "bar",
        "encoding": {
            **_time(figures),
            "y": {
                "field": "rows",
                "type": "quantitative",
                "stack": "normalize",
                "axis": {"format": "%"},
                "title": "share of rows",
            },
            "color": {"field": "class", "type": "nominal", "scale": {"scheme": "viridis"}},
            "tooltip": _tooltip("partition", "class", "rows"),
        },
    }
    return _chart("scores", "Predicted classes over time", "The share of each predicted class.", rows, bars)


def _performance(figures: Figures, starts: Mapping[str, str]) -> Chart | None:
    if figures.metric is None or figures.performance.height <= 1:
        return None
    rows = figures.performance.with_columns(start=pl.col("partition_key").replace_strict(starts)).rename(
        {"partition_key": "partition"}
    )
    band = _band(figures, rows, "low", "high", BLUE)
    y = {"field": "value", "type": "quantitative", "title": words(figures.metric), "scale": {"zero": False}}
    shown = _tooltip("partition", "value", "low", "high", "rows", "positives")
    line = {
        "mark": {"type": "line", "color": BLUE, "point": len(rows) < FEW},
        "encoding": {**_time(figures), "y": y, "tooltip": shown},
    }
    text = (
        f"The {words(figures.metric)} of each partition (line) with its 95% interval (band). Few rows make a wide band."
    )
    return _chart("performance", "Performance over time", text, rows, {"layer": [band, line]})


def _estimates(figures: Figures, starts: Mapping[str, str]) -> Chart | None:
    if figures.estimates is None or len(figures.estimates.partitions) <= 1:
        return None
    metric, estimates = words(figures.estimates.metric), figures.estimates.partitions
    rows = pl.DataFrame(
        [
            {
                "partition": row.partition_key,
                "start": starts[row.partition_key],
                "estimate": row.estimate,
                "low": row.low,
                "high": row.high,
                "realised": row.realised,
                "lies": None if row.within is None else INSIDE if row.within else OUTSIDE,
                "rows": row.rows,
            }
            for row in estimates
        ],
        schema_overrides={"realised": pl.Float64, "lies": pl.String},
    )
    y = {"type": "quantitative", "title": metric, "scale": {"zero": False}}
    shown = _tooltip("partition", "estimate", "low", "high", "realised", "rows")
    few = len(rows) < FEW
    line = {
        "mark": {"color": DARK, **(_SHORT_BAR if few else {"type": "line", "strokeDash": [6, 4], "strokeWidth": 1.5})},
        "encoding": {**_time(figures), "y": {**y, "field": "estimate"}, "tooltip": shown},
    }
    text = (
        f"Estimated {metric} of each partition ({'short bar' if few else 'dashed line'}) with its 95% interval (grey)."
    )
    layers = [_band(figures, rows, "low", "high", GREY), line]
    if rows["realised"].count():
        shapes = {"domain": [INSIDE, OUTSIDE], "range": ["circle", "cross"]}
        legend = {"orient": "top", "title": "what came true", "titleLimit": 300, "columns": 1}
        came_true = {
            "transform": [{"filter": "isValid(datum.realised)"}],
            "mark": {
                "type": "point",
                "filled": True,
                "size": 15 if len(rows) > MANY else 45,
                "opacity": 1,
                "color": BLUE,
            },
            "encoding": {
                **_time(figures),
                "y": {**y, "field": "realised"},
                "shape": {"field": "lies", "type": "nominal", "scale": shapes, "legend": legend},
                "tooltip": shown,
            },
        }
        layers.append(came_true)
        text += " A dot is what came true, a cross what came true outside of the interval."
    return _chart("estimates", "Estimated performance over time", text, rows, {"layer": layers})


def _months(figures: Figures) -> Chart | None:
    if figures.metric is None or figures.months.height <= 1:
        return None
    rows = figures.months.with_columns(month=pl.col("period_start").dt.strftime("%Y-%m")).drop("period_start")
    x = {"field": "month", "type": "ordinal", "title": None, "axis": {"labelAngle": -40}}
    y = {"field": "value", "type": "quantitative", "title": words(figures.metric), "scale": {"zero": False}}
    span = {
        "mark": {"type": "rule", "color": GREY},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    shown = _tooltip("month", "value", "low", "high", "rows")
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70, "color": BLUE},
        "encoding": {"x": x, "y": y, "tooltip": shown},
    }
    text = f"The {words(figures.metric)} of all rows of a month together, with its 95% interval."
    return _chart("months", "Performance by month", text, rows, {"layer": [span, dots]})


def _calibration(figures: Figures) -> Chart | None:
    rows = figures.calibration
    if not rows.height:
        return None
    values = [*rows["mean_score"].to_list(), *rows["outcome"].to_list()]
    ends = [min(values), max(values)]
    diagonal = {
        "data": {"values": [{"mean_score": end, "outcome": end} for end in ends]},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": GREY},
        "encoding": _pair(),
    }
    shown = _tooltip("rows", "mean_score", "outcome")
    dots = {
        "mark": {"type": "point", "filled": True, "color": BLUE},
        "encoding": {**_pair(), "size": {"field": "rows", "type": "quantitative", "legend": None}, "tooltip": shown},
    }
    text = "Each point stands for rows with similar predictions. On the dashed line, what was predicted came true on average."
    return _chart("calibration", "Predicted and true", text, rows, {"layer": [diagonal, dots]})


def _drift(figures: Figures) -> Chart | None:
    drift = figures.drift
    if drift is None or drift.cells["period"].n_unique() <= 1:
        return None
    order = drift.cells.group_by("column").agg(pl.max("index")).sort("index", "column", descending=[True, False])
    places = {
        "x": {"field": "period", "type": "ordinal", "title": None, "axis": {"labelAngle": -40, "labelOverlap": True}},
        "y": {"field": "column", "type": "nominal", "title": None, "sort": order["column"].to_list()},
    }
    shown = _tooltip("column", "period", "index", "alarms", "partitions")
    scale = {"range": ["#f7f7f7", DARK], "domain": [0, STRONG], "clamp": True}
    legend = {"orient": "top", "title": f"index, strong from {STRONG:g}", "titleLimit": 300, "gradientLength": 200}
    cells = {
        "mark": {"type": "rect", "stroke": "#e4e4e4", "strokeWidth": 0.5},
        "encoding": {
            **places,
            "color": {"field": "index", "type": "quantitative", "scale": scale, "legend": legend},
            "tooltip": shown,
        },
    }
    alarms = {
        "transform": [{"filter": "datum.alarms > 0"}],
        "mark": {
            "type": "point",
            "shape": "cross",
            "filled": True,
            "size": 45,
            "color": ORANGE,
            "stroke": "white",
            "strokeWidth": 0.5,
        },
        "encoding": {**places, "tooltip": shown},
    }
    against = {"reference": "the training data", "previous": "the partition before", "week_before": "the week before"}
    text = f"How far each column is from {against[drift.baseline]}, in each {drift.every}. A cross marks an alarm."
    height = ROW_HEIGHT * order.height
    return _chart("drift", "Drift", text, drift.cells, {"layer": [cells, alarms], "height": height})


def _band(figures: Figures, rows: pl.DataFrame, low: str, high: str, colour: str) -> dict[str, Any]:
    """An interval of each partition; an area needs more than one partition to be seen, bars do not."""
    few = len(rows) < FEW
    mark = {"type": "rule", "strokeWidth": 3, "opacity": 0.5} if few else {"type": "area", "opacity": 0.25}
    ends = {"y": {"field": low, "type": "quantitative"}, "y2": {"field": high}}
    return {"mark": {**mark, "color": colour}, "encoding": {**_time(figures), **ends}}


def _pair() -> dict[str, Any]:
    scale = {"zero": False}
    return {
        "x": {"field": "mean_score", "type": "quantitative", "title": "mean prediction", "scale": scale},
        "y": {"field": "outcome", "type": "quantitative", "title": "mean of what came true", "scale": scale},
    }


def _time(figures: Figures) -> dict[str, Any]:
    unit = (
        "yearmonthdatehours"
        if figures.window.runs[0].partition_end - figures.window.runs[0].partition_start < _DAY
        else "yearmonthdate"
    )
    room = {"scale": {"padding": 30}} if len(figures.window.runs) < FEW else {}  # beside marks that are no line
    return {
        "x": {
            "field": "start",
            "type": "temporal",
            "timeUnit": f"utc{unit}",
            "title": None,
            "axis": {"labelSeparation": 8},
            **room,
        }
    }


def _colours(*pairs: tuple[str, str]) -> dict[str, Any]:
    names, colours = zip(*pairs, strict=True)
    scale = {"domain": list(names), "range": list(colours)}
    return {"field": "kind", "type": "nominal", "scale": scale, "legend": {"orient": "top", "title": None}}


def _tooltip(*names: str) -> list[dict[str, str]]:
    return [{"field": name, "title": name.replace("_", " ")} for name in names]


def _chart(name: str, title: str, text: str, rows: pl.DataFrame, marks: Mapping[str, Any]) -> Chart:
    """A chart of some rows."""
    specification: dict[str, Any] = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{title}. {text}",
        "data": {"values": json.loads(rows.write_json())},
        "height": HEIGHT,
        "config": {
            "view": {"stroke": None},
            "font": "system-ui, sans-serif",
            "axis": {"labelFontSize": 12, "titleFontSize": 12},
        },
        **marks,
    }
    import vl_convert

    picture: str = vl_convert.vegalite_to_svg({**specification, "width": WIDTH})
    in_page = {**specification, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(name, title, text, json.dumps(in_page).replace("<", "\\u003c"), picture)
