"""Small charts as Markdown: SVG images embedded in the text.

Dagster shows Markdown of less than 1,000 characters at once and folds longer text, so the drawings are terse: one path
for all bars, one path for all dots. Colours are readable on a light and on a dark background.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

WIDTH, HEIGHT = 308, 150  # pixels; the column of the page is not wider in a window of 1,400
SHOWN_AT_ONCE = 1000  # characters
MOST_DOTS = 18  # on a curve; one with more points has a dot at its end only
MOST_POINTS = 36  # on a curve
_LEFT, _RIGHT, _TOP, _GROUND = 44, 292, 12, 130
_BARS = 156  # where horizontal bars begin, right of their labels
_MAX_LABEL = 12
_UNQUOTED = " ='/:;,()!*"  # characters that need no escape between the angle brackets of a link


@dataclass(frozen=True)
class Point:
    """One value on a curve."""

    label: str  # e.g. a serving period
    value: float
    good: bool = True  # whether its dot has the colour of the line; other dots stand out


def histogram(counts: Sequence[int], low: float, high: float) -> str:
    """Bars of equal width from `low` to `high`, with the share of the highest bar, as Markdown."""
    most, wide = max(counts), (_RIGHT - _LEFT) / len(counts)
    columns = "".join(
        f"M{_LEFT + (at + 0.5) * wide:.0f} {_GROUND}v-{max(count / most * (_GROUND - _TOP), 1):.0f}"
        for at, count in enumerate(counts)
        if count
    )
    marks = "".join(
        _text(_LEFT + (_RIGHT - _LEFT) * part / 4, 145, f"{low + (high - low) * part / 4:.3g}") for part in range(5)
    )
    share = _text(20, _TOP + 8, f"{most / sum(counts):.0%}")
    drawn = f"<path d='{columns}' stroke='slateblue' stroke-width='{max(wide - 1, 1):.0f}'/><g text-anchor='middle'>{marks}</g>{share}"
    return _markdown(drawn, HEIGHT, f"Distribution from {low:.3g} to {high:.3g}")


def bars(counts: Sequence[tuple[str, int]]) -> str:
    """A horizontal bar for each label, with its share, as Markdown."""
    total, most, row = sum(count for _, count in counts), max(count for _, count in counts), 18
    texts = "".join(
        _text(0, at * row + 13, f"{_cut(label)} {count / total:.1%}") for at, (label, count) in enumerate(counts)
    )
    rows = "".join(
        f"M{_BARS} {at * row + 9}h{max(count / most * (WIDTH - _BARS - 2), 1):.0f}"
        for at, (_, count) in enumerate(counts)
    )
    return _markdown(f"<path d='{rows}' stroke='slateblue' stroke-width='13'/>{texts}", row * len(counts) + 4, "Shares")


def curve(points: Sequence[Point], *, bound: Point | None = None) -> str:
    """Values in order, at most MOST_POINTS, joined by a line, with a dashed line at a bound, as Markdown."""
    values = [point.value for point in (*points, *([bound] if bound else []))]
    low, high = min(values), max(values)
    spare = (high - low) * 0.15 or abs(high) * 0.05 or 1.0
    low, high = low - spare, high + spare
    step = (_RIGHT - _LEFT - 20) / max(len(points) - 1, 1)

    def height(value: float) -> int:
        return round(_TOP + (high - value) / (high - low) * (_GROUND - _TOP))

    places = [(round(_LEFT + 10 + at * step), height(point.value), point.good) for at, point in enumerate(points)]
    drawn = f"<path d='M{'L'.join(f'{x} {y}' for x, y, _ in places)}' stroke='slateblue' fill='none'/>"
    dotted = places if len(places) <= MOST_DOTS else places[-1:]
    for good, colour in ((True, "slateblue"), (False, "darkorange")):
        if dots := "".join(f"M{x} {y}h0" for x, y, is_good in dotted if is_good is good):
            drawn += f"<path d='{dots}' stroke='{colour}' stroke-width='9' stroke-linecap='round'/>"
    for value in sorted({max(point.value for point in points), min(point.value for point in points)}):
        drawn += _text(4, height(value) + 4, f"{value:.3f}")
    drawn += _text(_LEFT, 145, _cut(points[0].label))
    if len(points) > 1:
        drawn += f"<g text-anchor='end'>{_text(_RIGHT, 145, _cut(points[-1].label))}</g>"
    if bound:
        y = height(bound.value)
        drawn += f"<path d='M{_LEFT} {y}H{_RIGHT}' stroke='darkorange' stroke-dasharray='4'/>"
        drawn += _text(_LEFT + 4, y - 4, f"{_cut(bound.label)} {bound.value:g}")
    return _markdown(drawn, HEIGHT, f"{len(points)} values, the last {points[-1].value:.4g}")


def _cut(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"


def _text(x: float, y: float, text: str) -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}'>{escape(text)}</text>"


def _markdown(drawn: str, height: int, text: str) -> str:
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' "
        f"font-size='11' font-family='sans-serif' fill='slategray'>{drawn}</svg>"
    )
    return f"![{text}](<data:image/svg+xml,{quote(svg, safe=_UNQUOTED)}>)"
