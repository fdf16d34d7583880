"""What an export is asked for, as a record: every choice except the source and where the bundle goes.

In: values as a caller gives them, from Python, the command line or JSON, checked as `edge.runtime.rules` says. Out: a
frozen record. Reads no file and knows nothing about models.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.export.compress import recipes
from edge.export.compress.precision import Precision
from edge.runtime.errors import RecipeError
from edge.runtime.rules import FilePath, Flag, Number, OneOf, Settings, Text, Whole, setting

Format = Literal["openvino", "onnx", "both"]  # of the graphs in a bundle
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMAT: Format = "both"
Device = Literal["CPU", "GPU", "NPU"]
DEVICES: tuple[Device, ...] = get_args(Device)
PRECISION = Text("a precision like int4-asym-g128")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a model. At least one of the two is given; with both, the smallest model within the KLD must fit."""

    max_bytes: float | None = None  # of all weights, scales and zero points included; graphs and tokenizer are not
    max_kld: float | None = None  # predicted, nats/token
    device: Device = "CPU"


@dataclass(frozen=True, slots=True)
class ExportSettings(Settings):
    """The choices of one export. Raises SettingsError and RecipeError for impossible ones."""

    recipe: str | None = setting(
        None, Text(f"a name like {recipes.DEFAULT}"), "a name in recipes.toml; none: the default, or a budget's choice"
    )
    _: KW_ONLY
    format: Format = setting(DEFAULT_FORMAT, OneOf(FORMATS), "the graphs in the bundle")
    embedding: str | None = setting(None, PRECISION, "precision of the embedding, instead of the recipe's")
    head: str | None = setting(None, PRECISION, "precision of the vocabulary projection, instead of the recipe's")
    pictures: str | None = setting(
        None, Text("a recipe like int8-asym, or none"), "recipe of the picture tower, or none to leave it out"
    )
    adapter: str | Path | None = setting(None, FilePath(), "the folder of a PEFT LoRA to merge into the weights")
    rope_theta: float | None = setting(
        None, Number(0, above=True, words="a number above 0, like 10000"), "rotary base, instead of the checkpoint's"
    )
    rotary_dim: int | None = setting(
        None, Whole(2, 1 << 16), "how many dims of each head rotate, instead of what the checkpoint says"
    )
    chat_template: str | Path | None = setting(
        None, FilePath(), "a file with the chat template of the bundle, instead of the checkpoint's"
    )
    calibration: str | Path | None = setting(
        None, FilePath(), "a text or .jsonl for recipes that need some; none: text that comes with Python"
    )
    max_bytes: float | None = setting(
        None, Number(1, words="a number of bytes of at least 1, like 5.2e9"), "a budget for the weights"
    )
    max_kld: float | None = setting(
        None,
        Number(0, above=True, words="a number of nats/token above 0, like 0.05"),
        "a budget for the predicted distance from the float model",
    )
    device: Device | None = setting(
        None, OneOf(DEVICES), "what the bundle is for: precisions, and folds for float16; none: the CPU"
    )
    max_memory_bytes: int | None = setting(
        None, Whole(1), "limit of all memory that this process takes and the system cannot drop; none: what is free"
    )
    force: bool = setting(False, Flag(), "replace a bundle that exists")
    fresh: bool = setting(False, Flag(), "keep nothing of an export that was stopped")

    @property
    def limits(self) -> Limits | None:
        """The budget that chooses the precisions; None if a recipe does."""
        if self.max_bytes is None and self.max_kld is None:
            return None
        return Limits(self.max_bytes, self.max_kld, self.device or "CPU")

    def check_together(self) -> None:
        """Raises RecipeError for unknown names, and for settings that exclude each other."""
        chosen = recipes.find_recipe(recipes.default_for(self.device or "CPU") if self.recipe is None else self.recipe)
        for precision in (self.embedding, self.head):
            if precision is not None:
                Precision.parse(precision)
        if self.pictures not in (None, recipes.NO_TOWER):
            recipes.tower_recipe(self.pictures)
        if self.limits is not None:
            if self.recipe is not None:
                raise RecipeError(
                    f"recipe {self.recipe} and a budget are given; a budget chooses precisions itself, give one"
                )
            return
        measured = self.device in ("GPU", "NPU")  # whose values are measured on text, whatever the recipe
        if self.calibration is not None and not chosen.calibrated and not measured:
            raise RecipeError(
                f"recipe {chosen.name} takes no calibration text; leave it out, or use a recipe that is fitted to "
                f"text, like {recipes.FITTED}"
            )
