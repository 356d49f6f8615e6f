"""A pipeline with three weeks of February, and its report."""

from pathlib import Path

import polars as pl
import pytest

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.reports.charts import Chart, charts_of
from batch_platform.reports.figures import Figures, read_figures
from batch_platform.reports.report import html
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline
from batch_platform_tests.reports.february import BERLIN, FIRST, HOSTILE, LAST, NOW, STRANGE, status_now


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Three weeks of February scored; a shop has a hostile name, some rows are rejected, and a day is left out."""
    broken = pl.col("id") % 50 == 0
    events = small_events().with_columns(
        shop=pl.when(pl.col("shop") == " ").then(pl.lit(HOSTILE)).otherwise("shop"),
        amount=pl.when(broken).then(-1.0).otherwise(pl.col("amount").fill_null(20.0)),
        items=pl.when(LOCAL_DAY == STRANGE).then(pl.col("items") * 100).otherwise("items").cast(pl.Int32),
    )
    made = small_pipeline(
        tmp_path_factory.mktemp("report"),
        events=events.filter(LOCAL_DAY != "2024-02-14"),
        description=f"Whether an order comes back. {HOSTILE}",
        features={"columns": {"amount": {"min": 0}}, "max_rejected": "50%"},
        monitoring={"segments": ["shop"], "drift": {}},
        challengers=[{"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 2}}],
    )
    carry_out(made, NOW)
    return made


@pytest.fixture(scope="session")
def figures(pipeline: Pipeline) -> Figures:
    with open_published(pipeline.home) as con:
        return read_figures(con, pipeline.spec, FIRST, LAST, status=status_now(pipeline))


@pytest.fixture(scope="session")
def charts(figures: Figures) -> dict[str, Chart]:
    return charts_of(figures, BERLIN)


@pytest.fixture(scope="session")
def page(figures: Figures, charts: dict[str, Chart], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(figures, charts, BERLIN), encoding="utf-8")
    return file
