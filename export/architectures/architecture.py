"""What the record of an architecture holds, and the table of weights that families share.

Knows nothing about particular families.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.vision.source import Parts
from edge.export.weights.names import Layout, Sources
from edge.runtime.spec import ModelSpec
from edge.runtime.vision.spec import VisionSpec


@dataclass(frozen=True)
class Tower:
    """How the picture tower of one kind of checkpoint is read."""

    prefix: str  # of the names of all its tensors
    read_spec: Callable[[Checkpoint, ModelSpec], VisionSpec]  # given the text model
    parts: Callable[[VisionSpec], Parts]


@dataclass(frozen=True)
class Architecture:
    """How one kind of checkpoint is read, and what others call its model."""

    read_spec: Callable[[Checkpoint], ModelSpec]
    sources: Callable[[ModelSpec, Collection[str]], Sources]  # given the names of the checkpoint's tensors
    layout: Layout
    model_type: str  # what a bundle's config.json calls the model, for tools that know transformers' names
    model_class: str  # of transformers, which computes what our graph does
    ignored: tuple[str, ...] = ()  # parts of the names of tensors that carry nothing, or nothing for a text model
    tower: Tower | None = None  # of those that see pictures, where config.json has a vision_config


GLM_LAYOUT = Layout(stored="pairs", trained="pairs", remote_code=True)  # of every GLM-4, in any file
HALVES = Layout(stored="halves", trained="halves")  # of Llama and its successors, as transformers stores them


def weight_sources(
    spec: ModelSpec, outside: Mapping[str, str], prefix: str, block: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The whole table: `block` for every layer, without what this model does not have."""
    absent = set() if spec.qkv_bias else {"attn.qkv.bias"}
    absent |= set() if spec.output_norms else {"attn.out_norm.weight", "mlp.out_norm.weight"}
    absent |= set() if spec.qk_norms else {"attn.q_norm.weight", "attn.k_norm.weight"}
    absent |= {"lm_head.weight"} if spec.tied_embeddings else set()
    sources: dict[str, tuple[str, ...]] = {name: (source,) for name, source in outside.items() if name not in absent}
    for layer in range(spec.num_layers):
        theirs = prefix.format(layer)
        sources |= {
            f"layers.{layer}.{name}": tuple(theirs + part for part in parts)
            for name, parts in block.items()
            if name not in absent
        }
    return sources
