"""A web server of a folder that behaves as badly as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Answer = Callable[["_Handler", bytes, int], None]


@dataclass
class Web:
    """What it serves, and what it was asked."""

    folder: Path
    port: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # file, and Range
    answers: dict[str, Answer] = field(default_factory=dict)  # file -> how it is answered instead
    ranges: bool = True
    cut_after: int | None = None  # bytes of a body, after which a connection is cut
    statuses: list[int] = field(default_factory=list)  # of the next answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/r"

    def asked_for(self, name: str) -> list[str | None]:
        return [told for asked, told in self.asked if asked == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        web, name = self.web, unquote(self.path).rpartition("/")[2]
        told = self.headers.get("Range")
        web.asked.append((name, told))
        path = web.folder / name
        if web.statuses:
            self.head(web.statuses.pop(0), 0)
        elif not path.is_file():
            self.head(404, 0)
        else:
            content = path.read_bytes()
            start = int(told.removeprefix("bytes=").removesuffix("-")) if told and web.ranges else 0
            web.answers.get(name, _Handler.usual)(self, content, start)

    def head(self, status: int, length: int | None, **more: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in more.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def usual(self, content: bytes, start: int) -> None:
        if start:
            self.head(206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.head(200, len(content))
        self.body(content[start:])

    def body(self, content: bytes) -> None:
        cut = self.web.cut_after
        if cut is not None and len(content) > cut:
            self.wfile.write(content[:cut])
            self.cut()
        else:
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


Handler = _Handler


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """On a free port of the loopback."""
    web = Web(folder)
    handler = type("Bound", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
