"""The report as a file: the numbers of the published copy, drawn and written so that the file is complete or as it was."""

from dataclasses import dataclass
from pathlib import Path

from batch_platform.declaration.reporting import ReportEvery
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.reports.charts import charts_of
from batch_platform.reports.figures import Figures, read_figures
from batch_platform.reports.page import html, write
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published


@dataclass(frozen=True)
class WrittenReport:
    """A report, and what it says."""

    file: Path
    figures: Figures


def write_report(  # noqa: PLR0913 - of which pipeline and window, how it is summed up, and where it is written
    home: Home,
    spec: PipelineSpec,
    first: str | None = None,
    last: str | None = None,
    *,
    every: ReportEvery = "month",
    file: Path | None = None,
) -> WrittenReport:
    """Write the report on the scored partitions from `first` to `last`, by default the newest, at most a year of days.

    A long window is summed up by its newest week or month, as `every` says. Waits for no writer.

    Raises:
        DataError: No partition of the window is scored.
        NothingPublishedError: Nothing is published yet.
    """
    with open_published(home) as con:
        figures = read_figures(con, spec, first, last, every=every)
    zone = spec.partitions.calendar.zone
    target = file or home.reports(spec.name) / f"{figures.window.keys[-1]}.html"
    page = html(figures, charts_of(figures, zone), zone)
    return WrittenReport(write(page, target.expanduser().absolute()), figures)
