import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.cli.instance import DAGSTER_YAML, only_service, prepare_instance, settings_that_matter
from batch_platform.declaration.errors import WrongUseError
from batch_platform.warehouse.home import Home

PREPARE = """\
import sys
from pathlib import Path

import dagster as dg
from batch_platform.cli.instance import prepare_instance
from batch_platform.warehouse.home import Home

prepare_instance(Home(Path(sys.argv[1])))
with dg.DagsterInstance.get() as instance:
    instance.get_runs()
    instance.get_asset_keys()
    instance.all_instigator_state()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")  # and what is set in its place is set back after the test
    return Home(tmp_path / "home")


def runs_recorded(folder: Path) -> int:
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        return len(instance.get_runs())


def test_a_new_home_gets_an_instance_that_works(home):
    folder = prepare_instance(home)
    assert folder == home.dagster
    assert (folder / "dagster.yaml").read_text() == DAGSTER_YAML
    assert runs_recorded(folder) == 0


@pytest.mark.full
def test_processes_that_ask_at_the_same_time_all_get_it(home, tmp_path):
    (tmp_path / "prepare_home.py").write_text(PREPARE)
    command = [sys.executable, "-m", "prepare_home", str(home.root)]
    asking = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate()[1] for process in asking]
    assert [process.returncode for process in asking] == [0] * 4, errors


def test_an_existing_dagster_yaml_is_kept(home):
    home.create()
    own = "telemetry:\n  enabled: false\n"
    (home.dagster / "dagster.yaml").write_text(own)
    folder = prepare_instance(home)
    assert (folder / "dagster.yaml").read_text() == own
    assert runs_recorded(folder) == 0


def test_an_interrupted_preparation_is_finished_by_the_next_one(home):
    home.create()
    (home.dagster / "dagster.yaml").write_text(DAGSTER_YAML)
    prepare_instance(home)
    assert list(home.dagster.rglob("runs.db"))


SERVE = """\
import re
import subprocess
import sys
import time
from pathlib import Path

from batch_platform.cli.instance import only_service
from batch_platform.warehouse.home import Home

with only_service(Home(Path(sys.argv[1])), "http://127.0.0.1:3000") as workspace:
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", "-w", str(workspace)])
    print(daemon.pid, flush=True)
    time.sleep(3600)
"""


def test_f48_a_home_has_one_service_and_the_daemon_of_one_that_was_killed_is_ended(home):
    prepare_instance(home)
    with subprocess.Popen([sys.executable, "-c", SERVE, str(home.root)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        daemon = Path("/proc") / first.stdout.readline().strip()
        served = f"batch-platform ui already serves {home.root} at http://127.0.0.1:3000 (process {first.pid})."
        with pytest.raises(WrongUseError, match=re.escape(served)), only_service(home, "http://127.0.0.1:3001"):
            pass
        first.kill()
    assert daemon.exists()
    editor = [sys.executable, "-c", "import time; time.sleep(3600)", str(home.dagster / "workspace.yaml")]
    with subprocess.Popen(editor) as editing, only_service(home, "http://127.0.0.1:3001"):
        assert editing.poll() is None, "only what serves the file is killed"
        editing.kill()
        assert not daemon.exists() or "Z" in (daemon / "stat").read_text().rpartition(")")[2].split()[0]
    with only_service(home, "http://127.0.0.1:3002"):
        pass


OWN_YAML = """\
telemetry: {enabled: false}
run_retries: {enabled: true, max_retries: 2}
concurrency: {runs: {max_concurrent_runs: 7}}
"""


def test_the_instance_that_the_user_names_is_used_as_it_is(home, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "dagster.yaml").write_text(OWN_YAML)
    monkeypatch.setenv("DAGSTER_HOME", str(own))
    assert prepare_instance(home) == own
    assert [file.name for file in own.iterdir()] == ["dagster.yaml"]
    assert list(home.dagster.iterdir()) == []
    assert [setting.partition(":")[0] for setting in settings_that_matter(own)] == [
        "run_monitoring is off",
        "run_retries is on",
        "concurrency",
    ]
    assert "at most 7 runs" in settings_that_matter(own)[2]


def test_the_instance_of_one_home_is_not_taken_for_the_users_own_by_the_next(home, tmp_path):
    other = Home(tmp_path / "other")
    assert [prepare_instance(home), prepare_instance(other)] == [home.dagster, other.dagster]


@pytest.mark.parametrize("named", ["relative", "/not/there"])
def test_an_instance_that_is_not_there_is_refused(home, monkeypatch, named):
    monkeypatch.setenv("DAGSTER_HOME", named)
    with pytest.raises(
        WrongUseError, match=f"DAGSTER_HOME names '{named}', which is not the absolute path of a folder"
    ):
        prepare_instance(home)
