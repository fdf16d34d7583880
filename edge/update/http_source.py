"""A release on a web server: fetched by urllib3, resumed where a connection breaks.

In: an URL that the user named. Out: what `Source` promises. Connects to the host of that URL, and to others only where
the user allows them; neither proxies nor passwords are looked up anywhere. Bytes are counted: a server can send neither
more than was asked for nor keep a request open without end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError

from edge.runtime.errors import SettingsError, UpdateError, in_words, shown
from edge.update.source import PART_BYTES

CONNECT_S, READ_S = 10, 30
ATTEMPTS = 5  # one after the other that bring nothing
FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 8.0
MOST_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_LATER = (408, 425, 429, 500, 502, 503, 504)  # of a server that may answer soon
_AGAIN = "the same command goes on where this one ended"


class _Broken(Exception):
    """A connection that may work if it is tried again."""


class HttpSource:
    """A folder of a web server."""

    def __init__(self, url: str, allowed_hosts: tuple[str, ...] | None = (), *, pause_s: float = FIRST_PAUSE_S) -> None:
        parts = urlsplit(url)
        try:
            usable = parts.hostname and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
        except ValueError:  # of a port that is none
            usable = False
        if not usable:
            raise SettingsError(
                f"source is {shown(url)}, expected the URL of a folder, without a user, a query and a fragment"
            )
        self._base = url.rstrip("/") + "/"
        self._hosts = {str(parts.hostname).lower(), *(host.lower() for host in allowed_hosts or ())}
        self._may_name_more = allowed_hosts is not None
        self._pause_s = pause_s
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S), headers={"Accept-Encoding": "identity"}
        )

    def __str__(self) -> str:
        return self._base

    def read(self, name: str, max_bytes: int) -> bytes:
        """In one connection, from the first byte to the last."""
        pauses = _Pauses(self._pause_s)
        while True:
            try:
                response, url = self._get(name, {})
                with response:
                    content = response.read(max_bytes + 1, decode_content=False)
                if len(content) > max_bytes:
                    raise UpdateError(f"{url} has more than {max_bytes:,} bytes, which no such file has")
                if response.headers.get("Content-Length") not in (None, str(len(content))):  # urllib3 says nothing
                    raise _Broken(f"the server ended at byte {len(content):,}")
                return content
            except (HTTPError, _Broken) as error:
                pauses.wait(self._broken(name, error), error)

    def parts(self, name: str, start: int, size: int) -> Iterator[bytes]:
        pauses = _Pauses(self._pause_s)
        while start < size:
            before = start
            try:
                for part in self._from(name, start, size):
                    start += len(part)
                    yield part
                if start < size:
                    raise _Broken(f"the server ended at byte {start:,} of {size:,}")
            except (HTTPError, _Broken) as error:
                if start > before:
                    pauses = _Pauses(self._pause_s)
                pauses.wait(self._broken(name, error), error)

    def _from(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """The bytes that one connection brings."""
        response, url = self._get(name, {"Range": f"bytes={start}-"} if start else {})
        with response:
            skipped = 0
            if start and response.status != HTTPStatus.PARTIAL_CONTENT:
                skipped = start  # a server without ranges sends what is here once more
            elif start:
                told = response.headers.get("Content-Range", "")
                if told != f"bytes {start}-{size - 1}/{size}":
                    raise UpdateError(f"{url}: {shown(told)} of it was sent, the manifest says {size:,} bytes")
            length = response.headers.get("Content-Length")
            if length is not None and length != str(size - start + skipped):
                raise UpdateError(f"{url} has another size than the manifest's {size:,} bytes; publish it again")
            left = size - start
            # What has come counts, also where the connection breaks before a part is full.
            while part := response.read1(PART_BYTES, decode_content=False):
                kept = part[skipped:]
                skipped = max(0, skipped - len(part))
                if len(kept) > left:
                    raise UpdateError(f"{url} has more than the manifest's {size:,} bytes; publish it again")
                left -= len(kept)
                if kept:
                    yield kept

    def _get(self, name: str, headers: dict[str, str]) -> tuple[urllib3.BaseHTTPResponse, str]:
        """The answer to a request, and where it came from. Raises UpdateError, HTTPError and _Broken."""
        url = self._base + quote(name)
        for _ in range(MOST_REDIRECTS + 1):
            try:
                response = self._pool.request(
                    "GET",
                    url,
                    headers={**self._pool.headers, **headers},
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=False,
                )
            except SSLError as error:
                raise UpdateError(f"{url}: no connection that can be trusted ({in_words(error)})") from error
            except LocationParseError as error:
                raise UpdateError(f"{shown(url)} is no address ({in_words(error)})") from error
            if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                return response, url
            response.close()
            if response.status in _LATER:
                raise _Broken(f"status {response.status}")
            if response.status not in _MOVED:
                raise UpdateError(f"{url}: the server answered with status {response.status}; check the address")
            url = self._moved(url, response.headers.get("Location", ""))
        raise UpdateError(f"{url}: the server sent us on {MOST_REDIRECTS} times; name the folder that it leads to")

    def _moved(self, url: str, to: str) -> str:
        """Where a server sends us on to, if we may follow. Raises UpdateError."""
        target = urljoin(url, to)
        parts = urlsplit(target)
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https") or (urlsplit(url).scheme, parts.scheme) == ("https", "http"):
            raise UpdateError(f"{url}: the server sent us on to {shown(target)}, which is less safe; name a better URL")
        if host not in self._hosts:
            what = (
                f"if it may be asked, add --allow-host {host}" if self._may_name_more else "name the URL that is meant"
            )
            raise UpdateError(f"{url}: the server sent us on to the host {shown(host)}, which was not named; {what}")
        return target

    def _broken(self, name: str, error: Exception) -> str:
        return f"{self._base}{name} cannot be fetched ({in_words(error)}); {_AGAIN}"


class _Pauses:
    """How long to wait before the next attempt, and whether there is one."""

    def __init__(self, first_s: float) -> None:
        self._failed, self._next_s = 0, first_s

    def wait(self, message: str, cause: Exception) -> None:
        """Raises UpdateError once enough attempts have failed."""
        self._failed += 1
        if self._failed == ATTEMPTS:
            raise UpdateError(message) from cause
        time.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, MOST_PAUSE_S)
