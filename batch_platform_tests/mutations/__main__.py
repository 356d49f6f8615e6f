"""Run the tests against each mutation of `table.py` and say which tier sees it first.

`python -m batch_platform_tests.mutations [--tier unit|everyday|full|release] [--whole] [NAME ...]`. Each mutation is applied to a
copy of the checkout in a temporary folder, so that the working tree stays as it is even if the command is killed. The tests that the
table names for a mutation run tier by tier, the quickest first, up to `--tier` (everyday by default); `--whole` runs the whole
of that tier if none of them fails. All forty take about ten minutes of one core. Ends with 1 if fewer mutations are seen than LEAST
says, if one that was named is not, or if a test that failed fails without a mutation too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path

from batch_platform_tests.harness.checkout import OF_A_VENV, copy_checkout
from batch_platform_tests.harness.command_line import OWN_VARIABLES
from batch_platform_tests.harness.tiers import CI, EVERYDAY, UNIT
from batch_platform_tests.mutations.table import MUTATIONS, Mutation

TIERS = {"unit": UNIT, "everyday": EVERYDAY, "full": CI, "release": ""}  # pytest's -m, the quickest tier first
TESTS = Path(__file__).parents[1]
LEAST = {"unit": 30, "everyday": 36, "full": 36, "release": 36}  # mutations that the tests of a tier must see
LONGEST_TEST = 600  # seconds after which a test counts as failed: some mutations make one wait for ever
PASSED, FAILED, INTERRUPTED, NOTHING_COLLECTED = 0, 1, 2, 5  # pytest's exit codes


@dataclass(frozen=True)
class Laboratory:
    """A folder with a copy of the checkout, and a Python that imports the package from there and nowhere else."""

    folder: Path

    @property
    def checkout(self) -> Path:
        """The copy that is mutated."""
        return self.folder / "checkout"

    @property
    def python(self) -> Path:
        """The Python of the virtual environment."""
        return self.folder / "venv" / "bin" / "python"

    def furnish(self) -> None:
        """Copy the checkout, and make a virtual environment with the libraries of this one but without its editable install.

        Raises RuntimeError if its processes would import another package than that of the checkout.
        """
        copy_checkout(self.checkout)
        venv.create(self.folder / "venv", symlinks=True)
        packages = next(self.folder.glob("venv/lib/python*/site-packages"))
        own = Path(get_path("purelib"))
        (packages / "checkout.pth").write_text(f"{self.checkout}\n{own}\n", encoding="utf-8")
        for further in own.glob("*.pth"):
            if not further.name.startswith("__editable__"):
                shutil.copy(further, packages)
        for script in filter(Path.is_file, Path(sys.executable).parent.iterdir()):
            first, _, rest = script.read_bytes().partition(b"\n")
            if first.startswith(b"#!") and b"python" in first:
                (self.python.parent / script.name).write_bytes(f"#!{self.python}\n".encode() + rest)
                (self.python.parent / script.name).chmod(0o755)
        show = "import batch_platform, batch_platform_tests as tests; print(*batch_platform.__path__, *tests.__path__)"
        for options in ([], ["-I"]):  # with -I as a process that takes nothing from its environment
            shown = subprocess.check_output([self.python, *options, "-c", show], cwd="/", env=_environment(), text=True)
            if shown.split() != [str(self.checkout / name) for name in ("batch_platform", "batch_platform_tests")]:
                msg = f"{self.python} imports the package from {shown}"
                raise RuntimeError(msg)
        subprocess.run([self.python, "-m", "compileall", "-q", self.checkout], env=_environment(), check=True)
        self.checkout.rename(self.folder / "clean")

    def copy(self, mutation: Mutation | None) -> None:
        """Begin anew with a fresh copy, and apply a mutation to it if there is one."""
        shutil.rmtree(self.checkout, ignore_errors=True)
        shutil.copytree(self.folder / "clean", self.checkout, symlinks=True)
        if mutation is not None:
            file = self.checkout / "batch_platform" / mutation.file
            file.write_text(mutation.applied(self.checkout), encoding="utf-8")

    def failures(self, marks: str, tests: Iterable[str], *, most: int) -> list[str]:
        """The first of some tests that fail in the copy, at most so many; a sentence if one of them never ends."""
        options = ["-q", "-n0", "--tb=no", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={LONGEST_TEST}"]
        command = [self.python, "-m", "pytest", f"--maxfail={most}", *options, *(["-m", marks] if marks else [])]
        command += [f"batch_platform_tests/{test}" for test in tests]
        done = subprocess.run(
            command, cwd=self.checkout, env=_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode in (PASSED, NOTHING_COLLECTED):
            return []
        if done.returncode not in (FAILED, INTERRUPTED):
            sys.exit(f"pytest ended with {done.returncode}.\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        failed = [line.partition("/")[2].partition(" - ")[0] for line in lines]
        return failed or [f"a test did not end within {LONGEST_TEST} s"]


def named_tests(mutation: Mutation, tier: str) -> list[str]:
    """The tests of a mutation that may be in a tier; pytest cannot collect a file that the unit tier leaves out."""
    texts = {test: (TESTS / test.partition("::")[0]).read_text(encoding="utf-8") for test in mutation.tests}
    return [test for test, text in texts.items() if tier != "unit" or "mark.unit" in text]


def seen_by(laboratory: Laboratory, mutation: Mutation, highest: str, *, whole: bool) -> tuple[str, str] | None:
    """The lowest tier that sees a mutation, and its first test that fails; None if none does."""
    laboratory.copy(mutation)
    tiers = [*TIERS][: [*TIERS].index(highest) + 1]
    attempts = [(tier, tests) for tier in tiers if (tests := named_tests(mutation, tier))]
    for tier, tests in [*attempts, *([(highest, [""])] if whole else [])]:
        if failed := laboratory.failures(TIERS[tier], tests, most=1):
            return tier, failed[0]
    return None


def _environment() -> dict[str, str]:
    """The environment of a process that must not find the package of this one."""
    own = {*OWN_VARIABLES, *OF_A_VENV}
    return {name: text for name, text in os.environ.items() if name not in own and not name.startswith("PYTEST_")}


def main(arguments: Sequence[str]) -> int:
    """Run the tests against the mutations, print a table of them, and return the exit code."""
    parser = ArgumentParser(prog="python -m batch_platform_tests.mutations")
    parser.add_argument("--tier", choices=[*TIERS], default="everyday", help="the highest tier whose tests are run")
    parser.add_argument("--whole", action="store_true", help="run the whole tier where the named tests see nothing")
    parser.add_argument("names", metavar="NAME", nargs="*", help="a part of the name of a mutation; all without one")
    chosen = parser.parse_args(arguments)
    mutations = [it for it in MUTATIONS if not chosen.names or any(name in it.name for name in chosen.names)]
    if not mutations:
        parser.error(f"no mutation is called so. Hint: the names are in {Path(__file__).with_name('table.py')}")
    width, seen = max(len(mutation.name) for mutation in mutations), list[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as folder:
        laboratory = Laboratory(Path(folder).resolve())
        laboratory.furnish()
        for mutation in mutations:
            first = seen_by(laboratory, mutation, chosen.tier, whole=chosen.whole)
            seen += [first] if first else []
            print(f"{mutation.name:<{width}} | {' | '.join(first or ('not seen', ''))}", flush=True)
        laboratory.copy(None)
        tests = {test for _, test in seen if "::" in test}
        failing = laboratory.failures("", tests, most=len(tests)) if tests else []
    least = len(mutations) if chosen.names else LEAST[chosen.tier]
    tiers = ", ".join(f"{count} by {tier}" for tier, count in Counter(tier for tier, _ in seen).items()) or "none"
    print(f"{len(seen)} of {len(mutations)} mutations are seen ({tiers}); at least {least} must be.")
    if failing:
        print(f"These tests fail without a mutation too: {', '.join(failing)}. Hint: mend them first.")
    return 1 if failing or len(seen) < least else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
