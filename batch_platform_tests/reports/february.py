"""The reported window of the tests, and the words of its report."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import PipelineStatus, status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.reports.figures import Figures
from batch_platform.reports.report import html, in_words

NOW = datetime(2024, 2, 25, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
FIRST, LAST = "2024-02-12", "2024-02-22"
STRANGE = "2024-02-20"  # the day on which a feature has another unit


def status_now(pipeline: Pipeline) -> PipelineStatus:
    return status_at(pipeline, PlanRequest(NOW))


def said(figures: Figures) -> list[str]:
    """The sentences at the top."""
    return [sentence for sentences in in_words(figures).values() for sentence in sentences]


def shown(figures: Figures) -> str:
    """The page in one line, without its charts."""
    return " ".join(html(figures, {}, BERLIN).split())
