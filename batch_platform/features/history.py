"""Recorded features joined with their labels: what training learns from and what predictions are compared with.

Reads the lake and the label query, and writes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import astuple, dataclass, field
from datetime import datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

import polars as pl
from xxhash import xxh3_64_intdigest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, SourceError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.spec import Features, PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureBuilder, FeatureSession
from batch_platform.features.fingerprints import (
    Fingerprint,
    Fingerprints,
    LabelChanges,
    Look,
    ReadBy,
    SourceChanges,
    Taken,
    is_recent,
)
from batch_platform.features.lake import feature_file_sizes, open_recorded
from batch_platform.features.row_checks import with_keys_of
from batch_platform.features.training_data import (
    ENTITY,
    FIRST_HALF,
    GROUP,
    PARTITION_START,
    ROW,
    ROW_TIME,
    SEED,
    Learnable,
    LearnableRows,
    RecentLabels,
    Rows,
    Sample,
    TrainingData,
    class_counts,
)
from batch_platform.sources.objects import absence
from batch_platform.warehouse.home import Home, feature_file_name
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild


def feature_columns(features: Features, present: Mapping[str, pl.DataType]) -> list[str]:
    """Select the columns that a model is given: all but key, time and those declared `feature: false`."""
    beside = {*features.key, features.time, ROW_TIME, ENTITY, PARTITION_START, GROUP, ROW, FIRST_HALF, WEIGHT}
    left_out = beside | {name for name, rule in features.columns.items() if not rule.feature}
    return [name for name in present if name not in left_out]


def never_learned_from(spec: PipelineSpec, rows: pl.DataFrame, part: float = 1.0) -> pl.Series:
    """Mark a share of the rows of a snapshot that no judged fit learns from, by a hash that is the same in every snapshot."""
    return snapshot_hashes(spec, rows) < int(spec.model.train.held_out * part * 2**64)


def snapshot_hashes(spec: PipelineSpec, rows: pl.DataFrame) -> pl.Series:
    """A hash of the group of each row of a snapshot, or of its key: the same in every snapshot."""
    return _hashes(rows.select(spec.model.train.group or spec.features.key), SEED)


def _hashes(values: pl.DataFrame, seed: int) -> pl.Series:
    """A hash of each row, which no version of a library changes."""
    texts = pl.exclude(pl.Binary).cast(pl.String).fill_null("")
    text = pl.concat_str(texts, pl.col(pl.Binary).bin.encode("hex"), separator="\0")
    return pl.Series(
        [xxh3_64_intdigest(value.encode(), seed) for value in values.select(text).to_series()], dtype=pl.UInt64
    )


@dataclass(frozen=True)
class History:
    """The recorded features of one pipeline in one home, and their labels."""

    spec: PipelineSpec
    home: Home
    builder: FeatureBuilder
    _labels: RecentLabels = field(default_factory=RecentLabels, init=False, repr=False, compare=False)
    _learnable: LearnableRows = field(default_factory=LearnableRows, init=False, repr=False, compare=False)
    _label_digests: dict[tuple[str, str], str] = field(  # key: partition and version of the files
        default_factory=dict[tuple[str, str], str], init=False, repr=False, compare=False
    )

    def file(self, build: FeatureBuild) -> Path:
        """Return the path of the feature file of a build."""
        return self.home.feature_file(self.spec.name, build.partition_key, build.sha256)

    def recorded(self, builds: Mapping[str, FeatureBuild]) -> dict[str, FeatureBuild]:
        """Select the builds whose file exists, judged by its name and size; its bytes are checked when it is read."""
        sizes = feature_file_sizes(self.home.features(self.spec.name))
        return {
            key: build
            for key, build in builds.items()
            if sizes.get(feature_file_name(key, build.sha256)) == build.file_bytes or self._is_linked(build)
        }

    def _is_linked(self, build: FeatureBuild) -> bool:
        """Return whether the file of a build lies elsewhere in the lake, behind a link."""
        path = self.file(build)
        return path.is_symlink() and path.is_file() and path.stat().st_size == build.file_bytes

    def require(self, builds: Mapping[str, FeatureBuild], *partitions: Partition) -> list[FeatureBuild]:
        """Return the builds of partitions; raises DataError if features are not built, or their file is not as recorded."""
        missing = [partition.key for partition in partitions if partition.key not in builds]
        if missing:
            name = self.spec.name
            msg = f"{name}, partition {listed(missing)}: the features are not built, or their file has changed."
            raise DataError(msg, hint=materialize_hint(name, missing))
        return [builds[partition.key] for partition in partitions]

    def features(self, build: FeatureBuild) -> pl.DataFrame:
        """Read the features of a build after checking every byte of its file."""
        self.require_unchanged(build)
        return pl.read_parquet(self.file(build))

    def labels(self, session: FeatureSession, partition: Partition, stamp: Stamp) -> pl.DataFrame:
        """Read the labels of a partition, once in a run. Returns and raises what `FeatureSession.labels` does."""
        versions = str(self.builder.sources.versions(partition, self.builder.label_sources))
        key = (stamp.run_id, stamp.at.isoformat(), versions, partition.key)
        return self._labels.get(key, lambda: session.labels(partition))

    def labels_of(
        self, session: FeatureSession, partitions: Sequence[Partition], most_rows: int, stamp: Stamp
    ) -> Iterator[Callable[[], pl.DataFrame]]:
        """The labels of partitions as `FeatureSession.labels_of` gives them; those that are read alone, once in a run."""
        return session.labels_of(partitions, most_rows, lambda partition: self.labels(session, partition, stamp))

    def reading_once(self) -> AbstractContextManager[None]:
        """Have trainings within the block read each feature file and its labels once, as far as they fit into memory."""
        return self._learnable.kept()

    def training_data(
        self,
        builds: Mapping[str, FeatureBuild],
        window: Sequence[Partition],
        boundary: datetime,
        stamp: Stamp,
        *,
        stratified: bool = False,
    ) -> TrainingData:
        """Read the rows of a training window whose label is known, in order of time; see `TrainingData`.

        With `model.train.max_rows` the rows to fit on are a sample, which keeps the share of each label if it is `stratified`.
        Partitions that start at `boundary` or later are for evaluation; of a snapshot, the rows held out. Earlier partitions whose
        labels were not known at `boundary` are kept apart, as are rows of a `model.train.group` that is evaluated.

        Raises DataError if features are not built, or by an earlier SQL, or their columns differ, and IntegrityError for other bytes.
        """
        label = None if self.spec.labels is None else self.spec.labels.column
        most = self.spec.model.train.max_rows
        balanced = stratified and self.spec.model.train.sample == "balanced"
        by, later = label if stratified else None, list[pl.DataFrame]()
        fit, not_known = Sample(most, by, balanced=balanced), Sample(most, by, balanced=balanced and most is not None)
        known_from = {partition.start: self.spec.periods.matures(partition) for partition in window}
        rows_unlabelled, nulls, keys, halves = 0, Counter[str](), [pl.Series(dtype=pl.UInt64)], list[pl.Series]()
        labelled: pl.Series | None = None
        for partition, learnable in zip(window, self._learnable_rows(builds, window, stamp), strict=True):
            rows_unlabelled += learnable.unlabelled
            nulls.update(learnable.nulls_unlabelled)
            keyed, rows, is_later = learnable.keyed, learnable.rows, partition.start >= boundary
            if self.spec.partitions.snapshot:
                held_out, labelled = never_learned_from(self.spec, keyed), snapshot_hashes(self.spec, keyed)
                fit.add(rows.filter(~held_out))
                keyed, rows, is_later = keyed.filter(held_out), rows.filter(held_out), True
                halves.append(never_learned_from(self.spec, keyed, 0.5))
            elif not is_later:
                (fit if known_from[partition.start] <= boundary else not_known).add(rows)
            if is_later:
                later.append(rows)
                keys.append(
                    _hashes(keyed.select(self.spec.features.key), xxh3_64_intdigest(partition.key.encode(), SEED))
                )
        parts = [fit.frames(), not_known.frames(), later]
        fitted, between, _ = (sum(frame.height for frame in part) for part in parts)
        rows = self._joined([frame for part in parts for frame in part])
        beside = [pl.concat(hashes).alias(name) for name, hashes in ((ROW, keys), (FIRST_HALF, halves)) if hashes]
        earlier, late = rows.head(fitted), rows.slice(fitted, between)
        evaluate = rows.slice(fitted + between).with_columns(beside)
        grouped = bool(self.spec.model.train.group) and not self.spec.partitions.snapshot
        unseen = earlier.filter(~pl.col(ENTITY).is_in(evaluate[ENTITY].implode())) if grouped else earlier
        apart = earlier.height - unseen.height
        return TrainingData(
            fit=unseen,
            evaluate=evaluate,
            label=label,
            rows_before_cap=fit.seen - apart,
            balanced=balanced,
            classes_before_cap=fit.counts if by else {},
            rows_unlabelled=rows_unlabelled,
            nulls_unlabelled=nulls,
            by_entity=self.spec.partitions.snapshot,
            rows_apart=apart,
            earlier=earlier if grouped else None,
            not_known=Rows(late, not_known.seen, (not_known.counts or class_counts(late, by)) if by else {})
            if not_known.seen
            else None,
            known_from=known_from,
            labelled=labelled,
            calendar=self.spec.partitions.calendar,
        )

    def _learnable_rows(
        self, builds: Mapping[str, FeatureBuild], window: Sequence[Partition], stamp: Stamp
    ) -> Iterator[Learnable]:
        """The rows of each partition of a window that a model can learn from; those that are kept are not read again."""
        present = [
            (build.sha256, str(self.builder.sources.versions(partition, self.builder.label_sources)))
            for build, partition in zip(self.require(builds, *window), window, strict=True)
        ]
        kept = [self._learnable.get(it.key, read_from) for it, read_from in zip(window, present, strict=True)]
        missing = [partition for partition, held in zip(window, kept, strict=True) if held is None]
        with self.builder.session(labels=True) as session:
            most_rows = max((builds[partition.key].rows for partition in missing), default=0)
            labels = self.labels_of(session, missing, most_rows, stamp)
            for partition, read_from, held in zip(window, present, kept, strict=True):
                learnable = held
                if learnable is None:
                    learnable = self._read_learnable(builds[partition.key], partition, read_from, labels)
                    self._learnable.add(partition.key, learnable)
                yield learnable

    def _read_learnable(
        self,
        build: FeatureBuild,
        partition: Partition,
        read_from: tuple[str, str],
        labels: Iterator[Callable[[], pl.DataFrame]],
    ) -> Learnable:
        """Read a partition and join it with the next labels."""
        rows, unlabelled, nulls = self._features_of(build), 0, Counter[str]()
        if self.spec.labels is not None:
            known = with_keys_of(rows, self.spec, partition, next(labels)(), what="labels")
            unknown = rows.join(known, on=self.spec.features.key, how="anti")
            unlabelled = unknown.height
            nulls.update({column.name: column.null_count() for column in unknown if unlabelled})
            rows = rows.join(known, on=self.spec.features.key, how="inner", maintain_order="left")
        return Learnable(read_from, rows, self._beside_features(rows, partition), unlabelled, nulls)

    def rows(self, builds: Mapping[str, FeatureBuild], window: Sequence[Partition]) -> pl.DataFrame:
        """Read the feature columns and PARTITION_START of all rows of a window, in order of time; raises what `training_data` does."""
        frames = [
            self._features_of(build).with_columns(_starting(partition))
            for build, partition in zip(self.require(builds, *window), window, strict=True)
        ]
        rows = self._joined(frames)
        return rows.select(*feature_columns(self.spec.features, rows.schema), PARTITION_START)

    def source_changes(
        self,
        builds: Mapping[str, FeatureBuild],
        recorded: Taken,
        look: Look,
        *,
        scored: Collection[str],
    ) -> SourceChanges:
        """Compare the sources with those that builds were made from, by version and, where versions differ, by rows.

        Of sources with the rows of many partitions, only as many of the newest partitions are looked at as `late` says, and
        those without rows; with `look.recheck`, all. Partitions that are not `scored` are only learned from, perhaps much later:
        unless `late` is declared, they are looked at however old they are. Fingerprints are taken unless they are `recorded` of the present version.
        What could not be looked at is noted in the look.
        """
        versions, gone = self._own_versions(builds, look)
        partitions = self._named(builds) if self.builder.dated.watched else {}
        changed, taken = dict[str, str](), dict[tuple[ReadBy, str], Fingerprints]()
        newest = _newest_end(builds, partitions)
        for name in self.builder.dated.shared if partitions else ():
            try:
                version = self.builder.sources.version(name, next(iter(partitions.values())))
            except SourceError as error:
                gone |= dict.fromkeys(partitions if look.finds_gone(name, error) else (), f"source {name!r} is gone")
                continue
            older = [key for key in partitions if json.loads(builds[key].sources).get(name) != version]
            with look.at(name):
                held = self.builder.dated.taken(name, version, recorded, most_bytes=look.most_bytes) if older else None
                if held is None:
                    continue
                taken["features", name], lateness = held, self.spec.sources[name].lateness
                for key in older:
                    was = json.loads(builds[key].fingerprints).get(name)
                    then, now = Fingerprint(*was) if was else None, held.of(partitions[key])
                    if then is None or then == now:
                        continue
                    if then.rows and not now.rows:
                        gone[key] = now.change_since(then, name)
                    elif (
                        look.recheck
                        or not then.rows
                        or is_recent(lateness, partitions[key].end, newest)
                        or (self.spec.sources[name].late is None and key not in scored)
                    ):
                        changed[key] = now.change_since(then, name)
        for name in self.builder.dated.selected:
            late = self.spec.sources[name].lateness
            recent = [it for it in partitions.values() if look.recheck or is_recent(late, it.end, newest)]
            with look.at(name):
                for key, then, now in self.builder.dated.changes(name, recent, builds, look.most_bytes):
                    (changed if now.rows else gone)[key] = now.change_since(then, name)
        return SourceChanges(versions, changed, gone, taken)

    def _named(self, keys: Iterable[str]) -> dict[str, Partition]:
        """The partitions of some keys; those that are no longer declared are left out."""
        partitions = dict[str, Partition]()
        for key in keys:
            with suppress(WrongUseError):
                partitions[key] = self.spec.partitions.calendar.named(key)
        return partitions

    def _own_versions(self, builds: Mapping[str, FeatureBuild], look: Look) -> tuple[dict[str, str], dict[str, str]]:
        """The source versions of builds, with the present version of sources that have a file for each partition.

        A snapshot holds whole sources, so each of them counts; of others, the code of Python functions does. A build whose
        source files are gone is not among them, since nothing newer can be built, but in the second mapping, which says
        what is gone.
        """
        snapshot, calendar, names = (
            self.spec.partitions.snapshot,
            self.spec.partitions.calendar,
            self.builder.feature_sources,
        )
        functions = {name for name in names if self.spec.sources[name].python is not None}
        looked_at = [it for it in names if snapshot or it in functions or self.spec.sources[it].by_partition]

        @cache
        def version(name: str, partition: Partition) -> str | SourceError:
            try:
                return self.builder.sources.version(name, partition)
            except SourceError as error:
                return error

        versions, gone, first = dict[str, str](), dict[str, str](), calendar.around(calendar.first_start)
        shared = functions | {it for it in looked_at if builds and not self.builder.dated.takes_partition(it)}
        for key, partition in self._named(builds if looked_at else ()).items():
            now = {name: version(name, first if name in shared else partition) for name in looked_at}
            if errors := [(name, it) for name, it in now.items() if isinstance(it, SourceError)]:
                missing, (name, error) = [it for it in errors if look.finds_gone(*it)], errors[-1]
                if missing or self.spec.sources[name].by_partition:
                    gone[key] = f"what it reads of source {name!r} {absence(error)}"
            else:
                versions[key] = json.dumps(json.loads(builds[key].sources) | now, sort_keys=True)
        return versions, gone

    def label_changes(
        self,
        evaluations: Mapping[str, EvaluationRun],
        builds: Mapping[str, FeatureBuild],
        recorded: Taken,
        look: Look,
    ) -> LabelChanges:
        """The present versions of the labels of evaluated partitions; a partition whose files are gone is left out.

        Labels in a source with the rows of many partitions are looked at as the features are, from when they are known;
        where scored rows have no label, however old they are, and also in a source whose rows have no time. What the look
        found unread is not asked once more, since that may take seconds.
        """
        builder, versions, taken = self.builder, dict[str, str](), dict[tuple[ReadBy, str], Fingerprints]()
        if self.spec.labels is None or not (builder.own_label_sources or builder.dated_labels.watched):
            return LabelChanges(versions, taken)
        partitions, newest = self._named(evaluations), _newest_end(builds, self._named(builds))
        delay = self.spec.labels.maturity.nominal
        undated = dict[str, str]()
        for name in [it for it in builder.dated_labels.shared if partitions and it not in look.unread]:
            with look.at(name):
                version = builder.sources.version(name, next(iter(partitions.values())))
                held = builder.dated_labels.taken(name, version, recorded, most_bytes=look.most_bytes)
                if held is not None and held.dated:
                    taken["labels", name] = held
                elif look.most_bytes is None or builder.dated_labels.size(name) <= look.most_bytes:
                    undated[name] = version
        selected = dict[str, dict[str, Fingerprint]]()
        for name in [it for it in builder.dated_labels.selected if it not in look.unread]:
            late = self.spec.sources[name].lateness
            looked_at = [it for it in partitions.values() if look.recheck or is_recent(late, it.end + delay, newest)]
            with look.at(name):
                selected[name] = dict(builder.dated_labels.rows_now(name, looked_at, {}, look.most_bytes))
        names = (*undated, *(name for _, name in taken), *selected)
        lateness = {name: self.spec.sources[name].lateness for name in names}
        for key, partition in partitions.items():
            evaluation, known = evaluations[key], partition.end + delay
            lacking = evaluation.rows_labelled < evaluation.rows_scored
            recent = {name for name, late in lateness.items() if look.recheck or is_recent(late, known, newest)}
            if not (builder.own_label_sources or lacking or recent):
                versions[key] = evaluation.label_sources
                continue
            dated = {name: held.of(partition) for (_, name), held in taken.items() if lacking or name in recent}
            unlimited = {name for name in undated if name in recent or self.spec.sources[name].late is None}
            with look.at(next(iter(builder.own_label_sources), "")):
                then = json.loads(evaluation.label_sources)
                now = then | (json.loads(builder.label_versions(partition)) if builder.own_label_sources else {})
                now |= {name: [held.rows, held.content] for name, held in dated.items() if name in then and held.rows}
                now |= {name: undated[name] for name in unlimited if lacking}
                now |= {name: [*astuple(of[key])] for name, of in selected.items() if name in then and key in of}
                versions[key] = evaluation.label_sources if now == then else json.dumps(now, sort_keys=True)
        return LabelChanges(versions, taken)

    def label_versions(self, partition: Partition, recorded: Taken) -> str:
        """The present versions of the labels of a partition, as an evaluation records them; raises SourceError."""
        builder = self.builder
        now = json.loads(builder.label_versions(partition))
        for name in builder.dated_labels.shared:
            version = builder.sources.version(name, partition)
            held = builder.dated_labels.taken(name, version, recorded)
            now[name] = [*astuple(held.of(partition))] if held is not None and held.dated else version
        for name in builder.dated_labels.selected:
            now[name] = [*astuple(dict(builder.dated_labels.rows_now(name, [partition], {}))[partition.key])]
        return json.dumps(now, sort_keys=True)

    def label_fingerprint(self, window: Sequence[Partition], stamp: Stamp) -> str:
        """Hash the label files of a window and, after a dot, the labels; empty if no label source has a file for each partition."""
        if not self.builder.own_label_sources:
            return ""
        files = window_sha256(window, self.builder.label_versions)
        with self.builder.session(labels=True) as session:
            return f"{files}.{window_sha256(window, lambda partition: _digest(self.labels(session, partition, stamp)))}"

    def are_labels_changed(
        self, window: Sequence[Partition], recorded: str, versions_now: Callable[[Partition], str]
    ) -> bool:
        """Return whether the labels of a window differ from a recorded fingerprint; they are read only if a file differs."""
        files, _, labels = recorded.partition(".")
        if not recorded or window_sha256(window, versions_now) == files:
            return False
        with self.builder.session(labels=True) as session:

            def digest(partition: Partition) -> str:
                key = (partition.key, versions_now(partition))
                if key not in self._label_digests:
                    self._label_digests[key] = _digest(session.labels(partition))
                return self._label_digests[key]

            try:
                return window_sha256(window, digest) != labels
            except DataError:  # such as a key that occurs twice
                return True

    def _features_of(self, build: FeatureBuild) -> pl.DataFrame:
        """Read the key, the time and the feature columns of a build, and no others."""
        if build.code_version != self.builder.code_version:
            where = f"{self.spec.name}, partition {build.partition_key}"
            msg = f"{where}: the features were built by an earlier version of the SQL."
            hint = f"build them again: batch-platform run {self.spec.name} --partition {build.partition_key} --force"
            raise DataError(msg, hint=hint)
        self.require_unchanged(build)
        path = self.file(build)
        present = pl.read_parquet_schema(path)
        columns = [*self.spec.features.key_and_time, *feature_columns(self.spec.features, present)]
        beside = [name for name in [self.spec.monitoring.unit] if name in present]
        for name in self.spec.model.train.group:
            if name not in present:
                msg = f"{self.spec.name}, partition {build.partition_key}: model.train.group: the features have no column {name!r}."
                raise DataError(
                    msg, hint=did_you_mean(name, present) or f"name columns of the features: {listed(present)}"
                )
            beside.append(name)
        return pl.read_parquet(path, columns=[*dict.fromkeys([*columns, *beside])])

    def _beside_features(self, rows: pl.DataFrame, partition: Partition) -> pl.DataFrame:
        """Replace the key and the time of rows by ROW_TIME, ENTITY, PARTITION_START and, if units are declared, GROUP."""
        features, zone, unit = self.spec.features, self.spec.partitions.timezone, self.spec.monitoring.unit
        group = self.spec.model.train.group
        entity = rows.select(group).hash_rows().alias(ENTITY) if group else entity_of(rows.select(features.key))
        added: list[pl.Series | pl.Expr] = [entity, _starting(partition)]
        if unit == "row":
            added.append(pl.struct(pl.int_range(pl.len()), _starting(partition)).hash().alias(GROUP))
        elif unit == "partition":
            added.append(_starting(partition).alias(GROUP))
        elif unit is not None or self.spec.partitions.snapshot:
            columns = [unit] if unit else group or features.key
            added.append(rows.select(columns).hash_rows().alias(GROUP))
        if features.time is not None:
            added.append(on_the_clock(rows[features.time], zone).alias(ROW_TIME))
        inputs = feature_columns(features, rows.schema)
        beside = [name for name in (unit, *group) if name in rows.columns and name not in inputs]
        return rows.with_columns(added).drop(*dict.fromkeys([*features.key_and_time, *beside]))

    def _joined(self, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Concatenate frames; those without rows do not decide the types of the columns."""
        filled = [frame for frame in frames if frame.height] or list(frames[:1])
        try:
            return pl.concat(filled, how="vertical_relaxed")
        except (pl.exceptions.SchemaError, pl.exceptions.ShapeError) as error:
            msg = f"{self.spec.name}: partitions of the training window have different feature columns: {error}."
            raise DataError(msg, hint="give every partition the same columns and types in the features.") from error

    def require_unchanged(self, build: FeatureBuild) -> None:
        """Raise IntegrityError if a byte of a build's file is not as recorded, or the file is missing."""
        path, name = self.file(build), self.spec.name
        with open_recorded(path, build.sha256, pipeline=name, partition_key=build.partition_key) as recorded:
            recorded.require_unchanged()


