"""kv.py's part `margins`: how far results differ when the same is computed in different ways.

In: a bundle's folder, an engine. Out: rows of figures; kv.py says what they mean.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from texts import text_ids

from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import CachePrecision, EngineSettings

READ, DECODED, TEXTS = 64, 200, 2  # tokens, tokens, texts
DRAFTED = 7  # tokens after the one that a step has anyway
CHUNKS = (512, 16)
TOGETHER = 8  # sequences
ROUNDED: dict[str, tuple[CachePrecision, ...]] = {"openvino": ("u8", "u4"), "onnx": ("f16",)}  # caches by engine

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Way(NamedTuple):
    """How a text is computed: what is read at once, what a step takes, what came from decode steps before."""

    chunk: int = CHUNKS[0]  # tokens of a forward
    rows: int = 1  # tokens of a decode step
    together: int = 1  # sequences of a decode step, the others of other text
    decoded_before: int = 0  # tokens of the beginning that come from decode steps


def margins(folder: Path, engine: str) -> list[dict[str, Any]]:
    """Rows: what is compared, under which setting, and how far the two differ."""
    rows: list[dict[str, Any]] = []
    for reproducible in (True, False):
        with engine_of(folder, engine, reproducible) as one:
            rows += compare(
                one,
                folder,
                {
                    f"1 row, {1 + DRAFTED} rows": (Way(), Way(rows=1 + DRAFTED)),
                    f"alone, {TOGETHER} together": (Way(), Way(together=TOGETHER)),
                    "answer from decode steps, read": (Way(decoded_before=DECODED), Way()),
                    f"read {CHUNKS[0]}, {CHUNKS[1]} at once": (Way(), Way(chunk=CHUNKS[1])),
                },
                engine,
                reproducible,
            )
    for precision in ROUNDED[engine]:
        with engine_of(folder, engine, True, precision) as one:
            rows += compare(
                one,
                folder,
                {
                    f"1 row, {1 + DRAFTED} rows": (Way(), Way(rows=1 + DRAFTED)),
                    "answer from decode steps, read": (Way(decoded_before=DECODED), Way()),
                    f"read {CHUNKS[0]}, {CHUNKS[1]} at once": (Way(), Way(chunk=CHUNKS[1])),
                },
                engine,
                True,
            )
    return rows


@contextmanager
def engine_of(folder: Path, name: str, reproducible: bool, precision: CachePrecision | None = None) -> Iterator[Engine]:
    settings = EngineSettings(engine=name, reproducible=reproducible, kv_precision=precision, max_context=1024)
    engine = open_engine(open_bundle(folder), settings)
    yield engine
    del engine
    gc.collect()


def compare(
    engine: Engine, folder: Path, ways: dict[str, tuple[Way, Way]], name: str, reproducible: bool
) -> list[dict[str, Any]]:
    total = READ + 2 * DECODED
    texts = [np.array(text_ids(folder, total, 3 * i * total), np.int64) for i in range(TEXTS + TOGETHER - 1)]
    known: dict[tuple[int, Way], Logits] = {}

    def logits(index: int, way: Way) -> Logits:
        if way != Way():
            return follow(engine, texts[index], texts[TEXTS:], way)
        if (index, way) not in known:
            known[index, way] = follow(engine, texts[index], texts[TEXTS:], way)
        return known[index, way]

    rows = []
    for what, (one, other) in ways.items():
        largest, changed = 0.0, 0
        for index in range(TEXTS):
            a, b = logits(index, one), logits(index, other)
            largest = max(largest, float(np.abs(a - b).max()))
            changed += int((a.argmax(-1) != b.argmax(-1)).sum())
        rows.append(
            {
                "engine": name,
                "cache": engine.identity["kv precision"],
                "reproducible": reproducible,
                "what": what,
                "largest_difference": largest,
                "changed_choices": changed,
                "of": TEXTS * DECODED,
            }
        )
    return rows


def follow(engine: Engine, ids: Ids, others: list[Ids], way: Way) -> Logits:
    """Logits (DECODED, vocab) for a text's last tokens, each given those before it.

    READ + DECODED tokens come first: as a prompt, or the latter from decode steps like those of an earlier answer.
    """
    running = [ids, *others[: way.together - 1]]
    sequences = [CacheSequence(engine.pool) for _ in running]
    beginning = READ + DECODED - way.decoded_before
    for text, sequence in zip(running, sequences, strict=True):
        for start in range(0, beginning, way.chunk):
            part = text[start : min(start + way.chunk, beginning)]
            engine.forward(part, sequence, np.array([part.size - 1]))
        for start in range(beginning, READ + DECODED):
            engine.decode([Step(sequence, text[start : start + 1])])
    found = []
    for start in range(READ + DECODED, READ + 2 * DECODED, way.rows):
        end = min(start + way.rows, READ + 2 * DECODED)
        steps = [Step(sequence, text[start:end]) for text, sequence in zip(running, sequences, strict=True)]
        found.append(engine.decode(steps)[0].copy())
    for sequence in sequences:
        sequence.free()
    return np.concatenate(found)
