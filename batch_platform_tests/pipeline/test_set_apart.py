"""One bad partition holds up no other: what is set apart, what is recorded of it, and what still stops a step."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    DamagedFeaturesError,
    DataError,
    IntegrityError,
    SharedSourceError,
    SourceError,
)
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring import run
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
    write_events_by_day,
)

NOW = datetime(2024, 2, 8, tzinfo=UTC)
DAYS = [f"2024-02-0{day}" for day in range(1, 8)]
BROKEN = FEATURES_SQL.replace("items", "CASE WHEN id IN (1300, 1400) THEN error('broken') ELSE items END AS items")
FAILURES = "SELECT step, partition_key, reason, run_id FROM small.failures ORDER BY ALL"


def days(pipeline: Pipeline, *keys: str) -> list[Partition]:
    return [pipeline.spec.partitions.calendar.named(key) for key in keys]


def by_day(tmp_path: Path, *missing: str) -> Pipeline:
    """A pipeline with a source file for each day, some of which are missing."""
    pipeline = small_pipeline(tmp_path, sources={"events": {"parquet": "days/{partition_key}.parquet"}})
    write_events_by_day(pipeline.folder, without=missing)
    return pipeline


def changed(pipeline: Pipeline, sql: str) -> Pipeline:
    """The same pipeline with other features."""
    (pipeline.folder / "features.sql").write_text(sql, encoding="utf-8")
    return Pipeline(pipeline.spec, pipeline.folder, pipeline.home)


def failures(pipeline: Pipeline) -> list[tuple[str, str, str, str]]:
    with pipeline.warehouse.open() as con:
        return con.execute(FAILURES).fetchall()


@pytest.fixture
def scored(tmp_path: Path) -> Pipeline:
    return finished_pipeline(tmp_path, NOW)


@pytest.mark.parametrize("missing", [["2024-02-01"], ["2024-02-03", "2024-02-05"], DAYS[:-1]], ids=len)
def test_a_missing_daily_file_holds_up_only_its_own_partition(tmp_path, missing):
    pipeline = by_day(tmp_path, *missing)
    built: list[str] = []
    with pytest.raises(
        SourceError, match=rf"small, partition {missing[0]}: .*there is no file .*{missing[0]}"
    ) as failed:
        built.extend(build.partition.key for build in pipeline.build_features(days(pipeline, *DAYS), Stamp("r", NOW)))
    assert built == [key for key in DAYS if key not in missing]
    assert failed.value.set_apart == tuple(missing)
    assert all(key in failed.value.message for key in missing)
    assert f"The other {len(built)} partition" in failed.value.message
    assert pipeline.state().features.keys() == set(built)
    assert [(step, key, run_id) for step, key, _, run_id in failures(pipeline)] == [
        ("features", key, "r") for key in missing
    ]


@pytest.mark.unit
def test_a_source_that_all_partitions_read_stops_the_step_at_once(tmp_path):
    pipeline = small_pipeline(tmp_path)
    (pipeline.folder / "events.parquet").unlink()
    with pytest.raises(SharedSourceError, match=r"there is no file .*events\.parquet"):
        list(pipeline.build_features(days(pipeline, *DAYS), Stamp("r", NOW)))
    assert pipeline.state().failures == {}


def test_the_next_attempt_replaces_a_failure_and_a_success_removes_it(tmp_path):
    pipeline = by_day(tmp_path, "2024-02-03")
    for attempt in ("first", "second"):
        with pytest.raises(SourceError):
            list(pipeline.build_features(days(pipeline, *DAYS), Stamp(attempt, NOW)))
        assert [run_id for *_, run_id in failures(pipeline)] == [attempt]
    assert ("features", "2024-02-03") in pipeline.state().failures
    small_events().head(0).write_parquet(pipeline.folder / "days" / "2024-02-03.parquet")
    list(pipeline.build_features(days(pipeline, *DAYS), Stamp("third", NOW)))
    assert failures(pipeline) == []


def test_a_damaged_file_holds_up_no_other_partition(scored):
    path = feature_file(scored, "2024-02-03")
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(DamagedFeaturesError, match="partition 2024-02-03: the bytes of"):
        list(scored.score(days(scored, *DAYS), Stamp("again", NOW), force=True))
    runs = {key: scores.run_id for key, scores in scored.state().scores.items()}
    assert runs == dict.fromkeys(DAYS, "again") | {"2024-02-03": "run"}
    assert [(step, key) for step, key, *_ in failures(scored)] == [("predictions", "2024-02-03")]


def test_a_damaged_bundle_stops_the_step_at_once(scored):
    (version,) = scored.state().registry.versions
    (scored.home.bundle("small", version.version) / "model.skops").write_bytes(b"x")
    fresh = Pipeline(scored.spec, scored.folder, scored.home)
    with pytest.raises(IntegrityError, match="the bundle is not loaded"):
        list(fresh.score(days(scored, *DAYS), Stamp("again", NOW), force=True))
    assert fresh.state().failures == {}


def test_a_partition_that_would_become_empty_is_set_apart_from_those_committed_with_it(scored, monkeypatch):
    monkeypatch.setattr(run, "GROUP_PARTITIONS", 3)
    dearer = FEATURES_SQL.replace("amount", "amount + 1 AS amount", 1)
    without = changed(scored, f"{dearer} AND (id < 1321 OR id > 1360)\n")  # no row of 3 February
    list(without.build_features(days(without, *DAYS), Stamp("again", NOW)))
    with pytest.raises(DataError, match=r"2024-02-03: .*it had 40 rows and would become empty"):
        list(without.score(days(without, *DAYS), Stamp("again", NOW)))
    runs = {key: scores.run_id for key, scores in without.state().scores.items()}
    assert runs == dict.fromkeys(DAYS, "again") | {"2024-02-03": "run"}


def test_a_partition_whose_features_failed_is_not_scored_from_older_ones(scored):
    broken = changed(scored, BROKEN)
    with pytest.raises(SourceError):
        list(broken.build_features(days(broken, *DAYS), Stamp("again", NOW)))
    with pytest.raises(DataError, match=r"partition 2024-02-02: the SQL of .* 1 more partition failed the same way"):
        list(broken.score(days(broken, *DAYS), Stamp("again", NOW), force=True))
    runs = {key: scores.run_id for key, scores in broken.state().scores.items()}
    assert [key for key in DAYS if runs[key] == "run"] == ["2024-02-02", "2024-02-04"]
    assert {step for step, *_ in failures(broken)} == {"features"}, "scoring them was not tried"


def test_an_evaluation_that_fails_holds_up_no_other(scored):
    (scored.folder / "labels.sql").write_text(
        LABELS_SQL.replace("returned\n", "CASE WHEN id = 1300 THEN error('lost') ELSE returned END AS returned\n"),
        encoding="utf-8",
    )
    strict = Pipeline(scored.spec, scored.folder, scored.home)
    with pytest.raises(SourceError, match=r"partition 2024-02-02: the SQL of .*labels\.sql"):
        list(strict.evaluate(days(strict, *DAYS), Stamp("again", NOW + timedelta(days=1))))
    runs = {key: evaluation.run_id for key, evaluation in strict.state().evaluations.items()}
    assert runs == dict.fromkeys(DAYS, "again") | {"2024-02-02": "run"}
    strict.publish()
    with open_published(strict.home) as con:
        assert con.execute(FAILURES).fetchall()[0][:2] == ("performance", "2024-02-02")
