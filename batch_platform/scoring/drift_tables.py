"""The table of drift in the warehouse: each column of a partition beside its baselines, from the profiles alone.

Written in the transaction of the predictions. A partition that is a baseline of later ones has their rows computed again, so
the table is at any time what the profiles say.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite

import duckdb

from batch_platform.declaration.calendar import Calendar, Duration
from batch_platform.declaration.errors import IntegrityError
from batch_platform.declaration.monitored import Baseline, Drift
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.reference import ReferenceProfile
from batch_platform.monitoring.drift import (
    UNUSUAL,
    ColumnDrift,
    Divergence,
    Moves,
    beyond_usual,
    divergences,
    has_moved,
    outside_share,
)
from batch_platform.monitoring.profiles import Profile
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.scoring.profile_tables import read_profiles
from batch_platform.warehouse.ledger import (
    ScoreRun,
    create_table,
    insert,
    note_partitions,
    read_latest,
    replace_records,
    rows_of_partitions,
)
from batch_platform.warehouse.sql import has_table, quoted

DRIFT, OF_SEGMENTS = "drift", "drift_by_segment"
_WEEK = Duration(days=7)
ReferenceOf = Callable[[ScoreRun], ReferenceProfile | None]


@dataclass(frozen=True)
class _Pair:
    """A column of a partition, and the same column of a baseline."""

    key: str
    baseline: Baseline
    of: str | None  # the partition that is the baseline
    profile: Profile
    base: Profile
    usual: float | None  # index beyond chance that is usual between partitions; None where unknown
    moves: Moves | None  # the same of its range and mean


@dataclass(frozen=True)
class SegmentDrift:
    """The predictions of a segment of a partition beside those of the reference; a row of the table `drift_by_segment`."""

    partition_key: str
    segment_column: str
    segment: str | None  # value of the column as text
    psi: float
    psi_by_chance: float
    # the highest one beyond chance among the partitions that no fit has seen, of the segment and of all rows; None where unknown
    psi_usual: float | None
    p_value: float
    rows: int
    baseline_rows: int
    level: str | None  # None where it is not judged
    model_version: str
    run_id: str

    @property
    def predictions(self) -> str:
        """Which predictions these are, for a person."""
        return f"predictions for {self.segment_column} = {'null' if self.segment is None else self.segment}"

    @property
    def unusual(self) -> float:
        """The index beyond what chance and the differences between partitions that no fit has seen give."""
        return beyond_usual(self.psi, self.psi_by_chance, self.psi_usual)


def replace_segment_drift(
    con: duckdb.DuckDBPyConnection,
    spec: PipelineSpec,
    committed: Sequence[ScoreRun],
    by_segment: Mapping[str, SegmentCounts],
    reference_of: ReferenceOf,
) -> None:
    """Replace how far the predictions of each segment of the committed partitions are from the same segment's reference.

    `by_segment` has their counts by partition key. A segment that the reference does not hold has no row. It is judged as the
    predictions are, where their baseline is the reference and it is known what is usual for the segment; the segments of a column
    share the probability of a false alarm.
    """
    compared = list[tuple[ScoreRun, str, str | None, Profile, Profile, float | None]]()
    declared = spec.monitoring.drift
    tests = Counter[tuple[str, str]]()  # segments that can be judged, by partition key and column
    for run in committed:
        counted = by_segment.get(run.partition_key, SegmentCounts()).of("prediction")
        reference = reference_of(run) if counted else None
        if reference is None:
            continue
        known = reference.by_segment.of("prediction")
        for column, by_value in counted.items():
            before = known.get(column, {})
            for segment, counts in by_value.items():
                if segment in before:
                    own, base = reference.of_segment(counts), reference.of_segment(before[segment])
                    usual = reference.usual_of_segment(column, segment)
                    compared.append((run, column, segment, own, base, usual))
                    tests[run.partition_key, column] += usual is not None
    rows = [
        SegmentDrift(
            partition_key=run.partition_key,
            segment_column=column,
            segment=segment,
            psi=divergence.psi,
            psi_by_chance=divergence.expected,
            psi_usual=usual,
            p_value=divergence.p_value,
            rows=own.rows,
            baseline_rows=base.rows,
            level=divergence.level(declared.bounds(own.name), usual, tests=tests[run.partition_key, column])
            if declared is not None and usual is not None and _is_judged(declared, own.name, "reference")
            else None,
            model_version=run.model_version,
            run_id=run.run_id,
        )
        for (run, column, segment, own, base, usual), divergence in zip(
            compared, divergences([(own, base) for *_, own, base, _ in compared]), strict=True
        )
        if divergence is not None
    ]
    replace_records(con, committed, OF_SEGMENTS, SegmentDrift, rows)


def read_segment_alarms(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[SegmentDrift, ...]]:
    """The segments of some partitions that give a warning or an error, by partition key, the worst first."""
    return rows_of_partitions(
        con,
        SegmentDrift,
        pipeline,
        OF_SEGMENTS,
        partition_keys,
        only="level IN ('warn', 'fail')",
        order=f"partition_key, {UNUSUAL} DESC, segment_column, segment",
    )


def _is_judged(declared: Drift, column: str, baseline: Baseline) -> bool:
    return baseline == declared.baseline and column not in declared.ignore


def replace_drift(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, committed: Sequence[ScoreRun], reference_of: ReferenceOf
) -> None:
    """Compute the drift of the committed partitions, whose profiles are written already, and of those that they are a baseline of."""
    calendar, name = spec.partitions.calendar, spec.name
    new = {run.partition_key: run for run in committed}
    later = {key for run in committed for key in _compared_with(calendar, run.partition_key)} - {*new}
    wanted = {key: dict(_baselines(calendar, key)) for key in (*new, *later)}
    needed = {*wanted, *(of for baselines in wanted.values() for of in baselines.values())}
    profiles = read_profiles(con, name, needed)
    if not profiles and not has_table(con, name, DRIFT):
        return
    runs = {**new, **read_latest(con, ScoreRun, name, later)}
    pairs = list(_pairs(new, runs, wanted, profiles, reference_of))
    rows = [
        _row(pair, divergence, runs[pair.key], spec.monitoring.drift)
        for pair, divergence in zip(pairs, divergences([(pair.profile, pair.base) for pair in pairs]), strict=True)
        if divergence is not None
    ]
    create_table(con, name, DRIFT, ColumnDrift)
    table = f"{quoted(name)}.{DRIFT}"
    con.execute(f"DELETE FROM {table} WHERE partition_key IN $keys", {"keys": list(new)})
    con.execute(
        f"DELETE FROM {table} WHERE partition_key IN $keys AND baseline_partition IN $new",
        {"keys": list(later), "new": list(new)},
    )
    insert(con, DRIFT, [vars(row) for row in rows], schema=name)
    changed = sorted({*new, *(key for key in later if key in profiles)})
    note_partitions(con, name, DRIFT, changed)


def read_drift(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[ColumnDrift, ...]]:
    """The drift of some partitions by partition key, the worst column first; a partition without any is left out."""
    order = f"partition_key, {UNUSUAL} DESC, column_name, baseline"
    return rows_of_partitions(con, ColumnDrift, pipeline, DRIFT, partition_keys, order=order)


def score_not_judged(rows: Sequence[ColumnDrift]) -> str | None:
    """Say why the score of a partition is not judged though features are; None if it is, or if `ignore` names it."""
    judged = next((row for row in rows if row.level is not None), None)
    of_score = [row for row in rows if row.role == "prediction"]
    if judged is None or any(row.baseline == judged.baseline for row in of_score):
        return None
    name = of_score[0].column_name if of_score else "score"
    if judged.baseline_partition is not None:
        return f"{name}: not judged, because {judged.baseline_partition} has no scores to compare with"
    return f"{name}: not judged, because {judged.model_version} has no known scores of rows that it had not seen"


def _baselines(calendar: Calendar, key: str) -> Iterator[tuple[Baseline, str]]:
    """The partitions that a partition is compared with."""
    partition = calendar.named(key)
    before = calendar.holding(partition.start - timedelta(microseconds=1))
    if before is not None:
        yield "previous", before.key
    week_before = calendar.holding(_WEEK.before(partition.start, calendar.zone))
    if week_before is not None and calendar.every != "month":
        yield "week_before", week_before.key


def _compared_with(calendar: Calendar, key: str) -> list[str]:
    """The later partitions that are compared with a partition."""
    partition = calendar.named(key)
    instants = (partition.end, _WEEK.after(partition.start, calendar.zone))
    later = {other.key for instant in instants if (other := calendar.holding(instant)) is not None}
    return [other for other in later if key in dict(_baselines(calendar, other)).values()]


def _pairs(
    new: Collection[str],
    runs: Mapping[str, ScoreRun],
    wanted: Mapping[str, Mapping[Baseline, str]],
    profiles: Mapping[str, Sequence[Profile]],
    reference_of: ReferenceOf,
) -> Iterator[_Pair]:
    """Every column of the new partitions beside its baselines, and of later partitions beside the new ones."""
    for key, run in runs.items():
        if not profiles.get(key):
            continue
        reference = _reference(run, new, reference_of)
        usual = {} if reference is None else reference.usual_by_column
        moves = {} if reference is None else reference.moves_by_column
        bases: list[tuple[Baseline, str | None, Sequence[Profile]]] = [
            (baseline, of, profiles.get(of, ())) for baseline, of in wanted[key].items() if key in new or of in new
        ]
        if key in new and reference is not None:
            bases.append(("reference", None, reference.baseline))
        for baseline, of, columns in bases:
            by_name = {(profile.role, profile.name): profile for profile in columns}
            for profile in profiles[key]:
                if profile.role == "estimate":
                    continue
                base = by_name.get((profile.role, profile.name))
                if base is not None and profile.is_comparable(base):
                    known = usual.get((baseline, profile.role, profile.name))
                    moved = moves.get((baseline, profile.name)) if profile.role == "feature" else None
                    yield _Pair(key, baseline, of, profile, base, known, moved)


def _reference(run: ScoreRun, new: Collection[str], reference_of: ReferenceOf) -> ReferenceProfile | None:
    """The reference of the version that scored a partition; None where it is not known.

    Nobody needs the bundle that scored a later partition in order to score this one, so it may be gone.
    """
    try:
        return reference_of(run)
    except IntegrityError:
        if run.partition_key in new:
            raise
        return None


def _row(pair: _Pair, divergence: Divergence, run: ScoreRun, declared: Drift | None) -> ColumnDrift:
    profile, base, level = pair.profile, pair.base, None
    if declared is not None and _is_judged(declared, profile.name, pair.baseline):
        level = divergence.level(declared.bounds(profile.name), pair.usual or 0.0)
        if level == "none" and has_moved(profile, base, pair.moves):
            level = "warn"
    return ColumnDrift(
        partition_key=pair.key,
        column_name=profile.name,
        role=profile.role,
        baseline=pair.baseline,
        baseline_partition=pair.of,
        psi=divergence.psi,
        psi_by_chance=divergence.expected,
        psi_usual=pair.usual,
        p_value=divergence.p_value,
        jensen_shannon=divergence.jensen_shannon,
        ks=divergence.ks,
        null_share=profile.nulls / profile.rows,
        baseline_null_share=base.nulls / base.rows,
        unknown_share=profile.unknown / profile.rows,
        baseline_unknown_share=base.unknown / base.rows,
        mean=_finite(profile.mean),
        baseline_mean=_finite(base.mean),
        outside_share=outside_share(profile),
        baseline_outside_share=outside_share(base) if profile.bins == base.bins else None,
        rows=profile.rows,
        baseline_rows=base.rows,
        level=level,
        model_version=run.model_version,
        run_id=run.run_id,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
