"""A measure: a table with rows by partition, how it is computed and replaced, and how its values are shown and judged.

Scoring computes a measure from what it holds of a partition when it is committed (`ScoredPart`) and replaces its rows in the
transaction of the predictions; evaluation computes one from the rows and their labels (`ScoredPartition`). Tables, comments,
asset checks, the metadata of the UI and the report are built from these classes. To add a measure, write its class in a
module and list it in `catalogue.py`; its settings get a block under `monitoring:` in `declaration/monitored.py`.
"""

import html
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args, get_origin

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.predictions import DECISION, Decide
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import Level
from batch_platform.monitoring.metrics import Metric, known_to
from batch_platform.monitoring.outcomes import CLASSIFICATION, HIGH, LOW, UnitRule
from batch_platform.monitoring.profiles import Profile, RowSketch
from batch_platform.monitoring.reference import ReferenceProfile
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.monitoring.usual import Past
from batch_platform.warehouse.descriptions import MODEL_VERSION, OF_PARTITION, Description
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import Change, ScoreRun, Version, changes_of
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import StagedFile

TRUTH = "__truth"
# Entry of a check's metadata: pairs of a cause of the alarm, such as a column, and its level; the worst first, which Dagster's
# mappings forget.
ALARMS = "alarms"
DIGITS = 6  # significant digits of the numbers that are shown and plotted
LEVELS: tuple[Level, ...] = get_args(Level)
Value = TypeVar("Value")
ReferenceOf = Callable[[ScoreRun], ReferenceProfile | None]
Asset = Literal["predictions", "drift", "performance"]
ColumnType = pl.DataType | type[pl.DataType]


@dataclass(frozen=True)
class Column:
    """A column of a measure's table."""

    type: ColumnType
    text: str = ""  # what it holds, in words


@dataclass(frozen=True)
class ChallengerRun:
    """The result of a challenger for a partition: it scored or rejected every row that the champion scored, or it failed."""

    partition_key: str
    challenger: str
    model_version: str | None  # None if the version could not be determined
    champion_version: str  # the version that scored the partition
    rows_in: int  # rows that the champion scored
    rows_scored: int
    rows_rejected: int  # rows that the challenger's own contract rejects
    reasons: str  # rejected rows by reason, as JSON
    rank_correlation: float | None
    decisions_flipped: float | None  # share of rows
    failure: str | None  # why it scored nothing; None if it did not fail
    in_sample: bool  # whether its training data overlap the partition
    scored_at: datetime
    run_id: str


@dataclass(frozen=True)
class StagedChallenger:
    """A challenger's part of the commit of a partition: its row, and the files with its scores, none if it failed."""

    run: ChallengerRun
    paths: Sequence[Path]
    files: Sequence[StagedFile] | None  # the same, to be published as they are; None: the rows are copied into DuckDB
    decided: Mapping[Path, str] = field(default_factory=dict[Path, str])  # SQL conditions, see `rows_of_files`


@dataclass(frozen=True, eq=False)
class ScoredPart:
    """A scored partition that is being committed, beside its row of the ledger: all that a measure of scoring may look at."""

    predictions: Sequence[Path] = ()  # staged files
    profiles: Sequence[Profile] = ()  # features, prediction and estimates; empty if the version has no reference
    by_segment: SegmentCounts = field(default_factory=SegmentCounts)
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])  # rejected rows by column and reason
    challengers: Sequence[StagedChallenger] = ()
    # Sketch of the encoded rows; empty if `monitoring.rows` is off.
    sketch: RowSketch = field(default_factory=RowSketch)


@dataclass(frozen=True, eq=False)
class Commits:
    """Committed partitions of a pipeline whose measures are replaced or read together, and what is known beside them."""

    spec: PipelineSpec
    home: Home
    runs: Sequence[ScoreRun]
    past: Past  # every commit of the pipeline so far
    versions: Mapping[str, Version]  # registered versions by name
    reference_of: ReferenceOf = lambda _: None  # the reference profile of the version that scored a partition

    @property
    def pipeline(self) -> str:
        """The name of the pipeline."""
        return self.spec.name

    @property
    def keys(self) -> list[str]:
        """The keys of the partitions."""
        return [run.partition_key for run in self.runs]


