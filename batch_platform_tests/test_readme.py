"""What the README tells people to do, done."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from batch_platform.spec import PipelineSpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [text.strip() for language, text in BLOCKS if language == "bash"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files of the repository, and nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def shell(command: str, folder: Path) -> str:
    """Run a command as somebody would who has nothing of this environment."""
    ours = {"BATCH_PLATFORM_HOME", "DAGSTER_HOME", "PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_two_commands_stand_in_the_readme():
    assert "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/batch-platform demo" in SHELL
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest" in SHELL


def test_the_first_command_ends_with_predictions_that_the_next_one_shows(checkout: Path):
    install, query = (next(text for text in SHELL if part in text) for part in ("batch-platform demo", "sql("))
    shown = shell(install, checkout)
    assert re.search(r"61 of 61 partitions scored: 57,164 rows in", shown)
    areas = [float(found) for found in re.findall(r"^2013-0[34] .* (0\.\d+)$", shown, flags=re.MULTILINE)]
    assert len(areas) == 2
    assert min(areas) > 0.65
    assert "model_version" in shell(query, checkout)


def test_the_second_command_finds_every_test(checkout: Path):
    command = next(text for text in SHELL if text.endswith("/pytest"))
    here = sum(1 for _ in (ROOT / "batch_platform_tests").glob("test_*.py"))
    collected = shell(f"{command} --collect-only -q", checkout)
    assert len({line.split("::")[0] for line in collected.splitlines() if "::" in line}) == here


def test_the_pipeline_of_the_readme_is_one():
    declared = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]
    assert [PipelineSpec(**one["attributes"]).name for one in declared] == ["flight_delays"]


def test_pictures_and_links_of_the_readme_exist():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert not [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
