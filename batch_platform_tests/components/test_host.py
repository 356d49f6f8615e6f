"""The process that loads a pipeline, which may be a user's own, stays as it is."""

import json
import subprocess
import sys

import pytest

from batch_platform_tests.components.stores import LAST, score_ten_days
from batch_platform_tests.harness.dagster_project import PACKAGE, write_dagster_project
from batch_platform_tests.harness.deployment import deploy_after

LOADING = """\
import json, logging, os, signal, sys

def host():
    loggers = [logging.getLogger(), *(it for it in logging.root.manager.loggerDict.values() if isinstance(it, logging.Logger))]
    return {
        "environment": dict(os.environ),
        "signals": {number.name: repr(signal.getsignal(number)) for number in signal.valid_signals() if isinstance(number, signal.Signals)},
        "levels": {logger.name: (logger.level, logger.disabled, len(logger.handlers)) for logger in loggers},
    }

import dagster as dg, polars, sklearn  # the last two set variables of their own

class Nothing(dg.IOManager):
    def handle_output(self, context, obj): ...
    def load_input(self, context): ...

with dg.DagsterInstance.ephemeral() as instance:  # Dagster itself replaces a signal handler to load a value
    dg.Definitions([dg.AssetSpec("nothing").with_io_manager_key("it")], resources={"it": Nothing()}).load_asset_value("nothing", instance=instance)
states = [host()]
from %(package)s.definitions import defs
loaded = defs()
states.append(host())
with dg.DagsterInstance.ephemeral() as instance:
    predictions = loaded.load_asset_value(["small", "predictions"], partition_key=%(key)r, instance=instance)
states.append(host())
print(json.dumps([predictions.collect().height, states]))
"""


@pytest.mark.full
def test_loading_a_pipeline_and_its_predictions_changes_no_variable_signal_or_log_level(tmp_path, monkeypatch):
    home = deploy_after(
        score_ten_days, tmp_path / "scored", monkeypatch, name="ten days scored", trained=True
    ).pipeline.home
    project = write_dagster_project(tmp_path / "project")
    environment = {"BATCH_PLATFORM_HOME": str(home.root), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(project)}
    code = LOADING % {"package": PACKAGE, "key": LAST}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, (before, *later) = json.loads(done.stdout)
    assert rows > 0
    for after in later:
        assert after["environment"] == before["environment"]
        assert after["signals"] == before["signals"]
        own = {name for name in after["levels"] if name.startswith("batch_platform")}
        assert {after["levels"][name][0] for name in own} <= {0}
        assert {name: after["levels"][name] for name in before["levels"]} == before["levels"]
