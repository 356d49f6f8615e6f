"""A real HTTP server on this machine that takes alerts as JSON, and can be down, or slow, at first."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """An address, and what it has taken."""

    port: int
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def url(self) -> str:
        """As Apprise writes it."""
        return f"json://127.0.0.1:{self.port}/hook"

    @contextmanager
    def up(self) -> Iterator[None]:
        """Answer while the block runs."""
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_): ...

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()


def receiver() -> Receiver:
    """A receiver on a free port, which is down."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return Receiver(free.getsockname()[1])
