"""A pool of Windows is not committed at once, and nothing touches what is not committed: that would end the process.

The calls of Windows are carried out by those of Linux, so that a wrong access is a real one. Engines are real.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import CacheFullError, SettingsError
from edge.runtime.kv import pages
from edge.runtime.kv.memory import PagedMemory, SlotMemory
from tests.platforms.windows_memory import Kernel32

if sys.platform != "linux":
    pytest.skip("the calls of Windows are made of those of Linux", allow_module_level=True)

ENGINE = """
import json, sys
import edge
from edge.runtime.engines import onnxruntime
from tests.platforms.windows_memory import Kernel32, install

def answers(reproducible, kernel):
    llm = edge.load(sys.argv[1], engine=sys.argv[2], reproducible=reproducible, kv_cache_bytes=64_000_000)
    at_first, reserved = kernel.committed_bytes, sum(kernel.reserved.values())
    one = llm.generate("one two three", max_new_tokens=9, ignore_stop_ids=True).answer()
    after_one = kernel.committed_bytes
    streams = [llm.generate("four " * n, max_new_tokens=n, ignore_stop_ids=True) for n in (1, 20, 3, 9)]
    texts = [answer.text for answer in (one, *[stream.answer() for stream in streams])]
    at_last = kernel.committed_bytes
    llm.close()
    return {"texts": texts, "bytes": [at_first, after_one, at_last, reserved]}

plain = [answers(reproducible, Kernel32()) for reproducible in (False, True)]
kernel = install()
onnxruntime.TAKEN_LATE = True
print(json.dumps([plain, [answers(reproducible, kernel) for reproducible in (False, True)]]))
"""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel32:
    found = Kernel32()
    monkeypatch.setattr(pages, "kernel32", lambda: found)
    monkeypatch.setattr(pages, "RESERVES", True)
    return found


def test_engines_touch_what_is_committed_and_nothing_else(tiny_bundle: Path, engine: str) -> None:
    """With the same answers as where memory is taken by writing to it."""
    command = [sys.executable, "-c", ENGINE, str(tiny_bundle), engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    for plain, found in zip(*json.loads(done.stdout), strict=True):
        assert found["texts"] == plain["texts"]
        at_first, after_one, at_last, reserved = found["bytes"]
        assert at_first < reserved // 20, "a pool is not committed at once"
        assert at_first <= after_one < at_last < reserved // 4


def test_a_touch_of_what_is_not_committed_ends_the_process() -> None:
    """The tests above can fail."""
    script = (
        "from tests.platforms.windows_memory import install; install()\n"
        "import numpy as np; from edge.runtime.kv.memory import SlotMemory\n"
        "memory = SlotMemory(2, 1, (1, 100_000, 8), np.float32); memory.views(0, 5)\n"
        "memory.buffers[0][0, 0, :5] = 1; memory.buffers[0][0, 0, 90_000] = 1; print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode < 0
    assert b"alive" not in done.stdout


def test_memory_comes_with_tokens_and_goes_with_them(kernel: Kernel32) -> None:
    slots = SlotMemory(4, 2, (2, 100_000, 8), np.float32)
    assert kernel.committed_bytes == 0
    for view in slots.views(1, 10):
        view[...] = 1
    few = kernel.committed_bytes
    assert 0 < few < 100_000
    slots.rows({1: 50_000})
    assert kernel.committed_bytes > 2 * 2 * 50_000 * 32
    assert all((view == 1).all() for view in slots.views(1, 10)), "what is there stays"
    slots.give_back(1)
    assert kernel.committed_bytes <= 2 * 2 * 2 * 4096, "pages of which another head has a part"
    slots.close()
    del slots, view
    gc.collect()
    assert not kernel.reserved
    assert kernel.committed_bytes == 0


def test_blocks_are_committed_when_they_are_handed_out(kernel: Kernel32) -> None:
    memory = PagedMemory(100, [8192, 4096])
    assert kernel.committed_bytes == 0
    memory.blank([7])
    memory.views(7, 1)[0][...] = 3
    assert kernel.committed_bytes <= 8192 + 4096 + 4 * 4096
    assert memory.views(7, 1)[0].sum() == 3 * 8192
    memory.blank(range(100))
    assert kernel.committed_bytes == 100 * (8192 + 4096)
    assert sum(int(buffer.sum()) for buffer in memory.buffers) == 0


def test_a_system_without_memory_left_is_one_error(kernel: Kernel32) -> None:
    kernel.limit = 200_000
    slots = SlotMemory(2, 2, (2, 100_000, 8), np.float32)
    slots.rows({0: 10})
    with pytest.raises(CacheFullError, match=r"no memory left for the KV cache .*; end other programs"):
        slots.rows({0: 90_000})
    with pytest.raises(CacheFullError, match="no memory left for the KV cache"):
        PagedMemory(100, [4096]).blank(range(100))
    for size in (1 << 62, 1 << 63, 1 << 70):
        with pytest.raises(SettingsError, match=r"refuses the [0-9,]{20,} bytes"):
            PagedMemory(1, [size])


@given(st.lists(st.tuples(st.sampled_from(["write", "give_back", "gather"]), st.integers(0, 3), st.integers(1, 300))))
def test_any_order_of_steps_keeps_what_was_written(steps: list[tuple[str, int, int]]) -> None:
    """As memory that is never given back, of which a copy is kept here."""
    kernel = Kernel32()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "kernel32", lambda: kernel)
        patch.setattr(pages, "RESERVES", True)
        slots = SlotMemory(4, 2, (2, 300, 8), np.float32)
    kept: dict[int, tuple[int, int]] = {}
    for number, (step, block, count) in enumerate(steps):
        if step == "write":
            for view in slots.views(block, count):
                view[...] = number
            kept[block] = (number, count)
        elif step == "give_back":
            slots.give_back(block)
            kept.pop(block, None)
        else:
            chosen = list({block, (block + count) % 4})
            slots.gather(chosen)
            rows = slots.rows({name: kept.get(name, (0, 1))[1] for name in chosen})
            assert max(rows) - min(rows) == len(chosen) - 1
        for name, (value, length) in kept.items():
            assert all((view == value).all() for view in slots.views(name, length))