@dataclass(frozen=True)
class Intervals:
    """The intervals of a version's predictions."""

    level: float  # share of the true values that they are made to hold
    correlation: float  # correlation of two rows of a partition in whether their intervals hold


@dataclass(frozen=True)
class Expected:
    """A metric as it was expected of a partition before its labels were known."""

    metric: str
    estimate: float
    low: float
    high: float
    # Deviations of earlier partitions, oldest first, in standard deviations; negative: worse.
    before: Sequence[float] = ()
    log_loss: tuple[float, float] | None = None  # log loss of two classes, and the end of its interval


@dataclass(frozen=True, eq=False)
class ScoredPartition:
    """One partition as one model scored it, with its labels as known now: all that a measure of evaluation may look at."""

    task: str  # task of the model
    classes: Sequence[Any]  # classes in the order of the model's probabilities; empty unless it is a classification
    key: Sequence[str]  # names of the key columns
    # Key columns, `prediction`, the score columns or the ends of an interval, and `decision` if a rule decided.
    predictions: pl.DataFrame
    labels: pl.DataFrame | None  # key columns and, last, the label, without nulls; None if no labels are declared
    # The rows that were scored, with key, feature and prediction columns, and the same rows encoded [n, columns]. Raises
    # DataError or IntegrityError if they are no longer available.
    read_features: Callable[[], tuple[pl.DataFrame, NDArray[np.float64]]]
    own_metrics: Sequence[Metric] = ()  # further metrics that the pipeline declares
    in_sample: bool = False  # whether the model has learned from the partition
    segments: Sequence[str] = ()  # columns of `monitoring.segments`
    # The key of each row and as many of these columns, and those that tell its unit, as are stored; None if none of them is.
    read_segments: Callable[[], pl.DataFrame | None] = lambda: None
    unit: UnitRule = field(default_factory=UnitRule)
    intervals: Intervals | None = None  # None if no interval is declared, or none is known of the version
    decide: Decide | None = None  # the rule by which the rows were decided
    # Number of rows whose labels count, since no model learns from them; None: those of all rows.
    held_out: int | None = None
    expected: Expected | None = None  # estimate for the model that serves
    misplaced: str | None = None  # fault by which rows have the features of other rows; None without one
    not_given: Collection[str] = ()  # columns of the features that no model is given (`feature: false`)

    @cached_property
    def score_columns(self) -> list[str]:
        """Names of the score columns, in the order of the classes."""
        beside = {*self.key, "prediction", LOW, HIGH, DECISION}
        return [name for name in self.predictions.columns if name not in beside]

    @cached_property
    def labelled(self) -> pl.DataFrame:
        """The predictions whose label is known, with the label as TRUTH, in the order of their keys."""
        if self.labels is None:
            return self.predictions.clear()
        truth = self.labels.rename({self.labels.columns[-1]: TRUTH})
        return self.predictions.join(truth, on=list(self.key), how="inner").sort(self.key)

    @cached_property
    def of_unknown_class(self) -> pl.Series:
        """The known labels, a class each, that the model does not know."""
        labels = self.labelled[TRUTH] if self.labels is not None else pl.Series(dtype=pl.String)
        return labels.filter(~known_to(self.classes, labels)) if self.task in CLASSIFICATION else labels.clear()


class Judged(Protocol):
    """A value of a measure, as it was judged."""

    @property
    def level(self) -> Level:
        """The outcome: passed, a warning, or an error."""
        ...

    @property
    def shown(self) -> Mapping[str, Any]:
        """Numbers to plot, and texts to read."""
        ...


