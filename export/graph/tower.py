"""The picture tower, written once for both kinds.

In: a graph builder, a VisionSpec, and values that stand for a picture's patches or hidden states. Out: the value of the
next stage. Knows nothing about OpenVINO, ONNX, weights, files or pixels: a builder looks up weights by canonical name
(`export/vision/names.py`) and decides what an operation is made of. Patches come in blocks of those that become one
row, so merging is a reshape.

    "eva"     x ── qkv ── attention ── o ── attn_norm ──(+)── up ── gelu ── down ── mlp_norm ──(+)── y
              └──────────────────────────────────────────┘ └─────────────────────────────────────┘
    "glm4v"   x ── attn_norm ── qkv ── turn ── attention ── o ──(+)── mlp_norm ── gate_up ── swiglu ── down ──(+)── y
              └──────────────────────────────────────────────────┘ └──────────────────────────────────────────────┘

Sources: visual.py of THUDM/glm-4v-9b; Glm4vVisionModel of huggingface/transformers
(models/glm4v/modeling_glm4v.py, 4.57.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from edge.runtime.vision.spec import VisionSpec

V = TypeVar("V")

PIECES = 4  # that rows are cut into where what is between two matrices is many times as wide as they are


class Builder(Protocol[V]):
    """The operations the tower needs. n rows, K input width, N output width; a picture has no batch axis."""

    def linear(self, x: V, name: str) -> V:
        """(n, K) -> (n, N) with weight `name`.weight (N, K) and, where there is one, `name`.bias (N,)."""

    def layer_norm(self, x: V, name: str, eps: float) -> V:
        """(x - mean) / sqrt(variance + eps) * `name`.weight + `name`.bias, over the last axis."""

    def rms_norm(self, x: V, name: str, eps: float) -> V:
        """x / sqrt(mean(x^2) + eps) * `name`.weight, over the last axis."""

    def gelu(self, x: V) -> V:
        """x * (1 + erf(x / sqrt(2))) / 2."""

    def swiglu(self, gate_up: V, width: int) -> V:
        """silu(gate) * up, gate first: (n, 2 width) -> (n, width)."""

    def attention(self, qkv: V, spec: VisionSpec) -> V:
        """Every row sees every row: (n, 3 h), all of q, then k, then v -> (n, h).

        q and k turn by the cos and sin that a builder was given, halves of a head against each other; without these
        they stay as they are.
        """

    def add(self, a: V, b: V) -> V:
        """Elementwise sum."""

    def divide(self, x: V, number: float) -> V:
        """x / number."""

    def first_row(self, name: str) -> V:
        """The first row of weight `name`: (1, h)."""

    def chosen_rows(self, name: str, indices: V) -> V:
        """Rows of weight `name`: (n,) integers -> (n, h)."""

    def mixed_rows(self, name: str, shares: V) -> V:
        """Sums of the rows of weight `name`, of each row a share: (n, rows) -> (n, h)."""

    def join(self, parts: Sequence[V]) -> V:
        """One after the other: (n, h), (m, h) ... -> (n + m + ..., h)."""

    def without_first(self, x: V) -> V:
        """(n + 1, h) -> (n, h)."""

    def merge(self, x: V, number: int, width: int) -> V:
        """`number` rows become one, channel by channel: (n number, width) -> (n, width number)."""

    def in_pieces(self, x: V, function: Callable[[V], V]) -> V:
        """function(x), where a row of that depends on the same row of x only; of some rows at a time."""


# Calls are nested, not named one by one: a builder that computes at once then lets go of what has been used.
def patches(g: Builder[V], values: V, places: V, spec: VisionSpec) -> V:
    """Patches with their places: (n, patch_values) -> (n, h), with "eva" (n + 1, h), the learned row first."""
    table = "vision.places.weight"
    if spec.kind == "eva":
        first = g.add(g.first_row("vision.cls"), g.first_row(table))
        return g.join([first, g.add(g.linear(values, "vision.patches"), g.chosen_rows(table, places))])
    x = g.rms_norm(g.linear(values, "vision.patches"), "vision.patches_norm", spec.norm_eps)
    return g.add(x, g.mixed_rows(table, places))


def layer(g: Builder[V], x: V, index: int, spec: VisionSpec) -> V:
    """One layer: (n, h) -> (n, h)."""
    prefix = f"vision.layers.{index}"
    if spec.kind == "eva":
        x = g.add(x, g.layer_norm(_attention(g, x, prefix, spec), f"{prefix}.attn_norm", spec.norm_eps))
        return g.add(x, g.layer_norm(_mlp(g, x, prefix), f"{prefix}.mlp_norm", spec.norm_eps))
    x = g.add(x, _attention(g, g.rms_norm(x, f"{prefix}.attn_norm", spec.norm_eps), prefix, spec))
    y = g.rms_norm(x, f"{prefix}.mlp_norm", spec.norm_eps)
    return g.add(x, _gated(g, y, f"{prefix}.mlp", spec.intermediate_size))


def adapter(g: Builder[V], x: V, spec: VisionSpec) -> V:
    """Hidden states as rows of the text model: (n, h) -> (m, out_size), with learned rows around them if has_ends."""
    x = g.without_first(x) if spec.kind == "eva" else g.rms_norm(x, "vision.norm", spec.norm_eps)
    x = g.linear(g.merge(x, spec.merge_size**2, spec.hidden_size), "vision.merge")
    x = g.gelu(g.layer_norm(g.linear(x, "vision.adapter.proj"), "vision.adapter.norm", spec.merger_eps))
    x = _gated(g, x, "vision.adapter", spec.merger_size)
    if spec.has_ends:
        x = g.join([g.first_row("vision.begin"), x, g.first_row("vision.end")])
    return x if spec.scale == 1 else g.divide(x, spec.scale)


def part(g: Builder[V], x: V, places: V | None, spec: VisionSpec, layers: range, *, first: bool, last: bool) -> V:
    """Some of the tower: x are patches if `first`, else hidden states; rows come out if `last`."""
    if first:
        assert places is not None, "patches have places"
        x = patches(g, x, places, spec)
    for index in layers:
        x = layer(g, x, index, spec)
    return adapter(g, x, spec) if last else x


def _attention(g: Builder[V], x: V, prefix: str, spec: VisionSpec) -> V:
    return g.linear(g.attention(g.linear(x, f"{prefix}.attn.qkv"), spec), f"{prefix}.attn.o")


def _mlp(g: Builder[V], x: V, prefix: str) -> V:
    return g.in_pieces(x, lambda rows: g.linear(g.gelu(g.linear(rows, f"{prefix}.mlp.up")), f"{prefix}.mlp.down"))


def _gated(g: Builder[V], x: V, prefix: str, width: int) -> V:
    def of_rows(rows: V) -> V:
        return g.linear(g.swiglu(g.linear(rows, f"{prefix}.gate_up"), width), f"{prefix}.down")

    return g.in_pieces(x, of_rows)
