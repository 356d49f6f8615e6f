"""The measure `feature_rows`: the scored rows of a partition as wholes, beside those of the training data and of the partition before."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import exp, log
from typing import Annotated, Any, ClassVar

import duckdb

from batch_platform.declaration.errors import listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import (
    ALARMS,
    Check,
    Commits,
    Finding,
    ScoredMeasure,
    ScoredPart,
    rounded,
    table_of,
)
from batch_platform.monitoring.profiles import RowReference
from batch_platform.warehouse.descriptions import MODEL_VERSION
from batch_platform.warehouse.ledger import Change, replace_records, rows_of_partitions

TABLE = "feature_rows"
COPIED, REPEATED, APART = "copied rows", "repeated rows", "columns apart"  # faults
LEAST_ROWS = 30  # fewer may be the same, or repeat each other, by chance
REPEATED_MATTERS = 0.03  # share of the rows by which repeated ones exceed what is usual
USUAL_MARGIN = 1.5  # times as far from the median as any partition of the training data
LOOSE_MATTERS = log(1.25)  # a quarter more than usual
NEARLY_APART = log(0.95)  # columns that have so little to do with each other cannot lose it


@dataclass(frozen=True)
class FeatureRows:
    """The rows of a partition; a row of the table `feature_rows`."""

    partition_key: str
    rows: Annotated[int, "scored rows"]
    identity: Annotated[str, "the same text for the same features, in any order"]
    equal_to: Annotated[
        str | None,
        "the partition before, if all features are the same; null also where that was so in the training data",
    ]
    repeated_share: Annotated[
        float, "share of the rows whose features repeat those of another; of many different rows, an estimate"
    ]
    repeated_usual: Annotated[
        float | None, "highest share in a partition of the training data; null where it is not known"
    ]
    looseness: Annotated[
        float | None,
        "error of the rows by the principal components of the training data, over that of columns that have nothing in common: about 1 once each is shuffled; null for few rows",
    ]
    looseness_highest: Annotated[float | None, "value from which the check warns; null where it does not judge"]
    model_version: Annotated[str, MODEL_VERSION]
    run_id: str

    @property
    def faults(self) -> dict[str, str]:
        """Everything wrong with the rows, in words, by cause."""
        faults, usual, loose, highest = dict[str, str](), self.repeated_usual, self.looseness, self.looseness_highest
        if self.equal_to:
            faults[COPIED] = f"the features of all {self.rows:,} rows are those of {self.equal_to}"
        if usual is not None and self.rows >= LEAST_ROWS and self.repeated_share > usual + REPEATED_MATTERS:
            repeated = f"{self.repeated_share:.1%} of the rows repeat the features of another"
            faults[REPEATED] = f"{repeated}, at most {usual:.1%} are usual"
        if loose is not None and highest is not None and loose > highest:
            most = f"at most {highest:.2f} is usual, and about 1 where columns have nothing in common"
            faults[APART] = f"columns no longer go together: {loose:.2f}, where {most}"
        return faults

    @property
    def misplaced(self) -> str | None:
        """The fault by which rows have the features of other rows, so that outcomes cannot be what is expected; None without one."""
        return next((fault for fault in (COPIED, APART) if fault in self.faults), None)


def _rows(con: duckdb.DuckDBPyConnection, pipeline: str, keys: Collection[str]) -> dict[str, FeatureRows]:
    stored = rows_of_partitions(con, FeatureRows, pipeline, TABLE, keys, order="partition_key")
    return {key: row for key, (row,) in stored.items()}


def read_misplaced(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, keys: Collection[str]) -> dict[str, str]:
    """The fault by which rows have the features of other rows, by partition key; a partition without one is left out."""
    rows = _rows(con, spec.name, keys) if spec.monitoring.rows else {}
    return {key: row.misplaced for key, row in rows.items() if row.misplaced}


class FeatureRowsMeasure(ScoredMeasure[FeatureRows]):
    """The scored rows of a partition as wholes, beside those of the training data and of the partition before."""

    name = TABLE
    description = "Whether the rows of each partition are rows of their own, whose columns go together as before."
    tables: ClassVar = {TABLE: table_of(FeatureRows, "the scored rows of a partition as wholes")}

    def replace(
        self, con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]
    ) -> list[Change]:
        """Replace the rows of committed partitions that have a sketch."""
        calendar, rows = commits.spec.partitions.calendar, list[FeatureRows]()
        before = {
            key: earlier.key
            for key in commits.keys
            if (earlier := calendar.holding(calendar.named(key).start - timedelta(microseconds=1))) is not None
        }
        identities = {key: row.identity for key, row in _rows(con, commits.pipeline, before.values()).items()}
        identities |= {key: part.sketch.identity for key, part in parts.items()}
        for run in commits.runs:
            key, sketch, profile = run.partition_key, parts[run.partition_key].sketch, commits.reference_of(run)
            if not sketch.rows:
                continue
            known, earlier = RowReference() if profile is None else profile.rows, before.get(key, "")
            equal = (
                known.may_equal is False and sketch.rows >= LEAST_ROWS and identities.get(earlier) == sketch.identity
            )
            highest = None
            if known.looseness and known.looseness_usual:
                bound = log(known.looseness) + max(LOOSE_MATTERS, USUAL_MARGIN * log(known.looseness_usual))
                highest = None if bound > NEARLY_APART else exp(bound)
            loose = None if known.components is None else known.components.looseness(sketch)
            shares = sketch.repeated, known.repeated_usual
            measured = (key, sketch.rows, sketch.identity, earlier if equal else None, *shares, loose, highest)
            rows.append(FeatureRows(*measured, run.model_version, run.run_id))
        return replace_records(con, commits.runs, TABLE, FeatureRows, rows)

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, FeatureRows]:
        """The rows of committed partitions."""
        return _rows(con, commits.pipeline, commits.keys)

    def numbers(self, value: FeatureRows) -> dict[str, float]:
        """The share of repeated rows, and how loosely columns go together."""
        numbers = {"repeated_share": value.repeated_share, "looseness": value.looseness}
        return {name: value for name, value in numbers.items() if value is not None}

    def check(self, spec: PipelineSpec) -> Check[FeatureRows] | None:
        """Warn of rows that are copied, repeated, or whose columns do not go together."""
        if not spec.monitoring.rows:
            return None

        def judge(rows: FeatureRows, _: str) -> Finding | None:
            if rows.repeated_usual is None and rows.looseness_highest is None:
                return None
            faults = rows.faults
            shown: dict[str, Any] = {
                "what": "; ".join(faults.values()) or "nothing unusual",
                **rounded(self.numbers(rows)),
            }
            return Finding("warn" if faults else "none", {**shown, ALARMS: [[fault, "warn"] for fault in faults]})

        return Check(
            description=(
                "The rows of a partition are rows of their own: not all of them those of the partition before once more, with no more "
                "repeated features than in the training data, and with columns that go together as they did there "
                "(the error by the training data's principal components). It never blocks; monitoring.rows: false switches it off."
            ),
            judge=judge,
            summary=lambda judged, failed: {"partitions": f"{len(judged):,}", "unusual": listed(failed) or "none"},
            faults=(COPIED, REPEATED, APART),
            extent={REPEATED: "repeated_share", APART: "looseness"},
            doubtful=True,
        )


FEATURE_ROWS = FeatureRowsMeasure()
