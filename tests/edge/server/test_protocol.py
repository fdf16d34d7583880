"""Connections with limits, seen from a socket: what is not HTTP, what is too slow, too long, too many."""

from __future__ import annotations

import logging
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.server.protocol import ConnectionLimits
from tests.edge.server.raw import Answer, Client, exchange, request, wait_until
from tests.edge.server.tiny_app import TinyApp, serving

LIMITS = ConnectionLimits(max_connections=8, max_header_bytes=4096)  # and time for a machine that is busy
HASTY = ConnectionLimits(header_timeout_s=0.5, write_timeout_s=0.5)
SECRET = b"sk-very-secret"


@pytest.fixture(scope="module")
def app() -> TinyApp:
    return TinyApp()


@pytest.fixture(scope="module")
def port(app: TinyApp) -> Iterator[int]:
    with serving(app, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def hasty_app() -> TinyApp:
    return TinyApp()


@pytest.fixture(scope="module")
def hasty(hasty_app: TinyApp) -> Iterator[int]:
    """A server that gives little time."""
    with serving(hasty_app, HASTY) as port:
        yield port


@pytest.fixture(autouse=True)
def quiet(app: TinyApp, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client sends is an error of the server's."""
    yield
    wait_until(lambda: app.running == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def echoed(answer: Answer) -> object:
    assert answer.status == 200
    assert "server" not in answer.headers
    return answer.json["body"]


def test_requests_are_answered_one_after_another(port: int) -> None:
    with Client(port) as client:
        for size in (0, 10, 300_000):
            assert echoed(client.send(request("POST", "/echo", body=bytes(size))).answer()) == size


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    with Client(port) as client:
        client.send(b"".join(request("POST", "/echo", body=bytes(size)) for size in range(50)))
        assert [echoed(client.answer()) for _ in range(50)] == list(range(50))


def test_a_request_may_come_byte_by_byte(port: int) -> None:
    with Client(port) as client:
        for byte in request("POST", "/echo", body=b"xyz"):
            client.send(bytes([byte]))
        assert echoed(client.answer()) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"hello\r\n\r\n",
        b"\r\n\r\n",
        b"\0" * 100,
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nname : space\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-very-secret\0\r\n\r\n",
        b"sk-very-secret\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    ],
)
def test_what_is_not_http_is_told_so(port: int, data: bytes) -> None:
    with Client(port) as client:
        answer = client.send(data).answer()
        assert answer.status == 400
        error = answer.error
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_http", None)
        assert SECRET not in answer.body
        assert ("https" in answer.body.decode().lower()) == data.startswith(b"\x16")
        assert client.ended()


def test_a_websocket_is_refused(port: int) -> None:
    answer = exchange(
        port, request("GET", "/echo", "Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Key: x")
    )
    assert (answer.status, answer.error["code"]) == (400, "unsupported_upgrade")


def test_another_upgrade_is_ignored(port: int) -> None:
    """Java's client asks for HTTP/2 with its every request."""
    headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQ")
    with Client(port) as client:
        for _ in range(2):
            assert echoed(client.send(request("POST", "/echo", *headers, body=b"ab")).answer()) == 2


def test_http_1_0_is_answered_and_closed(port: int) -> None:
    with Client(port) as client:
        answer = client.send(b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nab").answer()
        assert answer.json["version"] == "1.0"
        assert client.ended()


@pytest.mark.parametrize("method", ["BREW", "TRACE", "x" * 100])
def test_a_method_that_nobody_knows_is_the_applications_matter(port: int, method: str) -> None:
    assert exchange(port, request(method, "/echo")).json["method"] == method


@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/" + "a" * 5000),
        request("GET", "/echo", "X: " + "a" * 5000),
        request("GET", "/echo", *(f"X-{index}: a" for index in range(800))),
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5000,  # no end yet
        b"GET /" + b"a" * 1_000_000,
    ],
)
def test_headers_have_a_limit(port: int, data: bytes) -> None:
    """Also when they are complete at once, and while a client is still sending."""
    answer = exchange(port, data)
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("before", [b"", request("POST", "/echo", body=b"ab")])
def test_half_a_request_has_a_limit_of_time(hasty: int, before: bytes) -> None:
    """Of the first request and of a further one, however steadily it drips."""
    start = time.monotonic()  # the clock of a first request begins with its connection
    with Client(hasty) as client:
        if before:
            client.send(before).answer()
        client.send(b"GET / HTTP/1.1\r\n")
        client.socket.settimeout(0.1)
        while time.monotonic() - start < 40:  # one that begins anew with every line would never end
            try:
                client.left += client.socket.recv(1)
                break
            except TimeoutError:
                client.send(b"X: a\r\n")
        took = time.monotonic() - start
        client.socket.settimeout(5)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert client.ended()
        assert took > 0.4


def test_a_connection_without_a_request_ends_without_an_answer(hasty: int) -> None:
    with Client(hasty) as client:
        assert client.ended()


def test_half_a_pipelined_request_has_a_limit_of_time(hasty: int) -> None:
    with Client(hasty) as client:
        client.send(request("POST", "/echo", body=b"ab") + b"GET / HT")
        assert echoed(client.answer()) == 2
        assert client.answer().status == 408


def test_one_connection_too_many_is_refused(port: int) -> None:
    with ExitStack() as stack:
        used = [stack.enter_context(Client(port)) for _ in range(LIMITS.max_connections)]
        for client in used:
            client.send(request("GET", "/wait"))
        for _ in range(40):
            with Client(port) as client:
                answer = client.answer()
                assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
                assert answer.error["type"] == "server_error"
                assert int(answer.headers["retry-after"]) >= 1
                assert client.ended()
        used[0].socket.close()
        wait_until(lambda: echoed_or_refused(port) == 200)


def test_an_idle_connection_makes_room_for_a_new_one(port: int, app: TinyApp) -> None:
    """The one that has been idle for longest; none with a request, whole or half."""
    with ExitStack() as stack:
        used = [stack.enter_context(Client(port)) for _ in range(LIMITS.max_connections)]
        for client in used[:3]:
            assert echoed(client.send(request("POST", "/echo", body=b"ab")).answer()) == 2
        for client in used[3:-1]:
            client.send(request("GET", "/wait"))
        wait_until(lambda: app.running == 4)
        used[-1].send(b"GET / HT")
        for longest in used[:3]:
            new = stack.enter_context(Client(port))
            new.send(request("GET", "/wait"))
            assert longest.ended()
        assert stack.enter_context(Client(port)).answer().status == 503


def echoed_or_refused(port: int) -> int:
    with Client(port) as client:
        client.send(request("POST", "/echo", body=b"ab"))
        return client.answer().status


def test_an_answer_reaches_a_client_that_is_still_sending(port: int) -> None:
    """An unread rest of a request would reset the connection, and the answer would be lost with it."""
    for close in ((), ("Connection: close",)):
        with Client(port) as client:
            body = bytes(20 * 2**20)
            answer = client.send(request("POST", "/early", *close, body=body)).answer()
            assert answer.body == b"no"


def test_a_short_rest_of_a_body_does_not_end_the_connection(port: int) -> None:
    with Client(port) as client:
        whole = request("POST", "/early", body=bytes(1000))
        assert client.send(whole[:-900]).answer().body == b"no"
        assert echoed(client.send(whole[-900:] + request("POST", "/echo", body=b"ab")).answer()) == 2


def test_a_rest_without_an_end_is_cut_off(port: int) -> None:
    with Client(port) as client:
        client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.answer().body == b"no"

        def cut() -> bool:
            try:
                client.send(b"1\r\na\r\n")
            except ConnectionError:
                return True
            return False

        wait_until(cut)


def test_whoever_leaves_is_noticed(port: int, app: TinyApp) -> None:
    """Also after the first bytes of a further request."""
    for further in (b"", b"GET / HT", request("GET", "/echo")):
        for leave in (Client.reset, lambda client: client.socket.close()):
            left = app.left
            client = Client(port).send(request("GET", "/wait") + further)
            wait_until(lambda: app.running > 0)
            leave(client)
            wait_until(lambda: app.left > left and app.running == 0)  # noqa: B023  # called at once


def test_a_body_that_turns_out_to_be_broken_ends_its_request(port: int, app: TinyApp) -> None:
    left = app.left
    with Client(port) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        wait_until(lambda: app.running > 0)
        assert client.send(b"not a chunk\r\n").answer().status == 400
        wait_until(lambda: app.left > left and app.running == 0)


def test_a_reader_that_stops_is_cut_off_and_a_slow_one_is_not(hasty: int, hasty_app: TinyApp) -> None:
    for _ in range(6):
        if both_read(hasty, hasty_app):
            return
    pytest.skip("this machine is so busy that a slow reader often stops for longer than it may")


def both_read(port: int, app: TinyApp) -> bool:
    """Compare the two; False if the slow reader came to stop as well, since nobody gave it time."""
    left, longest = app.left, 0.0
    with Client(port, receive_buffer=4096) as stuck, Client(port, receive_buffer=4096) as slow:
        stuck.send(request("GET", "/flood"))
        slow.send(request("GET", "/flood"))
        start = before = time.monotonic()
        try:
            while app.left == left or time.monotonic() - start < 1.4:
                slow.exactly(30_000)
                time.sleep(0.05)
                now = time.monotonic()
                longest, before = max(longest, now - before), now
        except (AssertionError, ConnectionError):
            longest = max(longest, time.monotonic() - before)
            assert longest > HASTY.write_timeout_s / 2, "it was cut off although it read"
        enough = longest <= HASTY.write_timeout_s / 2
        if enough:
            assert app.left == left + 1
            assert app.running == 1
    wait_until(lambda: app.running == 0)
    return enough


def ticks(pid: int) -> int:
    """Return the hundredths of a second that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def idles(pid: int) -> bool:
    """Whether a process computes next to nothing for half a second."""
    before = ticks(pid)
    time.sleep(0.5)
    return ticks(pid) - before < 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_limit_of_open_files_is_survived() -> None:
    """Everyone gets an answer, nobody a hole; and it takes no time of the processor while they are connected."""
    script = Path(__file__).with_name("tiny_app.py")
    with subprocess.Popen([sys.executable, script, "64"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            port = int(server.stdout.readline())
            with ExitStack() as stack:
                used = [stack.enter_context(Client(port)) for _ in range(200)]
                for client in used:
                    client.send(request("GET", "/wait"))
                waiting = set(used)

                def those_told() -> int:
                    for client in select.select([client.socket for client in waiting], [], [], 0.02)[0]:
                        (found,) = (one for one in waiting if one.socket is client)
                        assert found.answer().status == 503
                        waiting.discard(found)
                    return len(used) - len(waiting)

                wait_until(lambda: those_told() > 150)
                wait_until(lambda: idles(server.pid))
                assert those_told() < 200  # the others wait for their answer
            wait_until(lambda: echoed_or_refused(port) == 200)
        finally:
            server.kill()
        assert b"Traceback" not in server.stderr.read()
