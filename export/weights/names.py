"""One canonical set of weight names, whatever a checkpoint calls its tensors.

In: a ModelSpec. Out: every weight that a model of it has, with its shape. Knows nothing about checkpoints.

    embed.weight  layers.N.input_norm.weight  layers.N.attn.qkv.{weight,bias}  layers.N.attn.o.weight
    layers.N.post_norm.weight  layers.N.mlp.gate_up.weight  layers.N.mlp.down.weight  norm.weight  lm_head.weight
    and for GLM-4-0414: layers.N.attn.out_norm.weight  layers.N.mlp.out_norm.weight

Query, key and value are one matrix, and so are gate and up: fewer, wider products.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.runtime.spec import ModelSpec

EMBEDDING, FINAL_NORM, HEAD = "embed.weight", "norm.weight", "lm_head.weight"
Sources = Mapping[str, tuple[str, ...]]  # canonical name -> tensors whose rows follow each other


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
        "attn.o.weight": (h, spec.q_size),
        **({"attn.out_norm.weight": (h,)} if spec.output_norms else {}),
        "post_norm.weight": (h,),
        "mlp.gate_up.weight": (2 * f, h),
        "mlp.down.weight": (h, f),
        **({"mlp.out_norm.weight": (h,)} if spec.output_norms else {}),
    }
