"""How fast a loaded bundle is, with the definitions that every speed figure of this project uses.

In: an `LLM`, or a bundle to load, and token counts. Out: one `Speed` for each prompt length. Prompts are seeded random
ids and never in the cache; stop ids are ignored, so that the number of tokens is what was asked for. Figures are
medians of repeats after one cold run; every repeat is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from edge.profiles.spread import REPEATS, median, spread
from edge.runtime.chunk import Stats
from edge.runtime.llm import LLM
from edge.runtime.machine import peak_rss_bytes
from edge.runtime.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Speed:
    """Figures for one prompt length."""

    prompt_tokens: int
    new_tokens: int
    cold_ttft_ms: float  # first run of this length: kernels are still being prepared
    ttft_ms: float  # prefill and the first token
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    ttft_ms_samples: tuple[float, ...]  # one a repeat
    decode_samples: tuple[float, ...]  # tokens per second

    def to_json(self) -> dict[str, object]:
        """The fields, and after each figure how far its repeats are apart."""
        prefill = [1000 * self.prompt_tokens / ttft_ms for ttft_ms in self.ttft_ms_samples]
        return {
            **asdict(self),
            "ttft_ms_spread": spread(self.ttft_ms_samples),
            "prefill_spread": spread(prefill),
            "decode_spread": spread(self.decode_samples),
        }


def measure(
    llm: LLM, prompt_tokens: Iterable[int], new_tokens: int, repeats: int = REPEATS, seed: int = 0
) -> list[Speed]:
    """Time each prompt length. Raises ContextLengthError and SettingsError when a length does not fit."""
    rng = np.random.default_rng(seed)
    results = []
    for count in prompt_tokens:
        cold, *warm = (
            _run(llm, rng.integers(0, llm.tokenizer.num_tokens, count).tolist(), new_tokens) for _ in range(1 + repeats)
        )
        ttft_ms, decode = [run.ttft_ms for run in warm], [run.tokens_per_second for run in warm]
        results.append(
            Speed(
                count,
                new_tokens,
                cold.ttft_ms,
                median(ttft_ms),
                1000 * count / median(ttft_ms),
                median(decode),
                tuple(ttft_ms),
                tuple(decode),
            )
        )
    return results


def bench(
    bundle: str, settings: EngineSettings, prompt_tokens: Iterable[int], new_tokens: int, repeats: int = REPEATS
) -> dict[str, object]:
    """Load a bundle in this process and measure it; the report of `edge bench`, as JSON has it.

    Raises BundleError, DeviceError, ContextLengthError and SettingsError.
    """
    started = time.perf_counter()
    llm = LLM(bundle, settings)
    load_s = time.perf_counter() - started
    results = measure(llm, prompt_tokens, new_tokens, repeats)
    manifest = llm.bundle.manifest
    return {
        "bundle": str(bundle),
        "recipe": manifest.recipe,
        "engine": llm.engine.info.name,
        "device": settings.device,
        "load_s": round(load_s, 3),
        "weight_bytes": manifest.weight_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "kv_bytes_per_token": llm.engine.info.kv_bytes_per_token,
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": dict(manifest.versions),
        "repeats": repeats,
        "results": [result.to_json() for result in results],
    }


def _run(llm: LLM, ids: list[int], new_tokens: int) -> Stats:
    llm.clear_cache()
    *_, last = llm.generate(ids, max_new_tokens=new_tokens, ignore_stop_ids=True)
    assert last.stats is not None, "the last chunk carries the figures"
    return last.stats
