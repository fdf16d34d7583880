"""`edge serve` on a real model, treated badly: it answers others meanwhile, and afterwards holds what it did before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.edge.server.hostile import CHAT, JSON, posted
from tests.edge.server.live import free_port
from tests.edge.server.raw import Client, exchange, request, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills, limits and counts as Linux does"),
]
ROOT = Path(__file__).parents[3]
MIB = 2**20


@contextmanager
def edge_serve(bundle: Path, *options: str, max_files: int = 1024) -> Iterator[int]:
    """Run a server; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "edge", "serve", str(bundle), "--port", str(port), *options]
    limited = ["sh", "-c", f'ulimit -n {max_files}; exec "$@"', "sh", *command]
    with subprocess.Popen(limited, stderr=subprocess.PIPE, cwd=ROOT) as process:
        try:
            wait_until(lambda: is_ready(port), 90)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            told = process.stderr.read().decode()
        assert process.wait(60) == 0, told
        assert [line for line in told.splitlines() if not line.startswith(("serving ", "ready: "))] == []


def is_ready(port: int) -> bool:
    try:
        return exchange(port, request("GET", "/health")).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def port(demo_bundle: Path) -> Iterator[int]:
    limits = ("--header-timeout", "2", "--body-timeout", "3", "--max-waiting", "300")
    with edge_serve(demo_bundle, *limits) as port:
        yield port


@pytest.fixture(autouse=True)
def nothing_lost(port: int) -> Iterator[None]:
    """Every test leaves the server as it found it: the same answer, and no block held but by the cache of prefixes."""
    before = answer(port)
    yield
    wait_until(lambda: is_free(port), 30)
    assert answer(port) == before


def answer(port: int) -> str:
    body = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 12}
    found = exchange(port, posted(CHAT, body))
    assert found.status == 200, found
    text: str = found.json["choices"][0]["message"]["content"]
    return text


def status(port: int) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = exchange(port, request("GET", "/page/status.json")).json
    return found


def is_free(port: int) -> bool:
    told = status(port)
    return not told["running"] and not told["waiting"] and told["kv_used_blocks"] == told["kv_cached_blocks"]


def stream(**fields: object) -> bytes:
    asked = {"messages": [{"role": "user", "content": "Count to a million."}], "stream": True, "ignore_eos": True}
    return posted(CHAT, {**asked, **fields})


def test_half_requests_that_drip_keep_nobody_waiting(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(200)]
        half = len(clients) // 2
        for client in clients[:half]:
            client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
        for client in clients[half:]:
            client.send(request("POST", CHAT, JSON, "Content-Length: 1000"))
        begun, others = time.monotonic(), 0
        alive = set(clients)
        while alive and time.monotonic() - begun < 60:
            for client in list(alive):
                try:
                    client.send(b"X: a\r\n" if client in clients[:half] else b" ")
                except ConnectionError:
                    alive.discard(client)
            asked = time.monotonic()
            assert exchange(port, request("GET", "/health")).status == 200
            assert time.monotonic() - asked < 20
            others += 1
            time.sleep(0.3)
        assert not alive
        assert others > 3


def test_a_chunked_body_of_400_mib_is_refused_early(port: int) -> None:
    before, sent = status(port)["rss_bytes"], 0
    chunk = b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
    with Client(port) as client:
        client.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked"))
        with suppress(ConnectionError):
            while sent < 400:
                client.send(chunk)
                sent += 1
        assert sent < 200
    assert status(port)["rss_bytes"] - before < 48 * MIB
    with Client(port) as client:  # one that stops to read
        client.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked"))
        for _ in range(10):
            client.send(chunk)
        assert client.answer().status == 413


def test_bodies_in_small_chunks_keep_nobody_waiting(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(4)]
        for client in clients:
            client.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked"))
        slowest = 0.0
        for _ in range(3):
            for client in clients:
                with suppress(ConnectionError):  # its body took too long
                    client.send(b"1\r\n \r\n" * 20_000)
            asked = time.monotonic()
            assert exchange(port, request("GET", "/health")).status == 200
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 20


def test_200_streams_that_are_reset(port: int) -> None:
    chance = random.Random(5)
    clients = [Client(port).send(stream(max_tokens=chance.randint(5, 200))) for _ in range(200)]
    chance.shuffle(clients)
    for client in clients:
        time.sleep(chance.random() / 50)
        client.reset()


def test_200_clients_that_are_killed(port: int) -> None:
    script = [sys.executable, "-m", "tests.edge.server.many_clients", str(port), "200"]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"all\n"
        wait_until(lambda: status(port)["running"] > 0)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)


def test_what_is_not_http_fills_no_log(port: int) -> None:
    """`edge_serve` sees to it that nothing was said."""
    chance = random.Random(7)
    for _ in range(100):
        data = chance.randbytes(chance.randint(1, 300))
        with Client(port) as client, suppress(ConnectionError):
            client.send(data + b"\r\n\r\n")
            assert client.answer().status == 400


def test_few_open_files(demo_bundle: Path) -> None:
    with edge_serve(demo_bundle, max_files=64) as few, ExitStack() as stack:
        clients = [stack.enter_context(Client(few)).send(stream(max_tokens=5)) for _ in range(200)]
        found = [client.answer().status for client in clients]
        assert set(found) == {200, 503}
        assert 5 < found.count(200) < 64
        stack.close()
        wait_until(lambda: is_free(few), 30)
        assert answer(few)
