"""Fingerprints of a source with the rows of many partitions: for each partition the number of rows, and a hash that knows no order.

So rows that come late and rows that are corrected concern the partitions whose rows they are, although the version of the
file tells only that something changed. One pass over the source counts and hashes the rows of all partitions, and only
the columns that the query names; it is made when the version changed, and remembered.

A query that lets no row through from before the partition depends on the rows of the partition alone. One that looks
back may depend on every earlier row, however far: its fingerprint covers all rows before the end of the partition. So a
late row makes the features of every partition behind it due; those that come out equal are not scored again.
"""

import json
from bisect import bisect_right
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import duckdb

from batch_platform.declaration.calendar import FIRST_YEAR, LAST_YEAR, Calendar, Partition
from batch_platform.declaration.errors import SourceError
from batch_platform.features.origins import RowsRead
from batch_platform.features.query import Query, SparkQuery
from batch_platform.sources.kind import SourceTable, digest
from batch_platform.sources.opening import SourceConnection, Sources
from batch_platform.warehouse.failures import SourceFingerprints, read_fingerprints, replace_fingerprints
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform.warehouse.sql import quoted

_NO_TIME = -(2**62)  # start of the bucket of rows without a time, before all others
_BUCKET = 900  # seconds; windows begin at multiples of it, since clocks differ by quarters of an hour
_MOST_REMEMBERED = 64


