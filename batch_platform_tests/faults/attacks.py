"""What others send, plant or leave running: hostile web pages, queries without an end, secrets in odd places, foreign models."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path
from urllib.parse import quote
from zipfile import ZipFile

import numpy as np
import pytest

from batch_platform.cli import guard
from batch_platform.declaration.errors import BatchPlatformError, DataError, SourceError
from batch_platform.declaration.model import Model
from batch_platform.kernels.forest.estimators import malformed, read_lightgbm
from batch_platform.models.declared_model import read_import
from batch_platform.models.flavours.flavour import MOST_BYTES
from batch_platform.sources import opening
from batch_platform_tests.faults import Case
from batch_platform_tests.faults.invariants import SCORED, STAMP, days, everything_written
from batch_platform_tests.faults.processes import ENDLESS
from batch_platform_tests.harness.command_line import clean_environment, run_command, start_command
from batch_platform_tests.harness.dagster_project import forget_projects, pipeline_folder, write_dagster_project
from batch_platform_tests.harness.small_pipeline import small_pipeline
from batch_platform_tests.harness.workspace import workspace_of

LIMIT = 'mutation {setConcurrencyLimit(concurrencyKey: "%s", limit: 3)}'
LIMITS = "{instance {concurrencyLimits {concurrencyKey}}}"
ERROR = "message stack className causes {message stack} errorChain {error {message stack}}"
METADATA = """label description ... on TextMetadataEntry {text} ... on JsonMetadataEntry {jsonString}
  ... on MarkdownMetadataEntry {mdStr} ... on PathMetadataEntry {path}"""
RUNS = f"""{{runsOrError {{... on Runs {{results {{
  id status runConfigYaml runConfig jobName tags {{key value}} executionPlan {{artifactsPersisted steps {{key metadata {{key value}}}}}}
  eventConnection {{events {{
    __typename ... on MessageEvent {{message stepKey}} ... on ErrorEvent {{error {{{ERROR}}}}}
    ... on ExecutionStepFailureEvent {{failureMetadata {{metadataEntries {{{METADATA}}}}}}}
    ... on EngineEvent {{metadataEntries {{{METADATA}}}}}
  }}}}
}}}}}}}}"""
ASSETS = f"""{{assetNodes {{
  id description opNames jobNames metadataEntries {{{METADATA}}} assetMaterializations {{metadataEntries {{{METADATA}}}}}
}}}}"""
TOKEN = "fourteen-words-by-nobody"

REACHED = """
from pathlib import Path
import polars as pl


def events():
    Path({!r}).touch()
    return pl.scan_parquet({!r})
"""

LEAKY = """
import logging
import os
import sys
import warnings

import dagster
from batch_platform_tests.faults.attacks import forms_of


def events():
    forms = forms_of(os.environ["SHOP_PASSWORD"])
    for form in forms:
        print("logs in with", form)
        print("logs in with", form, file=sys.stderr)
        logging.getLogger("shop").error("logs in with %s", form)
        dagster.get_dagster_logger().warning("logs in with %s", form)
    warnings.warn(forms[0])
    raise RuntimeError(", ".join(forms))
"""


def forms_of(secret: str) -> list[str]:
    """What drivers and loggers make of a text."""
    in_base64 = b64encode(secret.encode()).decode()
    return [secret, repr(secret), json.dumps(secret), quote(secret), quote(secret, safe=""), in_base64]


@dataclass(frozen=True)
class Webserver:
    """Dagster's webserver behind the guard, with nothing to serve, and a client that sends what it is told."""

    port: int

    def answer(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json", **named})
            with connection.getresponse() as response:
                read = "" if response.status == 101 else response.read().decode()
                return response.status, dict(response.getheaders()), read

    def ask(self, query: str, **headers: str) -> tuple[int, str]:
        status, _, text = self.answer("POST", "/graphql", json.dumps({"query": query}), **headers)
        return status, text

    def websocket(self, **headers: str) -> int:
        """The status with which a websocket is opened or refused."""
        handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws"}
        return self.answer("GET", "/graphql", **handshake, **key, **headers)[0]


@contextmanager
def webserver(folder: Path, *options: str, **variables: str) -> Iterator[Webserver]:
    home = folder / f"instance-{len(options)}"
    home.mkdir(parents=True)
    (home / "workspace.yaml").write_text("load_from: []\n")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "batch_platform.cli.guard", "-p", str(port), "-w", str(home / "workspace.yaml"), *options]
    process = subprocess.Popen([sys.executable, *words], env=clean_environment(DAGSTER_HOME=str(home), **variables))
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Webserver(port)
    finally:
        process.terminate()
        process.wait(60)


