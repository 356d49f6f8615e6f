"""Install the lowest releases that `pyproject.toml` allows in an environment of its own, and see the package work with them.

`python -m batch_platform_tests.lowest_versions` runs the demo and some tests, as `.ci/run` does; with paths of tests, it runs
those instead, everyday tier. The newest releases are what every other environment holds.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = (  # where releases differed: what DuckDB parses, hashes of rows, compiled models against scikit-learn, a whole pipeline
    "batch_platform_tests/features/test_query.py",
    "batch_platform_tests/features/test_history.py",
    "batch_platform_tests/kernels",
    "batch_platform_tests/scoring",
)


def install_lowest(folder: Path) -> Path:
    """Make a virtual environment with the lowest releases and all that tests need; returns the folder of its commands."""
    uv, python = [sys.executable, "-m", "uv"], folder / "bin" / "python"
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [*uv, "pip", "install", "--quiet", "--resolution", "lowest-direct", "--python", python]
    subprocess.run([*install, "-e", f"{ROOT}[test]"], check=True)
    return python.parent


def main(tests: Sequence[str]) -> int:
    """Run the demo and `QUICK`, or the given tests, with the lowest releases; returns the first exit code that is not 0."""
    with tempfile.TemporaryDirectory(prefix="lowest-versions-") as folder:
        commands = install_lowest(Path(folder) / "venv")
        environment = {
            **os.environ,
            "BATCH_PLATFORM_HOME": f"{folder}/home",
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        }
        demo = [] if tests else [[commands / "batch-platform", "demo"]]
        run_tests = [commands / "python", "-m", "batch_platform_tests", *(tests or ("--unit", *QUICK))]
        for command in (*demo, run_tests):
            if code := subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
