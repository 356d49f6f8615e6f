"""Dagster's webserver with a guard in front: `python -m batch_platform.cli.guard [OPTIONS OF dagster-webserver]`.

Dagster executes GraphQL mutations sent by GET and looks at neither Host nor Origin, so that any web page that is open in a browser on
this machine could command it. Browsers say in each request which site it comes from: what another site sends is refused here,
and so is a Host that is not this server's (DNS rebinding). Clients that are not browsers send no such headers and go on working.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from html import escape

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_platform.components.dagster_internals import run_webserver

TOKEN = "BATCH_PLATFORM_UI_TOKEN"  # noqa: S105 - the name of a variable; an option would be visible to other users of the machine
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d+)?", re.IGNORECASE)
_PROTECTION = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOGIN = """<!doctype html><title>batch-platform</title><body style="font-family: sans-serif; margin: 4em">
<h1>Log in</h1><p>{}</p>
<form><input name="token" type="password" autofocus aria-label="Token"> <button>Log in</button></form>"""


class Guard:
    """ASGI middleware that refuses cross-site requests, and requests without the token.

    Args:
        app: What is guarded.
        host: Address that the server is bound to.
        allowed: Further names by which it may be addressed.
        token: What a client must bring, as a bearer token or, once, as the query parameter `token`; None asks for nothing.
    """

    def __init__(self, app: ASGIApp, host: str, allowed: Iterable[str] = (), token: str | None = None) -> None:
        """Guard an application; any address of this machine will do as its name where it listens on all of them."""
        self._app, self._token = app, token
        self._names = {host.lower(), *(name.lower() for name in allowed)}
        self._everywhere = _is_unspecified(host)
        if host in LOOPBACK or self._everywhere:
            self._names |= {*LOOPBACK}
        if self._everywhere:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _PROTECTION.items():
                    headers.append(name, value)
            await send(message)

        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif (answer := self._answer(HTTPConnection(scope))) is None:
            await self._app(scope, receive, send_protected)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, send_protected)

    def _answer(self, request: HTTPConnection) -> Response | None:
        """The answer to a request that is not passed on."""
        host = request.headers.getlist("host")
        if len(host) != 1 or not self._is_ours(host[0]):
            reason = f"This server is not {', '.join(host) or 'without a name'}."
            hint = "use the address that batch-platform ui printed, or start it with --allowed-host NAME."
            return _refused(421, reason, hint)
        if not self._comes_from_here(request, host[0]):
            reason = "A page of another site sent this request, and only the pages of this server may."
            return _refused(403, reason, "open the address of this server in the browser itself.")
        if _mutates_by_get(request):
            return _refused(405, "A mutation was sent by GET.", "send it by POST.")
        return self._login(request) if self._token else None

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host names this server; an address cannot be rebound, so any will do where it listens on all."""
        if (match := _HOST.fullmatch(host)) is None:
            return False
        name = (match["address"] or match["name"]).lower()
        return name in self._names or (self._everywhere and _is_address(name))

    def _comes_from_here(self, request: HTTPConnection, host: str) -> bool:
        """Return whether a request comes from a page of this server, from no page, or from a link to one of its pages."""
        headers = request.headers
        scheme, _, origin = headers.get("origin", f"http://{host}").partition("://")
        if scheme not in ("http", "https") or origin.lower() != host.lower():
            return False
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return True
        follows_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return follows_link and request.scope.get("method") == "GET" and not _is_graphql(request)

    def _login(self, request: HTTPConnection) -> Response | None:
        """None if a request brings the token or the cookie that stands for it, else the way to log in."""
        token = self._token or ""
        name = f"batch_platform_ui_{_digest(token, 'name')[:8]}"  # a browser sends cookies to all ports of a host
        cookie = _digest(token, "cookie")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if _equal(bearer, token) or _equal(request.cookies.get(name, ""), cookie):
            return None
        brought = request.query_params.get("token")
        if brought is not None and _equal(brought, token) and request.scope.get("method") == "GET":
            answer = RedirectResponse(
                str(request.url.remove_query_params("token").replace(scheme="", netloc="")) or "/", 303
            )
            answer.set_cookie(name, cookie, httponly=True, samesite="lax")
        else:
            reason = (
                "This is not the token."
                if brought is not None
                else "This server asks for the token that batch-platform ui printed."
            )
            hint = "programs send it as the header Authorization: Bearer TOKEN."
            if "text/html" in request.headers.get("accept", ""):
                answer = HTMLResponse(_LOGIN.format(escape(reason)), 401)
            else:
                answer = _refused(401, reason, hint)
        answer.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        return answer


def _refused(status: int, reason: str, hint: str) -> Response:
    return PlainTextResponse(f"{reason} Hint: {hint}\n", status)


def _is_graphql(request: HTTPConnection) -> bool:
    return request.url.path.rstrip("/").endswith("/graphql")


def _mutates_by_get(request: HTTPConnection) -> bool:
    """Return whether a GET holds GraphQL that is more than queries; Dagster answers what cannot be parsed."""
    query = request.query_params.get("query")
    if request.scope.get("method") != "GET" or query is None or not _is_graphql(request):
        return False
    try:
        operations = parse(query).definitions
    except GraphQLError:
        return False
    return any(
        isinstance(part, OperationDefinitionNode) and part.operation != OperationType.QUERY for part in operations
    )


def _digest(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def main(arguments: Sequence[str]) -> None:
    """Run Dagster's webserver, with the options of its own command, behind the guard."""
    parser = ArgumentParser(prog="python -m batch_platform.cli.guard", add_help=False, allow_abbrev=False)
    parser.add_argument("--host", "-h", default=LOOPBACK[0])
    parser.add_argument("--allowed-host", action="append", default=[])
    ours, options = parser.parse_known_args(arguments)
    token = os.environ.pop(TOKEN, None)  # removed, so that the code servers that Dagster may start do not inherit it
    if ours.host not in LOOPBACK and not token:
        parser.error(
            f"on {ours.host}, everybody who reaches this machine could run everything in this project. "
            f"Hint: set {TOKEN} to a long random text, which browsers and clients must then bring."
        )
    run_webserver(["--host", ours.host, *options], lambda app: Guard(app, ours.host, ours.allowed_host, token))


if __name__ == "__main__":
    main(sys.argv[1:])