def _starting(partition: Partition) -> pl.Expr:
    """The column PARTITION_START of the rows of a partition."""
    return pl.lit(partition.start, dtype=pl.Datetime("us", "UTC")).alias(PARTITION_START)


def _digest(labels: pl.DataFrame) -> str:
    """A hash of labels, which are in the order of their keys."""
    return sha256(labels.write_csv().encode()).hexdigest()


def _newest_end(builds: Mapping[str, FeatureBuild], partitions: Mapping[str, Partition]) -> datetime | None:
    """The end of the newest partition with rows."""
    return max((partition.end for key, partition in partitions.items() if builds[key].rows), default=None)


def on_the_clock(times: pl.Series, zone: str) -> pl.Series:
    """Times as a clock in a zone shows them; a date is its midnight, and a time without a zone is local."""
    if isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone is not None:
        times = times.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    return times.cast(pl.Datetime("us"))


def entity_of(keys: pl.DataFrame) -> pl.Series:
    """A hash of the key of each row without its dates and times, which is the same for the rows of one entity."""
    lasting = [name for name, dtype in keys.schema.items() if not dtype.is_temporal()]
    if not lasting:
        return pl.repeat(0, keys.height, dtype=pl.UInt64, eager=True).alias(ENTITY)
    return keys.select(lasting).hash_rows().alias(ENTITY)


def materialize_hint(pipeline: str, keys: Iterable[str]) -> str:
    """Say how to build missing features of some partitions, or of the training windows of those that are to be scored."""
    ordered = sorted(keys)
    which = f" --from {ordered[0]} --to {ordered[-1]}" if ordered else ""
    which = f" --partition {ordered[0]}" if len(ordered) == 1 else which
    return (
        f"launch the job {pipeline}_bring_up_to_date in Dagster, or batch-platform run {pipeline}{which}: both build the "
        "features that the partitions and their models need."
    )


def window_sha256(window: Iterable[Partition], version_of: Callable[[Partition], str]) -> str:
    """Hash the partition keys of a window, each with the version of its features or labels."""
    lines = (f"{partition.key} {version_of(partition)}\n" for partition in window)
    return sha256("".join(lines).encode()).hexdigest()
