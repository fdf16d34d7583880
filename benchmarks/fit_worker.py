"""fit.py's measurement of one bundle on one engine, in a process of its own: load, two prompts, an answer.

    python benchmarks/fit_worker.py JOB

In: a `Job` as JSON. Out: one line of JSON with figures. The first prompt is what pays for everything that is done once;
the second one, of other tokens, is what is timed. Nothing is kept of a prompt, so that memory is that of one.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FIRST_TOKENS = 128  # of the first prompt
WORDS = 200  # ids that prompts are drawn from: every vocabulary has them


@dataclass(frozen=True)
class Job:
    """What a fresh process does."""

    path: str
    engine: str
    prompt_tokens: int
    new_tokens: int


def work(job: Job) -> dict[str, float | str]:
    """Load and answer twice."""
    started = time.perf_counter()
    import numpy as np

    import edge
    from edge.runtime.kv.pool import CacheSequence

    llm = edge.load(job.path, engine=job.engine, kv_cache_bytes=8 << 30)
    engine = llm.engine
    loaded = time.perf_counter()
    rng, last = np.random.default_rng(0), np.array([0])

    def read(count: int, sequence: CacheSequence) -> None:
        """A prompt, in the pieces that the scheduler would cut it into."""
        ids = rng.integers(1, WORDS, count)
        for start in range(0, count, engine.info.prefill_chunk):
            piece = ids[start : start + engine.info.prefill_chunk]
            engine.forward(piece, sequence, last + piece.size - 1)

    first = CacheSequence(engine.pool)
    read(FIRST_TOKENS, first)
    first_read = time.perf_counter()
    for _ in range(2):
        engine.forward(np.array([1]), first, last)
    first.trim(0)
    second = CacheSequence(engine.pool)
    began = time.perf_counter()
    read(job.prompt_tokens, second)
    prompt_read = time.perf_counter()
    times = []
    for _ in range(job.new_tokens):
        before = time.perf_counter()
        engine.forward(np.array([1]), second, last)
        times.append(time.perf_counter() - before)
    return {
        "load_s": loaded - started,
        "first_token_s": first_read - loaded,
        "ttft_s": prompt_read - began,
        "decode_tok_s": 1 / float(np.median(times)),
        "peak_rss_bytes": status_bytes("VmHWM"),
        "kv_precision": engine.info.kv_precision,
        "prefill_chunk": engine.info.prefill_chunk,
        "max_context": engine.info.max_context,
    }


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(json.dumps(work(Job(**json.loads(sys.argv[1])))))
