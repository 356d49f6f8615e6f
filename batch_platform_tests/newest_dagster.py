"""Run the tests of the Dagster part with a newer release of Dagster than `pyproject.toml` allows, if there is one.

`.ci/run` does so after the suite. What fails here is reported and fails nothing else.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "dagster-webserver",
    "dagster-graphql",
    "dagster-duckdb",
    "dagster-postgres",
    "dagster-dg-cli",
)  # each needs its own release
TESTS = "batch_platform_tests/components"


def tested_range() -> SpecifierSet:
    """The releases of Dagster that the package is tested with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [it for it in map(Requirement, project["dependencies"]) if it.name == "dagster"]
    return requirement.specifier


def newest_release() -> Version | None:
    """The newest release that pip finds; None where there is no index to ask."""
    command = [sys.executable, "-m", "pip", "index", "versions", "dagster", "--retries", "0", "--timeout", "10"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    shown = re.match(r"dagster \(([^)]+)\)", answer)
    return Version(shown.group(1)) if shown else None


def main() -> int:
    """Say which release is the newest, and test with it if it is outside of the tested range; returns pytest's exit code."""
    newest, tested = newest_release(), tested_range()
    if newest is None:
        print("Whether there is a newer Dagster is unknown: pip finds no index to ask.")
        return 0
    if newest in tested:
        print(f"Dagster {newest}, the newest release, is in the tested range {tested}.")
        return 0
    print(f"Dagster {newest}, the newest release, is not in the tested range {tested}: {TESTS} with it")
    with tempfile.TemporaryDirectory(prefix="newest-dagster-") as folder:
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            folder,
            f"dagster=={newest}",
            *PACKAGES,
        ]
        if code := subprocess.run(install, check=False).returncode:
            print(f"It cannot be installed: pip ended with {code}.")
            return code
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        tests = [sys.executable, "-m", "batch_platform_tests", "--full", "-q", TESTS]
        return subprocess.run(tests, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
