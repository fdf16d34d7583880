"""The memory that a model takes on a device: what rules compare with what there is.

In: a `Subject` and a `Target`. Out: bytes. Knows no rules. What libraries and compilers take besides is not counted:
for devices that were never measured, it is a guess, and a refusal has to be certain.
"""

from __future__ import annotations

from edge.runtime.footprint import footprint
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target
from edge.runtime.settings import CachePrecision

ENGINES = {"NPU": "openvino_npu", "GPU": "openvino"}
CACHES: dict[str, CachePrecision] = {"NPU": "f16", "GPU": "i8"}  # that a device has by default


def memory_needed(subject: Subject, target: Target) -> int:
    """Weights, keys and values of every token that prompt and answer may have, and activations."""
    needed = footprint(
        subject.spec,
        subject.weight_bytes,
        engine=ENGINES[target.family],
        context_tokens=target.capacity,
        kv_precision=target.kv_precision or CACHES[target.family],
        prefill_chunk=target.chunk,
        device=target.device,
    )
    return needed.weights + needed.kv + needed.activations
