"""What "exact" means on a device: settings under which an engine rounds least, and how far it may then be off.

In: the settings of an engine. Out: those that it is compared with the export's logits under, and a bound. Knows nothing
about bundles or engines.

A CPU computes and caches in float32. A GPU multiplies in float32, too, but its paged attention has no float32 cache, so
the cache is float16. That alone moved the demo model's logits by 5e-4 of their scale (its KLD by 7e-7 nats), measured
with the CPU's float32 products; no GPU has been measured. An NPU has float16 alone, and none has been measured either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.machine import family_of
from edge.runtime.settings import EngineSettings

FLOAT16_CACHE_BOUND = 1e-2  # of the logit scale: twenty times what was measured on a CPU
NPU_BOUND = 5e-2  # four times the largest difference of the NPU's pipeline on a CPU, in float32 between float16 parts


class Exact(NamedTuple):
    """Settings, and the largest difference of logits that they may cause, over the logits' scale."""

    settings: EngineSettings
    bound: float


def exact_settings(usual: EngineSettings) -> Exact:
    """Return the settings that round least on the device of others."""
    family = family_of(usual.device)
    if family == "NPU":  # it computes in float16, whatever it is told
        return Exact(usual, NPU_BOUND)
    on_gpu = family == "GPU"
    settings = replace(
        usual,
        inference_precision="f32",
        kv_precision="f16" if on_gpu else "f32",
        dynamic_quantization_group=0,
    )
    return Exact(settings, FLOAT16_CACHE_BOUND if on_gpu else FLOAT32_BOUND)
