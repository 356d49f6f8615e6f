"""Copies of the repository as a clean clone would hold it, and commands run in them as a newcomer runs them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from batch_platform_tests.harness.command_line import OWN_VARIABLES
from batch_platform_tests.harness.starting_points import made_once

ROOT = Path(__file__).parents[2]
OF_A_VENV = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE")
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = {
    page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "batch_platform" / "guide").glob("*.md"))
}
DEMO_OUTPUT = "demo.txt"


def blocks(language: str, *texts: str) -> list[str]:
    """The fenced blocks of a language in some texts, by default in the README and in the guide."""
    documents = texts or (README, *GUIDE.values())
    pattern = rf"^```{language}\n(.*?)^```$"
    return [block for text in documents for block in re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)]


def command(ending: str) -> str:
    """The only line of the README's commands that ends so."""
    (line,) = [line for block in blocks("bash", README) for line in block.splitlines() if line.endswith(ending)]
    return line


def clone_after_demo(folder: Path) -> Path:
    """A clone in which the README's first command has run, its output in `DEMO_OUTPUT`; made once per session.

    Its environment holds the package and what the package requires, and nothing of the tests.
    """

    def make(clone: Path) -> None:
        output = shell(command("demo"), copy_checkout(clone))
        (clone / DEMO_OUTPUT).write_text(output, encoding="utf-8")

    return made_once(folder, "clone", make)


def copy_checkout(folder: Path) -> Path:
    """Copy what a clone would hold, with the changes of the working tree; returns the folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def shell(command: str, folder: Path) -> str:
    """Run a shell command in a folder, outside any virtual environment; it must succeed. Returns its output."""
    own = {*OWN_VARIABLES, *OF_A_VENV, "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        # a few processes start there, which compile what they import: compiling all that is installed would take longer
        env={name: value for name, value in os.environ.items() if name not in own} | {"PIP_COMPILE": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def defines(test: str) -> bool:
    """Whether the file of a test's id, `folder/test_file.py::test_name`, has the test."""
    file, _, name = test.partition("::")
    return f"\ndef {name}(" in (ROOT / "batch_platform_tests" / file).read_text(encoding="utf-8")
