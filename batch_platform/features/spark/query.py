"""The user's SQL in Spark's dialect: one SELECT in a file, read and checked without Spark."""

import re
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.errors import SourceError, listed
from batch_platform.features.interruption import TimeLimit
from batch_platform.features.query import ONE_SELECT, PARAMETERS, SQL_FAILS, read_sql, reads_outside

if TYPE_CHECKING:
    from batch_platform.features.lineage.spark_sql import SparkStatement


class SparkQuery:
    """One SELECT over the sources; the bounds and the key of a partition are its parameters, as `:partition_start`."""

    dialect = "spark"

    def __init__(
        self, pipeline: str, folder: Path, name: str, sources: Collection[str], timeout: Duration | None = None
    ) -> None:
        """Read the file; see `Query`."""
        self.pipeline, self.path, self.timeout = pipeline, folder / name, timeout
        self.limit = TimeLimit(timeout.nominal if timeout else None)
        self.text = read_sql(pipeline, folder, name)
        parsed = self._parsed
        self.parameters = parsed.parameters
        if in_duckdb := {name for name in PARAMETERS if re.search(rf"\$\s*{name}\b", parsed.words)}:
            msg = f"{pipeline}: {self.path} uses the parameters {listed('$' + name for name in in_duckdb)}."
            raise SourceError(msg, hint="Spark's SQL writes a parameter with a colon, such as :partition_start.")
        if unknown := self.parameters - PARAMETERS:
            msg = f"{pipeline}: {self.path} uses the parameters {listed((':' + name if name else '?') for name in unknown)}."
            raise SourceError(msg, hint=f"use only {listed(':' + name for name in PARAMETERS)}.")
        known = {name.lower() for name in sources}
        if outside := (parsed.tables - known) | parsed.escapes:
            raise reads_outside(pipeline, self.path, outside, sources)

    @cached_property
    def _parsed(self) -> "SparkStatement":
        from batch_platform.features.lineage.spark_sql import spark_statement  # imports sqlglot, which takes its time

        try:
            return spark_statement(self.text)
        except ValueError as error:
            msg = f"{self.pipeline}: the SQL of {self.path}: {error}."
            raise SourceError(msg, hint=ONE_SELECT) from error

    @property
    def statement(self) -> str:
        """The text without comments and with equal white space, so that equal ones state the same."""
        return self._parsed.words

    def reads(self, names: Iterable[str]) -> list[str]:
        """Select the tables that the query names."""
        return [name for name in names if name.lower() in self._parsed.tables]

    def error(self, where: str, error: Exception) -> SourceError:
        """The error for SQL that Spark refuses, or that fails while it runs; the message names file and line."""
        text = str(error).strip()
        first = re.sub(r"\s*SQLSTATE: \w+.*|; line \d+ pos \d+.*", "", " ".join(text.partition("\n")[0].split()))
        line = re.search(r"\bline (\d+)[, ]", text)
        place = f"{self.path}:{line[1]}" if line else str(self.path)
        return SourceError(f"{where}: the SQL of {place} fails: {first.rstrip('. ')}.", hint=SQL_FAILS)
