"""What becomes of a client that leaves, waits in vain or is still there when the server ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import END
from edge.runtime.llm import LLM
from edge.server.service import Service
from tests.edge.server.live import ENDLESS, Held, Live, served, slow, until


@contextmanager
def endless(**settings: Any) -> Iterator[tuple[Live, LLM]]:
    llm = scripted_llm(slow(0.01), max_context=1 << 16, num_blocks=1 << 12)  # minutes
    with served(llm, **settings) as live:
        yield live, llm


def is_free(llm: LLM) -> bool:
    stats = llm.stats
    return not stats.running and not stats.waiting


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(stream: bool) -> None:
    with endless() as (live, llm):
        connection = live.begin("/v1/chat/completions", {**ENDLESS, "stream": stream})
        until(lambda: llm.stats.running == 1)
        if stream:
            assert connection.recv(4096)
        connection.close()
        until(lambda: is_free(llm))
        assert live.chat("again", max_tokens=2).status == 200


def test_a_client_that_leaves_while_its_prompt_is_read_ends_that() -> None:
    def script(keys: Sequence[int]) -> int:
        return ord("a")

    llm = scripted_llm(script, prefill_chunk=8, max_context=1 << 14, num_blocks=4096)
    forward = llm.engine.forward

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.05)  # a minute for the whole
        return forward(*arguments)

    llm.engine.forward = slowly  # type: ignore[method-assign,assignment]
    with served(llm) as live:
        long = {"messages": [{"role": "user", "content": "x" * 10_000}]}
        connection = live.begin("/v1/chat/completions", long)
        until(lambda: llm.stats.running == 1)
        connection.close()
        until(lambda: is_free(llm))


def test_a_waiting_client_that_leaves_touches_nobody() -> None:
    script = Held()
    llm = scripted_llm(script, num_blocks=4)
    with served(llm) as live:
        first = live.begin("/v1/chat/completions", {**ENDLESS, "max_tokens": 40})
        until(lambda: llm.stats.running == 1)
        second = live.begin("/v1/chat/completions", {**ENDLESS, "max_tokens": 50})
        until(lambda: llm.stats.waiting == 1)
        second.close()
        until(lambda: llm.stats.waiting == 0)
        assert llm.stats.running == 1
        script.go.set()
        told = b""
        while b"[DONE]" not in told:
            told += first.recv(1 << 16)
        assert b'"finish_reason":"length"' in told
        first.close()


def test_a_full_queue_is_told_when_to_come_back() -> None:
    script = Held()
    llm = scripted_llm(script, num_blocks=4)
    with served(llm, max_waiting=2) as live:
        asked = {**ENDLESS, "max_tokens": 50}
        begun = [live.begin("/v1/chat/completions", asked)]
        until(lambda: llm.stats.running == 1)
        for number in (1, 2):
            begun.append(live.begin("/v1/chat/completions", asked))
            until(lambda number=number: llm.stats.waiting == number)
        refused = live.post("/v1/chat/completions", asked)
        assert refused.status == 429
        assert (refused.error["type"], refused.error["code"]) == ("rate_limit_error", "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        for connection in begun:
            connection.close()
        script.go.set()


def test_a_server_that_ends_lets_answers_finish_and_nobody_in() -> None:
    script = Held()
    llm = scripted_llm(script)
    with served(llm, shutdown_s=20.0) as live:
        assert live.service is not None
        replied: list[Any] = []
        short = threading.Thread(target=lambda: replied.append(live.chat("x", max_tokens=40)))
        short.start()
        until(lambda: llm.stats.running == 1)
        live.service.stop()
        refused, health = live.chat("y"), live.get("/health")
        script.go.set()
        short.join()
    assert (refused.status, refused.error["code"]) == (503, "shutting_down")
    assert "retry-after" in refused.headers
    assert (health.status, health.json["status"]) == (503, "stopping")
    assert replied[0].json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_not_done_in_time_ends_with_an_error(stream: bool) -> None:
    llm = scripted_llm(slow(0.01), max_context=1 << 16, num_blocks=1 << 12)
    replied: list[Any] = []
    with served(llm) as live:
        asked = {**ENDLESS, "stream": stream}
        thread = threading.Thread(target=lambda: replied.append(live.post("/v1/chat/completions", asked)))
        thread.start()
        until(lambda: llm.stats.running == 1)
    thread.join()
    told = replied[0].events[-1]["error"] if stream else replied[0].error
    assert told["code"] == "shutting_down"
    assert replied[0].status == (200 if stream else 503)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_starts_when_others_are_cut_is_cut_too(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its place in the model's queue and its place among the server's streams is a change of threads."""
    cuts = 0
    first_cut = asyncio.Event()
    in_thread, cut = Service.in_thread, Service.cut

    def after_the_first_cut(service: Service, function: Callable[[], object]) -> asyncio.Future[object]:
        async def later() -> object:
            found = await in_thread(service, function)
            await first_cut.wait()
            return found

        return asyncio.ensure_future(later())

    def counted(service: Service) -> None:
        nonlocal cuts
        cuts += 1
        cut(service)
        first_cut.set()

    monkeypatch.setattr(Service, "in_thread", after_the_first_cut)
    monkeypatch.setattr(Service, "cut", counted)
    replied: list[Any] = []
    with endless() as (live, _):
        asked = {**ENDLESS, "stream": stream}
        thread = threading.Thread(target=lambda: replied.append(live.post("/v1/chat/completions", asked)))
        thread.start()
        assert live.service is not None
        service = live.service
        until(lambda: service.num_active == 1)
    thread.join()
    told = replied[0].events[-1]["error"] if replied[0].status == 200 else replied[0].error
    assert told["code"] == "shutting_down"
    assert cuts > 1


def test_health_says_when_the_engine_hangs() -> None:
    release = threading.Event()

    def script(_: Sequence[int]) -> int:
        release.wait(20)
        return END

    with served(scripted_llm(script), stall_s=0.1) as live:
        connection = live.begin("/v1/chat/completions", ENDLESS)
        until(lambda: live.get("/health").status == 503)
        assert live.get("/health").json["status"] == "stalled"
        release.set()
        until(lambda: live.get("/health").status == 200)
        connection.close()