@dataclass(frozen=True)
class Finding:
    """A judgement that is not of a single number."""

    level: Level
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Judgement:
    """A number compared with its declared bound."""

    name: str  # name of the number, e.g. a metric
    value: float
    bound: float
    lower_is_better: bool = False
    best: float | None = None  # end of the value's interval; None without one
    remarks: Mapping[str, float] = field(default_factory=dict[str, float])  # numbers to show beside it

    @property
    def passed(self) -> bool:
        """True unless the value is worse than the bound by more than chance."""
        value = self.value if self.best is None else self.best
        return not (value > self.bound if self.lower_is_better else value < self.bound)

    @property
    def level(self) -> Level:
        """A value that is worse gives a warning."""
        return "none" if self.passed else "warn"

    @property
    def shown(self) -> Mapping[str, Any]:
        """The number, and what stands beside it."""
        return {"metric": self.name, **rounded({self.name: self.value, **self.remarks})}


@dataclass(frozen=True)
class Aspect:
    """One judgement."""

    name: str  # that of a check of the newest partition, or sources, failures, fresh, delivered and so on
    level: Level | None  # None where it is not judged
    text: str  # a clause that says what is so
    partition: str | None = None  # key of the partition that it is about
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def passed(self) -> bool:
        """True if it is neither worth a warning nor failed."""
        return self.level in (None, "none")


