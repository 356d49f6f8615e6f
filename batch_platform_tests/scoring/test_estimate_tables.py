"""Estimates through a whole pipeline: made when a partition is scored, held against what comes true, and gone with it."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch_platform.components import describe
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.measures.estimates import (
    ESTIMATES,
    OF_SEGMENTS,
    EstimatedSegmentMetric,
    read_estimates,
    track_records,
)
from batch_platform.monitoring.segments import OTHERS
from batch_platform.pipeline.measured import newest_measured
from batch_platform.pipeline.recorded import recorded_predictions
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.ledger import rows_of_partitions
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)
NEWEST, EVALUATED = "2024-02-28", "2024-02-27"  # the labels of a day are known a day later


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder, segments = tmp_path_factory.mktemp("estimates"), ["shop", "known"]
    made = small_pipeline(folder, predictions={"keep": segments}, monitoring={"segments": segments})
    carry_out(made, NOW)
    return made


def published(pipeline, *keys):
    with open_published(pipeline.home) as con:
        return read_estimates(con, "small", keys)


def published_segments(pipeline, *keys):
    order = "partition_key, segment_column, rows DESC, segment, metric"
    with open_published(pipeline.home) as con:
        return rows_of_partitions(con, EstimatedSegmentMetric, "small", OF_SEGMENTS, keys, order=order)


def test_each_partition_has_its_estimates_and_what_came_true_of_them(pipeline):
    rows = published(pipeline, NEWEST, EVALUATED)
    assert [row.metric for row in rows[NEWEST]] == ["accuracy", "brier", "log_loss", "roc_auc"]
    assert {row.realised for row in rows[NEWEST]} == {None}
    assert all(row.low < row.estimate < row.high and row.rows == 40 for row in rows[NEWEST])
    with open_published(pipeline.home) as con:
        query = f"SELECT metric, value FROM small.performance WHERE partition_key = '{EVALUATED}'"
        measured = dict(con.execute(query).fetchall())
        within, error, count = con.execute(
            "SELECT avg((realised BETWEEN low AND high)::INT), avg(abs(estimate - realised)), count(*) "
            "FROM small.estimates WHERE metric = 'roc_auc' AND realised IS NOT NULL"
        ).fetchone()
        record = track_records(con, "small")["roc_auc"]
    assert {row.metric: row.realised for row in rows[EVALUATED]} == {
        row.metric: measured[row.metric] for row in rows[EVALUATED]
    }
    assert (record.within, record.mean_error, record.partitions) == (within, error, count)
    assert within > 0.9
    assert count == 27


def test_each_segment_has_its_estimates_and_what_came_true_of_them(pipeline):
    rows = published_segments(pipeline, NEWEST, EVALUATED)
    with open_published(pipeline.home) as con:
        query = "FROM small.predictions JOIN small.outcomes USING (partition_key, id) WHERE partition_key = $key"
        scored = con.sql(f"SELECT known, score, outcome {query}", params={"key": EVALUATED}).pl()
    compared = Counter()
    for row in rows[EVALUATED]:
        assert row.low <= row.estimate <= row.high
        if row.segment_column == "shop":  # each has too few rows on a day to be named
            assert (row.segment, row.rows, row.realised) == (OTHERS, 40, None)
        elif row.metric in ("accuracy", "brier"):
            labelled = scored.drop_nulls("outcome").filter(known=row.segment == "true")
            truth, score = (labelled["outcome"] == "true").to_numpy(), labelled["score"].to_numpy()
            came_true = (score > 0.5) == truth if row.metric == "accuracy" else (score - truth) ** 2
            assert row.realised == pytest.approx(came_true.mean(), rel=1e-9)
            compared[row.metric, row.segment] += 1
    assert set(compared) == {(metric, known) for metric in ("accuracy", "brier") for known in ("true", "false")}
    assert {(row.segment_column, row.segment) for row in rows[NEWEST]} == {
        *(("known", known) for known in ("true", "false")),
        ("shop", OTHERS),
    }
    assert {row.realised for row in rows[NEWEST]} == {None}


def test_estimates_stand_beside_their_track_record(pipeline):
    state = pipeline.published_state()
    measured = newest_measured(pipeline.home, pipeline.spec, state)
    status = status_of(pipeline.spec, state, make_plan(pipeline.spec, state, PlanRequest(NOW)), NOW, measured=measured)
    (aspect,) = [aspect for aspect in status.health.aspects if aspect.name == "estimated_performance"]
    assert aspect.text.startswith("roc_auc about 0.")
    assert f" expected on {NEWEST} (" in aspect.text
    assert " on average in 27 partitions, " in aspect.text
    (committed,) = recorded_predictions(pipeline, state, [NEWEST])
    metadata = describe.committed(committed)
    assert metadata["estimated_roc_auc"] == pytest.approx(aspect.numbers["roc_auc"], rel=1e-3)
    assert "in 27 partitions" in metadata["estimates"].value


def test_scoring_again_forgets_what_came_true_until_it_is_measured_again(pipeline):
    partition = pipeline.spec.partitions.calendar.named(EVALUATED)
    before, of_segments = published(pipeline, EVALUATED)[EVALUATED], published_segments(pipeline, EVALUATED)[EVALUATED]
    stamp = Stamp("again", NOW)
    (committed,) = pipeline.score([partition], stamp, force=True)
    assert [row.estimate for row in ESTIMATES.of(committed.measures).metrics] == [row.estimate for row in before]
    pipeline.publish()
    assert {
        row.realised
        for row in (*published(pipeline, EVALUATED)[EVALUATED], *published_segments(pipeline, EVALUATED)[EVALUATED])
    } == {None}
    list(pipeline.evaluate([partition], stamp))
    pipeline.publish()
    again = published(pipeline, EVALUATED)[EVALUATED]
    assert [(row.metric, row.estimate, row.realised) for row in again] == [
        (row.metric, row.estimate, row.realised) for row in before
    ]
    assert [replace(row, run_id="") for row in published_segments(pipeline, EVALUATED)[EVALUATED]] == [
        replace(row, run_id="") for row in of_segments
    ]


def test_labels_that_the_model_has_learned_from_do_not_count(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"train": {"every": None}})
    carry_out(pipeline, NOW)
    scored = pipeline.spec.partitions.calendar.named("2024-02-10")
    list(pipeline.score([scored], Stamp("in sample", NOW), version=pipeline.state().registry.versions[0].version))
    pipeline.publish()
    list(pipeline.evaluate([scored], Stamp("in sample", NOW + timedelta(days=1))))
    pipeline.publish()
    with open_published(pipeline.home) as con:
        query = "SELECT DISTINCT in_sample FROM small.performance WHERE partition_key = '2024-02-10'"
        assert con.execute(query).fetchall() == [(True,)]
    assert {row.realised for row in published(pipeline, "2024-02-10")["2024-02-10"]} == {None}
