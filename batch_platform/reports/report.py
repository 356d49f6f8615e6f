"""The report as one HTML file that needs neither network nor JavaScript: the numbers of the published copy as text, tables and charts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.reporting import ReportEvery
from batch_platform.declaration.wording import number
from batch_platform.pipeline.status import status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.reports import wording
from batch_platform.reports.figures import Figures, read_figures
from batch_platform.reports.segments import LEAST_POSITIVES, RATES, comparable, ordered
from batch_platform.reports.summary import in_words, on_average
from batch_platform.warehouse.published import open_published

if TYPE_CHECKING:
    from batch_platform.pipeline.pipeline import Pipeline
    from batch_platform.reports.charts import Chart

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
