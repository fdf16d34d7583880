"""The precisions that OpenVINO computes and caches in: what was asked for, and our own choice where nothing was.

In: settings, the model and the memory for its cache. Out: properties for `compile_model`. Knows nothing about graphs.
"""

from __future__ import annotations

from typing import Any

import openvino as ov

from edge.runtime.errors import SettingsError
from edge.runtime.settings import CachePrecision, EngineSettings
from edge.runtime.spec import ModelSpec

ACTIVATION_GROUP = 32  # activations that are rounded to int8 together


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
    kv_precision, group = settings.kv_precision, settings.dynamic_quantization_group
    precision = settings.inference_precision
    if family == "CPU":
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
    chosen = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": kv_precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        "INFERENCE_NUM_THREADS": settings.threads,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _kv_precision(inference: str, spec: ModelSpec, budget: int, limit: int, reproducible: bool) -> CachePrecision:
    """Return 16 bits, which decode faster and lose less, if the whole context then fits into the budget; else u8.

    Reproducible results always need 16 bits; the context is then cut to what fits.
    """
    bytes_per_token = spec.kv_values_per_token * 2
    if bytes_per_token * limit > budget and not reproducible:
        return "u8"
    return "bf16" if inference == "bf16" else "f16"  # the kernel for bf16 queries accepts only bf16 keys
