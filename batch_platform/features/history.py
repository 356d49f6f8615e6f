"""Recorded features joined with their labels: what training learns from and what predictions are held against.

Reads the lake and the label query; writes nothing, and knows nothing of models.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, IntegrityError, SourceError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureBuilder, FeatureSession
from batch_platform.features.labelled import TrainingData, feature_columns
from batch_platform.features.lake import file_sha256
from batch_platform.features.row_checks import with_keys_of
from batch_platform.features.sample import Sample
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild

RECENT_LABELS = 2_000
_HELD_OUT = "__held_out"


@dataclass(frozen=True)
class History:
    """The past of one pipeline, as recorded in one home."""

    spec: PipelineSpec
    home: Home
    builder: FeatureBuilder
    _labels: dict[tuple[str, ...], pl.DataFrame] = field(
        default_factory=dict[tuple[str, ...], pl.DataFrame], init=False, repr=False, compare=False
    )

    def file(self, partition: Partition) -> Path:
        """Where the features of a partition lie."""
        return self.home.features(self.spec.name, partition.key)

    def recorded(self, builds: Mapping[str, FeatureBuild]) -> dict[str, FeatureBuild]:
        """The builds whose file is there and, by its size and time or else by its hash, the one recorded."""
        files = self.home.feature_files(self.spec.name)
        return {key: build for key, build in builds.items() if _is_as(build, files.get(key)) or self._is_same(build)}

    def _is_same(self, build: FeatureBuild) -> bool:
        path = self.home.features(self.spec.name, build.partition_key)
        return path.is_file() and (_is_as(build, path.stat()) or file_sha256(path) == build.sha256)

    def require(self, builds: Mapping[str, FeatureBuild], *partitions: Partition) -> list[FeatureBuild]:
        """The builds of partitions, which must exist.

        Raises:
            DataError: Features are not built, or their file is gone or another one.
        """
        missing = [partition.key for partition in partitions if partition.key not in builds]
        if missing:
            name = self.spec.name
            msg = f"{name}, partition {listed(missing)}: its features are not built, or their file has changed."
            raise DataError(msg, hint=materialize_hint(name, missing))
        return [builds[partition.key] for partition in partitions]

    def features(self, build: FeatureBuild, partition: Partition) -> pl.DataFrame:
        """The features of a build, after checking every byte of their file.

        Raises:
            IntegrityError: The file is not the one recorded.
        """
        self.require_unchanged(build, partition)
        return pl.read_parquet(self.file(partition))

    def labels(self, session: FeatureSession, partition: Partition, stamp: Stamp | None = None) -> pl.DataFrame:
        """The labels of a partition: key columns and the label, never null or NaN.

        Args:
            session: Of the builder.
            partition: The partition.
            stamp: Of a run, which reads the labels of a partition once; None reads them now.

        Raises:
            SourceError: `labels.sql` fails.
            DataError: Its keys are not unique.
        """
        if stamp is None:
            return _without_nan(session.labels(partition))
        key = (stamp.run_id, stamp.at.isoformat(), str(self.builder.sources.versions(partition)), partition.key)
        if key not in self._labels:
            if len(self._labels) >= RECENT_LABELS:
                self._labels.pop(next(iter(self._labels)))
            self._labels[key] = self.labels(session, partition)
        return self._labels[key]

    def training_data(
        self,
        builds: Mapping[str, FeatureBuild],
        window: Sequence[Partition],
        boundary: datetime,
        stamp: Stamp,
        *,
        stratified: bool = False,
    ) -> TrainingData:
        """The rows of a training window whose label is known, in the order of time: feature columns and the label.

        All of them, or with `model.train.max_rows` a sample of those to learn from; no other column is read.

        Args:
            builds: By partition key.
            window: Its partitions, oldest first.
            boundary: Partitions from here on are for evaluation.
            stamp: Of the run; labels are those known to it.
            stratified: Whether a sample keeps the share of each label.

        Raises:
            DataError: Features are not built, or were built by an earlier version of the SQL; or the columns of two
                partitions do not go together.
            IntegrityError: The bytes of a feature file are not those recorded.
        """
        label = None if self.spec.labels is None else self.spec.labels.column
        most = self.spec.model.train.max_rows
        fit, later = Sample(most, label if stratified else None), list[pl.DataFrame]()
        with self.builder.session(window[0]) as session:
            for build, partition in zip(self.require(builds, *window), window, strict=True):
                rows = self._learnable(build, partition)
                if label is not None:
                    known = with_keys_of(
                        rows, self.spec, partition, self.labels(session, partition, stamp), what="labels"
                    )
                    rows = rows.join(known, on=self.spec.features.key, how="inner", maintain_order="left")
                held_out = partition.start >= boundary
                rows = rows.drop(self.spec.features.key).with_columns(pl.lit(held_out).alias(_HELD_OUT))
                (later.append if held_out else fit.add)(rows)
        rows = self._joined([*fit.frames(), *later])
        held_out = rows[_HELD_OUT]
        rows = rows.drop(_HELD_OUT)
        return TrainingData(
            fit=rows.filter(~held_out), evaluate=rows.filter(held_out), label=label, rows_before_cap=fit.seen
        )

    def rows(self, builds: Mapping[str, FeatureBuild], window: Sequence[Partition]) -> pl.DataFrame:
        """All rows of a window, in the order of time, whether their label is known or not: feature columns.

        Raises:
            DataError: As for `training_data`.
            IntegrityError: The bytes of a feature file are not those recorded.
        """
        frames = [
            self._learnable(build, partition)
            for build, partition in zip(self.require(builds, *window), window, strict=True)
        ]
        return self._joined(frames).drop(self.spec.features.key)

    def source_versions(self, builds: Mapping[str, FeatureBuild]) -> dict[str, str]:
        """As recorded in builds, but with the versions now of the sources that have a file for each partition.

        A build whose source files are gone is left out: they cannot give anything newer.
        """
        own = self.builder.own_feature_sources
        if not own:
            return {}
        calendar = self.spec.partitions.calendar
        found: dict[str, str] = {}
        for key, build in builds.items():
            with suppress(SourceError, WrongUseError):
                now = {name: self.builder.sources.version(name, calendar.named(key)) for name in own}
                found[key] = json.dumps(json.loads(build.sources) | now, sort_keys=True)
        return found

    def label_versions(self, evaluations: Iterable[str]) -> dict[str, str]:
        """As recorded in evaluations, but now; where a file is gone, nothing newer can be learnt."""
        if not self.builder.own_label_sources:
            return {}
        calendar, found = self.spec.partitions.calendar, dict[str, str]()
        for key in evaluations:
            with suppress(SourceError, WrongUseError):
                found[key] = self.builder.label_versions(calendar.named(key))
        return found

    def label_fingerprint(self, window: Iterable[Partition]) -> str:
        """One hash over the versions now of a window's labels; empty where no source has a file of labels for each partition.

        Raises:
            SourceError: A file is missing.
        """
        return labels_fingerprint(window, self.builder.label_versions) if self.builder.own_label_sources else ""

    def _learnable(self, build: FeatureBuild, partition: Partition) -> pl.DataFrame:
        """Key and feature columns of a build; the others are not read."""
        if build.code_version != self.builder.code_version:
            msg = f"{self.spec.name}, partition {partition.key}: its features were built by an earlier version of the SQL."
            hint = f"build them again: batch-platform run {self.spec.name} --partition {partition.key} --force"
            raise DataError(msg, hint=hint)
        self.require_unchanged(build, partition)
        path = self.file(partition)
        present = pl.read_parquet_schema(path)
        return pl.read_parquet(path, columns=[*self.spec.features.key, *feature_columns(self.spec.features, present)])

    def _joined(self, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One frame of all; those without rows have no say in the columns' types."""
        filled = [frame for frame in frames if frame.height] or list(frames[:1])
        try:
            return pl.concat(filled, how="vertical_relaxed")
        except (pl.exceptions.SchemaError, pl.exceptions.ShapeError) as error:
            msg = f"{self.spec.name}: the features of the training window do not go together: {error}."
            raise DataError(msg, hint="give every partition the same columns and types in the features.") from error

    def require_unchanged(self, build: FeatureBuild, partition: Partition) -> None:
        """Check every byte of a build's file.

        Raises:
            IntegrityError: The file is not the one recorded.
        """
        path = self.file(partition)
        if not path.is_file() or file_sha256(path) != build.sha256:
            msg = f"{self.spec.name}, partition {partition.key}: the bytes of {path} are not those that were recorded."
            hint = f"batch-platform run {self.spec.name} --partition {partition.key} --force builds it again."
            raise IntegrityError(msg, hint=hint)


