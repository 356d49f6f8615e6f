"""The contenders of scoring: how each is run on the same Parquet files, and where it writes its scores.

A peer is a script in `peers/`, called with the exported model, an output and the files. All contenders read the feature
files of batch_platform, so that none has a better layout.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Another way to score.

    Args:
        script: File name in `peers/`.
        output: Name of the DuckDB file, or of the folder of Parquet files, that it writes.
        shares_environment: Whether it runs in the environment of this process.
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
    """Install the environments of contenders before anything is measured.

    Raises:
        SystemExit: An environment cannot be installed, or Java is missing.
    """
    for name in contenders:
        if name != OURS and not ALL_PEERS[name].shares_environment:
            environments.python(name)
    if "spark" in contenders:
        java_home()


@dataclass(frozen=True)
class Job:
    """Partitions to score.

    Args:
        project: A project that is ready to score.
        keys: Contiguous partition keys, oldest first.
        model: File of the exported model.
        environments: Environments of the peers.
    """

    project: Project
    keys: Sequence[str]
    model: Path
    environments: Environments

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
            return cost, Scores(home.published, f"{self.project.pipeline}.predictions", self.keys)
        folder.mkdir(parents=True)
        return self.score_by_peer(contender, folder)

    def score_by_peer(self, contender: str, folder: Path, *flags: str) -> tuple[Cost, Scores]:
        """Score the partitions with a peer, which writes into an existing folder."""
        peer = ALL_PEERS[contender]
        output = folder / peer.output
        cost = self._run(contender, peer, output, flags)
        if contender == "sklearn_in_memory":  # it reports its own time: reading and writing do not count
            cost = replace(cost, **json.loads(cost.output))
        return cost, Scores(output, "main.scores" if output.suffix == ".duckdb" else None, self.keys)

    def _run(self, contender: str, peer: Peer, output: Path, flags: Sequence[str]) -> Cost:
        python = self.environments.own() if peer.shares_environment else self.environments.python(contender)
        command = [str(python), str(PEERS / peer.script), str(self.model), str(output), *self.files, *flags]
        variables = {"JAVA_HOME": str(java_home())} if contender == "spark" else {}
        return run(command, output.parent, **variables)