@dataclass(frozen=True)
class Health:
    """All judgements, and the worst level among them."""

    level: Level
    aspects: list[Aspect]

    @classmethod
    def of(cls, aspects: Iterable[Aspect]) -> "Health":
        """The health by some judgements."""
        members = list(aspects)
        levels: list[Level] = [aspect.level for aspect in members if aspect.level is not None]
        return cls(LEVELS[max(map(LEVELS.index, levels), default=0)], members)

    @property
    def alarms(self) -> list[Aspect]:
        """The aspects that are worth a warning or failed, the worst first."""
        alarms = [aspect for aspect in self.aspects if not aspect.passed]
        return sorted(alarms, key=lambda aspect: LEVELS.index(aspect.level or "none"), reverse=True)

    def reaches(self, level: Level) -> bool:
        """Return whether it is as bad as a level, or worse."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


@dataclass(frozen=True)
class Check(Generic[Value]):
    """A rule that judges the values of a measure for one pipeline."""

    description: str  # text for the UI: what is expected, and what happens otherwise
    judge: Callable[
        [Value, str], Judged | None
    ]  # takes a partition's value and its model's task; None: nothing to judge
    # Texts that sum up a run, of the judged values by partition key, and of the keys that did not pass. By default, the number
    # of both, and the worst numbers.
    summary: Callable[[Mapping[str, Value], Sequence[str]], Mapping[str, Any]] | None = None
    name: str = ""  # name in the UI; by default that of the measure
    faults: Collection[str] = ()  # causes of an alarm (see ALARMS) that are no columns; each has a line of its own
    doubtful: bool = (
        False  # whether these put rows or labels in doubt, so that the report gives a partition's figures apart
    )
    # How bad a failed partition is, as SQL over its row in the table of the measure, by cause ("" without one): of several
    # partitions the worst is quoted, by default the newest.
    extent: Mapping[str, str] = field(default_factory=dict[str, str])
    # Whether the declaration says by now that a fault of a partition, named by its key, is right.
    accepted: Callable[[str, Collection[str]], bool] = lambda _key, _faults: False


class Measure(Generic[Value]):
    """What every measure has; one is made by writing a `ScoredMeasure` or an `EvaluatedMeasure`.

    Its value of a partition is the rows of its table, unless `stage` or `read` give another one.
    """

    name: str
    description: str  # one sentence for the UI: what the measure says about a partition
    asset: Asset  # the asset that shows it
    shared: ClassVar[Mapping[str, str]]  # texts of the columns that every measure's table has
    # Columns of the table of its name, beside these; without any it has none.
    columns: ClassVar[Mapping[str, Column]] = {}
    row: str = ""  # what a row of that table is, in words; by default the description
    tables: ClassVar[Mapping[str, Description]] = {}  # tables that it makes itself
    has_section = False  # whether the report lays it out by itself; others are listed with their numbers

    def declared(self, spec: PipelineSpec) -> bool:  # noqa: ARG002 - by default
        """Return whether a pipeline has rows of it at all."""
        return True

    def beside(self, partition: ScoredPartition) -> Mapping[str, pl.DataFrame]:  # noqa: ARG002 - by default
        """Further rows of a partition that was evaluated with labels, of the model that serves: in tables of `tables`, or to settle."""
        return {}

    def settle(
        self, con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str], rows: Mapping[str, pl.DataFrame]
    ) -> None:
        """Complete other rows of evaluated partitions, by such further rows, once the tables are replaced."""

    def numbers(self, value: Value) -> Mapping[str, float]:  # noqa: ARG002 - by default
        """Numbers to show and to plot."""
        return {}

    def shown(self, value: Value) -> Mapping[str, Any]:
        """Metadata for the UI; by default the numbers."""
        return rounded(self.numbers(value))

    def check(self, spec: PipelineSpec) -> Check[Value] | None:  # noqa: ARG002 - by default
        """The rule that judges its values; None if the pipeline declares nothing."""
        return None

    @property
    def types(self) -> dict[str, ColumnType]:
        """The types of the columns of its table."""
        return {name: column.type for name, column in self.columns.items()}

    @property
    def described(self) -> dict[str, Description]:
        """The tables, and what their rows and columns hold."""
        texts = {name: column.text for name, column in self.columns.items() if column.text}
        own = {self.name: Description(self.row or self.description, {**self.shared, **texts})} if self.columns else {}
        return {**own, **self.tables}

    def of(self, measures: Mapping[str, Any]) -> Value | None:
        """Its value among those of a partition; None where it has none."""
        return measures.get(self.name)

    def served_rows(
        self, con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str]
    ) -> dict[str, pl.DataFrame]:
        """The rows of its table by partition key, without those of challengers; a partition without any is left out."""
        rows = self.rows(con, pipeline, keys)
        if "challenger" in rows.columns:
            rows = rows.filter(pl.col("challenger").is_null())
        by_partition = rows.partition_by("partition_key", as_dict=True, maintain_order=True)
        return {str(key): of_partition.select(*self.columns) for (key,), of_partition in by_partition.items()}

    def rows(self, con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str]) -> pl.DataFrame:
        """The rows of its table for some partitions; a column that the measure did not have when they were written is null."""
        shared = [name for name in ("partition_key", "challenger", "model_version") if name in self.shared]
        types = {**dict.fromkeys(shared, pl.String), **self.types}
        if not has_table(con, pipeline, self.name):
            return pl.DataFrame(schema=types)
        query = f"FROM {quoted(pipeline)}.{quoted(self.name)} WHERE partition_key IN $keys"
        rows = con.sql(query, params={"keys": list(keys)}).pl()
        lacking = [name for name in types if name not in rows.columns]
        return rows.with_columns(pl.lit(None, types[name]).alias(name) for name in lacking).select(*types)


class ScoredMeasure(Measure[Value]):
    """A measure that is computed when a partition is scored."""

    asset = "predictions"
    shared: ClassVar = {**OF_PARTITION, "model_version": MODEL_VERSION}
    is_read = True  # whether anything is shown or judged of it; a table that others read is not read with every commit

    def score(self, run: ScoreRun, part: ScoredPart) -> pl.DataFrame:  # noqa: ARG002 - by default
        """The rows of its table for one partition, with its columns."""
        return pl.DataFrame(schema=self.types)

    def stage(self, parts: Mapping[str, ScoredPart]) -> Mapping[str, Value] | None:  # noqa: ARG002 - by default
        """Values by partition key that are known before the transaction; with them, nothing is read back within."""
        return None

    def replace(
        self,
        con: duckdb.DuckDBPyConnection,
        commits: Commits,
        parts: Mapping[str, ScoredPart],
    ) -> list[Change]:
        """Replace the rows of committed partitions within the transaction of the predictions, and return what changed, which is noted for all measures together.

        `parts` has what was scored by partition key. By default, the rows of `score`.
        """
        if not self.columns:
            return []
        has_rows, none = self.declared(commits.spec), pl.DataFrame(schema=self.types)
        rows = [
            self._scored(self.score(run, parts[run.partition_key]) if has_rows else none, run) for run in commits.runs
        ]
        if not any(frame.height for frame in rows) and not has_table(con, commits.pipeline, self.name):
            return []
        con.register("new_rows", pl.concat(rows))
        replace_rows(con, commits.pipeline, self.name, commits.keys, "new_rows")
        con.unregister("new_rows")
        return changes_of(commits.runs, self.name)

    def _scored(self, rows: pl.DataFrame, run: ScoreRun) -> pl.DataFrame:
        """The rows of a partition with the shared columns; raises DataError if they lack a column."""
        if lacking := [name for name in self.columns if name not in rows.columns]:
            msg = (
                f"{run.pipeline}, partition {run.partition_key}: the measure {self.name!r} computed no column "
                f"{listed(map(repr, lacking))}; it computed {listed(map(repr, rows.columns))}."
            )
            raise DataError(msg, hint=f"return each column that the measure declares ({listed(self.columns)}).")
        return rows.select(
            pl.lit(run.partition_key).alias("partition_key"),
            *(pl.col(name).cast(dtype) for name, dtype in self.types.items()),
            pl.lit(run.model_version).alias("model_version"),
            pl.lit(run.run_id).alias("run_id"),
        )

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> Mapping[str, Any]:
        """The values of committed partitions by key; a partition without any is left out. By default, the rows of its table."""
        return self.served_rows(con, commits.pipeline, commits.keys)


class EvaluatedMeasure(Measure[pl.DataFrame]):
    """A measure that is computed when a partition is evaluated, of the model that serves and of each challenger."""

    asset = "performance"
    shared: ClassVar = {
        **OF_PARTITION,
        "model_version": "version that was measured",
        "evaluated_at": "when it was measured, in UTC",
        "challenger": "challenger that was measured; null for the model that serves",
    }

    def compute(self, partition: ScoredPartition) -> pl.DataFrame:
        """The rows of its table for one partition, with its columns."""
        raise NotImplementedError


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers with as many digits as anybody reads; the tables hold all digits."""
    return {name: float(f"{number:.{DIGITS}g}") for name, number in numbers.items()}


class Markdown(str):
    """A text that is Markdown, to be shown as such."""

    __slots__ = ()


def listing(columns: tuple[str, str], values: Mapping[str, object]) -> Markdown:
    """A table of names and values of unknown origin, as Markdown."""
    return table(columns, [map(markdown, (name, str(value))) for name, value in values.items()], columns[1:])


def table(columns: Sequence[str], rows: Iterable[Iterable[str]], numeric: Container[str] = ()) -> Markdown:
    """A table as Markdown, of cells that are Markdown; numeric columns are aligned to the right."""
    rule = ["---:" if column in numeric else "---" for column in columns]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)))


def markdown(text: str) -> str:
    """Text of unknown origin as Markdown that only shows it: without tags, links or cells of its own."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return html.escape(_MARKUP.sub(r"\\\g<0>", shown), quote=False)


_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is no markup


def table_of(record: type, row: str) -> Description:
    """The description of a table of records whose fields are annotated with what they hold."""
    noted = {item.name: get_args(item.type)[1] for item in fields(record) if get_origin(item.type) is Annotated}
    return Description(row, {**OF_PARTITION, **noted})