def fetched(mode: str, destination: str) -> dict[str, str]:
    """What a browser says of a request that a page of another site makes."""
    return {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": destination}


def hostile_web_pages(folder: Path) -> None:
    """What a page of another site can make a browser send is refused; Dagster's own pages and other clients go on working."""
    with webserver(folder) as server:
        own = f"127.0.0.1:{server.port}"
        evil = {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"}
        get = f"/graphql?query={quote(LIMIT % 'by-get')}"
        refused = [
            server.answer("GET", get)[0],  # an old browser's <img>
            server.answer("HEAD", get)[0],
            server.answer("GET", get, **fetched("no-cors", "image"))[0],
            server.answer("GET", get, **fetched("navigate", "document"))[0],
            server.answer("POST", get.replace("by-get", "by-form"), Content_Type="text/plain", **evil)[0],
            server.answer("POST", "/report_asset_materialization/planted", "{}", **evil)[0],
            server.ask(LIMIT % "rebound", Host="evil.example")[0],
            server.ask(
                LIMIT % "rebound", Host=f"evil.example:{server.port}", Origin=f"http://evil.example:{server.port}"
            )[0],
            server.ask(LIMIT % "user", Host=f"evil@{own}")[0],
            server.ask(LIMIT % "port", Origin=f"http://127.0.0.1:{server.port + 1}", Sec_Fetch_Site="same-site")[0],
            server.ask(LIMIT % "null", Origin="null")[0],
            server.ask(LIMIT % "old browser", Origin="http://evil.example")[0],
            server.websocket(Origin="http://evil.example"),
            server.websocket(Host="evil.example", Origin="http://evil.example"),
            server.answer("GET", "/", **fetched("navigate", "iframe"))[0],
            server.answer("GET", "/server_info", **fetched("cors", "empty"))[0],
        ]
        assert set(refused) <= {403, 405, 421}, refused
        assert server.ask(LIMITS) == (200, '{"data":{"instance":{"concurrencyLimits":[]}}}')
        assert "planted" not in server.ask("{assetsOrError {... on AssetConnection {nodes {key {path}}}}}")[1]

        own_page = {"Origin": f"http://{own}", "Sec_Fetch_Site": "same-origin"}
        assert server.ask(LIMIT % "of our page", **own_page)[0] == 200
        assert server.ask(LIMIT % "of a client")[0] == 200
        assert "of our page" in (limits := server.ask(LIMITS)[1])
        assert "of a client" in limits
        assert server.answer("GET", f"/graphql?query={quote(LIMITS)}")[2] == limits
        assert server.answer("POST", "/report_asset_materialization/known", "{}")[0] == 200
        assert server.websocket(**own_page) == 101
        assert server.ask("{version}", Host=f"localhost:{server.port}")[0] == 200
        status, headers, page = server.answer("GET", "/runs", **fetched("navigate", "document"))
        assert (status, headers["x-frame-options"]) == (200, "DENY")
        assert "<html" in page


def without_the_token(folder: Path) -> None:
    """With a token, nothing is answered without it; the token read-only UI shows everything and changes nothing."""
    with webserver(folder, "--read-only", BATCH_PLATFORM_UI_TOKEN=TOKEN) as server:
        page = {"Accept": "text/html"}
        for path in ("/", "/runs?token=wrong", "/graphql", "/server_info"):
            status, _, text = server.answer("GET", path, **page)
            assert (status, 'name="token"' in text) == (401, True), path
        assert server.ask("{version}")[0] == server.ask("{version}", Authorization="Bearer wrong")[0] == 401
        assert server.websocket() == 403
        status, headers, _ = server.answer("GET", f"/runs?view=all&token={TOKEN}", **page)
        assert (status, headers["location"]) == (303, "/runs?view=all")
        assert TOKEN not in headers["set-cookie"]
        assert "HttpOnly" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        for allowed in ({"Cookie": cookie}, {"Authorization": f"Bearer {TOKEN}"}):
            assert server.ask("{version}", **allowed)[0] == 200
            assert server.websocket(**allowed) == 101
        assert server.ask("{version}", Cookie=cookie, Origin="http://evil.example")[0] == 403

        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert "Unauthorized" in server.ask(LIMIT % "read-only", **bearer)[1]
        assert server.answer("POST", "/report_asset_materialization/planted", "{}", **bearer)[0] != 200
        assert server.ask(LIMITS, **bearer)[1] == '{"data":{"instance":{"concurrencyLimits":[]}}}'
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as error:
        patch.delenv("BATCH_PLATFORM_UI_TOKEN", raising=False)
        with pytest.raises(SystemExit, match="2"):
            guard.main(["-h", "0.0.0.0"])
    assert "set BATCH_PLATFORM_UI_TOKEN" in error.getvalue()


def sql_without_an_end(folder: Path) -> None:
    """A query that would run for weeks ends within seconds of Ctrl-C, of Dagster's cancelling, and of the end of a terminal."""
    project = write_dagster_project(
        folder / "project", features_sql=ENDLESS, sources={"events": {"parquet": None, "python": "endless.events"}}
    )
    reached = project / "reached"
    (project / "endless.py").write_text(REACHED.format(str(reached), str(pipeline_folder(project) / "events.parquet")))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, for all that is started below it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process = start_command(project, "run", "small", "--partition", "2024-02-01")
        try:
            while not reached.exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            time.sleep(0.5)  # the query is under way
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, error
        assert "interrupted" in error
        reached.unlink()


def sql_beyond_its_limits(folder: Path) -> None:
    """A query ends with its time limit, one that spills with its share of the disk, and both say what to look for."""
    pipeline = small_pipeline(folder / "slow", features_sql=ENDLESS, features={"timeout": "1 second"})
    (partition,) = days(pipeline, SCORED[0])
    with pytest.raises(SourceError, match=r"takes longer than features.timeout \(1 second\)") as slow:
        list(pipeline.build_features([partition], STAMP))
    assert "Hint: look for a join without a condition" in str(slow.value)

    cross_join = "SELECT id * 10000000 + n AS id, ts, md5(n::VARCHAR) AS m FROM events CROSS JOIN range(10000000) r(n)"
    pipeline = small_pipeline(folder / "wide", features_sql=cross_join)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "MEMORY_LIMIT", "64MiB")
        patch.setattr(opening, "SPILL_SHARE", (32 << 20) / shutil.disk_usage(folder).free)
        with pytest.raises(BatchPlatformError, match="write more than a quarter of the free disk space") as refused:
            list(pipeline.build_features([partition], STAMP))
    assert "Hint: look for a join without a condition" in str(refused.value)
    assert not list(pipeline.home.root.rglob("*.tmp"))


def leaking_secrets(folder: Path) -> None:
    """A source that prints, logs and raises a secret in every usual form leaves none of them in the home or on the terminal."""
    secret = "it's a \"s3cr3t\\\n+/~ü"
    project = write_dagster_project(folder / "project", sources={"events": {"parquet": None, "python": "leaky.events"}})
    (project / "leaky.py").write_text(LEAKY)
    answer = run_command(
        project,
        "run",
        "small",
        "--partition",
        "2024-02-02",
        SHOP_PASSWORD=secret,
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    assert answer.code == 1
    assert answer.err.count("$SHOP_PASSWORD") > 10
    seen = (
        (answer.out + answer.err).encode() + everything_written(project / ".batch_platform") + told_by_graphql(project)
    )
    for form in forms_of(secret):
        assert form.encode() not in seen, form
    for part in (b"s3cr3t", *(form[8:16].encode() for form in forms_of(secret)[-1:])):
        assert part not in seen, part


def told_by_graphql(project: Path) -> bytes:
    """What Dagster's pages are told of the runs, their logs and configuration, and of the assets of a project."""
    with pytest.MonkeyPatch.context() as patch, workspace_of(project, patch) as loaded:
        (run,) = loaded.ask(RUNS)["results"]
        assert run["status"] == "FAILURE"
        messages = [event["message"] for event in run["eventConnection"]["events"]]
        assert any("$SHOP_PASSWORD" in message for message in messages), "the logs of the source are told"
        assets = loaded.ask(ASSETS)
        forget_projects()
    return json.dumps([run, assets], ensure_ascii=False).encode() + json.dumps([run, assets]).encode()


def foreign_models(folder: Path) -> None:
    """Files that would crash, hang or exhaust their library are refused with one paragraph."""
    import lightgbm
    import onnx.parser

    folder.mkdir(exist_ok=True)
    matrix = np.random.default_rng(3).random((300, 2))
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 5, "verbose": -1}, lightgbm.Dataset(matrix, matrix[:, 0] > 0.5), 3
    )
    good, left = booster.model_to_string(), r"(?m)^left_child=\S+"
    assert malformed(lambda: read_lightgbm(good, {})) is None
    ends = range(len("tree") + 1, good.index("end of trees"), len(good) // 40)
    damaged = [good[:end] for end in ends]
    damaged += [
        re.sub(left, "left_child=0", good, count=1),  # its own child
        re.sub(left, "left_child=99999999", good, count=1),
        re.sub(r"(?m)^right_child=\S+", "right_child=-99999999", good, count=1),
        re.sub(r"(?m)^split_feature=\S+", "split_feature=77", good, count=1),
        good.replace("num_class=1", "num_class=1000000000"),
        good.replace("num_tree_per_iteration=1", "num_tree_per_iteration=0"),
        good.replace("max_feature_idx=1", "max_feature_idx=99999999999"),
    ]
    file = folder / "model.txt"
    for text in damaged:
        assert malformed(lambda text=text: read_lightgbm(text, {})) is not None, text[-80:]
    file.write_text(damaged[-7])
    with pytest.raises(
        DataError, match=r"LightGBM cannot read the model: .* is damaged: tree 0 has nodes that lie outside"
    ):
        read_import(Model.model_validate({"import": "model.txt"}), folder, {})
    file.write_text(good)
    assert read_import(Model.model_validate({"import": "model.txt"}), folder, {}).task == "binary"

    huge = [("InputLayer", {"batch_shape": [None, 3]}), ("Dense", {"units": 2_000_000_000})]
    layers = [{"class_name": name, "module": "keras.layers", "config": config} for name, config in huge]
    network = {"class_name": "Sequential", "module": "keras", "config": {"name": "huge", "layers": layers}}
    with ZipFile(folder / "huge.keras", "w") as archive:
        for name, text in {"config.json": network, "metadata.json": {"keras_version": "3.0.0"}}.items():
            archive.writestr(name, json.dumps(text))
        archive.writestr("model.weights.h5", "")
    with pytest.raises(DataError, match=r"huge.keras declares a layer of size 2,000,000,000, more than"):
        read_import(Model.model_validate({"import": "huge.keras"}), folder, {})

    (folder / "endless.onnx").write_bytes(onnx.parser.parse_model(ENDLESS_ONNX).SerializeToString())
    with pytest.raises(DataError, match=r"endless.onnx contains the operator Loop"):
        read_import(Model.model_validate({"import": "endless.onnx", "task": "regression"}), folder, {})

    with (folder / "large.txt").open("wb") as large:
        large.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"large.txt has 4,294,967,297 bytes, more than the 4,294,967,296 allowed"):
        read_import(Model.model_validate({"import": "large.txt"}), folder, {})


# A model that doubles nothing for 2 ** 62 times.
ENDLESS_ONNX = """
<ir_version: 8, opset_import: ["" : 17]>
endless (float[N, 1] x) => (float[N, 1] y) {
    turns = Constant <value = int64 {4611686018427387904}> ()
    start = Constant <value = bool {1}> ()
    y = Loop <body = body (int64 turn, bool going, float[N, 1] before) => (bool goes_on, float[N, 1] after) {
        goes_on = Identity (going)
        after = Add (before, before)
    }> (turns, start, x)
}
"""
CASES: dict[str, Case] = {
    "F24 hostile web pages": hostile_web_pages,
    "F24 without the token, and read-only": without_the_token,
    "F27 SQL without an end, interrupted": sql_without_an_end,
    "F28 a source that leaks a secret": leaking_secrets,
    "F29 foreign models": foreign_models,
    "F27 SQL beyond its limits": sql_beyond_its_limits,
}
