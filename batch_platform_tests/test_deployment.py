"""The files in `.deploy/`: their commands work as they stand, outside of containers, with a real PostgreSQL."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from batch_platform.cli.app import app
from batch_platform_tests.harness.checkout import GUIDE, ROOT, blocks
from batch_platform_tests.harness.command_line import (
    clean_environment,
    copy_of_finished_project,
    run_command,
    takes_all,
)
from batch_platform_tests.harness.dagster_project import PACKAGE
from batch_platform_tests.harness.postgres_server import postgres
from batch_platform_tests.harness.served import PATIENCE, Ui, answers, finished, free_port, launch, session_of

DEPLOY = ROOT / ".deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
EXAMPLE = dict(
    line.split("=", 1)
    for line in (DEPLOY / "example.env").read_text(encoding="utf-8").splitlines()
    if line[:1].isalpha()
)
OURS = ("code", "daemon", "webserver")
PROBE = "batch-platform health"


def test_every_variable_of_the_compose_file_and_the_units_has_an_example():
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert asked == EXAMPLE.keys()
    assert set(re.findall(r"\{\$(\w+)", (DEPLOY / "Caddyfile").read_text(encoding="utf-8"))) <= EXAMPLE.keys()
    units = "".join(unit.read_text(encoding="utf-8") for unit in (DEPLOY / "systemd").iterdir())
    example = (DEPLOY / "batch-platform.env").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)\}", units)) <= set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_every_file_that_is_mounted_or_copied_exists_and_only_the_proxy_is_reached_from_other_machines():
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]
    mounted = {volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service["volumes"]}
    assert {path for path in mounted if path.startswith(".") and not (DEPLOY / path).is_file()} == set()
    assert {name for name in mounted if name[0] not in ".$"} == COMPOSE["volumes"].keys()
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_user_of_the_image_owns_the_home_and_the_folder_of_the_records():
    """Docker gives a folder to root that is missing in a volume where a file is mounted below it."""
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (owned,) = re.findall(r"install -d -o scores -g scores -m 0750 (.+)$", dockerfile, re.MULTILINE)
    homes = re.findall(r"(?:BATCH_PLATFORM_HOME|DAGSTER_HOME)=(\S+)", dockerfile)
    assert owned.split() == homes
    assert [volume for volume in COMPOSE["x-platform"]["volumes"] if f":{homes[1]}/dagster.yaml:" in volume]


def test_the_manifests_of_kubernetes_run_commands_that_exist_on_the_home_and_as_the_user_of_the_image():
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    claim, secret, deployment, service = documents
    pod = deployment["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    program, *arguments = container["command"]
    assert program == "batch-platform"
    takes_all(app, arguments)
    assert container["livenessProbe"]["exec"]["command"] == PROBE.split()
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/data"}]
    assert "BATCH_PLATFORM_HOME=/data " in dockerfile
    assert f"useradd --uid {pod['securityContext']['runAsUser']} " in dockerfile
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) == (1, "Recreate")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_image_installs_extras_that_exist():
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert EXAMPLE["EXTRAS"] == extras
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= declared.keys()


def test_the_records_are_set_up_as_the_guide_says():
    assert yaml.safe_load((DEPLOY / "dagster.yaml").read_text()) == yaml.safe_load(
        blocks("yaml", GUIDE["production"])[1]
    )


@pytest.mark.parametrize(
    "name", ["batch-platform.service", "batch-platform-backup.service", "batch-platform-backup.timer"]
)
def test_units_of_systemd_are_valid_and_start_commands_that_exist(tmp_path, name):
    text = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    assert unit["Unit"]["Description"]
    if "Service" in unit:
        program, *arguments = shlex.split(unit["Service"]["ExecStart"])
        assert Path(program).name == "batch-platform"
        takes_all(app, arguments)
        assert unit["Service"]["UMask"] == "0027"
        text = text.replace(program, "/bin/true")
    if shutil.which("systemd-analyze"):
        for other in (DEPLOY / "systemd").iterdir():
            (tmp_path / other.name).write_text(re.sub("ExecStart=[^ \n]+", "ExecStart=/bin/true", other.read_text()))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def composed(project: Path, address: str) -> Iterator[Ui]:
    """The services of the compose file that run this package, as processes of this machine."""
    home, ports = project / ".batch_platform", {"4000": str(free_port()), "3000": str(free_port())}
    workspace = project / "workspace.yaml"
    text = (DEPLOY / "workspace.yaml").read_text(encoding="utf-8")
    workspace.write_text(text.replace("host: code", "host: 127.0.0.1").replace("4000", ports["4000"]))
    (home / "dagster" / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    own = {**EXAMPLE, "MODULE": f"{PACKAGE}.definitions", "DOMAIN": "127.0.0.1"}
    here = {"0.0.0.0": "127.0.0.1", "/etc/batch-platform/workspace.yaml": str(workspace), **ports}
    environment = clean_environment(
        BATCH_PLATFORM_HOME=str(home),
        DAGSTER_HOME=str(home / "dagster"),
        DAGSTER_PG_URL=address,
        BATCH_PLATFORM_LOG="json",
        BATCH_PLATFORM_UI_TOKEN=EXAMPLE["UI_TOKEN"],
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    log = project / "services.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        for name in OURS:
            words = [
                re.sub(r"\$\{(\w+):\?\}", lambda it: own[it[1]], word) for word in COMPOSE["services"][name]["command"]
            ]
            process = subprocess.Popen(
                [here.get(word, word) for word in words],
                cwd=project,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            stack.callback(end, process)
        ui = Ui(process, f"http://127.0.0.1:{ports['3000']}", log, home, EXAMPLE["UI_TOKEN"])
        ui.wait(lambda: answers(ui))
        yield ui


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        for left in session_of(process.pid):
            os.kill(left, signal.SIGKILL)


@pytest.mark.full
def test_code_server_daemon_and_webserver_of_the_compose_file_do_a_run_with_their_records_in_postgresql(tmp_path):
    project = copy_of_finished_project(tmp_path)
    with postgres() as address, composed(project, address) as ui:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(ui.url)
        run_id = ui.wait(lambda: launched(ui))
        assert ui.wait(lambda: finished(ui, run_id))["status"] == "SUCCESS"
        query = f"SELECT count(*) FROM small.predictions WHERE run_id = '{run_id}'"
        assert ui.published(query) == [(40,)]
        here = {"DAGSTER_HOME": str(ui.home / "dagster"), "DAGSTER_PG_URL": address}
        probe = run_command(project, *PROBE.split()[1:], "--json", **here)
        assert probe.json["healthy"]
        assert probe.json["daemon_at"] is not None
        backup = run_command(project, "backup", str(tmp_path / "dest"), "--verify", "--json", **here).json
        assert backup["records_elsewhere"] == f"they are where {ui.home / 'dagster' / 'dagster.yaml'} says"
    assert PROBE.split() == json.loads(
        re.findall(r"^HEALTHCHECK .* CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[0]
    )


def launched(ui: Ui) -> str | None:
    """Launch a forced run of one partition once the code server has loaded the definitions."""
    try:
        chosen = {"assetSelection": [{"path": ["small", "predictions"]}]}
        config: Any = {"ops": {"small__predictions": {"config": {"force": True}}}}
        return launch(ui, "__ASSET_JOB", chosen, partition="2024-02-29", config=json.dumps(config))
    except (AssertionError, ValueError):
        time.sleep(1)
        return None
