"""What every request has to pass before anything reads it, and what every response carries.

In: ASGI requests. Out: the same for the application, or a refusal. Knows nothing about endpoints, except which are open
to those without a key.

A web page of another site cannot use a server on the visitor's own machine: its requests have an Origin that is not
ours, and one that made its own name point here has a foreign Host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.runtime.errors import shown
from edge.server.errors import ErrorBody, response_of
from edge.server.keys import Keys
from edge.server.leaving import ClientLeft
from edge.server.refusals import new_request_id
from edge.server.settings import LOOPBACK, ServerSettings
from edge.wire.errors import FORBIDDEN, UNAUTHORIZED, RequestError

OPEN = ("/", "/health", "/page-config.json", "/favicon.ico")  # without a key
OPEN_FOLDER = "/web/"
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types dompurify"
)
_HEADERS: Mapping[str, str] = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_METHODS = "GET, POST, OPTIONS"
_PREFLIGHT_S = "600"


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, keys: Keys, error_body_of: Callable[[str], ErrorBody]
    ) -> None:
        """error_body_of: the shape of errors for a path."""
        self._app, self._settings, self._keys = app, settings, keys
        self._error_body_of = error_body_of
        self._hosts = {name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        if scope["type"] != "http":
            return
        scope.setdefault("state", {})["request_id"] = request_id = new_request_id()
        is_root = self._strip_root(scope)
        error_body = self._error_body_of(scope["path"])
        headers, started = Headers(scope=scope), False
        shared_with = ""

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                marked = MutableHeaders(raw=[*message.get("headers", ())])
                marked["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    marked.setdefault(name, value)
                if shared_with:
                    marked["access-control-allow-origin"] = shared_with
                    marked["access-control-expose-headers"] = "x-request-id, retry-after"
                    marked.add_vary_header("Origin")
                message = {**message, "headers": marked.raw}
            await send(message)

        try:
            self._check_host(headers, scope)
            shared_with = self._check_origin(headers)
            if shared_with and scope["method"] == "OPTIONS":
                await _preflight(headers)(scope, receive, send_marked)
                return
            self._check_key(headers, scope["path"])
        except RequestError as error:
            await response_of(error, error_body)(scope, receive, send_marked)
            return
        if is_root:  # the page's own paths are relative to a folder
            await RedirectResponse(f"{self._settings.root_path}/")(scope, receive, send_marked)
            return
        try:
            await self._app(scope, receive, send_marked)
        except ClientLeft:
            return
        except Exception as error:
            if started:  # what was sent cannot be taken back: the connection ends in the middle
                raise
            await response_of(error, error_body)(scope, receive, send_marked)

    def _strip_root(self, scope: Scope) -> bool:
        """Take away the path that a proxy may leave before ours; return whether there is nothing after it."""
        root, path = self._settings.root_path, scope["path"]
        if root and (path == root or path.startswith(f"{root}/")):
            scope["path"] = path.removeprefix(root) or "/"
        return bool(root) and path == root

    def _check_host(self, headers: Headers, scope: Scope) -> None:
        given = headers.getlist("host")
        host = _host_of(given[0]) if len(given) == 1 else None
        if host is None or not (host in self._hosts or _is_own_address(host, scope)):
            raise RequestError(
                f"the host is {shown(', '.join(given))}, which is not a name of this server; "
                "if it should be one, start the server with --allowed-host",
                code="host_not_allowed",
                status=FORBIDDEN,
            )

    def _check_origin(self, headers: Headers) -> str:
        """Return the foreign site that may read the response; empty for none."""
        given = headers.getlist("origin")
        if not given or (len(given) == 1 and _is_same(given[0], headers["host"])):
            return ""
        allowed = self._settings.cors_origins
        if len(given) == 1 and (given[0] in allowed or "*" in allowed):
            return given[0]
        raise RequestError(
            f"the origin is {shown(', '.join(given))}, and pages of other sites may not use this server; "
            "if this one may, start the server with --cors-origin",
            code="origin_not_allowed",
            status=FORBIDDEN,
        )

    def _check_key(self, headers: Headers, path: str) -> None:
        if not self._keys or path in OPEN or path.startswith(OPEN_FOLDER):
            return
        raw = {name: value for name, value in headers.raw if name in (b"authorization", b"x-api-key")}
        if not self._keys.accept(raw.get(b"authorization"), raw.get(b"x-api-key")):
            raise RequestError(
                "this server needs a key, and the request has none or a wrong one; "
                "send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                status=UNAUTHORIZED,
            )


def _host_of(header: str) -> str | None:
    """Return the name or address of a Host header without its port; None if it is not one."""
    if not header.isascii() or any(character in header for character in "@/\\?# ,"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises for what is not a number
    except ValueError:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None


def _is_own_address(host: str, scope: Scope) -> bool:
    """Whether a host is the address that the connection was made to: a name that points here is not one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    server = scope.get("server")
    try:
        return server is not None and ipaddress.ip_address(server[0]) == address
    except ValueError:
        return False


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin is that of our own page. A proxy may have turned https into http."""
    scheme, _, rest = origin.partition("://")
    standard = {"http": ":80", "https": ":443"}.get(scheme)
    return standard is not None and rest.lower().removesuffix(standard) == host.lower().removesuffix(standard)


def _preflight(headers: Headers) -> Response:
    asked = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": asked if asked.isascii() and asked.isprintable() else "",
            "access-control-max-age": _PREFLIGHT_S,
        },
    )
