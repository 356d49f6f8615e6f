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


STORM = """
import sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import staging_folder
for n in range(60):
    with staging_folder(Home(Path(sys.argv[1])), "storm") as folder:
        (folder / "file").write_text(str(n))
        assert (folder / "file").read_text() == str(n)
"""


def test_runs_that_start_and_end_at_the_same_time_never_sweep_each_other(home):
    storms = [
        subprocess.Popen([sys.executable, "-c", STORM, str(home.root)], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in storms] == [("", 0)] * 3
    assert list(home.staging.iterdir()) == []
