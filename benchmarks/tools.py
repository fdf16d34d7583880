"""What the offline tools cost: a start of the python tool's sandbox, a call, and searches in a folder of documents.

    python benchmarks/tools.py

In: nothing; the documents are made of invented words with Zipf's frequencies, 7,900 characters in each. Out: medians.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.tools.browser import Browser
from edge.tools.python import python_tool

STARTS, CALLS, SEARCHES = 15, 200, 100
_WORDS = 20_000
_FILE = 7900  # characters: ten passages


def main() -> None:
    starts, calls = [], []
    for _ in range(STARTS):
        tool = python_tool()
        starts.append(timed_ms(tool.run, {"code": "1 + 1"}))
        calls += [timed_ms(tool.run, {"code": "1 + 1"}) for _ in range(CALLS // STARTS)]
        tool.close()
    print(f"python: start and first call {statistics.median(starts):.0f} ms, a call {statistics.median(calls):.2f} ms")
    Browser(Path(__file__).parent).run({"query": "words"})  # imports bm25s
    for passages in (1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            words, weights = write_documents(Path(folder), passages // 10)
            browser, rng = Browser(folder), random.Random(1)
            first = timed_ms(browser.run, {"query": words[50]})
            queries = [" ".join(rng.choices(words, weights, k=4)) for _ in range(SEARCHES)]
            searches = [timed_ms(browser.run, {"query": query}) for query in queries]
        print(f"{passages:,} passages: first search {first:.0f} ms, a search {statistics.median(searches):.1f} ms")


def write_documents(folder: Path, count: int) -> tuple[list[str], list[float]]:
    """Return the words and their weights."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(_WORDS)]
    weights = [1 / rank for rank in range(1, _WORDS + 1)]
    for number in range(count):
        text = ""
        while len(text) < _FILE:
            text += " ".join(rng.choices(words, weights, k=12)) + ".\n\n"
        (folder / f"{number}.txt").write_text(text[:_FILE], encoding="utf-8")
    return words, weights


def timed_ms(run: Callable[[Mapping[str, Any]], object], arguments: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    run(arguments)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
