"""How far from the golden rows an engine's logits may be: decided by what it computes with.

In: what an open engine says about itself, and how far from the golden rows other numerics were at export. Out: a bound
in nats/token. Knows nothing about how a device rounds: the numbers come from the bundle.

    exact                 float32 everywhere: only the order of sums differs
    f16, bf16             values between operations, and keys and values, are rounded to 16 bits
    int8                  inputs of products are rounded to 8 bits, in groups
    kv8, kv4              keys and values are rounded to 8 or 4 bits

An engine may do several of these. Their errors are independent, so their divergences add up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.runtime.engines.engine import EngineInfo
from edge.runtime.golden_rows import GoldenRows
from edge.runtime.machine import family_of
from edge.runtime.settings import EngineSettings

EXACT = 1e-8  # nats/token; two float32 engines on the demo model differ by 8e-11
TIMES = 3.0  # of the emulated divergence, for what kernels do that an emulation does not know
# Steps of 1/15 of a range instead of 1/255; a divergence grows with the square of a small error. OpenVINO's caches on
# the demo model: 2.3e-4 with 8 bits, 8.6e-2 with 4.
KV4_OF_KV8 = (255 / 15) ** 2

_OF_PRECISION: Mapping[str, tuple[str, ...]] = {"f32": (), "f16": ("f16",), "bf16": ("bf16",)}
_OF_CACHE: Mapping[str, tuple[str, ...]] = {
    "f32": (),
    "f16": ("f16",),
    "bf16": ("bf16",),
    "u8": ("kv8",),
    "u4": ("kv4",),
}
# Of the CPU where an engine leaves it to the device: NPUW computes in bfloat16, and passes float16 between its parts.
_CPUS_OWN = ("bf16", "f16")
# Of any other device, whatever precision it is set to: kernels that keep sums of a group, or steps of a norm, in
# float16 lose about as much as bfloat16 does (emulated: 7.7e-4 and 4.7e-3 on the demo model). Not seen on hardware.
_OTHER_DEVICES = ("bf16", "f16")


def noises_of(info: EngineInfo, identity: Mapping[str, str], settings: EngineSettings) -> tuple[str, ...]:
    """What an engine rounds, by the names above. identity: the engine's own, which says how it was set up."""
    family = family_of(info.device)
    precision = identity.get("inference precision", "f32")
    group = identity.get("group of rounded activations") or identity.get("activations")
    if group is None:  # it does not say
        group = "unknown" if settings.dynamic_quantization_group is None else str(settings.dynamic_quantization_group)
    found = (
        *(_OF_PRECISION.get(precision, _CPUS_OWN) if family == "CPU" else _OTHER_DEVICES),
        *(() if group in ("0", "f32") else ("int8",)),
        *_OF_CACHE[info.kv_precision],
    )
    return tuple(dict.fromkeys(found))


def bound_of(golden: GoldenRows, noises: tuple[str, ...], rows: slice) -> float | None:
    """Return the largest mean divergence over these rows that is explained; None if the bundle does not know it."""
    expected = 0.0
    for noise in noises:
        name, times = ("kv8", KV4_OF_KV8) if noise == "kv4" else (noise, 1.0)
        if name not in golden.divergences:
            return None
        expected += times * float(np.mean(golden.divergences[name][rows]))
    return max(EXACT, TIMES * expected)
