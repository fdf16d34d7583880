"""The KV caches of a compiled model: which inputs they are, and how many tokens one block of them holds.

In: a graph, and what a plugin compiled it to. Out: the caches, or a DeviceError for a layout that is not understood: a
block size that is guessed wrong overwrites other conversations. Knows nothing about memory or settings.

What plugins make of it (OpenVINO 2026.4; the CPU's seen here, the GPU's read in paged_attention_inst.cpp and
convert_pagedattn_inputs.cpp of openvino/src, and in tools that print it):

    CPU  keys and values (heads, 32, head); of 8 and 4 bits with scales: keys (heads, 32 + 8 or 16, head), values
         (heads, 32, head + 8 or 16)
    GPU  keys (heads, head, 16), values (heads, 16, head); of 8 bits with scales: keys (heads, head, 16 + 4), values
         (heads, 16, head + 4); with XAttention, which has to be asked for, 256 tokens, and keys (heads, 256, head)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge.runtime.errors import DeviceError

_NAME = re.compile(r"(key|value)_cache\.(\d+)")
_ATTENTION = "PagedAttentionExtension"
_KEYS, _VALUES = 3, 4  # inputs of attention


class CacheInput(NamedTuple):
    """An input of the compiled model that holds keys or values, as blocks."""

    name: str
    shape: list[int]  # of one block
    kind: Any  # ov.Type, which has no types

    @property
    def block_bytes(self) -> int:
        return int(self.kind.bitwidth * math.prod(self.shape) // 8)


def head_sizes(model: Any) -> dict[str, int]:  # ov.Model, which has no types
    """Return for each cache of a graph with paged attention, by name, how many values a token has in one head."""
    found: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == _ATTENTION:
            sizes = node.get_rt_info()
            for port, size in ((_KEYS, "k_head_size"), (_VALUES, "v_head_size")):
                for name in node.input(port).get_source_output().get_names():
                    found[name] = sizes[size].astype(int)
    return found


def caches_of(compiled: Any) -> list[CacheInput]:  # ov.CompiledModel
    """Return the caches of a compiled model; their first dim, which counts blocks, is dropped. Raises DeviceError."""
    found = []
    for port in compiled.inputs:
        if _NAME.fullmatch(port.any_name):
            shape = port.partial_shape
            dims = list(shape) if shape.rank.is_static else []
            if len(dims) != 4 or any(dim.is_dynamic for dim in dims[1:]):
                raise DeviceError(_not_understood(port.any_name, str(shape), "[blocks, heads, ., .] of fixed sizes"))
            found.append(CacheInput(port.any_name, [dim.get_length() for dim in dims[1:]], port.element_type))
    return found


def tokens_per_block(caches: Sequence[CacheInput], heads: Mapping[str, int]) -> int:
    """Return how many tokens one block of every cache holds. Raises DeviceError unless all caches agree on it.

    heads: values of a token in one head, for each cache. Values are never transposed, so they tell; keys are compared.
    """
    by_name = {cache.name: cache for cache in caches}
    found: dict[int, str] = {}
    for name, cache in by_name.items():
        kind, layer = name.split("_cache.")
        values = by_name.get(f"value_cache.{layer}")
        if values is None or f"key_cache.{layer}" not in by_name or name not in heads:
            raise DeviceError(f"the compiled model has {name} without its counterpart; export the bundle again")
        tokens = values.shape[1]
        if kind == "value" and not _holds(cache, tokens, heads[name], transposed=False):
            raise DeviceError(_not_understood(name, str(cache.shape), f"[heads, tokens, {heads[name]} and scales]"))
        if kind == "key" and not any(_holds(cache, tokens, heads[name], transposed=way) for way in (False, True)):
            raise DeviceError(
                _not_understood(
                    name, str(cache.shape), f"{tokens} tokens by {heads[name]} values, either way, and scales"
                )
            )
        found.setdefault(tokens, name)
    if len(found) != 1:
        different = " and ".join(f"{tokens} in {name}" for tokens, name in found.items())
        raise DeviceError(f"blocks of the KV cache hold {different or 'no'} tokens, expected one number; {_ADVICE}")
    return next(iter(found))


def _holds(cache: CacheInput, tokens: int, head: int, *, transposed: bool) -> bool:
    """Whether a cache has this many tokens of this many values; scales of rounded values are on one side of them."""
    _, one, other = cache.shape
    more_tokens, more_values = (other - tokens, one - head) if transposed else (one - tokens, other - head)
    if cache.kind.is_real():
        return more_tokens == more_values == 0 and tokens > 0
    return min(more_tokens, more_values) == 0 and tokens > 0


_ADVICE = "this version of OpenVINO lays blocks out in another way; use another, or --device CPU"


def _not_understood(name: str, found: str, expected: str) -> str:
    return f"{name} of the compiled model is {found}, expected {expected}; {_ADVICE}"