def materialize_hint(pipeline: str, keys: Iterable[str]) -> str:
    """What to do where features are missing."""
    ordered = sorted(keys)
    which = f"--partition {ordered[0]}" if len(ordered) == 1 else f"--from {ordered[0]} --to {ordered[-1]}"
    return f"materialize them first, in the UI or where a model serves them by: batch-platform run {pipeline} {which}"


def _is_as(build: FeatureBuild, found: os.stat_result | None) -> bool:
    """Whether a file has the size and the time that were recorded of it."""
    return found is not None and (found.st_size, found.st_mtime_ns) == (build.file_bytes, build.file_mtime_ns)


def labels_fingerprint(window: Iterable[Partition], version_of: Callable[[Partition], str]) -> str:
    """One hash over the versions of the labels of a window."""
    lines = (f"{partition.key} {version_of(partition)}\n" for partition in window)
    return sha256("".join(lines).encode()).hexdigest()


def _without_nan(labels: pl.DataFrame) -> pl.DataFrame:
    label = labels.columns[-1]
    return labels.drop_nans(label) if labels[label].dtype.is_float() else labels


def fingerprint(builds: Mapping[str, FeatureBuild], window: Sequence[Partition]) -> str:
    """One hash over the partition keys and feature files of a window."""
    lines = (f"{partition.key} {builds[partition.key].sha256}\n" for partition in window)
    return sha256("".join(lines).encode()).hexdigest()
