import re
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest

from batch_platform.monitoring.charts import MOST_POINTS, SHOWN_AT_ONCE, Point, bars, curve, histogram

pytestmark = pytest.mark.unit

CAPTION = 60  # characters that may stand above a picture
POINTS = [Point("2024-01-01", 0.7), Point("2024-02-01", 0.68, good=False), Point("<b>&", 0.73)]
DRAWN = {
    "histogram": histogram([100 - at for at in range(25)], 0.0, 1.0),
    "one bar": histogram([0, 7], 2.5, 2.5),
    "bars": bars([(f"class <{at}> & its very long name indeed", 7) for at in range(8)]),
    "curve": curve(POINTS, bound=Point("gate", 0.6)),
    "one point": curve(POINTS[:1]),
    "eighteen points": curve([Point(f"2024-{at:02}-01", at / 7) for at in range(18)], bound=Point("gate", 0.6)),
    "as many points as fit": curve(
        [Point(f"2024-01-01-{at:02}:00", at % 7 / 7000) for at in range(MOST_POINTS)], bound=Point("warning", 0.00061)
    ),
}


def drawing(markdown: str) -> ET.Element:
    link = re.fullmatch(r"!\[[^\]]+\]\(<data:image/svg\+xml,([^<>&\\#\"\n]+)>\)", markdown)
    assert link
    return ET.fromstring(unquote(link[1]))


@pytest.mark.parametrize("picture", DRAWN.values(), ids=DRAWN.keys())
def test_a_chart_is_well_formed_svg_in_markdown_short_enough_to_be_shown_unfolded(picture):
    assert drawing(picture).tag.endswith("svg")
    assert len(picture) < SHOWN_AT_ONCE - CAPTION


def test_a_refused_version_has_another_colour_and_the_bound_is_named():
    elements = list(drawing(DRAWN["curve"]).iter())
    dots = {
        element.get("stroke"): element.get("d", "").count("M") for element in elements if element.get("stroke-linecap")
    }
    assert dots == {"slateblue": 2, "darkorange": 1}
    assert "gate 0.6" in [element.text for element in elements]


def test_a_histogram_draws_no_bar_for_an_empty_range():
    (path,) = [element for element in drawing(DRAWN["one bar"]).iter() if element.get("d")]
    assert path.get("d", "").count("M") == 1
