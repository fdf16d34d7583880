"""The memory that a model takes on a device: what rules compare with what there is.

In: a `Subject` and a `Target`. Out: bytes. Knows no rules.
"""

from __future__ import annotations

from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target

CACHED_BYTES = 2  # of a value: NPUs and GPUs cache in float16 or less


def memory_needed(subject: Subject, target: Target) -> int:
    """Weights, and keys and values of every token that prompt and answer may have."""
    return subject.weight_bytes + subject.spec.kv_values_per_token * CACHED_BYTES * target.capacity
