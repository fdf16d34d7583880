"""Where Windows cannot interrupt a wait, nothing waits without a bound: Ctrl-C takes effect during a step."""

from __future__ import annotations

import subprocess
import sys
import threading
from queue import SimpleQueue
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime import runner
from edge.runtime.engines.scripted import noise
from edge.runtime.waiting import SLICE_S, join, next_of


class Bounded(SimpleQueue[Any]):
    """A queue in which nobody but the thread of the steps waits without a bound."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is None and threading.current_thread().name != "edge-steps":
            raise AssertionError("Ctrl-C would wait for the step")
        return super().get(block, timeout)


def test_an_item_arrives_and_a_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    queue = Bounded()
    late = threading.Timer(2.5 * SLICE_S, queue.put, ["item"])
    late.start()
    assert next_of(queue) == "item"
    queue.put(None)
    assert next_of(queue) is None
    join(late)
    assert not late.is_alive()


def test_readers_of_answers_wait_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a reader waits for: text, closing a stream, work between steps, the end."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(runner, "SimpleQueue", Bounded)
    llm = scripted_llm(noise(), num_blocks=64, max_context=256)
    stream = llm.generate("hello", max_new_tokens=5)
    next(iter(stream))
    stream.close()
    assert llm.generate("hello", max_new_tokens=3).answer().stats is not None
    llm.prefixes.unpin_all()
    llm.close()


def test_the_task_of_a_worker_is_not_its_standard_input() -> None:
    """A thread that reads stdin would stop the loading of libraries on Windows. It ends with its pipe all the same."""
    script = (
        "import os, threading; from edge.profiles import worker\n"
        "pipe = worker._take_stdin()\n"
        "threading.Thread(target=worker._end_with, args=(pipe,), daemon=True).start()\n"
        "print(pipe != 0, os.read(0, 5), flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"True b''\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == 1
