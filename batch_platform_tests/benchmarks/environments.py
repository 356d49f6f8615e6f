"""Virtual environments of peers that cannot share ours: their packages, the versions, and where they are installed.

The only place that pins versions. Libraries that read the exported model have the versions of this process, so that all
contenders evaluate the same estimator.
"""

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from batch_platform_tests.benchmarks.measuring import inherited

SHARED = ("scikit-learn", "numpy", "scipy", "joblib", "polars", "pyarrow")  # in the versions of this process
PINNED: dict[str, tuple[str, ...]] = {
    "lignum": ("pylignum==0.3.0",),
    "lleaves": ("lleaves==1.3.0", "llvmlite==0.44.0"),  # lleaves calls what later releases of llvmlite lack
    "tl2cgen": ("tl2cgen==1.0.0", "treelite==4.8.1"),
    "onnxruntime": ("onnxruntime==1.32.0", "onnxmltools==1.16.0", "lightgbm==4.7.0", "xgboost-cpu==3.2.0"),
    "evidently": ("evidently==0.7.23", "pandas==2.3.3", "pyarrow==26.0.1"),
    "nannyml": (
        "nannyml==0.13.1",
        "statsmodels==0.15.0",
        "pandas==2.3.3",
        "scikit-learn==1.9.1",
        "numpy==2.4.6",
        "pyarrow==26.0.1",
    ),
}
ALONE = ("evidently", "nannyml")  # they judge rows, not our model: they need not share its libraries' versions


@dataclass(frozen=True)
class Environments:
    """Virtual environments in one folder, each created at its first use and kept."""

    folder: Path

    def python(self, name: str) -> Path:
        """The interpreter of a peer's environment.

        Raises:
            SystemExit: The environment cannot be installed.
        """
        wanted = requirements(name)
        mark = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:8]
        place = self.folder / f"{name}-{mark}"
        interpreter, complete = place / "bin" / "python", place / ".complete"
        if not complete.exists():
            print(f"Installing {', '.join(wanted)} into {place}.", file=sys.stderr, flush=True)
            venv.create(place, clear=True, with_pip=True)
            install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
            done = subprocess.run(install, env=inherited(), check=False, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                sys.exit(f"{name} cannot be installed; leave it out with --only. pip ended with: {reason}")
            complete.touch()
        return interpreter


def requirements(name: str) -> list[str]:
    """The packages of a peer's environment, each pinned to one version."""
    if name in ALONE:
        return [*PINNED[name]]
    return [*PINNED[name], *(f"{library}=={metadata.version(library)}" for library in SHARED)]


def default_folder() -> Path:
    """The default folder of the environments."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "batch_platform" / "benchmarks"


@dataclass(frozen=True)
class Options:
    """Options that every workload is measured with.

    Args:
        rows: Rows of the large case of each workload.
        repeat: Number of measurements of each contender.
        only: Names of contenders and of kinds of models; empty for all.
        environments: Where peers are installed.
        folder: Folder for data, projects and outputs. Empty at first, removed at the end.
        partitions: Numbers of partitions that `growth` measures.
        at: Commits that `history` measures; empty for its default.
    """

    rows: int
    repeat: int
    only: frozenset[str]
    environments: Environments
    folder: Path
    partitions: Sequence[int] = ()
    at: Sequence[str] = ()

    def chosen(self, names: list[str]) -> list[str]:
        """Select the names that are in `only`; all of them if none is."""
        return [name for name in names if name in self.only] or names
