"""Staging: what a dead run left is swept by the next one, what a live one uses never."""

import subprocess
import sys
from pathlib import Path

import pytest

from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.published import publish

HOLD = """
import sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import staging_folder
with staging_folder(Home(Path(sys.argv[1])), "other") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.readline()
    assert (folder / "file").read_text() == "x"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def other_process(home: Home) -> tuple[subprocess.Popen, Path]:
    command = [sys.executable, "-c", HOLD, str(home.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


@pytest.mark.unit
def test_a_folder_is_gone_after_the_run_and_after_an_error_too(home):
    with staging_folder(home, "run") as folder:
        assert folder.parent == home.staging
        (folder / "file").write_text("x")
        with pytest.raises(ZeroDivisionError), staging_folder(home, "run"):
            raise ZeroDivisionError
        assert list(home.staging.iterdir()) == [folder]
    assert list(home.staging.iterdir()) == []


def test_a_publication_sweeps_what_killed_runs_left_and_never_the_folder_of_a_live_one(home):
    (home.staging / "just-made_now").mkdir()
    process, left = other_process(home)
    live, used = other_process(home)
    process.kill()
    process.communicate()
    publish(home)
    assert list(home.staging.iterdir()) == [used]
    assert left != used
    live.communicate("\n")
    assert live.returncode == 0
