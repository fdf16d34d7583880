"""How the loop is ended from outside, and what it does to an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import replies
from edge.runtime.llm import LLM
from edge.runtime.session import ChatSession
from edge.tools.events import Event, Text
from edge.tools.loop import run_loop
from edge.tools.loop_async import run_loop_async
from tests.edge.tools.stock import (
    ANSWER,
    ANSWERS,
    QUESTION,
    collected,
    stock,
    stock_async,
    text,
)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with scripted_llm(replies(ANSWERS, otherwise="What?")) as found:
        yield found


@pytest.mark.skipif(os.name != "posix", reason="a signal for one thread")
def test_an_interrupt_cancels_an_async_tool(llm: LLM) -> None:
    ended = []

    async def stock(item: str) -> int:
        """Wait for a very long time."""
        try:
            threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
            await asyncio.sleep(60)
        finally:
            ended.append(item)
        return 0

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_loop(llm, QUESTION, [stock]))
    assert ended == ["apples"]
    assert time.monotonic() - begun < 30


def test_async_tools_run_where_a_loop_runs_already(llm: LLM) -> None:
    """As in a notebook."""

    async def main() -> list[Event]:
        return list(run_loop(llm, QUESTION, {"stock": stock_async}))

    assert text(asyncio.run(main())) == ANSWER


def test_closing_ends_the_answer(llm: LLM) -> None:
    session = ChatSession(llm)
    events = run_loop(session, "Thanks", [stock])
    assert isinstance(next(events), Text)
    assert llm.stats.running == 1
    events.close()
    assert llm.stats.running == 0
    assert ANSWERS["Thanks"].startswith(session.messages[-1].text)
    assert 0 < len(session.messages[-1].text) < len(ANSWERS["Thanks"])


def slow(answers: Mapping[str, str], until: threading.Event) -> Callable[[Any], Any]:
    script = replies(answers)

    def next_id(held: Any) -> Any:
        until.wait(0.5)
        return script(held)

    return next_id


def test_the_event_loop_is_never_blocked() -> None:
    """Another task runs on while a model answers and a slow function computes, both in other threads."""
    threads, ticks = set(), 0

    def wait_for_the_loop() -> None:
        """Return when the other task has run since; never, if this is what keeps it from running."""
        threads.add(threading.get_ident())
        before, give_up = ticks, time.monotonic() + 20
        while ticks < before + 2:
            assert time.monotonic() < give_up, "the event loop waits for what does not run in it"
            time.sleep(0.001)

    def stock(item: str) -> int:
        """Compute for a while."""
        wait_for_the_loop()
        return 37

    async def main(llm: LLM) -> None:
        running = True

        async def tick() -> None:
            nonlocal ticks
            while running:
                await asyncio.sleep(0.001)
                ticks += 1

        task = asyncio.create_task(tick())
        assert text(await collected(run_loop_async(llm, QUESTION, [stock]))) == ANSWER
        running = False
        await task

    def script(held: Any) -> Any:
        wait_for_the_loop()
        return answers(held)

    answers = replies(ANSWERS)
    with scripted_llm(script) as llm:
        asyncio.run(main(llm))
    assert threads
    assert threading.main_thread().ident not in threads


@pytest.mark.parametrize("times", [1, 3])
def test_cancelling_ends_the_answer(times: int) -> None:
    fast = threading.Event()

    async def main(llm: LLM) -> None:
        session = ChatSession(llm)
        task = asyncio.create_task(collected(run_loop_async(session, "Thanks", [stock])))
        while not llm.stats.running:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert llm.stats.running == 0
        fast.set()
        session.reset()
        assert text(await collected(run_loop_async(session, QUESTION, [stock]))) == ANSWER

    with scripted_llm(slow(ANSWERS, fast)) as llm:
        asyncio.run(main(llm))
