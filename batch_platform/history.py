"""Recorded features joined with their labels: what training learns from and what predictions are held against.

Reads the lake and the label query; writes nothing, and knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import polars as pl

from batch_platform.errors import DataError, IntegrityError
from batch_platform.features import FeatureBuilder, FeatureSession, file_sha256
from batch_platform.home import Home
from batch_platform.partitions import Partition
from batch_platform.spec import PipelineSpec
from batch_platform.training import TrainingData
from batch_platform.warehouse import FeatureBuild

RECENT_LABELS = 2_000
_HELD_OUT = "__held_out"


@dataclass(frozen=True)
class History:
    """The past of one pipeline, as recorded in one home."""

    spec: PipelineSpec
    home: Home
    builder: FeatureBuilder
    _labels: dict[str, pl.DataFrame] = field(default_factory=dict[str, pl.DataFrame], init=False, repr=False, compare=False)

    def file(self, partition: Partition) -> Path:
        """Where the features of a partition lie."""
        return self.home.features(self.spec.name, partition.key)

    def is_recorded(self, build: FeatureBuild) -> bool:
        """Whether the file of a build is there and, by its size and time or else by its hash, the one recorded."""
        path = self.home.features(self.spec.name, build.partition_key)
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size == build.file_bytes and stat.st_mtime_ns == build.file_mtime_ns:
            return True
        return file_sha256(path) == build.sha256

    def require(self, builds: Mapping[str, FeatureBuild], partition: Partition) -> FeatureBuild:
        """The build of a partition, which must exist.

        Raises:
            DataError: Its features are not built, or their file is gone or another one.
        """
        if (build := builds.get(partition.key)) is not None:
            return build
        msg = f"{self.spec.name}, partition {partition.key}: its features are not built, or their file has changed."
        hint = f"materialize them first: batch-platform run {self.spec.name} --partition {partition.key}"
        raise DataError(msg, hint=hint)

    def labels(self, session: FeatureSession, partition: Partition) -> pl.DataFrame:
        """The labels of a partition, read once in this process for one state of the sources.

        Raises:
            SourceError: `labels.sql` fails.
            DataError: Its keys are not unique.
        """
        key = f"{partition.key} {self.builder.sources.versions(partition)}"
        if key not in self._labels:
            if len(self._labels) >= RECENT_LABELS:
                self._labels.pop(next(iter(self._labels)))
            self._labels[key] = session.labels(partition)
        return self._labels[key]

    def training_data(
        self, builds: Mapping[str, FeatureBuild], window: Sequence[Partition], boundary: datetime
    ) -> TrainingData:
        """All rows of a training window whose label is known, in the order of time.

        Args:
            builds: By partition key.
            window: Its partitions, oldest first.
            boundary: Partitions from here on are for evaluation.

        Raises:
            DataError: Features are not built.
            IntegrityError: The bytes of a feature file are not those recorded.
        """
        label = None if self.spec.labels is None else self.spec.labels.column
        frames: list[pl.DataFrame] = []
        with self.builder.session(window[0]) as session:
            for partition in window:
                rows = self._verified(self.require(builds, partition), partition)
                if label is not None:
                    known = self.labels(session, partition)
                    rows = rows.join(known, on=self.spec.features.key, how="inner", maintain_order="left")
                frames.append(rows.with_columns(pl.lit(partition.start >= boundary).alias(_HELD_OUT)))
        rows = pl.concat(frames, how="vertical_relaxed")
        held_out = rows[_HELD_OUT]
        rows = rows.drop(_HELD_OUT)
        return TrainingData(fit=rows.filter(~held_out), evaluate=rows.filter(held_out), label=label)

    def _verified(self, build: FeatureBuild, partition: Partition) -> pl.DataFrame:
        path = self.file(partition)
        if file_sha256(path) != build.sha256:
            msg = f"{self.spec.name}, partition {partition.key}: the bytes of {path} are not those that were recorded."
            hint = f"batch-platform run {self.spec.name} --partition {partition.key} --force builds it again."
            raise IntegrityError(msg, hint=hint)
        return pl.read_parquet(path)


def fingerprint(builds: Mapping[str, FeatureBuild], window: Sequence[Partition]) -> str:
    """One hash over the partition keys and feature files of a window."""
    lines = (f"{partition.key} {builds[partition.key].sha256}\n" for partition in window)
    return sha256("".join(lines).encode()).hexdigest()
