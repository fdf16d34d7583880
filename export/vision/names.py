"""One canonical set of names for the weights of a picture tower, whatever a checkpoint calls its tensors.

In: a VisionSpec. Out: every weight that a tower of it has, with its shape, and the stages that bring them. Knows
nothing about particular checkpoints.

    vision.patches.{weight,bias}  vision.places.weight  "eva": vision.cls  "glm4v": vision.patches_norm.weight
    vision.layers.N.attn.{qkv,o}.weight  vision.layers.N.{attn,mlp}_norm.weight  vision.layers.N.mlp.down.weight
    "eva": vision.layers.N.mlp.up.weight and biases of all  "glm4v": vision.layers.N.mlp.gate_up.weight
    vision.merge.{weight,bias}  vision.adapter.{proj,gate_up,down}.weight  vision.adapter.norm.{weight,bias}
    "eva": vision.begin  vision.end  "glm4v": vision.norm.weight

Rows of qkv are q, then k, then v; of gate_up gate, then up. Values of a patch are colour, frame, row, column; what
merges patches takes channel, row, column. Norms of "eva" come after their sublayer, those of "glm4v" before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.vision.spec import VisionSpec

PATCHES, BEGIN, END, DOWN = "vision.patches.weight", "vision.begin", "vision.end", "vision.adapter.down.weight"
LEARNED = ("vision.cls", "vision.places.weight", BEGIN, END)  # rows that are added or put in: tables, not matrices


def canonical_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    """Every weight of a tower with its shape, in the order in which a picture meets them."""
    shapes = _first_shapes(spec)
    for layer in range(spec.num_layers):
        shapes |= {f"vision.layers.{layer}.{name}": shape for name, shape in _layer_shapes(spec).items()}
    return shapes | _last_shapes(spec)


def _first_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    h, eva = spec.hidden_size, spec.kind == "eva"
    return {
        PATCHES: (h, spec.patch_values),
        "vision.patches.bias": (h,),
        **({"vision.cls": (1, h)} if eva else {"vision.patches_norm.weight": (h,)}),
        "vision.places.weight": (spec.side**2 + eva, h),
    }


def _layer_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    h, f = spec.hidden_size, spec.intermediate_size
    if spec.kind == "eva":
        return {
            "attn.qkv.weight": (3 * h, h),
            "attn.qkv.bias": (3 * h,),
            "attn.o.weight": (h, h),
            "attn.o.bias": (h,),
            "attn_norm.weight": (h,),
            "attn_norm.bias": (h,),
            "mlp.up.weight": (f, h),
            "mlp.up.bias": (f,),
            "mlp.down.weight": (h, f),
            "mlp.down.bias": (h,),
            "mlp_norm.weight": (h,),
            "mlp_norm.bias": (h,),
        }
    return {
        "attn_norm.weight": (h,),
        "attn.qkv.weight": (3 * h, h),
        "attn.o.weight": (h, h),
        "mlp_norm.weight": (h,),
        "mlp.gate_up.weight": (2 * f, h),
        "mlp.down.weight": (h, f),
    }


def _last_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    out, eva = spec.out_size, spec.kind == "eva"
    return {
        **({} if eva else {"vision.norm.weight": (spec.hidden_size,)}),
        "vision.merge.weight": (out, spec.hidden_size * spec.merge_size**2),
        "vision.merge.bias": (out,),
        "vision.adapter.proj.weight": (out, out),
        "vision.adapter.norm.weight": (out,),
        "vision.adapter.norm.bias": (out,),
        "vision.adapter.gate_up.weight": (2 * spec.merger_size, out),
        DOWN: (out, spec.merger_size),
        **({BEGIN: (1, out), END: (1, out)} if spec.has_ends else {}),
    }


@dataclass(frozen=True, slots=True)
class TowerStage:
    """A part of a tower that is computed as a whole."""

    index: int  # in the walk
    name: str  # "picture patches", "picture layer 3", "picture adapter"
    layer: int | None = None

    @property
    def is_last(self) -> bool:
        return self.layer is None and self.index > 0

    def own(self, spec: VisionSpec) -> list[str]:
        """The weights that this stage brings, by canonical name."""
        if self.layer is not None:
            return [f"vision.layers.{self.layer}.{name}" for name in _layer_shapes(spec)]
        return list(_last_shapes(spec) if self.is_last else _first_shapes(spec))


def stages_of(spec: VisionSpec) -> tuple[TowerStage, ...]:
    """All stages of a tower, in the order in which a picture meets them."""
    layers = (TowerStage(1 + layer, f"picture layer {layer}", layer) for layer in range(spec.num_layers))
    return (TowerStage(0, "picture patches"), *layers, TowerStage(1 + spec.num_layers, "picture adapter"))
