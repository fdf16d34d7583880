"""Streams in an event loop: equal to streams in a thread, and freed when nobody waits for them."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence

import pytest

from edge.api import scripted_llm
from edge.runtime.chunk import Chunk, joined
from edge.runtime.engines.scripted import END, noise
from edge.runtime.errors import DeviceError
from edge.runtime.llm import LLM
from edge.runtime.stream import Stream, answer_of

HELLO = [{"role": "user", "content": "Hello"}]


def endless(_: Sequence[int]) -> int:
    time.sleep(0.02)  # more than a minute for the whole
    return ord("a")


async def read(stream: Stream) -> list[Chunk]:
    return [chunk async for chunk in stream]


def is_free(llm: LLM) -> bool:
    return not llm.stats.running and not llm.stats.waiting


async def freed(llm: LLM) -> None:
    async with asyncio.timeout(30):
        while not is_free(llm):
            await asyncio.sleep(0.005)


def test_many_at_once_equal_those_read_one_by_one() -> None:
    with scripted_llm(noise(END)) as llm:
        expected = [llm.chat(HELLO, temperature=1, seed=seed, max_new_tokens=50).answer() for seed in range(12)]

        async def all_at_once() -> list[list[Chunk]]:
            streams = [llm.chat(HELLO, temperature=1, seed=seed, max_new_tokens=50) for seed in range(12)]
            return await asyncio.gather(*map(read, streams))

        found = [answer_of(chunks) for chunks in asyncio.run(all_at_once())]
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)


def test_a_slow_reader_gets_everything_in_fewer_chunks_and_holds_up_nothing() -> None:
    with scripted_llm(lambda _: ord("a")) as llm:

        async def main() -> tuple[list[Chunk], int]:
            stream = llm.generate("x", max_new_tokens=60)
            first = await anext(stream)
            async with asyncio.timeout(60):
                while not stream._request.finished:
                    await asyncio.sleep(0.005)
            rest = await read(stream)
            return [first, *rest], len(rest)

        chunks, count = asyncio.run(main())
    assert answer_of(chunks).text == "a" * 60
    assert count <= 1, "what came while it waited is one chunk"


def test_a_task_that_is_cancelled_ends_its_answer() -> None:
    with scripted_llm(endless) as llm:

        async def main() -> None:
            task = asyncio.create_task(read(llm.generate("x")))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await freed(llm)

        asyncio.run(main())


def test_a_stream_that_nobody_holds_ends() -> None:
    with scripted_llm(endless) as llm:

        async def main() -> None:
            stream = llm.generate("x")
            await anext(stream)
            del stream
            gc.collect()
            await freed(llm)

        asyncio.run(main())


def test_errors_and_the_end_of_a_model_reach_the_reader() -> None:
    with scripted_llm(endless) as llm:
        steps = 0
        decode = llm.engine.decode

        def failing(*arguments: object) -> object:
            nonlocal steps
            steps += 1
            if steps == 4:
                raise DeviceError("broken")
            return decode(*arguments)  # type: ignore[arg-type]

        llm.engine.decode = failing  # type: ignore[method-assign,assignment]
        with pytest.raises(DeviceError, match="broken"):
            asyncio.run(read(llm.generate("x")))

        async def closed_meanwhile() -> list[Chunk]:
            task = asyncio.create_task(read(llm.generate("y")))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(llm.close)
            return await task

        assert answer_of(asyncio.run(closed_meanwhile())).finish_reason == "cancelled"


def test_joined_chunks_are_one_answer() -> None:
    with scripted_llm(noise(END)) as llm:
        chunks = list(llm.chat(HELLO, temperature=1, seed=1, max_new_tokens=30, logprobs=1))
    one = joined(chunks)
    assert answer_of([one]) == answer_of(chunks)
    assert joined(chunks[:1]) is chunks[0]
