"""What one engine computes on a device, and how fast: golden rows, caches as compiled, rough times.

In: a bundle and how its engine is to be opened. Out: JSON. Knows nothing about reports, or which runs are worth while.
The times are those of one short run: enough to see a mistake of ten times, not to compare devices (`edge bench` does).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import GOLDEN, Bundle
from edge.runtime.differences import distance, kl_divergence
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.golden import GoldenLogits, read_golden
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.machine import peak_rss_bytes

PROMPT = 256  # tokens that are timed
ANSWER = 16


def measure(bundle: Bundle, open_engine: Callable[[], Engine]) -> dict[str, Any]:  # JSON
    """Open an engine, ask it, and close it. Raises whatever the engine raises."""
    golden = read_golden(bundle.required(GOLDEN), bundle.manifest.spec.vocab_size)
    began = time.perf_counter()
    engine = open_engine()
    opened_s = time.perf_counter() - began
    try:
        rows = golden_rows(engine, golden.ids, len(golden.logits))
        again = golden_rows(engine, golden.ids, len(golden.logits))
        return {
            "load_s": round(opened_s, 3),
            "info": _info(engine),
            "caches": _caches(engine),
            "golden": {**compared(rows, golden), "again_bit_equal": bool(np.array_equal(rows, again, equal_nan=True))},
            "times": _times(engine, golden.ids),
            "peak_memory_bytes": peak_rss_bytes(),
        }
    finally:
        engine.close()


def golden_rows(engine: Engine, ids: Ids, count: int) -> Logits:
    """Return logits of the last `count` tokens, decoded one by one so that the KV cache takes part."""
    sequence, none = CacheSequence(engine.pool), np.array([0], np.int64)
    prompt = ids.size - count
    try:
        if prompt:
            engine.forward(ids[:prompt], sequence, none)
        return np.stack([engine.forward(ids[i : i + 1], sequence, none)[0].copy() for i in range(prompt, ids.size)])
    finally:
        sequence.free()


def compared(rows: Logits, golden: GoldenLogits) -> dict[str, Any]:  # JSON
    """Return how far rows are from those of the export; figures are None where numbers are not finite."""
    finite = np.isfinite(rows)
    whole = finite.all(axis=1)
    found: dict[str, Any] = {
        "rows": len(rows),
        "values": int(rows.size),
        "non_finite": int((~finite).sum()),
        "rows_with_non_finite": int((~whole).sum()),
        "largest": float(np.abs(rows[finite]).max()) if finite.any() else None,
        "scale": float(np.abs(golden.logits).max()),
    }
    measures: dict[str, Callable[[Logits, Logits], float]] = {
        "error_of_scale": lambda mine, _float: distance(mine, golden.logits),
        "kld_from_compressed": lambda mine, _float: kl_divergence(golden.logits, mine),
        "kld_from_float": lambda mine, float_rows: kl_divergence(float_rows, mine),
        "same_best_token": lambda mine, _float: float((mine.argmax(1) == golden.logits.argmax(1)).mean()),
    }
    return found | {
        name: float(f"{measured(rows, golden.float_logits):.4g}") if whole.all() else None
        for name, measured in measures.items()
    }


def _times(engine: Engine, ids: Ids) -> dict[str, Any]:  # JSON
    """Time a prompt twice, since kernels are compiled for new shapes, then an answer."""
    longest = engine.info.max_context - ANSWER
    prompt = np.resize(ids, max(min(PROMPT, longest), 1))
    prefills = []
    for _ in range(2):
        sequence, last = CacheSequence(engine.pool), np.array([0], np.int64)
        began = time.perf_counter()
        for start in range(0, prompt.size, engine.info.prefill_chunk):
            engine.forward(prompt[start : start + engine.info.prefill_chunk], sequence, last)
        prefills.append(round(time.perf_counter() - began, 4))
        steps = []
        for index in range(min(ANSWER, engine.info.max_context - prompt.size)):
            began = time.perf_counter()
            engine.decode([Step(sequence, prompt[index % prompt.size :][:1])])
            steps.append(time.perf_counter() - began)
        sequence.free()
    return {
        "prompt_tokens": int(prompt.size),
        "first_prompt_s": prefills[0],
        "second_prompt_s": prefills[1],
        "decode_ms_a_token": round(1000 * median(steps), 3) if steps else None,
    }


def _info(engine: Engine) -> dict[str, Any]:  # JSON
    info = engine.info
    return {
        "engine": info.name,
        "device": info.device,
        "max_context": info.max_context,
        "kv_precision": info.kv_precision,
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "kv_memory": getattr(engine, "memory_kind", None),
        "kv_bytes": engine.pool.bytes,
        "tokens_per_block": engine.pool.block_size,
        "identity": dict(engine.identity),
    }


def _caches(engine: Engine) -> list[dict[str, Any]]:  # JSON
    """Return the different caches of a compiled model: layers mostly have the same ones."""
    caches = getattr(engine, "caches", ())
    kinds = Counter(
        (cache.name.split(".")[0], "x".join(map(str, cache.shape)), cache.kind.to_string()) for cache in caches
    )
    return [
        {"input": name, "block_shape": shape, "type": kind, "layers": count}
        for (name, shape, kind), count in kinds.items()
    ]
