"""Run a tier of the tests on a machine that has Python and nothing else.

`python -m batch_platform_tests [--unit | --full | --release] [PYTEST ARGUMENTS]`. Without an option the everyday tier runs: it
tests every law, capability and message, and leaves out the tests marked `full` or `release`. `--unit` runs only those marked
`unit`: pure functions, in about a minute. `--full` is what CI runs: all but those marked `release`, such as long series of
kills, simulations and benchmarks, which `--release` adds. Pytest arguments select within the tier; an `-m` among them
replaces it.

Installs what is missing with apt-get where that is possible (Debian or Ubuntu, as root), and says what to install
otherwise. The tests' temporary files go to memory where it has room for them.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batch_platform_tests.harness.browsing import installed_browser
from batch_platform_tests.harness.postgres_server import installed_postgres
from batch_platform_tests.harness.tiers import EVERYDAY, TIERS

JDK_VERSIONS = ("17", "21")
BROWSER_PACKAGES = ("chromium", "fonts-dejavu-core")
MEMORY = Path("/dev/shm")
PREFIX = "batch-platform-tests-"
FOLDER_BYTES, SPARE_BYTES = 4 * 2**30, 8 * 2**30  # what the folder may need, and what must be free with it


def installed_jdk() -> str | None:
    """The major version of the `java` on the path; None without one."""
    if shutil.which("java") is None:
        return None
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', java)
    return version.group(1) if version else None


def bring_what_is_missing() -> None:
    """Install a browser, a JDK that Spark runs on and PostgreSQL, unless they are there.

    Exits with 2, and says what to install, where this process cannot.
    """
    lacks_browser, lacks_jdk = installed_browser() is None, installed_jdk() not in JDK_VERSIONS
    lacks_postgres = installed_postgres() is None
    if not (lacks_browser or lacks_jdk or lacks_postgres):
        return
    may_install = shutil.which("apt-get") is not None and os.geteuid() == 0
    failure = _run_quietly("apt-get", "update") if may_install else ""  # before it a bare machine knows no packages
    packages = [
        *(BROWSER_PACKAGES if lacks_browser else ()),
        *([_jdk_package()] if lacks_jdk else []),
        *(["postgresql"] if lacks_postgres else []),
    ]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if may_install:
        failure = _run_quietly(*install)
        if not failure:
            return
    needs = [
        *(["Chromium, Chrome or Playwright's own browser"] if lacks_browser else []),
        *(["a JDK 17 or 21"] if lacks_jdk else []),
        *(["PostgreSQL"] if lacks_postgres else []),
    ]
    print(
        f"{failure}The tests need {' and '.join(needs)}, missing on this machine.\n"
        f"Hint: as root, on Debian or Ubuntu: apt-get update && {' '.join(install)}",
        file=sys.stderr,
    )
    sys.exit(2)


@contextmanager
def temporary_folder() -> Iterator[Path | None]:
    """A folder in memory, removed at the end; None where memory has no room: pytest then uses the disk."""
    has_room = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= FOLDER_BYTES
    if not has_room or _available_memory() < SPARE_BYTES:
        yield None
        return
    clear_killed_runs(MEMORY)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=MEMORY, ignore_cleanup_errors=True) as folder, locked(folder):
        yield Path(folder)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Hold the lock that tells a folder in use from one that a killed run left; raises BlockingIOError where it is held."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def clear_killed_runs(parent: Path) -> None:
    """Remove the folders that runs left which were killed: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), locked(folder):  # held, gone by now, or of another user
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Bring what is missing and run pytest on a tier with the other arguments; returns pytest's exit code."""
    tiers = [argument for argument in arguments if argument in TIERS]
    if len(tiers) > 1:
        print(f"{' and '.join(tiers)} exclude each other.\nHint: name one tier.", file=sys.stderr)
        return 2
    tier = TIERS[tiers[0]] if tiers else ["-m", EVERYDAY]
    if tiers != ["--unit"]:
        bring_what_is_missing()
    with temporary_folder() as folder:
        environment = {**os.environ, "TMPDIR": str(folder)} if folder else None
        others = [argument for argument in arguments if argument not in TIERS]
        if tiers == ["--unit"]:  # nothing in it waits: a worker for each of two cores
            others = ["--numprocesses=2", *others]
        command = [sys.executable, "-m", "pytest", *tier, *others]
        return subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, check=False).returncode


def _available_memory() -> int:
    """In bytes; 0 where the system does not say."""
    available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
    return int(available.group(1)) * 1024 if available else 0


def _run_quietly(*command: str) -> str:
    """Run a command of apt's; returns why it failed, or an empty text."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n{' '.join(command)} ended with {done.returncode}.\n"


def _jdk_package() -> str:
    """The newest JDK package that this distribution has."""
    names = [f"openjdk-{version}-jdk-headless" for version in reversed(JDK_VERSIONS)]
    known = shutil.which("apt-cache") is not None
    return next((name for name in names if known and not _run_quietly("apt-cache", "show", name)), names[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
