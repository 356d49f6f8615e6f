"""The contenders of scoring: how each one is run on the same Parquet files, and where its scores are found.

A peer is a script in `peers/`, called with the exported model, an output and the files. All of them read the files that
batch_platform's features are in, so that none has the better layout.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks.agreement import Scores
from batch_platform_tests.benchmarks.environments import Environments, java_home
from batch_platform_tests.benchmarks.measuring import OURS, Cost, run
from batch_platform_tests.benchmarks.project import Project

PEERS = Path(__file__).with_name("peers")


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to score.

    Args:
        script: Its file in `peers/`.
        output: The DuckDB file or the folder of Parquet files that it writes.
        shares_environment: Whether it runs in this process's environment.
    """

    script: str
    output: str
    shares_environment: bool = False


ALL_PEERS = {
    "script": Peer("script.py", "scores.duckdb", shares_environment=True),
    "sklearn_in_memory": Peer("sklearn_in_memory.py", "scores", shares_environment=True),
    "stock_dagster": Peer("stock_dagster.py", "scores.duckdb"),
    "ray": Peer("ray_data.py", "scores"),
    "spark": Peer("spark_map.py", "scores"),
}
CONTENDERS = [OURS, *ALL_PEERS]


def require_peers(contenders: Sequence[str], environments: Environments) -> None:
    """Install what contenders need before anything is measured.

    Raises:
        SystemExit: Something cannot be installed, or is not there.
    """
    for name in contenders:
        if name != OURS and not ALL_PEERS[name].shares_environment:
            environments.python(name)
    if "spark" in contenders:
        java_home()


@dataclass(frozen=True)
class Job:
    """Partitions to be scored.

    Args:
        project: Made ready.
        keys: The partitions, oldest first, without a gap.
        model: The exported model.
        environments: Of the peers.
    """

    project: Project
    keys: Sequence[str]
    model: Path
    environments: Environments

    @property
    def files(self) -> list[str]:
        """The features of the partitions."""
        home, pipeline = self.project.ready, self.project.pipeline
        builds = Warehouse(home).latest(FeatureBuild, pipeline)
        return [str(home.feature_file(pipeline, key, builds[key].sha256)) for key in self.keys]

    def score(self, contender: str, folder: Path) -> tuple[Cost, Scores]:
        """Let a contender score the partitions, with what it writes below a new folder on the project's disk."""
        if contender == OURS:
            home = self.project.copy_ready(folder)
            cost = self.project.run(home, "--from", self.keys[0], "--to", self.keys[-1])
            return cost, Scores(home.published, f"{self.project.pipeline}.predictions", self.keys)
        folder.mkdir(parents=True)
        return self.score_by_peer(contender, folder)

    def score_by_peer(self, contender: str, folder: Path, *flags: str) -> tuple[Cost, Scores]:
        """Let a peer score the partitions, with what it writes in a folder that is there."""
        peer = ALL_PEERS[contender]
        output = folder / peer.output
        cost = self._run(contender, peer, output, flags)
        if contender == "sklearn_in_memory":  # it alone is not measured from outside
            cost = Cost(json.loads(cost.output)["seconds"], cost.peak_mib, cost.output)
        return cost, Scores(output, "main.scores" if output.suffix == ".duckdb" else None, self.keys)

    def _run(self, contender: str, peer: Peer, output: Path, flags: Sequence[str]) -> Cost:
        python = self.environments.own() if peer.shares_environment else self.environments.python(contender)
        command = [str(python), str(PEERS / peer.script), str(self.model), str(output), *self.files, *flags]
        variables = {"JAVA_HOME": str(java_home())} if contender == "spark" else {}
        return run(command, output.parent, **variables)
