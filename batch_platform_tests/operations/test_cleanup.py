"""What nothing refers to is found and removed, and nothing else."""

import os
import shutil
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from batch_platform.declaration.errors import WarehouseError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import written_aside
from batch_platform.models.promotion import Maker, promote
from batch_platform.models.registry import Registry
from batch_platform.operations.cleanup import _never_promoted, find_garbage, remove_garbage
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.ledger import Promotion, Version
from batch_platform_tests.harness.small_pipeline import (
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
    small_spec,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=40)
UNMET = {"promote": {"metric": "roc_auc", "at_least": 0.999}}


def train_more(pipeline: Pipeline) -> None:
    """Train two versions that are refused, and an approved one that scores nothing."""
    period = pipeline.spec.partitions.calendar.named("2024-02-01")
    strict = small_pipeline(pipeline.home.root.parent, model=UNMET)
    for leaves in (3, 4):
        strict.train(period, Stamp("refused", NOW), params={"max_leaf_nodes": leaves})
    pipeline.train(period, Stamp("unused", NOW), params={"max_leaf_nodes": 5})
    with pipeline.warehouse.open() as con:  # as old as the days that the tests pretend to live in
        con.execute("UPDATE batch_platform.meta SET created_at = '2024-01-01'")


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Everything is scored by an approved model; other versions have scored nothing."""
    return finished_pipeline(tmp_path, NOW, after=train_more)


def garbage_of(pipeline: Pipeline, now: datetime = LATER, keep: timedelta = timedelta(days=30)):
    return find_garbage([pipeline.spec], pipeline.home, now, trained_before=now - keep)


def age(path: Path, days: float) -> None:
    """Make a path look so many days old at LATER."""
    then = (LATER - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


def test_only_versions_that_never_served_and_are_old_go_and_the_newest_stays(pipeline):
    scored, *refused, unused = [version.version for version in pipeline.state().registry.versions]
    assert [item.version for item in garbage_of(pipeline)] == sorted(refused)
    assert garbage_of(pipeline, now=NOW + timedelta(days=1)) == [], "somebody may still promote them"
    remove_garbage(garbage_of(pipeline), pipeline.home, Stamp("gc", LATER))
    folders = {folder.name for folder in (pipeline.home.models / "small").iterdir()}
    assert folders == {scored, unused}
    registry = pipeline.state().registry
    assert [registry.last_decision(version).action for version in refused] == ["removed", "removed"]
    assert len(registry.versions) == 4, "trained versions stay on record"
    assert garbage_of(pipeline) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        ([], "never promoted, trained on 2024-03-02"),
        (["refused"], "never promoted, trained on 2024-03-02"),
        (["waiting", "approved"], None),
        (["approved", "withdrawn"], None),
        (["refused", "removed"], "removed before, but not completely"),
    ],
)
def test_a_version_that_was_promoted_once_never_goes_however_old_it_is(actions, reason):
    unknown = dict.fromkeys((field.name for field in fields(Version)), "")
    version = Version(**{**unknown, "version": "old", "created_at": NOW})
    decisions = [("other", "approved"), *(("old", action) for action in actions)]
    promotions = [Promotion("small", name, action, "", "{}", "me", NOW, "run") for name, action in decisions]
    assert _never_promoted(Registry("small", [version], promotions), version, LATER) == reason


def test_a_bundle_that_was_never_registered_goes_once_no_run_can_be_writing_it(pipeline):
    versions = pipeline.home.models / "small"
    orphan = shutil.copytree(next(versions.iterdir()), versions / "2024-02-01-00000000")
    age(orphan, days=0.5)
    assert orphan not in [item.path for item in garbage_of(pipeline)]
    age(orphan, days=1.5)
    (item,) = [item for item in garbage_of(pipeline) if item.path == orphan]
    assert (item.kind, item.version, item.reason) == ("bundle", "", "never registered: its run was killed")
    assert item.size == sum(file.stat().st_size for file in orphan.iterdir())
    remove_garbage([item], pipeline.home, Stamp("gc", LATER))
    assert not orphan.exists()


def test_features_that_are_unrecorded_or_of_dropped_partitions_go(pipeline):
    later = small_spec(partitions={"start": "2024-01-03"})
    dropped = find_garbage([later], pipeline.home, NOW, trained_before=NOW - timedelta(days=30))
    first, second, third = (feature_file(pipeline, f"2024-01-0{day}") for day in (1, 2, 3))
    assert [item.path for item in dropped] == [first, second]
    folder = first.parent
    unrecorded, stray, aside = (
        folder / "2024-02-30.0123456789ab.parquet",
        folder / "notes.txt",
        folder / f".{0:032}.parquet",
    )
    for path in (unrecorded, stray, aside):
        path.write_bytes(b"x")
    with written_aside(folder):
        assert {item.path for item in garbage_of(pipeline) if item.kind == "features"} == {unrecorded, aside}
    remove_garbage(dropped, pipeline.home, Stamp("gc", NOW))
    assert not first.exists()
    assert third.exists()


def test_the_file_of_an_earlier_build_goes_once_no_run_can_be_reading_it(pipeline):
    day = pipeline.spec.partitions.calendar.named("2024-01-05")
    before = feature_file(pipeline, day.key)
    changed = small_pipeline(pipeline.folder.parent, events=small_events().with_columns(pl.col("amount") + 1))
    list(changed.build_features([day], Stamp("again", NOW), force=True))
    assert feature_file(pipeline, day.key) != before
    age(before, days=50)
    assert [item for item in garbage_of(pipeline, now=NOW + timedelta(days=0.9)) if item.kind == "features"] == []
    (superseded,) = [item for item in garbage_of(pipeline) if item.kind == "features"]
    assert (superseded.path, superseded.reason) == (before, "replaced by the build of 2024-03-02")
    remove_garbage([superseded], pipeline.home, Stamp("gc", LATER))
    assert not before.exists()
    assert changed.history.require(changed.state().features, day)


def promotion_of(pipeline: Pipeline, version: str):
    state = pipeline.state()
    return promote(state.registry, state.scores, version, Maker(actor="test", at=LATER)).promotion


def test_f30_a_version_promoted_after_it_was_found_stays(pipeline):
    first, second = garbage_of(pipeline)
    pipeline.decide(promotion_of(pipeline, first.version), pipeline.state())
    assert remove_garbage([first, second], pipeline.home, Stamp("gc", LATER)) == [second]
    assert (first.path.is_dir(), second.path.exists()) == (True, False)
    registry = pipeline.state().registry
    assert registry.last_decision(first.version).action == "approved"
    assert registry.present(first.version)


def test_f30_a_version_removed_after_the_decision_to_promote_it_is_not_promoted(pipeline):
    (first, _) = garbage_of(pipeline)
    promotion, before = promotion_of(pipeline, first.version), pipeline.state()
    remove_garbage([first], pipeline.home, Stamp("gc", LATER))
    with pytest.raises(WrongUseError, match=f"the bundle of {first.version} was removed by gc"):
        pipeline.decide(promotion, before)
    assert pipeline.state().registry.last_decision(first.version).action == "removed"


def test_nothing_is_removed_by_ledgers_that_are_younger_than_the_files(pipeline):
    with pipeline.warehouse.open() as con:
        con.execute("UPDATE batch_platform.meta SET created_at = '2024-06-01'")
        con.execute("DELETE FROM batch_platform.feature_builds")
    for path in (pipeline.home.lake / "small" / "features").iterdir():
        os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    with pytest.raises(WarehouseError, match=r"was created after .* was written, .* nothing was removed"):
        garbage_of(pipeline)
