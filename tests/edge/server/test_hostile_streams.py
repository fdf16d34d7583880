"""A server that is loading, full, stalled or ending, and clients that leave or stop halfway."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import edge
from edge.runtime.llm import LLM
from edge.runtime.stream import Stream
from edge.server.service import Stage
from edge.wire.chat_request import ChatRequest
from tests.edge.server.hostile import (
    CHAT,
    JSON,
    Server,
    chat,
    endless,
    posted,
    serving,
    serving_script,
    shape,
    short,
)
from tests.edge.server.raw import Client, request, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short) as server:
        yield server


def test_a_full_queue_says_when_to_come_back() -> None:
    go = threading.Event()

    def script(held: Any) -> int:
        go.wait(20)
        return short(held)

    with serving_script(script, max_waiting=2) as server:
        clients = [Client(server.port).send(chat(stream=True))]
        wait_until(lambda: server.llm.stats.step_s > 0)
        for _ in range(2):
            clients.append(Client(server.port).send(chat(stream=True)))
            clients[-1].until(b"ping")  # it was let in
        answer = server.chat(max_tokens=1)
        assert shape(answer) == (429, "rate_limit_error", "queue_full", None)
        assert int(answer.headers["retry-after"]) >= 1
        go.set()
        for client in clients:
            client.until(b"[DONE]")
            client.socket.close()
        wait_until(server.is_free)


def test_a_loading_model_says_so_and_then_answers() -> None:
    go = threading.Event()

    def slow(stage: Stage) -> LLM:
        stage("reading weights", 0.4)
        go.wait(20)
        return edge.scripted_llm(short)

    with serving(slow) as server:
        wait_until(lambda: server.service.progress > 0)
        health = server.get("/health")
        assert (health.status, health.json["status"], health.json["progress"]) == (503, "loading", 0.4)
        assert int(health.headers["retry-after"]) >= 1
        for answer in (server.chat(), server.get("/v1/models"), server.chat(stream=True)):
            assert shape(answer) == (503, "server_error", "loading", None)
            assert int(answer.headers["retry-after"]) >= 1
        assert server.get("/").status == 200
        assert server.get("/page/status.json").json["state"] == "loading"
        go.set()
        wait_until(lambda: server.get("/health").status == 200)
        assert server.chat().status == 200


def test_a_stalled_engine_and_a_server_that_ends_are_told() -> None:
    go = threading.Event()

    def script(held: Any) -> int:
        if bytes(held[1:6]) == b"stall":
            go.wait(20)
        return short(held)

    with serving_script(script, stall_s=0.2) as server:
        with Client(server.port) as client:
            client.send(posted(CHAT, {"messages": [{"role": "user", "content": "stall"}]}))
            wait_until(lambda: server.get("/health").status == 503)
            health = server.get("/health")
            assert health.json["status"] == "stalled"
            assert int(health.headers["retry-after"]) >= 1
            go.set()
            assert client.answer().status == 200
        assert server.get("/health").status == 200
        server.service.stop()
        assert shape(server.chat()) == (503, "server_error", "shutting_down", None)
        assert server.get("/health").json["status"] == "stopping"


def test_a_deadline_before_the_first_token() -> None:
    with serving_script(endless(0.05), num_blocks=4) as server, Client(server.port) as first:
        first.send(chat(stream=True)).until(b"delta")
        answer = server.chat("x" * 30, deadline_s=0.01)
        assert shape(answer) == (504, "server_error", "deadline_exceeded", None)
        assert answer.headers["x-should-retry"] == "false"


def test_readers_that_stop_are_dropped_and_nobody_waits_for_them() -> None:
    with serving_script(endless(), send_timeout_s=0.5) as server, ExitStack() as stack:
        stuck = [stack.enter_context(Client(server.port, receive_buffer=4096)) for _ in range(5)]
        for client in stuck:
            client.send(chat(stream=True, logprobs=True, top_logprobs=20, n=2)).until(b"delta")
        assert server.chat(max_tokens=20).json["usage"]["completion_tokens"] == 20
        wait_until(lambda: server.service.num_active == 0)
        wait_until(server.is_free)
        for client in stuck:
            found = b""
            with suppress(ConnectionError):
                while data := client.socket.recv(2**20):
                    found += data
            assert b"[DONE]" not in found


def test_streams_that_are_cut_and_requests_that_stop_halfway_leave_nothing() -> None:
    with serving_script(endless(0.0005), max_waiting=300) as server:
        whole = chat(stream=True)
        for number in range(60):
            client = Client(server.port)
            part = whole[: len(whole) * number // 30]  # half of them are whole
            client.send(part or b"G")
            if number >= 30 and number % 2:
                client.until(b"delta")
            client.reset() if number % 3 else client.socket.close()
        wait_until(lambda: server.chat(max_tokens=3).status == 200)
        wait_until(server.is_free)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with Client(server.port) as client:
        paths = ["/health", "/v1/models", CHAT, "/nothing", "/health"] * 5
        client.send(b"".join(chat(seed=5) if path == CHAT else request("GET", path) for path in paths))
        assert [client.answer().status for _ in paths] == [200, 200, 200, 404, 200] * 5


def test_whoever_leaves_while_a_prompt_is_encoded_keeps_no_place_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, begun, start = threading.Event(), threading.Event(), ChatRequest.start

    def slow(self: ChatRequest, *given: Any) -> list[Stream]:
        begun.set()
        go.wait(20)
        return start(self, *given)

    monkeypatch.setattr(ChatRequest, "start", slow)
    with serving_script(endless(0.02)) as server:  # more than a minute for the whole
        client = Client(server.port).send(chat())
        assert begun.wait(20)
        client.reset()
        wait_until(lambda: server.service.num_active == 0)
        go.set()
        time.sleep(0.2)  # for the thread to end
        wait_until(server.is_free)


def test_half_requests_do_not_hold_up_the_end() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serving_script(short))
        idle, half, body, drip = (stack.enter_context(Client(server.port)) for _ in range(4))
        assert idle.send(request("GET", "/health")).answer().status == 200
        half.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: lo")
        body.send(request("POST", CHAT, JSON, "Content-Length: 100") + b"{")
        drip.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked") + b"1\r\n{\r\n")
        assert server.get("/health").status == 200  # what was sent before has been read
        server.end()
        for client in (half, body, drip):
            assert shape(client.answer()) == (503, "server_error", "shutting_down", None)
            client.socket.close()
        assert idle.ended()
        server.thread.join(8)  # less than any of them would have had
        assert not server.thread.is_alive()


def test_nobody_waits_while_a_long_prompt_is_encoded() -> None:
    with serving_script(short) as server, Client(server.port) as client:
        client.send(posted(CHAT, {"messages": [{"role": "user", "content": "x" * 250_000}]}))
        asked, done = 0, False
        client.socket.setblocking(False)
        while not done:
            assert server.get("/health").status == 200
            asked += 1
            with suppress(BlockingIOError):
                client.left += client.socket.recv(2**16)
                done = True
        client.socket.setblocking(True)
        assert shape(client.answer())[2] == "context_length_exceeded"
        assert asked > 3, "a server that encodes answers one at most"
