"""The contenders of scoring: this project, and the script in `peers/`, which reads the same feature files.

The script is called with the exported model, an output and the files, so that neither contender has a better layout.
All contenders must give each row the same score.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks.measuring import OURS, Cost, run
from batch_platform_tests.benchmarks.project import Project

PEERS = Path(__file__).with_name("peers")
CONTENDERS = [OURS, "script"]


@dataclass(frozen=True)
class Scores:
    """Scores that a contender has written into a DuckDB file.

    Args:
        path: The file.
        table: Its table.
        day: Column that holds the day.
        keys: The days that were scored.
    """

    path: Path
    table: str
    day: str
    keys: Sequence[str]

    def rows(self) -> pl.DataFrame:
        """The scores of these days, in order of the key."""
        query = f"SELECT id, score, prediction FROM {self.table} WHERE list_contains($keys, {self.day}) ORDER BY id"
        with duckdb.connect(str(self.path), read_only=True) as con:
            return con.sql(query, params={"keys": list(self.keys)}).pl()


def require_same(contender: str, scores: pl.DataFrame, expected: pl.DataFrame, tolerance: float) -> None:
    """Compare the scores of a contender with those of the first one, both in order of the key.

    Raises:
        SystemExit: Rows are missing or too many, or a score or a prediction differs.
    """
    if not scores["id"].equals(expected["id"]):
        sys.exit(f"{contender} scored {scores.height} rows instead of {expected.height}, or others.")
    distance = (scores["score"] - expected["score"]).abs()
    same = (distance <= tolerance) & (
        (scores["prediction"] == expected["prediction"]) | ((scores["score"] - 0.5).abs() <= tolerance)
    )
    if not same.all():
        sys.exit(f"{contender} gives other scores for {(~same).sum()} rows; they differ by up to {distance.max()}.")


@dataclass(frozen=True)
class Job:
    """Partitions to score.

    Args:
        project: A project that is ready to score.
        keys: Contiguous partition keys, oldest first.
        model: File of the exported model.
    """

    project: Project
    keys: Sequence[str]
    model: Path = Path()

    @property
    def files(self) -> list[str]:
        """The feature files of the partitions."""
        home, pipeline = self.project.ready, self.project.pipeline
        builds = Warehouse(home).latest(FeatureBuild, pipeline)
        return [str(home.feature_file(pipeline, key, builds[key].sha256)) for key in self.keys]

    def score(self, contender: str, folder: Path) -> tuple[Cost, Scores]:
        """Score the partitions with a contender, which writes into a new folder on the project's disk."""
        if contender == OURS:
            home = self.project.copy_ready(folder)
            cost = self.project.run(home, "--from", self.keys[0], "--to", self.keys[-1])
            return cost, Scores(home.published, f"{self.project.pipeline}.predictions", "partition_key", self.keys)
        folder.mkdir(parents=True)
        output = folder / "scores.duckdb"
        cost = run([sys.executable, str(PEERS / "script.py"), str(self.model), str(output), *self.files], folder)
        return cost, Scores(output, "scores", "day", self.keys)
