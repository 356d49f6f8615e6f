"""The user's SQL in Spark's dialect: one SELECT in a file, read and checked without Spark."""

import re
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from batch_platform.declaration.errors import SourceError, listed
from batch_platform.features.query import ONE_SELECT, PARAMETERS, SQL_FAILS, SqlFile

if TYPE_CHECKING:
    from batch_platform.features.lineage.spark_sql import SparkStatement


class SparkQuery(SqlFile):
    """SQL that Spark runs; its parameters are written with a colon, as `:partition_start`."""

    dialect, sign = "spark", ":"

    def _parameters(self) -> frozenset[str]:
        if in_duckdb := {name for name in PARAMETERS if re.search(rf"\$\s*{name}\b", self._parsed.words)}:
            msg = f"{self.pipeline}: {self.path} uses the parameters {listed('$' + name for name in in_duckdb)}."
            raise SourceError(msg, hint="Spark's SQL writes a parameter with a colon, such as :partition_start.")
        return self._parsed.parameters

    def _outside(self, sources: Collection[str]) -> Collection[str]:
        return (self._parsed.tables - {*sources}) | self._parsed.escapes

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
