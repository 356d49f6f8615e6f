"""The code of the recipes, in a project of a user's."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg

from batch_platform_tests.checkout import ROOT
from batch_platform_tests.dagster_project import PACKAGE, write_defs_yaml
from batch_platform_tests.small_pipeline import small_declaration
from batch_platform_tests.workspace import REPOSITORY, Workspace, workspace_of

PAGE = (ROOT / "batch_platform" / "guide" / "recipes.md").read_text(encoding="utf-8")
ALERTS, FOLLOWERS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
DAY = "2024-02-10"


@contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """An address that takes alerts, and what it has taken."""
    texts: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", texts
        server.shutdown()


def launch(location: Workspace, asset: str, ops: dict[str, object]) -> dg.DagsterRunStatus:
    selector = {"jobName": "__ASSET_JOB", **REPOSITORY, "assetSelection": [{"path": ["small", asset]}]}
    config = {"execution": {"config": {"in_process": {}}}, "ops": ops}
    tags = [{"key": "dagster/partition", "value": DAY}]
    params = {"selector": selector, "mode": "default", "runConfigData": config, "executionMetadata": {"tags": tags}}
    return location.launch(params).status


def test_sensors_tell_of_a_failed_run_a_failed_check_and_an_old_model_and_assets_follow(project, monkeypatch):
    write_defs_yaml(project, small_declaration(monitoring={"performance": {"warn_below": 0.999}}))
    at_once = re.sub(r"^(@dg\.run_\w+\(.*)\)$", r"\1, minimum_interval_seconds=1)", ALERTS, flags=re.MULTILINE)
    assert at_once.count("minimum_interval_seconds=1") == 2
    (project / PACKAGE / "defs" / "alerts.py").write_text(at_once)
    (project / PACKAGE / "defs" / "followers.py").write_text(FOLLOWERS)
    with receiver() as (address, texts), workspace_of(project, monkeypatch) as location:
        monkeypatch.setenv("ALERTS_URL", address)
        location.evaluate_sensors()  # a sensor hears of what ends after its first look
        assert texts == ["small: the newest model is that of 2024-02-01"]
        broken = {"small__predictions": {"config": {"model": "no-such-version"}}}
        assert launch(location, "predictions", broken) == dg.DagsterRunStatus.FAILURE
        assert launch(location, "performance", {}) == dg.DagsterRunStatus.SUCCESS
        location.evaluate_sensors()
        failed, checked = sorted(texts[1:], key=lambda text: "check" in text)
        assert failed.startswith("small: small has no version 'no-such-version'; there are 2024-02-01-")
        assert checked == f"small/performance, {DAY}: the check performance failed"
        conditions = {
            spec.key.path[-1]: spec.automation_condition
            for spec in location.definitions.resolve_all_asset_specs()
            if spec.automation_condition
        }
    assert conditions.keys() == {"overview", "morning_mail"}
