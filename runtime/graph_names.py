"""What a bundle's graphs call the values by which export and engines, or two parts of a graph, find each other.

In: layers. Out: names. Knows nothing about graphs. They are in exported files: a new name is a new version of those.
Inputs and outputs that every exporter calls the same (input_ids, attention_mask, logits) are not here.
"""

from __future__ import annotations

from collections.abc import Iterable

WANTED_ROWS = "wanted_rows"  # input: (R,) int64, the new tokens that get logits
HIDDEN = "hidden"  # input of a part or stage: (B, T, hidden_size) float32
NEXT_HIDDEN = "next_hidden"  # output of a part: what the following one has as HIDDEN
ROTARY_TABLES = ("cos", "sin")  # inputs: (positions, rotary_dim / 2)

SPEC = ("edgeglm", "spec")  # where a graph carries the ModelSpec that it was made for, apart from its nodes

ATTENTION_OUT = ".attn.o"  # ends the name of a layer's output projection
ATTENTION_RESIDUAL = ".attn.residual"  # ends the name of the sum of that, normed or not, and what it is added to


def cached_names(layers: Iterable[int]) -> list[str]:
    """What is cached, in order: "0.key", "0.value", "1.key"..."""
    return [f"{index}.{kind}" for index in layers for kind in ("key", "value")]


def past_name(name: str) -> str:
    """Input with the earlier tokens of what is cached; as optimum-intel and onnxruntime-genai name it."""
    return f"past_key_values.{name}"


def present_name(name: str) -> str:
    """Output with the new tokens after those."""
    return f"present.{name}"
