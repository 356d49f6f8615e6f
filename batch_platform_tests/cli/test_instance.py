import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.cli.instance import DAGSTER_YAML, only_service, prepare_instance, settings_that_matter
from batch_platform.declaration.errors import WrongUseError
from batch_platform.warehouse.home import Home


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
