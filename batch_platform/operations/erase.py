"""Erase a subject, such as a customer: its rows leave every table, file, copy and delivery, and nothing is scored again for it.

What the ledgers say of a partition is changed with its rows in one transaction, so that no partition is stale afterwards:
the hash of its feature file, which is written anew, and the counts. The rest follows the transaction, and the next
publication completes it if the process is killed; see `warehouse.deletion`. Receivers get their partitions once more.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError
from batch_platform.declaration.stamp import Stamp
from batch_platform.delivery.ledger import TABLE as DELIVERIES
from batch_platform.features.lake import BATCH_ROWS, FileWriter, left_aside, of_full_size, remove_unlocked
from batch_platform.monitoring.measures.challengers import RUNS
from batch_platform.monitoring.measures.performance import OUTCOMES
from batch_platform.operations.subjects import (
    FoundRows,
    HeldSubject,
    SubjectRows,
    find_rows,
    remains_of,
    texts_of,
)
from batch_platform.pipeline.deliver import deliver
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.artifacts import undelivered
from batch_platform.warehouse.deletion import (
    ErasedSubjects,
    Erasure,
    leave_mark,
    read_erasures,
    record_erasure,
    require_wiped,
    subject_hash,
)
from batch_platform.warehouse.home import feature_file_name
from batch_platform.warehouse.ledger import (
    LEDGERS,
    LEDGERS_SCHEMA,
    EvaluationRun,
    FeatureBuild,
    ScoreRun,
    journal,
    read_latest,
)
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.sql import has_table, literal, quoted, read_file
from batch_platform.warehouse.tables_in_files import (
    CHALLENGER_SCORES,
    PREDICTIONS,
    PublishedFile,
    TableInFiles,
    damage_of,
    file_in_place_of,
    link_file,
    make_view,
    replace_file,
)


def held_subject(pipeline: Pipeline, values: Mapping[str, str]) -> HeldSubject:
    """Say what there is to erase of a subject, given by columns of the key and kept columns. Raises as `find_rows` does."""
    matches = find_rows(pipeline, values)
    with pipeline.warehouse.open() as con:
        held = SubjectRows(pipeline, con, matches).held()
        return held if held.rows else _erased_before(con, pipeline, matches.values) or held


def erase_subject(pipeline: Pipeline, values: Mapping[str, str], actor: str, stamp: Stamp) -> HeldSubject:
    """Erase a subject and say what was held of it; the same call completes an erasure that was killed, its deliveries included.

    Raises:
        WrongUseError, DamagedFeaturesError: As `find_rows`.
        IntegrityError: A file with rows of the subject is damaged; nothing is changed.
        WarehouseError: The rows are deleted, but their bytes could not be removed.
    """
    held: HeldSubject | None = None
    texts = set[str]()
    with staging_folder(pipeline.home, stamp.run_id) as folder:
        while held is None:
            matches = find_rows(pipeline, values)
            texts = texts_of(pipeline, matches)
            rewritten = [_rewritten(pipeline, matches, matches.builds[key], folder / key) for key in matches.rows]
            with pipeline.warehouse.transaction() as con:
                if read_latest(con, FeatureBuild, pipeline.spec.name) == matches.builds:  # no run built any meanwhile
                    held = _Erasing(SubjectRows(pipeline, con, matches), folder).erased(rewritten, actor, stamp)
    for unfinished in left_aside(
        pipeline.home.features(pipeline.spec.name)
    ):  # killed builds left it, perhaps with the rows
        remove_unlocked(unfinished)
    pipeline.conclude(stamp.now())
    require_wiped(pipeline.home)
    to_tell = _delivered_again(pipeline, held, stamp)
    return replace(held, to_tell=to_tell, remains=remains_of(pipeline, texts) if held.partitions else [])


def _erased_before(con: duckdb.DuckDBPyConnection, pipeline: Pipeline, values: Mapping[str, str]) -> HeldSubject | None:
    """The partitions and receivers of earlier erasures of a subject of which no row is left; None if there were none."""
    name = pipeline.spec.name
    if not (erasures := read_erasures(con, name)):
        return None
    subject = subject_hash(pipeline.home, values)
    proofs = [erasure for erasure in erasures if erasure.subject == subject]
    partitions, versions, receivers = (
        sorted({it for proof in proofs for it in json.loads(getattr(proof, column))})
        for column in ("partitions", "versions", "receivers")
    )
    return HeldSubject({}, partitions, versions, receivers, proofs[-1].erased_at) if proofs else None


def _rewritten(pipeline: Pipeline, matches: FoundRows, build: FeatureBuild, aside: Path) -> FeatureBuild:
    """Write the feature file of a build without the rows of a subject, first aside; nothing refers to it yet.

    Its bytes are those that a build from sources without these rows would write.
    """
    pipeline.history.require_unchanged(build)
    path, columns = pipeline.history.file(build), tuple(matches.values)
    hashes = {columns: [subject_hash(pipeline.home, matches.values)]}
    with pq.ParquetFile(path) as file, FileWriter(aside, file.schema_arrow) as writer:
        batches = file.iter_batches(BATCH_ROWS, use_threads=False)
        for batch in of_full_size(ErasedSubjects(pipeline.home, hashes).without(batches, [])):
            writer.write(batch)
        sha256, xxh3 = writer.complete()
    size = aside.stat().st_size
    link_file(str(aside), str(path.with_name(feature_file_name(build.partition_key, sha256))))
    return replace(build, rows=writer.rows, sha256=sha256, xxh3=xxh3, file_bytes=size)


@dataclass(frozen=True)
class _Erasing:
    """The erasure of the rows of a subject, in one transaction."""

    rows: SubjectRows
    folder: Path  # staging folder for files without the subject

    def erased(self, rewritten: list[FeatureBuild], actor: str, stamp: Stamp) -> HeldSubject:
        """Delete the rows, correct what the ledgers say of their partitions, and record the proof."""
        con, matches, pipeline = self.rows.con, self.rows.matches, self.rows.pipeline
        name, held, counts = pipeline.spec.name, self.rows.held(), self.rows.counts
        if held.rows or matches.files:  # also where only earlier builds held rows
            leave_mark(pipeline.home, name, matches.files)
        if not held.rows:
            return _erased_before(con, pipeline, matches.values) or held
        for table, where in self.rows.wheres.items():
            if table in counts:
                con.execute(f"DELETE FROM {where}", self.rows.bound(where))
        for table, row, challenger, _ in self.rows.files:
            self._replace(table, row, challenger)
        for table in {table for table, *_ in self.rows.files}:
            make_view(con, name, table)
        if has_table(con, name, DELIVERIES):  # so that the next run delivers them if this process is killed
            con.execute(
                f"DELETE FROM {quoted(name)}.{DELIVERIES} WHERE partition_key IN $keys", {"keys": held.partitions}
            )
        self._correct_counts()
        for build in rewritten:
            self._correct_hash(matches.builds[build.partition_key], build)
        changed = [(name, table, key or None) for table, by in counts.items() for key in by]
        changed += [
            (name, table, key) for table in (RUNS, DELIVERIES) for key in held.partitions if has_table(con, name, table)
        ]
        journal(con, [*changed, *((LEDGERS_SCHEMA, ledger, None) for ledger in LEDGERS.values())])
        proof = Erasure(
            pipeline=name,
            columns=json.dumps([*matches.values]),
            subject=subject_hash(pipeline.home, matches.values),
            rows=json.dumps(held.rows),
            partitions=json.dumps({key: matches.rows.get(key, 0) for key in held.partitions}),
            versions=json.dumps(held.versions),
            receivers=json.dumps(held.receivers),
            actor=actor,
            erased_at=stamp.now(),
            run_id=stamp.run_id,
        )
        record_erasure(con, proof)
        return held

    def _replace(self, table: TableInFiles, row: PublishedFile, challenger: str | None) -> None:
        """Put a file without the subject in the place of one of a table's files, or none if no row is left."""
        con, pipeline, key = self.rows.con, self.rows.pipeline, row.partition_key
        path = pipeline.home.table_file(pipeline.spec.name, table.view, key, row.file)
        if damage := damage_of(path, row):
            msg = f"{pipeline.spec.name}, partition {key}: nothing is erased, since {path} {damage}."
            raise IntegrityError(msg, hint=f"batch-platform run {pipeline.spec.name} --partition {key} --force")
        kept = self.folder / f"{table.view}.{challenger or ''}.{row.file}"
        query = f"SELECT * FROM {read_file(path)} WHERE NOT {self.rows.has_key(literal(key))}"
        con.execute(f"COPY ({query}) TO {literal(str(kept))} (FORMAT parquet)")
        new = file_in_place_of(row, kept)
        replace_file(con, pipeline.home, pipeline.spec.name, table, row, new, kept)

    def _correct_hash(self, old: FeatureBuild, new: FeatureBuild) -> None:
        """Let the ledgers refer to the feature file without the subject, as if it had never been another one."""
        values = {"pipeline": new.pipeline, "key": new.partition_key, "old": old.sha256, "new": new.sha256}
        where = "WHERE pipeline = $pipeline AND partition_key = $key AND"
        self.rows.con.execute(
            f"UPDATE {LEDGERS_SCHEMA}.{LEDGERS[FeatureBuild]} SET sha256 = $new, rows = $rows, xxh3 = $xxh3, "
            f"file_bytes = $bytes {where} sha256 = $old",
            values | {"rows": new.rows, "xxh3": new.xxh3, "bytes": new.file_bytes},
        )
        self.rows.con.execute(
            f"UPDATE {LEDGERS_SCHEMA}.{LEDGERS[ScoreRun]} SET input_hash = $new {where} input_hash = $old", values
        )

    def _correct_counts(self) -> None:
        """Take the erased rows from the counts of the newest commit and evaluation of each partition, and of its challengers."""
        con, counts, name = self.rows.con, self.rows.counts, self.rows.pipeline.spec.name
        scored = Counter[str]()
        for table in (PREDICTIONS.view, PREDICTIONS.rows):
            scored.update(counts.get(table, {}))
        for table, row, _, count in self.rows.files:
            scored.update({row.partition_key: count} if table == PREDICTIONS else {})
        rejected, outcomes = (counts.get(table, {}) for table in ("rejected_rows", OUTCOMES))
        for key in {*scored, *rejected, *outcomes}:
            lost = {"scored": scored[key], "rejected": rejected.get(key, 0), "labelled": outcomes.get(key, 0)}
            self._subtract(
                ScoreRun,
                key,
                {"rows_in": "$scored + $rejected", "rows_scored": "$scored", "rows_rejected": "$rejected"},
                lost,
            )
            self._subtract(EvaluationRun, key, {"rows_scored": "$scored", "rows_labelled": "$labelled"}, lost)
        if has_table(con, name, RUNS) and has_table(con, name, CHALLENGER_SCORES.view):
            table, scores = f"{quoted(name)}.{RUNS}", f"{quoted(name)}.{CHALLENGER_SCORES.view}"
            same = f"scores.partition_key = {RUNS}.partition_key AND scores.challenger = {RUNS}.challenger"
            for key, count in scored.items():
                values = {"key": key, "count": count}
                con.execute(f"UPDATE {table} SET rows_in = rows_in - $count WHERE partition_key = $key", values)
            left = f"(SELECT count(*) FROM {scores} AS scores WHERE {same})"
            where = "WHERE partition_key IN $keys AND failure IS NULL"
            con.execute(
                f"UPDATE {table} SET rows_scored = {left}, rows_rejected = rows_in - {left} {where}",
                {"keys": [*scored]},
            )

    def _subtract(
        self, ledger: type[ScoreRun] | type[EvaluationRun], key: str, lost: Mapping[str, str], values: Mapping[str, int]
    ) -> None:
        """Subtract from columns of the newest row of a partition in a ledger; each difference is SQL that binds values."""
        table = f"{LEDGERS_SCHEMA}.{LEDGERS[ledger]}"
        newest = f"(SELECT max(seq) FROM {table} WHERE pipeline = $pipeline AND partition_key = $key)"
        assigned = ", ".join(f"{column} = {column} - ({difference})" for column, difference in lost.items())
        bound = {name: value for name, value in values.items() if f"${name}" in assigned}
        where = {"pipeline": self.rows.pipeline.spec.name, "key": key}
        self.rows.con.execute(f"UPDATE {table} SET {assigned} WHERE seq = {newest}", {**bound, **where})


def _delivered_again(pipeline: Pipeline, held: HeldSubject, stamp: Stamp) -> dict[str, str]:
    """Deliver the partitions again to the receivers that held them; returns why some may still hold rows, by receiver."""
    to_tell, calendar, state = dict[str, str](), pipeline.spec.partitions.calendar, pipeline.published_ledgers()
    declared = {delivery.name: delivery for delivery in pipeline.spec.predictions.deliver}
    for receiver in held.receivers:
        if receiver not in declared:
            to_tell[receiver] = "it is no longer declared"
            continue
        try:
            due = [key for key in held.partitions if undelivered(state, declared[receiver], key)]
            list(deliver(pipeline, declared[receiver], [*map(calendar.named, due)], stamp))
        except BatchPlatformError as error:
            to_tell[receiver] = error.message
        if receiver not in to_tell and declared[receiver].kind == "delta":
            to_tell[receiver] = (
                "former versions of a Delta table keep their rows until it is vacuumed, and the log in _delta_log keeps the lowest and highest values of their columns until its entries expire"
            )
    if held.receivers:
        pipeline.publish()  # the last delivery
    return to_tell
