"""The precisions that OpenVINO computes and caches in: what was asked for, and our own choice where nothing was.

In: settings, the model and the memory for its cache. Out: properties for `compile_model`. Knows nothing about graphs.

A GPU's plugin is left its own defaults where nothing was measured on one. Of 2026.4 they are (execution_config.cpp and
options.inl of openvino/src/plugins/intel_gpu): products in float16; for paged attention, a cache of i8; activations
rounded to int8 in groups of 32 on devices without matrix engines (XMX); latency, one stream.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import openvino as ov

from edge.runtime.errors import SettingsError
from edge.runtime.settings import CachePrecision, EngineSettings
from edge.runtime.spec import ModelSpec

ACTIVATION_GROUP = 32  # activations that are rounded to int8 together
GPU_PRECISIONS = ("f32", "f16")  # the validator of inference_precision in options.inl
GPU_CACHES = ("f16", "u8", "i8")  # kernels of paged attention; for float32 and bfloat16 there are none
# By default each of two threads has one half of a product, and waits for the other thread, which a program on the same
# core may hold up. In 32 pieces a thread, taken as threads get to them, a wide product loses little; a narrow one loses
# more than it gains (docs/findings.md). Results have the same bits.
_WIDE = 4096  # channels between blocks; of 576 and 4096, the one that gains
_PIECES = ("TBB_PARTITIONER", "AUTO")
# Scales all activations by a number that a graph may name. It was turned off for language models (openvino#28632):
# export takes care of overflows, by powers of two in the weights.
_NO_SCALING = ("ACTIVATIONS_SCALE_FACTOR", -1.0)


def properties(
    core: ov.Core,
    settings: EngineSettings,
    family: str,
    spec: ModelSpec,
    weight_bits: int,
    budget: int,
    limit: int,
) -> dict[str, Any]:  # values as `compile_model` takes them
    """Return what the settings say and, on the CPU, our own choices for the rest (figures: docs/findings.md)."""
    if family != "CPU":
        return gpu_properties(settings, core.get_property(settings.device, "SUPPORTED_PROPERTIES"))
    kv_precision, group = settings.kv_precision, settings.dynamic_quantization_group
    precision = settings.inference_precision
    if kv_precision == "i8":
        raise SettingsError("kv_precision is i8, expected f32, f16, bf16, u8 or u4 on a CPU", param="kv_precision")
    # The fastest that adds less than 2 % to the recipe's own loss: 4 bits tolerate rounded activations, 8 do not.
    if group is None:
        group = ACTIVATION_GROUP if weight_bits == 4 else 0
    if precision is None and weight_bits > 4:
        precision = "f32"
    if precision is None and kv_precision == "f32":
        precision = "f32"  # the kernel for bf16 queries does not accept f32 keys
    inference = precision or core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    if kv_precision is None:
        kv_precision = _kv_precision(inference, spec, budget, limit, bool(settings.reproducible))
    elif {kv_precision, inference} == {"f32", "bf16"}:
        raise SettingsError(
            f"kv_precision is {kv_precision}, expected f16, u8 or u4 where the inference precision is {inference}",
            param="kv_precision",
        )
    name, way = _PIECES
    cut = spec.hidden_size >= _WIDE and name in core.get_property("CPU", "SUPPORTED_PROPERTIES")
    return _given(
        {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": kv_precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "INFERENCE_NUM_THREADS": settings.threads,
            name: way if cut else None,
        }
    )


def gpu_properties(settings: EngineSettings, supported: Collection[str]) -> dict[str, Any]:  # likewise
    """Return what the settings say for a GPU. Raises SettingsError for what its plugin does not compute.

    supported: names of the device's properties.
    """
    precision, kv_precision = settings.inference_precision, settings.kv_precision
    if precision is not None and precision not in GPU_PRECISIONS:
        raise SettingsError(
            f"inference_precision is {precision}, expected {' or '.join(GPU_PRECISIONS)} on a GPU",
            param="inference_precision",
        )
    if kv_precision is not None and kv_precision not in GPU_CACHES:
        raise SettingsError(
            f"kv_precision is {kv_precision}, expected {', '.join(GPU_CACHES)} on a GPU", param="kv_precision"
        )
    if settings.threads is not None:
        raise SettingsError(f"threads is {settings.threads}, but a GPU has none to set", param="threads")
    if kv_precision is None and settings.reproducible:
        kv_precision = "f16"  # of rounded keys, a block's scale depends on which of them were written together
    chosen = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": kv_precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.dynamic_quantization_group,
    }
    name, off = _NO_SCALING
    return _given(chosen | ({name: off} if name in supported else {}))


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value is not None}


def _kv_precision(inference: str, spec: ModelSpec, budget: int, limit: int, reproducible: bool) -> CachePrecision:
    """Return 16 bits, which decode faster and lose less, if the whole context then fits into the budget; else u8.

    Reproducible results always need 16 bits; the context is then cut to what fits.
    """
    bytes_per_token = spec.kv_values_per_token * 2
    if bytes_per_token * limit > budget and not reproducible:
        return "u8"
    return "bf16" if inference == "bf16" else "f16"  # the kernel for bf16 queries accepts only bf16 keys
