"""roofline.py's measurements of one bundle on one engine, in a process of its own.

In: a job as JSON in argv[1]. Out: one line of JSON a point on stdout, as soon as it is measured. A cache of so many
tokens is written with a constant instead of being computed: attention takes as long for it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import edge
from edge.profiles.devices.bandwidth import all_cores_gbs
from edge.profiles.roofline import Roofline
from edge.profiles.spread import median, spread
from edge.runtime.arrays import Array
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.footprint import read_bytes
from edge.runtime.kv.pool import BlockPool, CacheSequence

FILL = 0x3C  # each byte of a filled cache: about 0.01 in 16 and 32 bits, so that no sum overflows
WARM_STEPS = 2
SPARE_TOKENS = 64  # of each sequence, for the steps and whole blocks
BANDWIDTH_S = 0.25


@dataclass(frozen=True)
class Job:
    """What a process measures."""

    bundle: str
    engine: str
    points: tuple[tuple[int, int], ...]  # tokens of context and sequences at once, of each point
    steps: int  # that are timed at each point
    kv_cache_bytes: int


def main() -> int:
    given = json.loads(sys.argv[1])
    job = Job(**{**given, "points": tuple((context, count) for context, count in given["points"])})
    for point in measured(job):
        print(json.dumps(point), flush=True)
    return 0


def measured(job: Job) -> Iterator[dict[str, object]]:
    """Each point, in the given order."""
    longest = max(context for context, _ in job.points) + SPARE_TOKENS
    llm = edge.load(
        job.bundle, engine=job.engine, max_context=longest, kv_cache_bytes=job.kv_cache_bytes, self_test="off"
    )
    for _ in llm.generate([1, 2, 3], max_new_tokens=2, ignore_stop_ids=True):
        """What an engine puts off to its first inference is not a step's."""
    llm.clear_cache()
    engine = llm.engine
    weights = read_bytes(llm.bundle.manifest.tensors, engine.info.name)
    for context, count in job.points:
        sequences = [filled(engine.pool, context) for _ in range(count)]
        machine_gbs = all_cores_gbs(BANDWIDTH_S)
        seconds = [step_s(engine, sequences) for _ in range(WARM_STEPS + job.steps)][WARM_STEPS:]
        machine_gbs = max(machine_gbs, all_cores_gbs(BANDWIDTH_S))
        for sequence in sequences:
            sequence.free()
        middle, mean = median(seconds), context + WARM_STEPS + (job.steps + 1) / 2
        cache = round(count * mean * engine.info.kv_bytes_per_token)
        roofline = Roofline(weights, cache, count / middle, machine_gbs, count)
        yield {
            "context": context,
            "sequences": count,
            "step_ms": round(1000 * middle, 3),
            "step_ms_spread": round(1000 * (spread(seconds) or 0.0), 3),
            "steps": job.steps,
            "tokens_per_second": round(count / middle, 2),
            **roofline.to_json(),
        }
    llm.close()


def filled(pool: BlockPool, tokens: int) -> CacheSequence:
    """A sequence of so many tokens that nobody computed."""
    sequence, left = CacheSequence(pool), tokens
    sequence.reserve(tokens)
    for block in sequence.block_table:
        count = min(left, pool.block_size)
        pool.memory.write(block, count, [constant(*form) for form in pool.memory.forms(count)])
        left -= count
    sequence.commit(tokens)
    return sequence


def constant(kind: str, shape: tuple[int, ...]) -> Array:
    return np.full(int(np.prod(shape)) * np.dtype(kind).itemsize, FILL, np.uint8).view(kind).reshape(shape)


def step_s(engine: Engine, sequences: list[CacheSequence]) -> float:
    """Seconds of one step with a new token of each sequence."""
    ids = np.array([1], np.int64)
    started = time.perf_counter()
    engine.decode([Step(sequence, ids) for sequence in sequences])
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
