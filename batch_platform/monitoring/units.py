"""The units of rows that every interval holds to be independent, as a pipeline declares them or as its key tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.outcomes import ENTITY, PARTITION

CONFIDENCE = (
    "A 95% confidence interval says where a number lies in the whole population that the rows stand for, if the world stays the "
    "same: of 100 such intervals, about 95 hold it. A new measurement on other rows varies too, and falls into it less often."
)


@dataclass(frozen=True)
class UnitRule:
    """The rule by which rows depend on each other."""

    declared: str | None = None  # "row", "partition", or a column
    group: Sequence[str] = ()  # columns by which training holds out rows together

    @classmethod
    def of(cls, spec: PipelineSpec) -> "UnitRule":
        """The rule of a pipeline."""
        return cls(spec.monitoring.unit, spec.model.train.group)

    def __str__(self) -> str:
        """A sentence that says what depends on each other."""
        if self.declared == "row":
            return "All rows are held to be independent, as monitoring.unit declares."
        if self.column:
            return f"Several rows with the same {self.column[0]} count as one, as monitoring.unit declares."
        entity = f"with the same {listed(self.group)}" if self.group else "of one entity (same key, times aside)"
        rows = "" if self.declared else f"Several rows {entity} count as one. "
        return f"{rows}Where partitions differ by more than chance explains, each counts as a single observation, so that more rows can give a wider interval."

    @property
    def column(self) -> list[str]:
        """The declared column, if there is one."""
        return [self.declared] if self.declared and self.declared not in ("row", PARTITION) else []

    @property
    def columns(self) -> list[str]:
        """The columns that tell the unit of a row, unless its key does."""
        return self.column or ([] if self.declared else [*self.group])

    def numbers(
        self, rows: pl.DataFrame, key: Sequence[str], partition: str | None = None
    ) -> dict[str, NDArray[np.integer]]:
        """The number of each row's unit [n], by the name of the unit.

        `partition` is the column with the partition of each row; without it, all are rows of one.
        """
        units = dict[str, Sequence[str]]()
        if self.column:
            units[self.column[0]] = self.column
        elif self.declared is None:
            lasting = [name for name in key if not rows.schema[name].is_temporal()]
            recurs = partition is not None or len(lasting) < len(key)
            grouped = self.group and {*self.group} <= {*rows.columns}  # a feature that is not kept is not known
            units = {"group": self.group} if grouped else {ENTITY: lasting if recurs else ()}
        numbers = {
            name: rows.select(columns).hash_rows().to_numpy()
            for name, columns in units.items()
            if columns and {*columns} <= {*rows.columns}
        }
        if partition is not None and self.declared in (None, PARTITION):
            numbers[PARTITION] = rows[partition].rank("dense").to_numpy()
        return numbers
