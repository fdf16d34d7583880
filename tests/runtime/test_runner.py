"""Nobody waits for a running step but those who need what it computes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from edge.api import scripted_llm
from edge.runtime.chunk import Answer
from edge.runtime.errors import ContextLengthError, EdgeError
from edge.runtime.llm import LLM
from edge.runtime.stream import Stream

T = TypeVar("T")
PATIENCE_S = 60.0  # for what must not wait at all


class Gate:
    """A script that waits inside a step until it is let on, and then says 7."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def __call__(self, held: Sequence[int]) -> int:
        self.inside.set()
        assert self.open.wait(PATIENCE_S), "the test never let the step end"
        return 7


def in_thread(function: Callable[[], T]) -> tuple[threading.Thread, list[T]]:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    return thread, found


def at_once(function: Callable[[], T]) -> T:
    """What a call gives that must not wait for a step. It would wait for ever: the gate is shut."""
    thread, found = in_thread(function)
    thread.join(PATIENCE_S)
    assert found, "it waited for the step"
    return found[0]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def busy(gate: Gate) -> Iterator[tuple[LLM, threading.Thread, list[Answer]]]:
    """A model inside a step of another thread's answer."""
    llm = scripted_llm(gate, max_context=64)
    stream = llm.generate([1, 2, 3], max_new_tokens=4)
    thread, found = in_thread(stream.answer)
    assert gate.inside.wait(PATIENCE_S)
    yield llm, thread, found
    gate.open.set()
    thread.join(PATIENCE_S)


def test_a_second_caller_does_not_wait(busy: tuple[LLM, threading.Thread, list[Answer]], gate: Gate) -> None:
    """It waited for the other's whole chunk of prompt: 18 s at the speed of a 9B model."""
    llm, thread, found = busy
    second = at_once(lambda: llm.generate([4, 5, 6], max_new_tokens=2))
    third = at_once(lambda: llm.generate([4, 5, 7], max_new_tokens=2))
    assert at_once(lambda: llm.stats).waiting == 2
    assert at_once(lambda: llm.cache_stats).lookups == 1
    at_once(lambda: third.close() or 1)  # type: ignore[func-returns-value]
    assert not found
    gate.open.set()
    assert second.answer().token_ids == (7, 7)
    thread.join(PATIENCE_S)
    assert found[0].token_ids == (7, 7, 7, 7)
    assert list(third) == []
    assert llm.stats.running == llm.stats.waiting == 0


def test_closing_the_running_answer_does_not_wait(busy: tuple[LLM, threading.Thread, list[Answer]], gate: Gate) -> None:
    llm, thread, found = busy
    other = at_once(lambda: llm.generate([9, 9], max_new_tokens=1))
    at_once(lambda: other.close() or 1)  # type: ignore[func-returns-value]
    gate.open.set()
    thread.join(PATIENCE_S)
    assert found[0].finish_reason == "length"
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_what_needs_a_pause_waits_for_the_running_step_alone(
    busy: tuple[LLM, threading.Thread, list[Answer]], gate: Gate
) -> None:
    """A reader that goes on stepping does not starve who waits between two steps."""
    llm, thread, found = busy
    clearing, cleared = in_thread(lambda: llm.clear_cache() or llm.stats)  # type: ignore[func-returns-value]
    clearing.join(0.1)
    assert not cleared
    gate.open.set()
    clearing.join(PATIENCE_S)
    assert cleared
    thread.join(PATIENCE_S)
    assert found[0].token_ids == (7, 7, 7, 7)


def test_what_a_call_between_steps_raises_reaches_its_caller() -> None:
    llm = scripted_llm(lambda held: 7)

    def fail() -> None:
        raise ContextLengthError("mine")

    with pytest.raises(ContextLengthError, match="mine"):
        llm._runner.between_steps(fail)


def test_many_threads_read_submit_and_cancel() -> None:
    """Every finished answer is that of a run alone, and nothing is left."""
    llm = scripted_llm(lambda held: (sum(held) * 7 + len(held)) % 251, num_blocks=24, max_context=96)
    alone = scripted_llm(lambda held: (sum(held) * 7 + len(held)) % 251, max_context=96)
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    expected = [alone.generate(prompt, max_new_tokens=40).answer().token_ids for prompt in prompts]
    problems: list[str] = []

    def work(first: int) -> None:
        for i in range(first, first + 30):
            stream: Stream = llm.generate(prompts[i % 12], max_new_tokens=40)
            if i % 5 == 0:
                next(stream)
                stream.close()
                continue
            try:
                if stream.answer().token_ids != expected[i % 12]:
                    problems.append(f"answer {i} is another")
            except EdgeError as error:
                problems.append(str(error))

    threads = [threading.Thread(target=work, args=(i * 7,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not problems
    assert llm.stats.running == llm.stats.waiting == 0
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_what_is_ready_is_read_without_a_step() -> None:
    with scripted_llm(lambda _: 7) as llm:
        first, second = (llm.generate([1, count], max_new_tokens=3) for count in (2, 3))
        assert not first.ready
        assert not second.ready
        assert len(list(first)) == 3  # waiting for one advances all
        assert second.ready
        tokens = 0
        while second.ready and (chunk := next(second, None)) is not None:
            tokens += len(chunk.token_ids)
        assert tokens == 3
        assert second.ready  # for the end, as often as it is asked for


# An engine that takes half a second to be taken apart, and a process that ends in the meantime.
DROPPED = """
import gc, os, time
from edge.runtime.engines.scripted import ScriptedEngine, tokenizer_json
from edge.runtime.llm import LLM
from edge.runtime.tokenizer import Tokenizer

class Slow(ScriptedEngine):
    def __del__(self):
        time.sleep(0.5)
        os.write(1, b"gone")

llm = LLM.from_engine(Slow(lambda held: 7), Tokenizer.from_text(tokenizer_json()))
llm.generate([1], max_new_tokens=2).answer()
del llm
gc.collect()
"""


def test_a_process_ends_after_the_engine_that_nobody_uses_any_more() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("gone", 0), done.stderr
