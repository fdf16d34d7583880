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

from edge.profiles.devices.bandwidth import all_cores_gbs
from edge.profiles.roofline import Roofline, mean_context
from edge.profiles.spread import REPEATS, median, spread
from edge.runtime.chunk import Stats
from edge.runtime.footprint import read_bytes
from edge.runtime.llm import LLM
from edge.runtime.machine import family_of, peak_rss_bytes
from edge.runtime.settings import EngineSettings

BANDWIDTH_S = 0.25  # that memory is read for, before a model is loaded and again after it was measured


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
    on_cpu = family_of(settings.device) == "CPU"
    machine_gbs = all_cores_gbs(BANDWIDTH_S) if on_cpu else 0.0
    started = time.perf_counter()
    llm = LLM(bundle, settings)
    load_s = time.perf_counter() - started
    results = measure(llm, prompt_tokens, new_tokens, repeats)
    peak, manifest = peak_rss_bytes(), llm.bundle.manifest
    if on_cpu:  # whatever else ran made one of the two lower
        machine_gbs = max(machine_gbs, all_cores_gbs(BANDWIDTH_S))
    return {
        "bundle": str(bundle),
        "recipe": manifest.recipe,
        "engine": llm.engine.info.name,
        "device": settings.device,
        "load_s": round(load_s, 3),
        "weight_bytes": manifest.weight_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "kv_bytes_per_token": llm.engine.info.kv_bytes_per_token,
        "peak_rss_bytes": peak,
        "versions": dict(manifest.versions),
        "repeats": repeats,
        "results": [
            {**result.to_json(), "roofline": roofline(llm, result, machine_gbs).to_json() if on_cpu else None}
            for result in results
        ],
    }


def roofline(llm: LLM, speed: Speed, machine_gbs: float) -> Roofline:
    """Decoding on a CPU beside the bandwidth of its memory."""
    info = llm.engine.info
    cached = mean_context(speed.prompt_tokens, speed.new_tokens)
    return Roofline(
        weight_bytes=read_bytes(llm.bundle.manifest.tensors, info.name),
        cache_bytes=round(info.kv_bytes_per_token * cached),
        tokens_per_second=speed.decode_tokens_per_second,
        machine_gbs=machine_gbs,
    )


def _run(llm: LLM, ids: list[int], new_tokens: int) -> Stats:
    llm.clear_cache()
    *_, last = llm.generate(ids, max_new_tokens=new_tokens, ignore_stop_ids=True)
    assert last.stats is not None, "the last chunk carries the figures"
    return last.stats
