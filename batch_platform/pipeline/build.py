"""The step that builds features: the sources that a partition reads, and the record of what was built."""

import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field
from datetime import datetime
from pathlib import Path

from batch_platform.declaration.calendar import FIRST_YEAR, LAST_YEAR, Partition
from batch_platform.declaration.errors import OvertakenError, SourceError, counted, memory_explained
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureSession
from batch_platform.features.fingerprints import Fingerprints
from batch_platform.features.history import History
from batch_platform.pipeline.set_apart import SetApart, setting_apart
from batch_platform.planning.artifacts import features_due, with_snapshots_over
from batch_platform.planning.request import require_takeable
from batch_platform.planning.state import State
from batch_platform.scoring.run import in_groups
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform.warehouse.lock import staging_folder


@dataclass(frozen=True)
class Built:
    """A partition of features, as recorded."""

    partition: Partition
    build: FeatureBuild
    skipped: bool  # it was up to date
    columns: dict[str, str] = field(default_factory=dict[str, str])  # Arrow types; empty if skipped
    findings: tuple[str, ...] = ()  # what is odd about its sources and no reason to fail
    link: str = ""  # page on which the engine of the SQL shows its work as long as it lasts


# The partitions of assets that a partition reads and that were never materialized, by source.
Absent = Callable[[Partition], Mapping[str, Collection[str]]]


def state_to_build(
    spec: PipelineSpec,
    read: Callable[..., State],
    partitions: Sequence[Partition],
    now: datetime,
    *,
    force: bool,
) -> State:
    """The state by which partitions are built: compared with all sources, however old, if some may be up to date."""
    state = with_snapshots_over(spec, read(), now)
    if not force and any(features_due(state, partition) is None for partition in partitions):
        state = with_snapshots_over(spec, read(recheck=True), now)
    return state


