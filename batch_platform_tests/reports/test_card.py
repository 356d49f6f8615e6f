"""The model card: what it says is what was recorded, in Markdown and on a page, and no text of unknown origin becomes markup."""

from datetime import UTC, datetime

import pytest

from batch_platform.declaration.model import ModelCard
from batch_platform.models.bundle import read_judged, read_manifest
from batch_platform.monitoring.metrics import METRICS
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.reports.card import Card, card_of, since_it_serves
from batch_platform.reports.wording import capital, figure, plain
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.command_line import copy_of_finished_project
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline

NOW = datetime(2024, 2, 25, 12, tzinfo=UTC)
HOSTILE = "</p><script>document.title = 'taken'</script>"
USE = "The warehouse prepares for returns."


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Three weeks of February, scored and measured by segment."""
    made = small_pipeline(
        tmp_path_factory.mktemp("card"),
        description="Whether an order comes back.",
        predictions={"keep": ["shop"]},
        monitoring={"segments": ["shop"]},
    )
    carry_out(made, NOW)
    return made


def written(pipeline: Pipeline, texts: ModelCard | None = None) -> Card:
    """The card of the champion."""
    registry = pipeline.published_state().registry
    version = registry.champion(NOW)
    assert version is not None
    folder = pipeline.home.bundle("small", version.version)
    manifest = read_manifest(folder, version.sha256)
    spec = pipeline.spec.model_copy(update={"model": pipeline.spec.model.model_copy(update={"card": texts})})
    with open_published(pipeline.home) as con:
        served = since_it_serves(con, spec, version)
    return card_of(spec, registry, version, manifest, read_judged(folder, manifest), served)


def test_every_figure_of_a_card_is_the_recorded_one(pipeline):
    card = written(pipeline)
    sections = {section.title: section for section in card.sections}
    version = pipeline.published_state().registry.champion(NOW)
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    names = {capital(plain(name)): name for name in METRICS}
    metrics = {names[row[0]]: row for row in sections["How good it is"].rows}
    for name, (_, value, low, high, guessing) in metrics.items():
        assert value == manifest.evaluation.metrics[name]
        assert low is None or low <= value <= high
        assert guessing == manifest.evaluation.baseline.metrics.get(name)
    _, *interval, _ = metrics["roc_auc"]
    assert interval[1] is not None
    shown = sections["How good it is"].cells[list(metrics).index("roc_auc")]
    assert shown[1:4] == [figure(number, *interval[1:]) for number in interval], "no more digits than it supports"
    assert sum(row[3] for row in sections["Calibration"].rows) == version.rows_evaluated
    assert [row[0] for row in sections["Features"].rows] == [column["name"] for column in manifest.contract]
    assert f"It learned from {version.rows_trained:,} rows" in sections["Data"].sentences[0]
    decisions = [(event.action, event.actor, event.reason) for event in pipeline.published_state().registry.promotions]
    assert [tuple(row[1:]) for row in sections["Decisions"].rows] == decisions


@pytest.mark.full
def test_a_card_shows_what_moves_the_score_how_it_is_calibrated_and_how_rows_are_decided(tmp_path):
    made = small_pipeline(
        tmp_path, predictions={"reasons": 2, "decide": {"threshold": 0.3}}, model={"calibrate": "sigmoid"}
    )
    carry_out(made, NOW)
    sections = {section.title: section for section in written(made).sections}
    version = made.published_state().registry.champion(NOW)
    facts = read_manifest(made.home.bundle("small", version.version), version.sha256).refinements
    importance = facts["reasons"]["importance"]
    moves = {row[0]: row[-1] for row in sections["Features"].rows}
    assert moves == importance
    assert list(moves.values()) == sorted(moves.values(), reverse=True)
    shown = dict(sections["From score to decision"].rows)
    assert shown["calibration: brier after"] == facts["calibration"]["brier_after"]
    assert "0.3" in sections["From score to decision"].sentences[0]


def test_declared_texts_are_shown_and_never_become_markup(pipeline):
    card = written(pipeline, ModelCard(intended_use=USE, limits=f"Not for gifts. {HOSTILE}"))
    page, text = card.to_html(), card.to_markdown()
    assert USE in page
    assert USE in text
    assert "<script" not in page
    assert "<script" not in text
    assert "Not for gifts." in text


def test_the_command_prints_a_card_and_writes_it_as_a_page(cli, tmp_path):
    project = copy_of_finished_project(tmp_path)
    (version,) = cli(project, "models", "small", "--json").json[:1]
    printed = cli(project, "models", "small", "card", version["version"])
    assert printed.out.startswith(f"# small: model {version['version']}\n")
    page = tmp_path / "card.html"
    answer = cli(project, "models", "small", "card", version["version"], "--out", str(page))
    assert (answer.code, answer.out) == (0, f"The card of {version['version']} is written to {page}\n")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    refused = cli(project, "models", "small", "card", version["version"], "--out", "card.pdf")
    assert (refused.code, "--out card.html" in refused.err) == (2, True)
