"""The report as one HTML file that needs no network: text, tables and charts, every value escaped."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

from batch_platform.declaration.redaction import redact
from batch_platform.reports.charts import Chart, javascript
from batch_platform.reports.figures import Figures
from batch_platform.reports.segments import LEAST_ROWS, RATES
from batch_platform.reports.wording import number, words

TEMPLATE = "report.html"


def html(figures: Figures, charts: Mapping[str, Chart], zone: ZoneInfo) -> str:
    """The page; times are shown on the clocks of `zone`."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters = {"number": number, "words": words, "visible": redact, "local": partial(local, zone=zone)}
    environment.filters.update(filters)
    template = environment.from_string((files("batch_platform.reports") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        of=figures,
        charts=charts,
        javascript=javascript() if charts else "",
        rates=RATES,
        least_rows=LEAST_ROWS,
    )


def write(page: str, file: Path) -> Path:
    """Write a page so that the file is complete or as it was; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.unlink(missing_ok=True)  # may be a link
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(file)


def local(instant: datetime, zone: ZoneInfo) -> str:
    """A time on the clocks of a zone, to the minute, with the zone's name."""
    return f"{instant.astimezone(zone):%Y-%m-%d %H:%M} {zone.key}"
