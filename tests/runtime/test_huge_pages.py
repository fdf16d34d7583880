"""Huge pages are asked for exactly where memory is new, large, and the process's own."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from pathlib import Path

import pytest

from edge.runtime.engines import huge_pages as module
from edge.runtime.engines.huge_pages import LEAST, MODE, huge_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
ASKS = pytest.mark.skipif(
    not MODE.exists() or "[madvise]" not in MODE.read_text(), reason="this system has no huge pages to ask for"
)
SIZE = 2 * LEAST
ROOMY = 1 << 30  # fits in no place that memory of an earlier test leaves when it is freed; never written to


def anonymous() -> mmap.mmap:
    return mmap.mmap(-1, ROOMY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_marked(memory: mmap.mmap) -> bool:
    """Whether the middle of memory is in a region that asks for huge pages; its ends may lie where others were."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(memory) // 2
    marked = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            marked = "hg" in line.split()
    return marked


@ASKS
def test_new_large_memory_is_marked_and_what_was_there_before_is_not() -> None:
    before = anonymous()
    with huge_pages():
        meanwhile = anonymous()
    after = anonymous()
    assert [is_marked(memory) for memory in (before, meanwhile, after)] == [False, True, False]


@ASKS
def test_memory_is_marked_while_it_is_still_being_filled() -> None:
    memory = anonymous()
    with huge_pages():
        memory = anonymous()
        for _ in range(12_000):
            if is_marked(memory):
                break
            threading.Event().wait(0.005)
        else:
            pytest.fail("not marked within a minute")


@ASKS
def test_files_and_small_memory_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    with (tmp_path / "file").open("r+b") as file, huge_pages():
        mapped = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)
        shared = mmap.mmap(-1, SIZE)
    assert not is_marked(mapped)
    assert not is_marked(shared)
    assert module._without((0, 10), [(2, 4), (6, 7), (9, 20)]) == [(0, 2), (4, 6), (7, 9)]
    assert module._without((0, 10), [(20, 30)]) == [(0, 10)]
    assert module._without((3, 4), [(2, 5)]) == []


def test_the_thread_ends_with_the_context_also_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "mode").write_text("always [madvise] never\n")
    with pytest.raises(ValueError, match="in between"), huge_pages(tmp_path / "mode"):
        raise ValueError("in between")
    assert not [thread for thread in threading.enumerate() if thread.name == "huge pages"]


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]", "", None])
def test_nothing_is_done_where_asking_has_no_effect(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "mode").write_text(text)
    with huge_pages(tmp_path / "mode"):
        memory = anonymous()
        assert not [thread for thread in threading.enumerate() if thread.name == "huge pages"]
    assert not is_marked(memory)