@dataclass(frozen=True)
class FeatureStep:
    """The building of features in one run; builds are recorded in groups."""

    history: History
    warehouse: Warehouse
    state: State
    stamp: Stamp
    force: bool  # build also what is up to date, and a partition where a source is gone, or an asset lacks a partition
    absent: Absent = lambda _: {}

    def recorded(self, partitions: Sequence[Partition]) -> Iterator[Built]:
        """Build the features of partitions, oldest first; see `Pipeline.build_features`.

        The files of earlier builds stay for the runs that may be reading them; `gc` removes them.
        """
        spec, state, stamp = self.history.spec, self.state, self.stamp
        due = {partition.key for partition in partitions if self.force or features_due(state, partition) is not None}
        require_takeable(spec, [partition for partition in partitions if partition.key in due], stamp.at)
        with (
            setting_apart(spec, self.warehouse, state.declared.text, "features", stamp, len(partitions)) as apart,
            staging_folder(self.history.home, stamp.run_id) as folder,
            closing(self._builds(partitions, due, apart, folder / "spill")) as builds,
        ):
            yield from in_groups(builds, lambda built: built if built.skipped else built.build.rows, self._record)

    def _record(self, group: list[Built]) -> list[Built]:
        try:
            self.warehouse.record_features([built.build for built in group], since=self.state.records.newest_change)
        except OvertakenError:  # the files may hold what was erased
            history = self.history
            recorded = map(history.file, self.warehouse.latest(FeatureBuild, history.spec.name).values())
            for path in {history.file(built.build) for built in group} - {*recorded}:
                history.home.remove(path)
            raise
        return group

    def _builds(
        self, partitions: Sequence[Partition], due: Collection[str], apart: SetApart, spill: Path
    ) -> Generator[Built]:
        """Build the features of those partitions whose keys are due, and yield the others as recorded.

        What does not fit into memory is put into the folder `spill`.
        """
        taken: dict[str, Fingerprints] | None = None  # before the first build, so that they hold no row that it lacks
        ahead = [partition for partition in partitions if partition.key in due]
        leave_out = None if self.state.records.erased is None else self.state.records.erased.without
        with self.history.builder.session(spill=spill, ahead=ahead, leave_out=leave_out) as session:
            for partition in partitions:
                if partition.key in self.state.seen.gone:
                    builder = self.history.builder
                    builder.sources.require_reachable(partition, builder.feature_sources)
                if partition.key not in due:
                    if ("features", partition.key) in self.state.failures:
                        apart.up_to_date.add(partition.key)
                    yield Built(partition, self.state.features[partition.key], skipped=True)
                    continue
                built: list[Built] = []
                with apart.attempt(partition.key), memory_explained(self.history.spec.name, partition.key):
                    if not self.force:
                        self._require_sources(partition)
                    taken = self._fingerprints(partition) if taken is None else taken
                    built.append(self._build(session, partition, taken, begins=partition.key == ahead[0].key))
                yield from built

    def _require_sources(self, partition: Partition) -> None:
        """Refuse to build from nothing what was built from rows, and from assets that lack a partition; raises SourceError."""
        if (reason := self.state.seen.gone.get(partition.key)) is not None:
            name = self.history.spec.name
            msg = f"{name}, partition {partition.key}: {reason}; its features stay as they are."
            hint = f"restore it, or accept it: batch-platform run {name} --partition {partition.key} --force"
            raise SourceError(msg, hint=hint)
        for source, keys in self.absent(partition).items():
            forced = f"batch-platform run {self.history.spec.name} --partition {partition.key} --force"
            without = f"To score {partition.key} without it: {forced}"
            self.history.builder.sources.require_stored(source, partition, keys, without)

    def _fingerprints(self, partition: Partition) -> dict[str, Fingerprints]:
        """Take the fingerprints of the sources with the rows of many partitions."""
        sources, dated, taken = self.history.builder.sources, self.history.builder.dated, dict[str, Fingerprints]()
        for name in dated.shared:
            held = dated.taken(name, sources.version(name, partition), self.state.seen.fingerprints)
            if held is not None:
                taken[name] = held
        return taken

    def _build(
        self, session: FeatureSession, partition: Partition, taken: Mapping[str, Fingerprints], *, begins: bool
    ) -> Built:
        builder = self.history.builder
        sources, selected = session.versions(partition), session.selected(partition)
        file = session.write(partition, self.history.home.features(self.history.spec.name))
        own = {name: held.of(partition) for name, held in taken.items()}
        build = FeatureBuild(
            pipeline=self.history.spec.name,
            partition_key=partition.key,
            rows=file.rows,
            sha256=file.sha256,
            file_bytes=file.path.stat().st_size,
            code_version=builder.code_version,
            sources=json.dumps(sources, sort_keys=True),
            built_at=self.stamp.now(),
            run_id=self.stamp.run_id,
            xxh3=file.xxh3,
            fingerprints=json.dumps({name: [*astuple(held)] for name, held in (own | selected).items()}),
        )
        findings = (*session.rows_outside(partition), *self._rows_of_no_partition(partition, taken, begins=begins))
        return Built(partition, build, skipped=False, columns=file.columns, findings=findings, link=session.engine_page)

    def _rows_of_no_partition(
        self, built: Partition, taken: Mapping[str, Fingerprints], *, begins: bool
    ) -> Iterator[str]:
        """Say how many rows are in no partition; rows that others look back at are in use.

        Rows of the past are named with the first partition, and rows without a time with the partition that a run begins with.
        """
        first = self.history.spec.partitions.calendar.first_start
        for name, held in taken.items():
            if len(taken) > 1 and held.looks_back:
                continue
            if built.start == first and (rows := held.rows_before(first)):
                yield f"source {name!r} holds {counted(rows, 'row')} dated before partitions.start, in no partition"
            if begins and (rows := held.rows_without_time):
                why = f"without a time in the years {FIRST_YEAR} to {LAST_YEAR}"
                yield f"source {name!r} holds {counted(rows, 'row')} {why}, in no partition"
