"""How the tests run: the one command for a bare machine, the browser, and the starting points that tests share."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest

from batch_platform_tests.__main__ import PREFIX, clear_killed_runs
from batch_platform_tests.harness.browsing import installed_browser, require_browser
from batch_platform_tests.harness.checkout import ROOT
from batch_platform_tests.harness.postgres_server import FOLDERS_VARIABLE
from batch_platform_tests.harness.starting_points import made_once

JAVA = """#!/bin/sh
echo 'openjdk version "{version}.0.2" 2026-01-01' >&2
"""
APT_GET = """#!/bin/sh
echo "$@" >>"{calls}"
case "$*" in *update*) exit 0; esac
exit {code}
"""
APT_CACHE = """#!/bin/sh
[ "$2" = openjdk-17-jdk-headless ]
"""


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder with all commands that the machine has: none at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path / "postgresql"))
    return folder


def add_command(folder: Path, name: str, script: str = "#!/bin/sh\n") -> Path:
    path = folder / name
    path.write_text(script)
    path.chmod(0o755)
    return path


def run_tests(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batch_platform_tests", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.full
def test_on_a_complete_machine_pytest_gets_the_arguments_and_gives_the_exit_code(commands):
    add_command(commands, "chromium")
    add_command(commands, "java", JAVA.format(version=21))
    add_command(commands, "postgres")
    shown = run_tests("--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("pytest ")
    assert run_tests("no_such_file.py", "-n0", "-p", "no:cacheprovider").returncode == pytest.ExitCode.USAGE_ERROR


@pytest.mark.usefixtures("commands")
def test_without_apt_get_it_names_all_that_is_missing_and_ends_with_2():
    done = run_tests("--version")
    assert (done.returncode, done.stdout) == (2, "")
    needs = "Chromium, Chrome or Playwright's own browser and a JDK 17 or 21 and PostgreSQL"
    assert f"The tests need {needs}, missing on this machine" in done.stderr
    packages = "chromium fonts-dejavu-core openjdk-17-jdk-headless postgresql"
    assert f"install -y --no-install-recommends {packages}" in done.stderr


@pytest.mark.usefixtures("commands")
def test_the_unit_tier_needs_nothing_of_the_machine_and_excludes_the_full_one():
    assert run_tests("--unit", "--version").returncode == 0
    done = run_tests("--unit", "--full")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--unit and --full exclude each other.\nHint: name one tier.\n"


def test_a_java_of_another_version_does_not_count(commands, tmp_path):
    add_command(commands, "google-chrome")
    add_command(commands, "java", JAVA.format(version=11))
    (tmp_path / "postgresql/15/bin").mkdir(parents=True)
    add_command(tmp_path / "postgresql/15/bin", "postgres")
    done = run_tests("--version")
    assert done.returncode == 2
    assert "The tests need a JDK 17 or 21, missing on this machine" in done.stderr
    assert "chromium" not in done.stderr


@pytest.mark.parametrize("code", [0, 100])
def test_root_installs_just_what_is_missing(commands, tmp_path, code):
    calls = tmp_path / "calls"
    add_command(commands, "java", JAVA.format(version=17))
    add_command(commands, "postgres")
    add_command(commands, "apt-get", APT_GET.format(calls=calls, code=code))
    add_command(commands, "apt-cache", APT_CACHE)
    done = run_tests("--version")
    if os.geteuid() != 0:
        assert (done.returncode, calls.exists()) == (2, False)
        return
    assert done.returncode == (2 if code else 0)
    install = "install -y --no-install-recommends chromium fonts-dejavu-core"
    assert calls.read_text().splitlines() == ["update", install]
    assert (install in done.stderr) == (code != 0)


def test_the_folder_of_a_killed_run_is_cleared_and_that_of_another_living_one_is_kept(tmp_path):
    living, killed, foreign = (tmp_path / name for name in (f"{PREFIX}1", f"{PREFIX}2", "tests-1"))
    for folder in (living, killed, foreign):
        (folder / "inner").mkdir(parents=True)
    hold = "import sys, time; from batch_platform_tests.__main__ import locked, Path\nwith locked(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    owners = [
        subprocess.Popen([sys.executable, "-c", hold, it], cwd=ROOT, stdout=subprocess.PIPE) for it in (living, killed)
    ]
    try:
        assert [owner.stdout.readline() for owner in owners] == [b"1\n"] * 2
        clear_killed_runs(tmp_path)
        assert killed.exists()
        owners[1].kill()
        owners[1].wait()
        clear_killed_runs(tmp_path)
        assert sorted(tmp_path.iterdir()) == [living, foreign]
        assert (living / "inner").exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def test_an_installed_browser_comes_before_the_one_that_playwright_brought(commands):
    assert installed_browser() is None
    chrome = add_command(commands, "google-chrome")
    assert installed_browser() == require_browser() == chrome
    chromium = add_command(commands, "chromium")
    assert installed_browser() == chromium


@pytest.mark.usefixtures("commands")
def test_without_a_browser_its_tests_are_skipped_with_the_reason_and_fail_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="python -m batch_platform_tests installs one"):
        require_browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="there is no Chromium"):
        require_browser()


def test_a_starting_point_is_made_once_for_all_workers(tmp_path):
    folders = [tmp_path / "session" / f"popen-gw{n}" / "test_a0" for n in range(4)]
    for folder in folders:
        folder.mkdir(parents=True)
    made: list[Path] = []

    def make(folder: Path) -> None:
        folder.mkdir()
        sleep(0.1)
        made.append(folder)

    with ThreadPoolExecutor(4) as pool:
        starting_points = list(pool.map(lambda folder: made_once(folder, "a", make), folders))
    assert made == [tmp_path / "session" / "starting_points" / "a"]
    assert starting_points == made * 4


def test_a_starting_point_that_failed_is_made_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").mkdir(parents=True)
        msg = "no room"
        raise OSError(msg)

    with pytest.raises(OSError, match="no room"):
        made_once(tmp_path / "test", "a", fail)
    assert list(made_once(tmp_path / "test", "a", Path.mkdir).iterdir()) == []


@pytest.mark.full
def test_in_ci_the_tests_say_what_each_tier_took():
    command = [sys.executable, "-m", "pytest", "-n2", "-p", "no:cacheprovider", "batch_platform_tests/test_time.py"]
    environment = {**os.environ, "CI": "true"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    assert "processor time; a loop takes 0." in shown
    assert re.search(r"^(unit|everyday): [1-9]\d* s, [1-9][\d,]* loops; budget [\d,]+ loops$", shown, re.MULTILINE)
