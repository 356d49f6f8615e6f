"""The measure `drift`: each column of a partition, and its predictions by segment, beside the reference of its version, from the profiles alone."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Annotated, Any, ClassVar

import duckdb

from batch_platform.declaration import monitored
from batch_platform.declaration.errors import MOST_LISTED, counted, listed, number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import (
    OUTSIDE_MATTERS,
    UNUSUAL,
    Divergence,
    Level,
    Moves,
    beyond_usual,
    divergences,
    has_moved,
    outside_share,
)
from batch_platform.monitoring.measure import (
    ALARMS,
    Aspect,
    Check,
    Commits,
    Finding,
    Markdown,
    ScoredMeasure,
    ScoredPart,
    listing,
    rounded,
    table_of,
)
from batch_platform.monitoring.profiles import Profile
from batch_platform.warehouse.descriptions import MODEL_VERSION, SEGMENT
from batch_platform.warehouse.ledger import Change, ScoreRun, replace_records, rows_of_partitions

COLUMNS, OF_SEGMENTS = "drift", "drift_by_segment"
WORST_INDEX = "worst_psi"
MOST_PLOTTED = 50  # columns
FEW_ROWS = 30  # fewer rows that look as ever tell nothing
REFERENCE = "reference"  # value of the column `baseline`; former versions compared with earlier partitions too


@dataclass(frozen=True)
class _Pair:
    """A column of a partition, and the same column of the reference."""

    run: ScoreRun
    profile: Profile
    base: Profile
    usual: float | None  # index beyond chance that is usual between partitions; None where unknown
    moves: Moves | None  # the same of its range and mean


@dataclass(frozen=True)
class ColumnDrift:
    """One column of a partition beside a baseline; a row of the table `drift`."""

    partition_key: str
    column_name: Annotated[str, "a feature, or the column of the predictions"]
    role: Annotated[str, "feature or prediction"]
    baseline: Annotated[
        str, "reference: the training data of the version; former versions wrote previous and week_before too"
    ]
    baseline_partition: Annotated[str | None, "null; former versions wrote the partition that it is compared with"]
    psi: Annotated[float, "population stability index"]
    psi_by_chance: Annotated[float, "index that chance alone gives on average to so few rows"]
    psi_usual: Annotated[
        float | None,
        "highest index beyond chance among the partitions of the training data, and more where they are few; null where it is not known",
    ]
    p_value: Annotated[float, "probability of such a difference if nothing changed and rows are independent"]
    jensen_shannon: Annotated[float, "Jensen-Shannon distance to the base of 2, from 0 to 1"]
    ks: Annotated[float | None, "Kolmogorov-Smirnov distance of the values, from 0 to 1; null for text"]
    null_share: Annotated[float, "share of the rows without a value"]
    baseline_null_share: Annotated[float, "null_share of the baseline"]
    unknown_share: Annotated[float, "share of the rows with a category that the model does not know"]
    baseline_unknown_share: Annotated[float, "unknown_share of the baseline"]
    mean: Annotated[float | None, "mean of the values; null for text"]
    baseline_mean: Annotated[float | None, "mean of the baseline"]
    outside_share: Annotated[float | None, "share of the values outside the range that training saw; null for text"]
    baseline_outside_share: Annotated[float | None, "outside_share of the baseline; null if its cells are others"]
    rows: Annotated[int, "rows of the partition"]
    baseline_rows: Annotated[int, "rows of the baseline"]
    level: Annotated[str | None, "none, warn or fail, as declared when it was scored; null where it is not judged"]
    model_version: Annotated[str, MODEL_VERSION]
    run_id: str

    @property
    def unusual(self) -> float:
        """The index beyond what chance and the differences between partitions of the training data give."""
        return beyond_usual(self.psi, self.psi_by_chance, self.psi_usual)

    @property
    def outside(self) -> str:
        """The values outside the range in words; empty where there are no more than expected."""
        expected = self.baseline_outside_share or 0.0
        if self.outside_share is None or self.outside_share < expected + OUTSIDE_MATTERS:
            return ""
        return f"{self.outside_share:.1%} of values lie outside the range seen in training, {expected:.1%} expected"

    @property
    def changes(self) -> list[str]:
        """The differences from the baseline, in words."""
        changes = [self.outside] if self.outside else []
        if self.null_share != self.baseline_null_share:
            changes.append(f"null {self.null_share:.1%} instead of {self.baseline_null_share:.1%}")
        if self.unknown_share != self.baseline_unknown_share:
            changes.append(f"unknown {self.unknown_share:.1%} instead of {self.baseline_unknown_share:.1%}")
        if self.mean is not None and self.baseline_mean is not None:
            changes.append(f"mean {number(self.mean)} instead of {number(self.baseline_mean)}")
        return changes


@dataclass(frozen=True)
class SegmentDrift:
    """The predictions of a segment of a partition beside those of the reference; a row of the table `drift_by_segment`."""

    partition_key: str
    segment_column: Annotated[str, SEGMENT["segment_column"]]
    segment: Annotated[str | None, SEGMENT["segment"]]
    psi: Annotated[float, "population stability index"]
    psi_by_chance: Annotated[float, "index that chance alone gives on average to so few rows"]
    psi_usual: Annotated[
        float | None,
        "highest index beyond chance among the partitions that no fit has seen, of the segment and of all rows; null where it is not known",
    ]
    p_value: Annotated[float, "probability of such a difference if nothing changed and rows are independent"]
    rows: Annotated[int, "scored rows of the segment"]
    baseline_rows: Annotated[int, "rows of the segment that the version was judged by"]
    level: Annotated[str | None, "none, warn or fail, as declared when it was scored; null where it is not judged"]
    model_version: Annotated[str, MODEL_VERSION]
    run_id: str

    @property
    def predictions(self) -> str:
        """The name of these predictions, for a person."""
        return f"predictions for {self.segment_column} = {'null' if self.segment is None else self.segment}"

    @property
    def unusual(self) -> float:
        """The index beyond what chance and the differences between partitions that no fit has seen give."""
        return beyond_usual(self.psi, self.psi_by_chance, self.psi_usual)


def _replace_segments(
    con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]
) -> list[Change]:
    """Replace how far the predictions of each segment of the committed partitions are from the same segment's reference.

    A segment that the reference does not hold has no row. It is judged as the predictions are, where
    it is known what is usual for the segment; the segments of a column share the probability of a false alarm.
    """
    compared = list[tuple[ScoreRun, str, str | None, Profile, Profile, float | None]]()
    declared = commits.spec.monitoring.drift
    tests = Counter[tuple[str, str]]()  # segments that can be judged, by partition key and column
    for run in commits.runs:
        own_counts = parts[run.partition_key].by_segment
        reference = commits.reference_of(run) if own_counts.counts else None
        if reference is None:
            continue
        known = reference.by_segment.of("prediction")
        for column, by_value in reference.named(own_counts).of("prediction").items():
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
            if declared is not None and usual is not None and own.name not in declared.ignore
            else None,
            model_version=run.model_version,
            run_id=run.run_id,
        )
        for (run, column, segment, own, base, usual), divergence in zip(
            compared, divergences([(own, base) for *_, own, base, _ in compared]), strict=True
        )
        if divergence is not None
    ]
    return replace_records(con, commits.runs, OF_SEGMENTS, SegmentDrift, rows)


def _replace_columns(con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]) -> list[Change]:
    """Replace how far the columns of the committed partitions are from the reference of their version."""
    pairs = list[_Pair]()
    for run in commits.runs:
        if (reference := commits.reference_of(run)) is None:
            continue
        usual, moves = reference.usual_by_column, reference.moves_by_column
        bases = {(base.role, base.name): base for base in reference.baseline}
        for profile in parts[run.partition_key].profiles:
            base = bases.get((profile.role, profile.name))
            if profile.role != "estimate" and base is not None and profile.is_comparable(base):
                moved = moves.get(profile.name) if profile.role == "feature" else None
                pairs.append(_Pair(run, profile, base, usual.get((profile.role, profile.name)), moved))
    rows = [
        _row(pair, divergence, commits.spec.monitoring.drift)
        for pair, divergence in zip(pairs, divergences([(pair.profile, pair.base) for pair in pairs]), strict=True)
        if divergence is not None
    ]
    return replace_records(con, commits.runs, COLUMNS, ColumnDrift, rows)


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


def read_drift(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, tuple[ColumnDrift, ...]]:
    """The drift of some partitions by partition key, the worst column first; a partition without any is left out."""
    order = f"partition_key, {UNUSUAL} DESC, column_name"
    only = f"baseline = '{REFERENCE}'"
    return rows_of_partitions(con, ColumnDrift, pipeline, COLUMNS, partition_keys, only=only, order=order)


def score_not_judged(rows: Sequence[ColumnDrift]) -> str | None:
    """Say why the score of a partition is not judged though features are; None if it is, or if `ignore` names it."""
    judged = next((row for row in rows if row.level is not None), None)
    if judged is None or any(row.role == "prediction" for row in rows):
        return None
    return f"score: not judged, because {judged.model_version} has no known scores of rows that it had not seen"


def _row(pair: _Pair, divergence: Divergence, declared: monitored.Drift | None) -> ColumnDrift:
    run, profile, base, level = pair.run, pair.profile, pair.base, None
    if declared is not None and profile.name not in declared.ignore:
        level = divergence.level(declared.bounds(profile.name), pair.usual or 0.0)
        if level == "none" and has_moved(profile, base, pair.moves):
            level = "warn"
    return ColumnDrift(
        partition_key=run.partition_key,
        column_name=profile.name,
        role=profile.role,
        baseline=REFERENCE,
        baseline_partition=None,
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


def drifted(row: ColumnDrift) -> str:
    """Describe a column that differs from the training data in a few words."""
    index = f"{row.column_name} {row.unusual:.2f}"
    return f"{index} ({'; '.join(row.changes)})" if row.changes else index


@dataclass(frozen=True)
class PartitionDrift:
    """The drift of a partition."""

    run: ScoreRun
    columns: tuple[ColumnDrift, ...] = ()  # in order, the worst column first
    segment_alarms: tuple[SegmentDrift, ...] = ()  # segments that give a warning or an error, the worst first

    @property
    def sha256(self) -> str:
        """A hash of its rows."""
        measured = [(row.column_name, row.role, row.psi, row.level) for row in self.columns]
        return sha256(json.dumps(sorted(measured)).encode()).hexdigest()

    @property
    def judged(self) -> list[ColumnDrift]:
        """The columns that are judged, in the same order."""
        return [row for row in self.columns if row.level is not None]

    @property
    def alarming(self) -> list[ColumnDrift]:
        """The columns that give a warning or an error, in the same order."""
        return [row for row in self.columns if row.level in ("warn", "fail")]

    @property
    def level(self) -> Level:
        """The worst level of its columns and segments."""
        alarms = (*self.alarming, *self.segment_alarms)
        return "fail" if any(row.level == "fail" for row in alarms) else "warn" if alarms else "none"


class Drift(ScoredMeasure[PartitionDrift]):
    """The distance of each column of a partition, and of its predictions by segment, from the reference of its version."""

    name = "drift"
    description = "How far the features and the predictions of each partition are from their baselines."
    asset = "drift"
    tables: ClassVar = {
        COLUMNS: table_of(ColumnDrift, "how far a column of a partition is from a baseline"),
        OF_SEGMENTS: table_of(
            SegmentDrift,
            "how far the predictions of a segment of a partition are from those of the same segment in the reference",
        ),
    }

    def replace(
        self, con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]
    ) -> list[Change]:
        """Replace the rows of columns and of segments, from the profiles alone."""
        return [*_replace_columns(con, commits, parts), *_replace_segments(con, commits, parts)]

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, PartitionDrift]:
        """The drift of committed partitions."""
        columns = read_drift(con, commits.pipeline, commits.keys)
        alarms = read_segment_alarms(con, commits.pipeline, commits.keys)
        keys = {run.partition_key: run for run in commits.runs}
        return {key: PartitionDrift(run, columns.get(key, ()), alarms.get(key, ())) for key, run in keys.items()}

    def shown(self, value: PartitionDrift) -> dict[str, Any]:
        """The worst columns first, and numbers to plot; nothing where no column is judged."""
        if not value.judged:
            return {}
        levels = [row.level for row in value.judged]
        metadata: dict[str, Any] = {
            "the_worst": _most_drifted(value.judged),
            **rounded({WORST_INDEX: value.judged[0].unusual}),
            "columns_over_warn": len(value.alarming),
            "columns_over_fail": levels.count("fail"),
        }
        reason = score_not_judged(value.columns)
        return metadata | ({"not_judged": reason} if reason else {})

    def check(self, spec: PipelineSpec) -> Check[PartitionDrift] | None:
        """Judge the columns and segments by the declared limits."""
        declared = spec.monitoring.drift
        if declared is None:
            return None
        return Check(
            description=(
                "Features and predictions are like the data that the version learned from (of an imported model, the rows before its "
                "serving period). A column gives a warning where its population "
                f"stability index is {declared.warn:g} or more beyond what chance explains and what is usual between the partitions of "
                f"the training data, and an error from {declared.fail:g} (monitoring.drift); nothing is blocked. The worst column "
                "comes first, and the index of each is plotted; the table `drift` has all measures. The "
                "predictions of each segment (monitoring.segments) are judged in the same way beside the same segment of the "
                "training data; the worst one is named, and the table `drift_by_segment` has all of them."
            ),
            judge=lambda drift, _: Finding(drift.level, _judged(drift, declared)),
            summary=_summary,
        )


def drifted_segments(worst_first: Sequence[SegmentDrift]) -> list[str]:
    """The worst segment of each column whose predictions differ, and how many more do."""
    by_column = dict[str, list[SegmentDrift]]()
    for row in worst_first:
        by_column.setdefault(row.segment_column, []).append(row)
    return [
        f"{worst.predictions} {worst.unusual:.2f}" + (f" and {counted(len(others), 'more segment')}" if others else "")
        for worst, *others in by_column.values()
    ]


def _most_drifted(worst_first: Sequence[ColumnDrift]) -> Markdown:
    return listing(("column", REFERENCE), {row.column_name: drifted(row) for row in worst_first[:MOST_LISTED]})


def _judged(drift: PartitionDrift, declared: monitored.Drift) -> dict[str, Any]:
    judged, alarming, alarms = drift.judged, drift.alarming, drift.segment_alarms
    if not judged:
        return {"not_judged": _not_judged(drift, declared)}
    texts = [*map(drifted, alarming), *drifted_segments(alarms)]
    texts += filter(None, [score_not_judged(drift.columns)])
    metadata: dict[str, Any] = {"drifted": ", ".join(texts) or "none"}
    metadata["the_worst"] = _most_drifted(alarming or judged)
    by_segment = {f"predictions by {row.segment_column}": row.level for row in reversed(alarms)}
    metadata[ALARMS] = [*map(list, ({row.column_name: row.level for row in alarming} | by_segment).items())]
    numbers = {f"psi_{row.column_name}": row.unusual for row in judged[:MOST_PLOTTED]}
    strange = {*declared.ignore, *declared.columns} - {row.column_name for row in drift.columns}
    if strange:
        metadata["not_a_column"] = f"monitoring.drift names {listed(strange)}, which is no feature of this version"
    return metadata | rounded(numbers)


def _summary(by_partition: Mapping[str, PartitionDrift], failed: Sequence[str]) -> dict[str, str]:
    reasons = Counter(filter(None, (score_not_judged(drift.columns) for drift in by_partition.values())))
    texts = [f"{reason} ({counted(count, 'partition')})" for reason, count in reasons.items()]
    columns = (row.column_name for key in failed for row in by_partition[key].alarming)
    segments = (row.segment_column for key in failed for row in by_partition[key].segment_alarms)
    return {
        "partitions": f"{len(by_partition):,}",
        **({"not_judged": "; ".join(texts)} if texts else {}),
        "drifted": listed(failed) or "none",
        "columns": listed(dict.fromkeys(columns)) or "none",
        "segments": listed(dict.fromkeys(segments)) or "none",
    }


def _not_judged(drift: PartitionDrift, declared: monitored.Drift) -> str:
    """Say why no column of a partition is judged."""
    if not drift.run.rows_scored:
        return "no row was scored"
    if not drift.columns:
        return f"no column of {drift.run.model_version} can be compared with its reference profile"
    if {row.column_name for row in drift.columns} <= {*declared.ignore}:
        return "every column is ignored"
    return "it was scored before monitoring.drift declared limits; scoring it again judges it"


def drift_aspect(spec: PipelineSpec, drift: PartitionDrift) -> Aspect:
    """The worst drift of a partition's columns and segments, as it was judged when the partition was scored."""
    key, declared = drift.run.partition_key, spec.monitoring.drift
    if not drift.judged:
        reason = "" if declared is None else f" on {key}: {_not_judged(drift, declared)}"
        return Aspect("drift", None, f"drift is not judged{reason}", key)
    not_judged = score_not_judged(drift.columns)
    remark = f" ({not_judged})" if not_judged else ""
    if drift.level == "none":
        if (rows := drift.run.rows_scored) < FEW_ROWS:
            return Aspect("drift", None, f"{counted(rows, 'row')} of {key} are too few to judge drift", key)
        return Aspect("drift", "none", f"no drift{remark}", key)
    names = [f"{row.column_name} ({'; '.join([f'psi {row.psi:.2f}', *_moves(spec, row)])})" for row in drift.alarming]
    names += [f"{row.predictions} (psi {row.psi:.2f})" for row in drift.segment_alarms]
    columns = listed(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - of those named
    numbers = {f"psi_{row.column_name}": row.unusual for row in drift.alarming}
    return Aspect("drift", drift.level, f"drift in {columns}{more} on {key}{remark}", key, numbers)


def _moves(spec: PipelineSpec, row: ColumnDrift) -> list[str]:
    """Describe a column beside its index: the values outside the range, and every difference where the index is no alarm."""
    declared = spec.monitoring.drift
    if declared is not None and row.unusual < declared.bounds(row.column_name)[0]:
        return row.changes
    return [row.outside] if row.outside else []


DRIFT = Drift()
