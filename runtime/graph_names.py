"""Names of values in a bundle's graphs by which export and engines, or two parts of a graph, find each other.

In: layers. Out: names. Knows nothing about graphs. The names are in exported files, so a new name means a new version
of these. Inputs and outputs with the same name in every exporter (input_ids, attention_mask, logits) are not here.
"""

from __future__ import annotations

from collections.abc import Iterable

WANTED_ROWS = "wanted_rows"  # input: (R,) int64, the new tokens that get logits
HIDDEN = "hidden"  # input of a part or stage: (B, T, hidden_size) float32; of a tower's (n, hidden_size)
NEXT_HIDDEN = "next_hidden"  # output of a part, and HIDDEN of the next one
ROTARY_TABLES = ("cos", "sin")  # inputs: (positions, rotary_dim / 2); of a tower (patches, head_dim / 2)

PATCHES = "patches"  # input of a tower: (n, patch_values) float32
PLACES = "places"  # input of a tower: (n,) int64, rows of its table of places, or (n, rows) float32, shares of them
ROWS = "rows"  # output of a tower: (m, out_size) float32

# Inputs of a decoder that is shown pictures:
ROTARY_ROWS = "rotary_rows"  # (B, T) int64, the row of these tables that each new token turns by
REPLACED = "replaced"  # (B, T, 1) bool, whether a token's embedding is replaced; T may be 1, for all
REPLACEMENTS = "replacements"  # (B, T, hidden_size) float32, by what; T may be 1

SPEC = ("edgeglm", "spec")  # where a graph's metadata has the ModelSpec that it was made for

ATTENTION_OUT = ".attn.o"  # ends the name of a layer's output projection
ATTENTION_RESIDUAL = ".attn.residual"  # ends the name of the sum of that, normed or not, and the layer's input


def cached_names(layers: Iterable[int]) -> list[str]:
    """Return the names of cached values in order: "0.key", "0.value", "1.key"..."""
    return [f"{index}.{kind}" for index in layers for kind in ("key", "value")]


def past_name(name: str) -> str:
    """Return the input with the earlier tokens of a cached value, named as in optimum-intel and onnxruntime-genai."""
    return f"past_key_values.{name}"


def present_name(name: str) -> str:
    """Return the output with these and the new tokens."""
    return f"present.{name}"
