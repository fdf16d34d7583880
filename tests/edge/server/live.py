"""Servers for tests: one in this process over any model, and `edge serve` as a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from edge.runtime.llm import LLM
from edge.server.app import make_app
from edge.server.metrics import Metrics
from edge.server.run import ModelServer, bind, url_of
from edge.server.service import Service, Stage
from edge.server.settings import ServerSettings
from edge.server.systemd import Notifier

Json = dict[str, Any]
START_S = 60.0
ENDLESS = {"messages": [{"role": "user", "content": "on and on"}], "stream": True}


@dataclass
class Reply:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body)
        return found

    @property
    def error(self) -> Json:
        found: Json = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """What a stream's data lines hold; the last is "[DONE]" if it ended well."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass
class Live:
    """A server that listens."""

    url: str
    service: Service | None = None  # of a server in this process
    process: subprocess.Popen[bytes] | None = None  # of one elsewhere
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str, body: object, **headers: str) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "content-type": "application/json",
            **self.headers,
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        return self.ask(Request(self.url + path, raw, sent, method="POST"))

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask(Request(self.url + path, headers={**self.headers, **headers}))

    def ask(self, request: Request) -> Reply:
        try:
            with urlopen(request, timeout=60) as response:
                return Reply(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
        except HTTPError as error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def chat(self, content: str, **fields: object) -> Reply:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def begin(self, path: str, body: object) -> socket.socket:
        """Send a request and return its connection, from which nothing has been read."""
        raw = json.dumps(body).encode()
        connection = self.connect()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        return connection

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.get("/health").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not become ready")


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    service: Service
    end: Callable[[], None]  # as a signal does
    thread: threading.Thread


@contextlib.contextmanager
def running(open_model: Callable[[Stage], LLM], **settings: Any) -> Iterator[Running]:  # Any: of ServerSettings
    """A server that listens, and may still be loading; the model is closed with it."""
    chosen = ServerSettings(**{"port": 0, "names": ("model",), "shutdown_s": 0.2, **settings})
    service = Service(open_model, chosen)
    bound = bind(chosen)
    url = url_of(bound)
    server = ModelServer(make_app(service, Metrics(), {}), service, bound, Notifier({}))
    thread = threading.Thread(target=server.run, args=([server.listener],), daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(url, service, server.end_soon, thread)
    finally:
        server.end_soon()
        thread.join(60)
        assert not thread.is_alive()
        service.close()


@contextlib.contextmanager
def served(llm: LLM, **settings: Any) -> Iterator[Live]:
    """A server in this process that is ready; the model is closed with it."""
    with running(lambda _: llm, **settings) as server:
        until(lambda: server.service.state == "ready")
        yield Live(server.url, server.service)


@contextlib.contextmanager
def process(bundle: Path, *options: str, ready: bool = True, said: Path | None = None) -> Iterator[Live]:
    """`edge serve` on a free port; ended by SIGTERM if it still runs at the end."""
    port = free_port()
    command: Sequence[str] = [sys.executable, "-m", "edge", "serve", str(bundle), "--port", str(port), *options]
    with contextlib.ExitStack() as stack:
        told = None if said is None else stack.enter_context(said.open("wb"))
        running = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        live = Live(f"http://127.0.0.1:{port}", process=running)
        try:
            if ready:
                live.wait_ready()
            yield live
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGTERM)
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def until(condition: Any, seconds: float = 20.0) -> None:  # Any: a function without arguments
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Held:
    """A script of one letter, over and over; each takes so long that nothing is over before `go` is set."""

    def __init__(self, step_s: float = 0.3) -> None:
        self.go = threading.Event()
        self._step_s = step_s

    def __call__(self, _: Sequence[int]) -> int:
        self.go.wait(self._step_s)
        return ord("a")


def slow(step_s: float, letter: str = "a") -> Callable[[Sequence[int]], int]:
    """A script of one letter, over and over."""

    def script(_: Sequence[int]) -> int:
        time.sleep(step_s)
        return ord(letter)

    return script
