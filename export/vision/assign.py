"""What every weight of a picture tower gets.

In: a recipe, a VisionSpec. Out: `Assignments`. Knows nothing about checkpoints.
"""

from __future__ import annotations

from edge.export.assignment import Assignment, Assignments
from edge.export.compress.precision import Precision, fit, stored_bytes
from edge.export.compress.recipes import Recipe
from edge.export.graph.onnx.blocks import block_size
from edge.export.vision.names import LEARNED, PATCHES, canonical_shapes, stages_of
from edge.runtime.vision.spec import VisionSpec


def assign_tower(recipe: Recipe, spec: VisionSpec, *, onnx: bool) -> Assignments:
    """What a recipe gives every weight. Raises RecipeError for one that ONNX's operators cannot hold."""
    shapes = canonical_shapes(spec)
    found = Assignments(
        _assign_one(recipe, name, shapes[name], stage.name) for stage in stages_of(spec) for name in stage.own(spec)
    )
    for name, assigned in found.items() if onnx else ():
        if assigned.precision.bits == 4:
            block_size(name, assigned.precision.group_size or assigned.shape[1])
    return found


def _assign_one(recipe: Recipe, name: str, shape: tuple[int, ...], stage: str) -> Assignment:
    kept = Precision(16 if recipe.linear.bits == 16 else 32)
    if len(shape) == 1:
        precision, why = kept, "norms and biases stay float"
    elif name in LEARNED:
        precision, why = kept, "learned rows stay float"
    elif name == PATCHES and recipe.linear.bits == 4:
        precision, why = Precision(8, recipe.linear.symmetric), f"width {shape[1]} has no groups that engines take"
    else:
        precision, why = fit(recipe.linear, shape)
    return Assignment(name, stage, shape, precision, 0, "off", stored_bytes(precision, shape), why)
