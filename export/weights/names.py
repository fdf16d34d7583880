"""One canonical set of weight names, whatever a checkpoint calls its tensors.

In: a ModelSpec. Out: every weight that a model of it has, with its shape; and the words for how a checkpoint differs
from that. Knows nothing about particular checkpoints.

    embed.weight  layers.N.input_norm.weight  layers.N.attn.qkv.{weight,bias}  layers.N.attn.o.weight
    layers.N.post_norm.weight  layers.N.mlp.gate_up.weight  layers.N.mlp.down.weight  norm.weight  lm_head.weight
    and for GLM-4-0414: layers.N.attn.out_norm.weight  layers.N.mlp.out_norm.weight
    and for Qwen3: layers.N.attn.q_norm.weight  layers.N.attn.k_norm.weight

Query, key and value are one matrix, and so are gate and up: fewer, wider products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge.runtime.spec import ModelSpec

EMBEDDING, FINAL_NORM, HEAD = "embed.weight", "norm.weight", "lm_head.weight"
Sources = Mapping[str, tuple[str, ...]]  # canonical name -> tensors whose rows follow each other

# Which dims of a head turn together: neighbours (2i, 2i + 1), or one of each half (i, i + rotary_dim / 2).
RotaryLayout = Literal["pairs", "halves"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How q and k of a checkpoint, and of adapters for its model, differ from the canonical form, which has halves.

    Adapters are trained on the implementation in transformers, whatever file they are merged into.
    """

    stored: RotaryLayout  # rows of q and k in the checkpoint
    trained: RotaryLayout  # rows of q and k in transformers
    remote_code: bool = False  # adapters may also have the names of GLM-4's remote code


def canonical_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every weight of a model with its shape, in the order in which the decoder uses them."""
    h, f, qkv = spec.hidden_size, spec.intermediate_size, spec.q_size + 2 * spec.kv_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, h)}
    for layer in range(spec.num_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _block_shapes(h, f, qkv, spec).items()}
    shapes[FINAL_NORM] = (h,)
    if not spec.tied_embeddings:
        shapes[HEAD] = (spec.vocab_size, h)
    return shapes


def _block_shapes(h: int, f: int, qkv: int, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {
        "input_norm.weight": (h,),
        "attn.qkv.weight": (qkv, h),
        **({"attn.qkv.bias": (qkv,)} if spec.qkv_bias else {}),
        **({f"attn.{x}_norm.weight": (spec.head_dim,) for x in "qk"} if spec.qk_norms else {}),
        "attn.o.weight": (h, spec.q_size),
        **({"attn.out_norm.weight": (h,)} if spec.output_norms else {}),
        "post_norm.weight": (h,),
        "mlp.gate_up.weight": (2 * f, h),
        "mlp.down.weight": (h, f),
        **({"mlp.out_norm.weight": (h,)} if spec.output_norms else {}),
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a model that is computed as a whole."""

    index: int  # in the walk
    name: str  # "embedding", "block 3", "head"
    layer: int | None = None  # of a block

    def own(self, spec: ModelSpec) -> list[str]:
        """The weights that this stage brings, by canonical name."""
        if self.layer is not None:
            prefix = f"layers.{self.layer}."
            return [name for name in canonical_shapes(spec) if name.startswith(prefix)]
        if self.index == 0:
            return [EMBEDDING]
        return [FINAL_NORM, *([] if spec.tied_embeddings else [HEAD])]

    def needed(self, spec: ModelSpec) -> list[str]:
        """The weights that this stage computes with: a tied head computes with the embedding."""
        return self.own(spec) + ([EMBEDDING] if self.is_head and spec.tied_embeddings else [])

    @property
    def is_head(self) -> bool:
        return self.layer is None and self.index > 0


def stages_of(spec: ModelSpec) -> tuple[Stage, ...]:
    """All stages of a model, in the order in which a token meets them."""
    blocks = (Stage(1 + layer, f"block {layer}", layer) for layer in range(spec.num_layers))
    return (Stage(0, "embedding"), *blocks, Stage(1 + spec.num_layers, "head"))
