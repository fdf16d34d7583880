"""The decoder, written once.

In: a graph builder (`graph/`), a ModelSpec, and a value that stands for token ids or hidden states. Out: the value of
the next stage. Knows nothing about OpenVINO, ONNX, weights or files: a builder looks up weights by canonical name
(`names.py`) and decides what an operation is made of.

    x ── input_norm ── qkv ── rope ── attention ── o ──(+)── post_norm ── gate_up ── swiglu ── down ──(+)── y
      └──────────────────────────────────────────────┘  └──────────────────────────────────────────────┘

Some models have more norms: of q and k before they rotate (Qwen3), after o and after down (GLM-4-0414).

Sources: GlmDecoderLayer and Glm4DecoderLayer of huggingface/transformers (models/glm/modeling_glm.py and
models/glm4/modeling_glm4.py, 4.57.6). LlamaDecoderLayer and those of Qwen2 and Qwen3 equal the first, with gate and
up stored as two matrices.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from edge.runtime.graph_names import ATTENTION_OUT, ATTENTION_RESIDUAL
from edge.runtime.spec import ModelSpec

V = TypeVar("V")


class Builder(Protocol[V]):
    """The operations the decoder needs. B batch, T new tokens, H hidden size, K input width, N output width."""

    def embedding(self, ids: V, name: str) -> V:
        """(B, T) ids -> (B, T, H), rows of weight `name` times 2 ** -spec.residual_exponent."""

    def linear(self, x: V, name: str) -> V:
        """(B, T, K) -> (B, T, N) with weight `name`.weight (N, K) and, where there is one, `name`.bias (N,)."""

    def rms_norm(self, x: V, name: str, eps: float) -> V:
        """x / sqrt(mean(x^2) + eps) * weight, over the last axis.

        With spec.safe_norms by way of y = x / m, where m is the largest |x|, but sqrt(eps) at least:
        y / sqrt(mean(y^2) + (sqrt(eps) / m)^2) * weight. No step of that is beyond float16, and no row divides by zero.
        """

    def qk_norm(self, qkv: V, name: str, spec: ModelSpec) -> V:
        """Each head of q and k normed over its dims, with weights `name`.{q,k}_norm.weight (head_dim,); v stays."""

    def attention(self, qkv: V, layer: int, spec: ModelSpec) -> V:
        """Rotary embedding on q and k, then causal attention: (B, T, q_size + 2 kv_size) -> (B, T, q_size)."""

    def swiglu(self, gate_up: V, spec: ModelSpec) -> V:
        """silu(gate) * up, gate first: (B, T, 2 F) -> (B, T, F)."""

    def add(self, a: V, b: V, name: str) -> V:
        """Elementwise sum, known as `name` to those who look for it in the graph."""


def block(g: Builder[V], x: V, layer: int, spec: ModelSpec) -> V:
    """One decoder block: (B, T, H) -> (B, T, H)."""
    x = g.add(x, _attention(g, x, layer, spec), f"layers.{layer}{ATTENTION_RESIDUAL}")
    return g.add(x, _mlp(g, x, layer, spec), f"layers.{layer}.mlp.residual")


# Calls are nested, not named one by one: a builder that computes at once then lets go of what has been used.
def _attention(g: Builder[V], x: V, layer: int, spec: ModelSpec) -> V:
    prefix = f"layers.{layer}"
    y = g.linear(
        g.attention(
            _qkv(g, x, layer, spec),
            layer,
            spec,
        ),
        f"{prefix}{ATTENTION_OUT}",
    )
    return g.rms_norm(y, f"{prefix}.attn.out_norm", spec.output_eps) if spec.output_norms else y


def _qkv(g: Builder[V], x: V, layer: int, spec: ModelSpec) -> V:
    prefix = f"layers.{layer}"
    qkv = g.linear(g.rms_norm(x, f"{prefix}.input_norm", spec.stream_eps), f"{prefix}.attn.qkv")
    return g.qk_norm(qkv, f"{prefix}.attn", spec) if spec.qk_norms else qkv


def _mlp(g: Builder[V], x: V, layer: int, spec: ModelSpec) -> V:
    prefix = f"layers.{layer}"
    y = g.linear(
        g.swiglu(
            g.linear(g.rms_norm(x, f"{prefix}.post_norm", spec.stream_eps), f"{prefix}.mlp.gate_up"),
            spec,
        ),
        f"{prefix}.mlp.down",
    )
    return g.rms_norm(y, f"{prefix}.mlp.out_norm", spec.output_eps) if spec.output_norms else y


def head(g: Builder[V], x: V, spec: ModelSpec) -> V:
    """Final norm and vocabulary projection: (B, T, H) -> (B, T, vocab_size)."""
    return g.linear(g.rms_norm(x, "norm", spec.stream_eps), "lm_head")


def decoder(g: Builder[V], ids: V, spec: ModelSpec) -> V:
    """The whole model: (B, T) ids -> (B, T, vocab_size) logits."""
    x = g.embedding(ids, "embed")
    for layer in range(spec.num_layers):
        x = block(g, x, layer, spec)
    return head(g, x, spec)
