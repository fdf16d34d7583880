"""kv.py's part `snapshot`: a prefix from a file, against computing it.

In: a bundle's folder, an engine, rounds. Out: one row of figures; kv.py says what they mean.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import spread
from texts import text_ids, tokenizer_of

import edge

MAX_CONTEXT = 4096
PREFIX, MESSAGE = 2000, 16  # tokens
MIN_GAIN = 20.0


def snapshot(folder: Path, engine: str, rounds: int) -> list[dict[str, Any]]:
    ids = text_ids(folder, PREFIX + MESSAGE)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bench.prefix"
        llm = edge.load(folder, engine=engine, max_context=MAX_CONTEXT)
        llm.prefixes.save(ids[:PREFIX], path)  # computes it
        started = time.perf_counter()
        llm.prefixes.save(ids[:PREFIX], path)
        save_s = time.perf_counter() - started
        pairs = []
        for number in range(rounds + 1):
            ways: list[Path | None] = [None, path] if number % 2 else [path, None]
            found = {way is not None: first_token(llm, ids, way) for way in ways}
            pairs.append((found[False], found[True]))
        del llm, pairs[0]  # the first pair prepares kernels
        gc.collect()
        processes = {
            name: process_start(folder, engine, ids, prefix) for name, prefix in (("without", None), ("with", path))
        }
        size = path.stat().st_size
    gain = spread([computed[0] / read[0] for computed, read in pairs])
    return [
        {
            "engine": engine,
            "computed_ms": round(statistics.median(computed[0] for computed, _ in pairs), 1),
            "from_file_ms": round(statistics.median(read[0] for _, read in pairs), 1),
            "of_it_open_ms": round(statistics.median(read[1] for _, read in pairs), 1),
            "gain": gain,
            "same_first_token": sum(computed[2] == read[2] for computed, read in pairs),
            "rounds": rounds,
            "file_bytes": size,
            "save_s": round(save_s, 3),
            "processes": processes,
            "target": MIN_GAIN,
            "met": gain["median"] >= MIN_GAIN,
        }
    ]


def first_token(llm: edge.LLM, ids: list[int], path: Path | None) -> tuple[float, float, int]:
    """Milliseconds to the first token, of them those to open the file, and the token."""
    llm.clear_cache()
    llm._scheduler.loaded.snapshots.clear()
    started = time.perf_counter()
    if path is not None:
        llm.prefixes.load(path)
    opened = time.perf_counter()
    [chunk] = [chunk for chunk in llm.generate(ids, max_new_tokens=1, ignore_stop_ids=True) if chunk.token_ids]
    ended = time.perf_counter()
    return 1000 * (ended - started), 1000 * (opened - started), chunk.token_ids[0]


def process_start(folder: Path, engine: str, ids: list[int], prefix: Path | None) -> dict[str, Any]:
    """One `edge run`."""
    text = tokenizer_of(folder).decode(ids)
    command = [sys.executable, "-m", "edge", "run", str(folder), text, "--raw", "--json", "--max-new-tokens", "1"]
    command += ["--engine", engine, "--max-context", str(MAX_CONTEXT)]
    command += [] if prefix is None else ["--prefix", str(prefix)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, found = time.perf_counter() - started, json.loads(done.stdout)
    return {"s": round(seconds, 2), "load_s": found["load_s"], "cached_tokens": found["cached_tokens"]}