@dataclass(frozen=True)
class Fingerprint:
    """The rows of a source that a partition can read, as a number and a hash."""

    rows: int  # number of rows dated inside the partition
    content: str  # hash over the rows that the query may read

    def change_since(self, then: "Fingerprint", source: str) -> str:
        """Say how the rows of a source changed."""
        if then.rows and not self.rows:
            return f"source {source!r} no longer holds its rows"
        if then.rows == self.rows:
            return f"rows of source {source!r} changed"
        return f"source {source!r} holds {self.rows:,} rows of it, and held {then.rows:,}"


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of every partition in one version of a source."""

    version: str  # hash of the version of the files and of what is read of them
    looks_back: bool
    starts: tuple[int, ...] = ()  # starts of the partitions with rows, in seconds since 1970, ascending
    fingerprints: tuple[Fingerprint, ...] = ()  # one for each start

    def of(self, partition: Partition) -> Fingerprint:
        """The fingerprint of one partition."""
        start = int(partition.start.timestamp())
        at = bisect_right(self.starts, start) - 1
        if at < 0:
            return Fingerprint(0, "")
        if self.starts[at] == start:
            return self.fingerprints[at]
        return Fingerprint(0, self.fingerprints[at].content if self.looks_back else "")

    @property
    def dated(self) -> bool:
        """Return whether any row has a time."""
        return self.starts != (_NO_TIME,)

    @property
    def rows_without_time(self) -> int:
        """The number of rows whose time is missing, or so far away that no partition can hold it."""
        return self.fingerprints[0].rows if self.starts[:1] == (_NO_TIME,) else 0

    def rows_before(self, instant: datetime) -> int:
        """The number of rows dated before the window that begins at an instant."""
        rows = zip(self.starts, self.fingerprints, strict=True)
        return sum(held.rows for start, held in rows if _NO_TIME < start < instant.timestamp())

    def as_json(self) -> str:
        """Write them down; `from_json` reads them."""
        rows = [[start, held.rows, held.content] for start, held in zip(self.starts, self.fingerprints, strict=True)]
        return json.dumps({"looks_back": self.looks_back, "partitions": rows})

    @classmethod
    def from_json(cls, version: str, text: str) -> "Fingerprints":
        """Read what `as_json` wrote of a version."""
        held = json.loads(text)
        starts = tuple(start for start, _, _ in held["partitions"])
        fingerprints = tuple(Fingerprint(rows, content) for _, rows, content in held["partitions"])
        return cls(version, held["looks_back"], starts, fingerprints)


ReadBy = Literal["features", "labels"]
Taken = Mapping[tuple[ReadBy, str], Fingerprints]  # fingerprints by reader and source


@dataclass(frozen=True)
class Look:
    """A look at the sources of a pipeline: how closely, and what could not be looked at, so that it is not known whether it changed."""

    recheck: bool = False  # all partitions are compared, however old
    most_bytes: int | None = None  # larger sources are not read: they are held to be as recorded
    files: Collection[str] = ()  # sources that are files, of which it is known if they are gone
    unread: dict[str, SourceError] = field(default_factory=dict[str, SourceError])  # why, by source

    @contextmanager
    def at(self, name: str) -> Generator[None]:
        """Go on behind the block if a source cannot be looked at, and note why; files that are gone are no such case."""
        try:
            yield
        except SourceError as error:
            self.finds_gone(name, error)

    def finds_gone(self, name: str, error: SourceError) -> bool:
        """Return whether an error says that the files of a source are gone; any other is noted."""
        if name in self.files and error.__cause__ is None:
            return True
        self.unread[name] = error
        return False


@dataclass(frozen=True)
class SourceChanges:
    """Differences between the sources and those that features were built from; the first three are by partition key."""

    versions: dict[str, str]  # present versions, in the form that builds record, where each partition has a file
    changed: dict[str, str]  # why the features are due, where a file has the rows of many partitions
    gone: dict[str, str]  # what the features were built from and is no longer there
    fingerprints: Taken  # fingerprints that were needed for the comparison


@dataclass(frozen=True)
class LabelChanges:
    """Present state of the labels."""

    versions: dict[str, str]  # version by partition key, in the form that evaluations record
    fingerprints: Taken


_remembered: dict[tuple[Path, str, str], Fingerprints | None] = {}  # None for a source whose rows have no time


_Bucket = tuple[int, int, int]  # start in seconds since 1970, rows, and the sum of their hashes


@dataclass(frozen=True)
class DatedSources:
    """The sources of one query of a pipeline, whose rows have a time."""

    sources: Sources
    read_by: ReadBy
    query: Query | SparkQuery | None  # None if a Python function reads the sources
    names: Sequence[str]  # names of the sources that are read
    newest: dict[str, Fingerprints] = field(  # what was last taken, by source
        default_factory=dict[str, Fingerprints], init=False, repr=False, compare=False
    )
    _read: dict[str, RowsRead] = field(default_factory=dict[str, RowsRead], init=False, repr=False, compare=False)

    @property
    def watched(self) -> list[str]:
        """The sources without a file for each partition whose changes are looked for."""
        spec = self.sources.spec
        if spec.partitions.snapshot:
            return []
        return [
            name
            for name in self.names
            if not spec.sources[name].by_partition
            and spec.sources[name].late != "never"
            and self.sources.kind(name).version_fixes_rows
        ]

    @property
    def shared(self) -> list[str]:
        """Those of which every partition reads the same rows."""
        selected = self.selected
        return [name for name in self.watched if name not in selected]

    @property
    def selected(self) -> list[str]:
        """Those of which a query selects the rows of each partition, so that these are compared, partition by partition."""
        return [name for name in self.watched if self.takes_partition(name)]

    def takes_partition(self, name: str) -> bool:
        """True if partitions read different rows of a source, whatever their SQL selects."""
        return self.sources.kind(name).takes_partition(self._first(name))

    def rows_now(
        self,
        name: str,
        partitions: Sequence[Partition],
        versions: Mapping[str, str | None],
        most_bytes: int | None = None,
    ) -> Iterator[tuple[str, Fingerprint]]:
        """The present fingerprints of partitions in a source that a query selects, by key; may raise SourceError.

        Left out are those that still have the same of the `versions`, and all if they have more than `most_bytes`.
        """
        if most_bytes is not None and self.size(name, partitions) > most_bytes:
            return
        with ExitStack() as stack:
            con: SourceConnection | None = None
            for partition in partitions:
                if con is None:
                    con = stack.enter_context(self.sources.connect(partition, names=[name]))
                if con.versions(partition, [name])[name] != versions.get(partition.key):
                    con.move(partition)
                    yield partition.key, fingerprint_of(con, name, partition)

    def changes(
        self,
        name: str,
        partitions: Sequence[Partition],
        builds: Mapping[str, FeatureBuild],
        most_bytes: int | None = None,
    ) -> Iterator[tuple[str, Fingerprint, Fingerprint]]:
        """The records of builds about such a source beside what it holds now, by key, where they differ; see `rows_now`."""
        versions = {key: json.loads(build.sources).get(name) for key, build in builds.items()}
        for key, now in self.rows_now(name, partitions, versions, most_bytes):
            was = json.loads(builds[key].fingerprints).get(name)
            if was and (then := Fingerprint(*was)) != now:
                yield key, then, now

    def rows_read(self, name: str) -> RowsRead:
        """Find the rows of a source that the query reads, by the declared time or else by the text of the query."""
        if name not in self._read:
            self._read[name] = self._found(name)
        return self._read[name]

    def _found(self, name: str) -> RowsRead:
        spec = self.sources.spec
        read = RowsRead()
        if self.query is not None:
            from batch_platform.features.lineage import rows_read  # importing sqlglot is slow

            read = rows_read(self.query.text, name, self.query.dialect)
        declared, driving = spec.sources[name].time, spec.features.driving
        if declared is not None and declared != read.time:
            return RowsRead(declared, names=read.names)
        if read.time is not None:
            return read
        if driving is not None and driving.source == name:
            return RowsRead(quoted(driving.time), names=read.names)
        alone = spec.features.time is not None and len(self.names) == 1
        return RowsRead(quoted(spec.features.time or "") if alone else None, names=read.names)

    def taken(self, name: str, version: str, recorded: Taken, *, most_bytes: int | None = None) -> Fingerprints | None:
        """The fingerprints of a source in its present version: as recorded or remembered, else by reading it once.

        A source of more than `most_bytes` is not read; then the fingerprints are those of the version that is recorded.
        None if its rows have no time and `late` is not declared: a table without times, such as one of customers, says
        what holds now, not what was known when an old partition was scored. Raises SourceError if it cannot be read.
        """
        spec, text = self.sources.spec, "" if self.query is None else self.query.text
        windows = spec.partitions.model_dump_json(include={"every", "timezone"})
        times = (spec.sources[name].time, spec.features.time, spec.features.driving)
        key = (self.sources.folder, f"{spec.name}.{name}", digest(version, text, windows, *map(str, times)))
        known = recorded.get((self.read_by, name))
        if known is not None and known.version == key[2]:
            return known
        if key not in _remembered and most_bytes is not None and self.size(name) > most_bytes:
            return known
        if key not in _remembered:
            made = self._made(name, key[2], self.rows_read(name))
            while len(_remembered) >= _MOST_REMEMBERED:
                del _remembered[next(iter(_remembered))]
            _remembered[key] = made
        if _remembered[key] is None and spec.sources[name].late is not None:
            return Fingerprints(key[2], looks_back=True, starts=(_NO_TIME,), fingerprints=(Fingerprint(0, version),))
        if (held := _remembered[key]) is not None:
            self.newest[name] = held
        return held

    def size(self, name: str, partitions: Sequence[Partition] = ()) -> int:
        """The bytes of a source, roughly; of one that a query selects, those of as many partitions as the last one of these."""
        table = self.sources.table(name, partitions[-1]) if partitions else self._first(name)
        return self.sources.kind(name).size(table) * (len(partitions) or 1)

    def _first(self, name: str) -> SourceTable:
        calendar = self.sources.spec.partitions.calendar
        return self.sources.table(name, calendar.around(calendar.first_start))

    def _made(self, name: str, version: str, read: RowsRead) -> Fingerprints | None:
        if read.time is None:
            return None
        calendar = self.sources.spec.partitions.calendar
        first = calendar.around(calendar.first_start)
        with self.sources.connect(first, names=[name]) as con, con.explained(name, first):
            if _has_time(con, name, read.time):
                length = 1 if calendar.first_start.timestamp() % _BUCKET else _BUCKET
                return _by_partition(version, _buckets(con, name, read, length), calendar, looks_back=read.looks_back)
        if self.sources.spec.sources[name].time is not None:
            problem = f" has no time {read.time!r}."
            hint = f"name a column or an SQL expression in sources.{name}.time."
            raise self.sources.table(name, first).error(problem, hint)
        return None


def is_recent(lateness: timedelta | None, known: datetime, newest: datetime | None) -> bool:
    """Return whether rows known at a time may still be corrected, as the source declares, once the newest rows are there."""
    return lateness is None or newest is None or known > newest - lateness


def recorded_fingerprints(con: duckdb.DuckDBPyConnection, pipeline: str) -> Taken:
    """Recorded state of a pipeline's sources."""
    rows = read_fingerprints(con, pipeline)
    return {(row.read_by, row.source): Fingerprints.from_json(row.version, row.fingerprints) for row in rows}


