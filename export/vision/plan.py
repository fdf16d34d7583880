"""What an export does with a picture tower: everything that decides its bytes.

In: a checkpoint, the weights of its text model, settings. Out: a `TowerPlan`, None where the bundle gets no tower, and
the text's weights without what only pictures need. Compresses nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from edge.export.architectures.registry import describe_tower, has_tower
from edge.export.assignment import Assignments
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.compress.recipes import NO_TOWER, Recipe, tower_recipe
from edge.export.settings import ExportSettings
from edge.export.vision.assign import assign_tower
from edge.export.vision.source import RotatedTower, TowerSource
from edge.export.weights.rotation import RotatedWeights
from edge.export.weights.source import Weights, WeightSource
from edge.runtime.errors import SettingsError
from edge.runtime.vision.spec import VisionSpec


@dataclass(frozen=True)
class TowerPlan:
    """Everything that decides a tower's bytes."""

    weights: TowerSource
    recipe: Recipe
    assignments: Assignments

    @property
    def spec(self) -> VisionSpec:
        return self.weights.spec

    def choices(self) -> list[dict[str, Any]]:  # Any: JSON
        """What makes two towers of one checkpoint different."""
        return [asdict(self.spec), asdict(self.recipe)]


def without_pictures(checkpoint: Checkpoint, settings: ExportSettings, own: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The text's weights of a bundle without a tower, and that this was chosen; unchanged where it gets one.

    Raises SettingsError where a recipe for a tower is given, and there is none.
    """
    if not has_tower(checkpoint):
        if settings.pictures not in (None, NO_TOWER):
            raise SettingsError(
                f"pictures is {settings.pictures}, and {checkpoint.path} has no picture tower that is known; leave it "
                "out",
                param="pictures",
            )
        return own, ()
    if settings.pictures != NO_TOWER:
        return own, ()
    text = replace(own, spec=replace(own.spec, rope_sections=()))  # of text, all positions of a token are equal
    return text, ("the picture tower is left out; the bundle answers to text alone",)


def plan_tower(
    checkpoint: Checkpoint, settings: ExportSettings, weights: WeightSource, recipe: Recipe
) -> TowerPlan | None:
    """The tower of a bundle whose text has these weights and this recipe.

    Raises ConfigError, TensorError and RecipeError.
    """
    if settings.pictures == NO_TOWER:
        return None
    own = describe_tower(checkpoint, weights.spec)
    if own is None:
        return None
    found = tower_recipe(settings.pictures, recipe)
    source = RotatedTower(own, weights.rotation) if isinstance(weights, RotatedWeights) else own
    return TowerPlan(source, found, assign_tower(found, own.spec, onnx=settings.format != "openvino"))
