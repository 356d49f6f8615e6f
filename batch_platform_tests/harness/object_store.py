"""A server on this machine that speaks the protocol of S3, as a process of its own, and the environment that leads to it."""

import io
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest

BUCKET = "lake"
SECRET = "not/for+anybody's=eyes"
REQUESTS = "/requests"  # path at which the server lists the requests since it was last asked
SERVER = f"""
import json, logging, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
store, requests = DomainDispatcherApplication(create_backend_app), []
def serve(environ, start):
    if environ["PATH_INFO"] == {REQUESTS!r}:
        listed = json.dumps(requests).encode()
        requests.clear()
        start("200 OK", [])
        return [listed]
    requests.append([environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]])
    return store(environ, start)
server = make_server("127.0.0.1", int(sys.argv[1]), serve, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@dataclass
class ObjectStore:
    """A store that holds an empty bucket when it has started, and forgets everything when it ends."""

    port: int = 0  # chosen by the system at the first start
    _server: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which every library of this protocol finds the store."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",  # a dead server is not asked again
        }

    def start(self) -> None:
        """Start the server, at the same port as before, and wait until it answers."""
        command = [sys.executable, "-c", SERVER, str(self.port)]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._server.stdout
        self.port = int(self._server.stdout.readline())
        forget_connections()
        self.files.mkdir(BUCKET)

    def kill(self) -> None:
        """End the server as a power cut would."""
        assert self._server
        assert self._server.stdout
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()

    def requests(self) -> list[tuple[str, str, str]]:
        """Method, path and query of the requests since it was last asked."""
        with urllib.request.urlopen(f"{self.url}{REQUESTS}") as answer:
            return [(method, path, query) for method, path, query in json.loads(answer.read())]

    def refuse(self) -> None:
        """Let nobody read any more: from now on every request needs a user who is known."""
        switch = urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(switch).close()

    @property
    def files(self) -> Any:
        """The objects, for a test to write and to remove."""
        environment = self.environment
        return fsspec.filesystem(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            key=environment["AWS_ACCESS_KEY_ID"],
            secret=environment["AWS_SECRET_ACCESS_KEY"],
            use_listings_cache=False,
        )


def forget_connections() -> None:
    """Let the next look into a store find its address in the environment again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run a store until the block ends."""
    store = ObjectStore()
    store.start()
    try:
        yield store
    finally:
        store.kill()
        forget_connections()


@contextmanager
def silent_store(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[ObjectStore]:
    """A store that accepts connections and never answers, for which the environment lets others wait for some seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the system accepts
        monkeypatch.setenv("BATCH_PLATFORM_STORE_TIMEOUT", str(seconds))
        store = ObjectStore(listening.getsockname()[1])
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        forget_connections()
        yield store
    forget_connections()


@pytest.fixture(scope="module")
def shared_store() -> Iterator[ObjectStore]:
    """A store for all tests of a module."""
    with object_store() as started:
        yield started


@pytest.fixture
def store(shared_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store with an empty bucket, which the environment leads to."""
    yield _led_to(shared_store, monkeypatch)
    for path in shared_store.files.find(BUCKET):
        shared_store.files.rm_file(path)  # `rm` takes a name with * or [ for a pattern


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store of this test's own, to be broken."""
    with object_store() as started:
        yield _led_to(started, monkeypatch)


def _led_to(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.requests()
    return store


def bytes_of(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()