def record_fingerprints(con: duckdb.DuckDBPyConnection, pipeline: str, taken: Taken) -> None:
    """Record what was found in sources whose version is not known yet, within the caller's transaction."""
    known = {(row.read_by, row.source): row.version for row in read_fingerprints(con, pipeline)}
    looked_at = [
        SourceFingerprints(*of, held.version, held.as_json())
        for of, held in taken.items()
        if known.get(of) != held.version
    ]
    replace_fingerprints(con, pipeline, looked_at)


def fingerprint_of(con: SourceConnection, name: str, partition: Partition) -> Fingerprint:
    """The fingerprint of all rows that a connection shows of a source for a partition; may raise SourceError."""
    hashed = ", ".join(map(quoted, con.duckdb.sql(f"FROM {quoted(name)}").columns))
    with con.explained(name, partition):
        ((rows, content),) = con.duckdb.execute(f"SELECT count(*), sum(hash({hashed})) FROM {quoted(name)}").fetchall()
    return Fingerprint(int(rows), f"{rows}-{int(content or 0) % 2**64:x}")


def _has_time(con: SourceConnection, name: str, time: str) -> bool:
    """Return whether an expression gives the times of the rows of a source."""
    try:
        return bool(con.duckdb.sql(f"SELECT {instant(time)} FROM {quoted(name)}").columns)
    except duckdb.Error:
        return False


