"""Staging: what a dead run left is swept by the next one, what a live one uses never."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.staging import staging_folder

HOLD = """
import sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.staging import staging_folder
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


def test_a_folder_exists_during_the_run_and_is_gone_after_it(home):
    with staging_folder(home, "run") as folder:
        assert folder.parent == home.staging
        (folder / "file").write_text("x")
    assert list(home.staging.iterdir()) == []


def test_a_folder_is_gone_after_an_error_too(home):
    with pytest.raises(ZeroDivisionError), staging_folder(home, "run"):
        raise ZeroDivisionError
    assert list(home.staging.iterdir()) == []


def test_what_a_killed_run_left_is_swept(home):
    process, left = other_process(home)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (left / "file").exists()
    with staging_folder(home, "run"):
        assert not left.exists()


def test_a_run_that_has_nothing_to_do_sweeps_too_since_it_publishes(home):
    process, left = other_process(home)
    live, used = other_process(home)
    process.kill()
    process.communicate()
    publish(home)
    assert list(home.staging.iterdir()) == [used]
    assert left != used
    live.communicate("\n")
    assert live.returncode == 0


def test_a_run_killed_before_it_wrote_anything_is_swept(home):
    (home.staging / "just-made_now").mkdir()
    with staging_folder(home, "run") as folder:
        assert list(home.staging.iterdir()) == [folder]


def test_the_folder_of_a_live_run_is_never_swept(home):
    process, live = other_process(home)
    with staging_folder(home, "run"):
        assert (live / "file").exists()
    process.communicate("\n")
    assert process.returncode == 0


def test_one_run_may_have_two_folders(home):
    with staging_folder(home, "run") as first, staging_folder(home, "run") as second:
        assert first != second
        assert first.is_dir()


def test_a_stray_file_in_staging_disturbs_no_run(home):
    (home.staging / "stray").write_text("not ours")
    with staging_folder(home, "run") as folder:
        assert os.access(folder, os.W_OK)


STORM = """
import sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.staging import staging_folder
for n in range(150):
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
