"""The summary of a run says each thing once."""

import pytest

from batch_platform.cli import terminal
from batch_platform.cli.summary import RunSummary, TrainedModel, show
from batch_platform_tests.harness.small_pipeline import small_spec

pytestmark = pytest.mark.unit


def trained(version: str) -> TrainedModel:
    return TrainedModel(
        version=version,
        serving_period="2024-02-01",
        challenger=None,
        metric="roc_auc",
        value=0.7,
        metrics={"roc_auc": 0.7},
        baseline=None,
        refit=False,
        decision="approved",
        reason="meets the gate",
        rows_trained=400,
        days_trained=10.0,
        judged_fit_rows=0,
        judged_fit_days=None,
        positive="no",
        suspected_leaks=[],
    )


def test_the_class_that_scores_are_for_is_named_once_and_not_after_every_model(capsys):
    outcome = RunSummary(
        pipeline="small",
        partitions=0,
        scored=0,
        scored_now=0,
        unserved=0,
        rows_in=0,
        rows_scored=0,
        rows_rejected=0,
        rejected={},
        left_out=[],
        versions=[],
        models=[trained("first"), trained("second")],
        published="",
        table="",
        findings={},
        failed_checks=[],
        delivered={},
        failures=[],
        error=None,
        next=[],
    )
    with terminal.reporting():
        show(outcome, small_spec().partitions.calendar)
    first, second, remark = capsys.readouterr().out.splitlines()
    assert (first[:12], second[:13]) == ("model first,", "model second,")
    assert remark == "  the score is that of 'no'; labels.positive in the YAML chooses the class"
