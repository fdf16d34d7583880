"""How a model is compiled for an NPU: the properties of the NPU plugin's pipeline for language models (NPUW).

In: settings and lengths. Out: properties for `compile_model`, or a SettingsError. Knows nothing about graphs.

Names and values are those of openvino src/plugins/intel_npu (2026.4). openvino_genai has other names for some of them,
which the plugin does not know.
"""

from __future__ import annotations

from typing import Any

from edge.runtime.engines.openvino_npu_lengths import Lengths
from edge.runtime.errors import SettingsError
from edge.runtime.machine import family_of
from edge.runtime.settings import EngineSettings

KV_PRECISIONS = ("f16", "f32")  # f32 in the exact setting only


def is_exact(settings: EngineSettings) -> bool:
    """Whether the settings ask for float32 throughout, as tests and `edge verify` do."""
    precision, cache = settings.inference_precision, settings.kv_precision
    return precision == cache == "f32" and settings.dynamic_quantization_group == 0


def check_precisions(settings: EngineSettings) -> None:
    """Raise SettingsError for precisions that the plugin cannot compute in, or computes wrongly."""
    family = family_of(settings.device)
    if settings.kv_precision not in (None, *KV_PRECISIONS):
        raise SettingsError(
            f"kv_precision is {settings.kv_precision}, expected f16, the only cache that is right in pieces; leave it "
            "out, or use another engine",
            param="kv_precision",
        )
    if settings.kv_precision == "f32" and not is_exact(settings):
        raise SettingsError(
            "kv_precision is f32, expected f16: the NPU plugin computes rightly with a float32 cache only if all "
            "else is exact, too; leave it out, or add inference_precision f32 and dynamic_quantization_group 0",
            param="kv_precision",
        )
    if family == "NPU" and settings.inference_precision not in (None, "f16"):
        raise SettingsError(
            f"inference_precision is {settings.inference_precision}, expected f16: an NPU has no other; leave it out, "
            "or use device CPU, which runs the NPU's pipeline in other precisions",
            param="inference_precision",
        )
    for name in ("dynamic_quantization_group", "threads"):
        if family == "NPU" and getattr(settings, name) is not None:
            raise SettingsError(f"{name} is {getattr(settings, name)}, and an NPU has no such setting", param=name)


def computing(settings: EngineSettings) -> dict[str, Any]:  # values as `compile_model` takes them
    """Return what the device that computes is to do, whatever the pipeline around it is."""
    on_cpu, precision = family_of(settings.device) == "CPU", settings.inference_precision
    if on_cpu and precision is None:
        # An NPU has float16. CPUs have bfloat16, which lacks three of its bits; float32 is nearer, and between the
        # pipeline's parts values are float16 all the same.
        precision = "f32"
    found = {
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.dynamic_quantization_group,
        "INFERENCE_NUM_THREADS": settings.threads if on_cpu else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def properties(settings: EngineSettings, lengths: Lengths) -> dict[str, Any]:  # values as `compile_model` takes them
    """Return what the settings and lengths ask for. Without NPU, the same pipeline computes on the CPU."""
    found: dict[str, Any] = {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": settings.device,
        "NPUW_LLM_BATCH_DIM": 0,
        "NPUW_LLM_SEQ_LEN_DIM": 2,
        "NPUW_LLM_MAX_PROMPT_LEN": lengths.prompt,
        "NPUW_LLM_MIN_RESPONSE_LEN": lengths.response,
    }
    if not is_exact(settings):
        return {
            **found,
            **computing(settings),
            "NPUW_LLM_PREFILL_HINT": "DYNAMIC",
            "NPUW_LLM_PREFILL_CHUNK_SIZE": lengths.chunk,
            "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL": "YES",
        }
    section = {
        "NPU_USE_NPUW": "YES",
        "NPUW_DEVICES": settings.device,
        "NPUW_ONLINE_PIPELINE": "NONE",  # the whole graph at once: nothing is rounded between its parts
        "NPUW_FOLD": "NO",
        **computing(settings),
    }
    return {
        **found,
        "NPUW_LLM_PREFILL_HINT": "STATIC",
        "NPUW_LLM_SHARED_HEAD": "NO",
        "NPUW_LLM_CACHE_ROPE": "NO",
        "NPUW_LLM_PREFILL_CONFIG": section,
        "NPUW_LLM_GENERATE_CONFIG": section,
        "KV_CACHE_PRECISION": settings.kv_precision,
    }
