"""Huge pages for the weights that a library copies into memory of its own, asked for while it does so.

In: nothing. Out: a context, in which large new memory of this process is marked for huge pages. Knows nothing about
what is loaded.

A token reads all weights once, and with pages of 4 KB the processor spends much of that time on finding where they are
(figures: docs/findings.md). Linux mostly gives huge pages only to memory that asks for them (`madvise`), before it is
first written to. malloc does not ask, and libraries offer no other way in, so a thread looks for new memory meanwhile.
What it sees late, or where other memory was when it began, keeps small pages; results are the same either way.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LEAST = 16 << 20  # bytes: more than a thread's stack, which must stay small
WAIT_S = 0.002  # between two looks: a large matrix takes 50 ms to copy
SHARE = 8  # of a core's time, a look may take one part in so many
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")

# Private and writable, and neither of a file nor named, as the heap and the first stack are.
_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *$", re.MULTILINE)
_Region = tuple[int, int]  # addresses: the first, and the one after the last


@contextmanager
def huge_pages(mode: Path = MODE) -> Iterator[None]:
    """Mark large memory that this process takes meanwhile, in any thread. Does nothing where that has no effect."""
    if not _can_be_asked_for(mode):
        yield
        return
    before, done, ended = _regions(0), set[_Region](), threading.Event()
    advise = _madvise()

    def watch() -> None:
        wait = WAIT_S
        while not ended.wait(wait):
            started = time.perf_counter()
            _mark(advise, before, done)
            wait = max(WAIT_S, (time.perf_counter() - started) * SHARE)

    thread = threading.Thread(target=watch, name="huge pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _mark(advise, before, done)  # what is not written to yet


def _mark(advise: Any, before: Sequence[_Region], done: set[_Region]) -> None:  # Any: a C function
    """Mark regions that are not in `before`, each once."""
    for region in _regions(LEAST):
        for start, stop in _without(region, before):
            if stop - start >= LEAST and (start, stop) not in done:
                done.add((start, stop))
                advise(start, stop - start, mmap.MADV_HUGEPAGE)  # an error means that it is gone already


def _regions(least: int) -> list[_Region]:
    """Return this process's own memory by address, without regions of fewer bytes; nothing if the system hides it."""
    with suppress(OSError):
        found = ((int(match[1], 16), int(match[2], 16)) for match in _LINE.finditer(MAPS.read_bytes()))
        return [(start, stop) for start, stop in found if stop - start >= least]
    return []


def _without(region: _Region, others: Sequence[_Region]) -> list[_Region]:
    """Return the parts of a region that are in none of the others, which are ordered by address."""
    start, stop = region
    parts = []
    for first, last in others:
        if first < stop and last > start:
            if first > start:
                parts.append((start, first))
            start = last
    return [*parts, (start, stop)] if start < stop else parts


def _can_be_asked_for(mode: Path) -> bool:
    """Whether this system gives huge pages to those who ask for them, and to nobody else."""
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[madvise]" in mode.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _madvise() -> Any:  # Any: a C function, which has no type
    """Return the system's function: mmap's method takes only memory that Python has mapped."""
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
