"""What the measuring verbs measure unless they are told otherwise: every default of `profiles/`, in one place.

In: values as a caller gives them. Out: a frozen record, and the defaults that help texts show. Imports nothing heavy,
since the command line reads it whatever the verb; knows nothing about how a figure is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.runtime.engines.registry import ENGINES
from edge.runtime.settings import CachePrecision

DEFAULT_RECIPES = (
    "int8-asym",
    "int4-asym-g128",
    "int4-asym-g64",
    "int4-asym-g64-awq-se",
    "int4-asym-g64-awq-gptq",
    "int4-asym-g64-rot-gptq",
)
# New tokens of a window in one step. A cache in float32 gives back what went in, whatever the step, and larger steps
# then only take less time: onnxruntime unpacks 8-bit weights in each.
CHUNK, EXACT_CACHE_CHUNK = 16, 128
BENCH_PROMPT_TOKENS, BENCH_NEW_TOKENS = (32, 512), 64
SERVED_PROMPT_TOKENS = (64,)  # when several clients are measured
NEEDLE_CONTEXTS = (1000, 2000, 4000)  # tokens of prompt and answer
NEEDLE_DEPTHS = (0, 25, 50, 75, 100)  # percent
NEEDLE_SEED = 0


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What is measured, and how."""

    recipes: tuple[str, ...] = DEFAULT_RECIPES
    engines: tuple[str, ...] = tuple(name for name, record in ENGINES.items() if record.runs_on("CPU"))
    kv_precisions: tuple[CachePrecision | None, ...] = (None,)  # None: the engine's own choice
    texts: tuple[Path, ...] = ()  # to measure by; none: Python's documentation, as in edge.export.text
    calibration: Path | None = None  # for recipes that need text; None: docstrings of Python's library
    num_tokens: int = 20480
    window_tokens: int = 512
    chunk_tokens: int | None = None  # that go through an engine at once; None: CHUNK, or EXACT_CACHE_CHUNK
    greedy_tokens: int = 64  # written after each prompt, to see where they leave the float model's; 0: none
    device: str = "CPU"
    max_memory_bytes: int | None = None  # of each export and each measurement; None: what is free
    threads: int | None = None  # cores that each export and each cell computes on; None: all of this machine's
    speed: bool = True  # False: neither loading nor memory nor speed is measured
    keep_bundles: bool = False
