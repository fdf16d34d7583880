"""The GLM decoder, written once.

In: a graph builder (`graph/`), a ModelSpec, and a value that stands for token ids or hidden states. Out: the value of
the next stage. Knows nothing about OpenVINO, ONNX, weights or files: a builder looks up weights by canonical name
(`names.py`) and decides what an operation is made of.

    x ── input_norm ── qkv ── rope ── attention ── o ──(+)── post_norm ── gate_up ── swiglu ── down ──(+)── y
      └──────────────────────────────────────────────┘  └──────────────────────────────────────────────┘

Sources: GlmDecoderLayer of huggingface/transformers (models/glm/modeling_glm.py, 4.57.6); llama is the same block with
gate and up stored apart and without qkv bias.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from edge.runtime.spec import ModelSpec

V = TypeVar("V")


class Builder(Protocol[V]):
    """The operations the decoder needs. B batch, T new tokens, H hidden size, K input width, N output width."""

    def embedding(self, ids: V, name: str) -> V:
        """(B, T) ids -> (B, T, H), rows of weight `name`."""

    def linear(self, x: V, name: str) -> V:
        """(B, T, K) -> (B, T, N) with weight `name`.weight (N, K) and, where there is one, `name`.bias (N,)."""

    def rms_norm(self, x: V, name: str, eps: float) -> V:
        """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def attention(self, qkv: V, layer: int, spec: ModelSpec) -> V:
        """Rotary embedding on q and k, then causal attention: (B, T, q_size + 2 kv_size) -> (B, T, q_size)."""

    def swiglu(self, gate_up: V, spec: ModelSpec) -> V:
        """silu(gate) * up, gate first: (B, T, 2 F) -> (B, T, F)."""

    def add(self, a: V, b: V) -> V:
        """Elementwise sum."""


def block(g: Builder[V], x: V, layer: int, spec: ModelSpec) -> V:
    """One decoder block: (B, T, H) -> (B, T, H)."""
    prefix = f"layers.{layer}"
    attn = g.linear(g.rms_norm(x, f"{prefix}.input_norm", spec.rms_norm_eps), f"{prefix}.attn.qkv")
    x = g.add(x, g.linear(g.attention(attn, layer, spec), f"{prefix}.attn.o"))
    mlp = g.linear(g.rms_norm(x, f"{prefix}.post_norm", spec.rms_norm_eps), f"{prefix}.mlp.gate_up")
    return g.add(x, g.linear(g.swiglu(mlp, spec), f"{prefix}.mlp.down"))


def head(g: Builder[V], x: V, spec: ModelSpec) -> V:
    """Final norm and vocabulary projection: (B, T, H) -> (B, T, vocab_size)."""
    return g.linear(g.rms_norm(x, "norm", spec.rms_norm_eps), "lm_head")


def decoder(g: Builder[V], ids: V, spec: ModelSpec) -> V:
    """The whole model: (B, T) ids -> (B, T, vocab_size) logits."""
    x = g.embedding(ids, "embed")
    for layer in range(spec.num_layers):
        x = block(g, x, layer, spec)
    return head(g, x, spec)