def instant(time: str) -> str:
    """The SQL for the instant of a row, null where the time cannot be read."""
    return f"TRY(CAST({time} AS TIMESTAMPTZ))"


def _buckets(con: SourceConnection, name: str, read: RowsRead, length: int) -> list[_Bucket]:
    """Count and hash the rows of a source by their time."""
    columns = con.duckdb.sql(f"FROM {quoted(name)}").columns
    hashed = [quoted(column) for column in columns if read.names is None or column.lower() in read.names]
    at = instant(read.time or "")
    query = (
        f"SELECT CAST(floor(epoch(CASE WHEN year({at}) BETWEEN {FIRST_YEAR} AND {LAST_YEAR} THEN {at} END) / {length}) AS BIGINT) "
        f"* {length} AS start, count(*), "
        f"sum(hash({', '.join(hashed) or '0'})) FROM {quoted(name)} GROUP BY 1 ORDER BY 1 NULLS FIRST"
    )
    buckets = con.duckdb.execute(query).fetchall()
    return [(_NO_TIME if start is None else int(start), int(rows), int(total)) for start, rows, total in buckets]


def _by_partition(version: str, buckets: Iterable[_Bucket], calendar: Calendar, *, looks_back: bool) -> Fingerprints:
    starts, fingerprints = list[int](), list[Fingerprint]()
    rows_before = content_before = 0
    for start, rows, content in _joined(buckets, calendar):
        rows_before, content_before = rows_before + rows, content_before + content
        counted, total = (rows_before, content_before) if looks_back else (rows, content)
        starts.append(start)
        fingerprints.append(Fingerprint(rows, f"{counted}-{total % 2**64:x}"))
    return Fingerprints(version, looks_back, tuple(starts), tuple(fingerprints))


def _joined(buckets: Iterable[_Bucket], calendar: Calendar) -> Iterator[tuple[int, int, int]]:
    """Add up the buckets, which are in order, to windows of the calendar."""
    start = end = _NO_TIME
    rows = content = 0
    for at, counted, total in buckets:
        if at != _NO_TIME and at >= end:
            if rows:
                yield start, rows, content
            rows = content = 0
            window = calendar.around(datetime.fromtimestamp(at, UTC))
            start, end = int(window.start.timestamp()), int(window.end.timestamp())
        rows, content = rows + counted, content + total
    if rows:
        yield start, rows, content
