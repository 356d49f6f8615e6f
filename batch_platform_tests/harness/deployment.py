"""The small pipeline as Dagster runs it: a real instance, with files and home in one temporary folder."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from batch_platform.cli.instance import prepare_instance
from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.dagster_internals import open_without_capture
from batch_platform.components.events import log_unknown_commits
from batch_platform.components.wiring import Wiring, stamp_of
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform_tests.harness.small_pipeline import small_pipeline
from batch_platform_tests.harness.starting_points import made_once

SCORED_FROM = "2024-02-01"  # the first day that the small pipeline's only model serves


@dataclass(frozen=True)
class Deployment:
    """A pipeline and the Dagster instance that runs it."""

    pipeline: Pipeline
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    @property
    def wiring(self) -> Wiring:
        return Wiring(self.pipeline.spec, self.pipeline.folder)

    def key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.pipeline.spec.name, asset])

    def run(
        self,
        *assets: str,
        first: str | None = None,
        last: str | None = None,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets in one run: over a range with `last`, for one partition with only `first`."""
        keys = [self.key(asset) for asset in assets]
        ops = {
            self.key(asset).to_python_identifier(): {"config": dict(values)} for asset, values in (config or {}).items()
        }
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            run_config={"ops": ops, "loggers": QUIET},
            instance=self.instance,
            asset_selection=keys,
            tags={**_partition_tags(first, last), **(tags or {})},
            raise_on_error=False,
        )

    def materializations(self, asset: str, run_id: str | None = None) -> list[dg.EventLogEntry]:
        """The materializations of an asset, oldest first."""
        records = self.instance.fetch_materializations(self.key(asset), limit=1000).records
        entries = [record.event_log_entry for record in reversed(records)]
        return [entry for entry in entries if run_id is None or entry.run_id == run_id]

    def observations(self, asset: str) -> list[dg.EventLogEntry]:
        """The observations of a source, oldest first."""
        records = self.instance.fetch_observations(self.key(asset), limit=1000).records
        return [record.event_log_entry for record in reversed(records)]

    def days(self, first: str, last: str) -> list[str]:
        """The keys of the partitions between two keys, both included."""
        calendar = self.pipeline.spec.partitions.calendar
        return [partition.key for partition in calendar.within(calendar.named(first).start, calendar.named(last).end)]

    def train(self, period: str = SCORED_FROM) -> None:
        """Build all features before a serving period and train its model, without Dagster."""
        calendar = self.wiring.serving_period(period)
        pipeline = self.pipeline
        window = pipeline.spec.partitions.calendar.within(pipeline.spec.partitions.calendar.first_start, calendar.start)
        for _ in pipeline.build_features(window, stamp_of("training")):
            pass
        pipeline.train(calendar, stamp_of("training"))
        pipeline.conclude(stamp_of("training").at)

    def score(self, first: str, last: str, run_id: str = "elsewhere") -> None:
        """Commit and publish predictions that Dagster is not told of, as if a run had died before it told Dagster."""
        partitions = self.wiring.named(self.days(first, last))
        for _ in self.pipeline.build_features(partitions, stamp_of(run_id)):
            pass
        for _ in self.pipeline.score(partitions, stamp_of(run_id)):
            pass
        self.pipeline.conclude(stamp_of(run_id).at)


QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


def deploy_trained(tmp_path: Path, monkeypatch: Any, *, known: bool = False, **overrides: Any) -> Deployment:
    """As `deploy`, with January's features and February's model, which are made once per session and copied.

    If they are `known`, Dagster has logged them, as the first tick of a schedule would.
    """

    def train(deployment: Deployment) -> None:
        deployment.train()
        if known:
            log_unknown_commits(deployment.wiring, deployment.instance, deployment.pipeline.state(), ())

    return deploy_after(train, tmp_path, monkeypatch, name="trained-known" if known else "trained", **overrides)


def deploy_after(
    step: Callable[[Deployment], object],
    tmp_path: Path,
    monkeypatch: Any,
    *,
    name: str,
    trained: bool = False,
    **overrides: Any,
) -> Deployment:
    """As `deploy`, with what a step leaves in the home of the pipeline as it is.

    That is made once per session, under a name that no other step has, and copied.
    """

    def make(folder: Path) -> None:
        with monkeypatch.context() as aside:
            step((deploy_trained if trained else deploy)(folder, aside))

    shutil.copytree(made_once(tmp_path, name, make) / "home", tmp_path / "home", symlinks=True)
    return deploy(tmp_path, monkeypatch, **overrides)


def deploy(
    tmp_path: Path, monkeypatch: Any, *, resources: Mapping[str, Any] | None = None, **overrides: Any
) -> Deployment:
    """Write the small pipeline below `tmp_path` and load it into Dagster, with the user's resources; overrides as for `small_pipeline`."""
    pipeline = small_pipeline(tmp_path, **overrides)

    def make(folder: Path) -> None:
        with monkeypatch.context() as aside:
            aside.setenv("DAGSTER_HOME", str(Home(folder).dagster))
            prepare_instance(Home(folder))

    if not (pipeline.home.dagster / "dagster.yaml").exists():
        instance = Home(made_once(tmp_path, "instance", make)).dagster
        shutil.copytree(instance, pipeline.home.dagster, dirs_exist_ok=True)
    monkeypatch.setenv(HOME_VARIABLE, str(pipeline.home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(pipeline.home.dagster))
    definitions = build_definitions(pipeline.spec, pipeline.folder, resources)
    return Deployment(pipeline, definitions, open_without_capture(prepare_instance(pipeline.home)))


def _partition_tags(first: str | None, last: str | None) -> dict[str, str]:
    """The tags of a run over a range, or over one partition, which Dagster's own argument allows for equal partitions only."""
    return {PARTITION_NAME_TAG: first} if first is not None and last is None else range_tags(first, last)


def range_tags(first: str | None, last: str | None) -> dict[str, str]:
    """The tags that make a run cover a range of partitions."""
    if first is None or last is None:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
