"""What an export is asked for, as a record: every choice but the source and where the bundle goes.

In: values as a caller gives them, from Python, the command line or JSON. Out: a frozen record whose fields have been
checked, each by one of the rules at the end, all of which complain in one form: "NAME is VALUE, expected ...". None
for a setting that has a default means the default. Reads no file and knows nothing about models.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, get_args

from edge.export import recipes
from edge.export.recipes import Precision
from edge.runtime.errors import RecipeError, SettingsError

Format = Literal["openvino", "onnx", "both"]  # of the graphs in a bundle
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMAT: Format = "both"
Device = Literal["CPU", "GPU", "NPU"]
DEVICES: tuple[Device, ...] = get_args(Device)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may be. At least one of the two is given; with both, the smallest within the KLD must fit."""

    max_bytes: float | None = None  # of all weights, scales and zero points included; graphs and tokenizer are not
    max_kld: float | None = None  # predicted, nats/token
    device: Device = "CPU"


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """The choices of one export. Raises SettingsError and RecipeError for those that cannot be."""

    recipe: str | None = None  # a name in recipes.toml; None: the default one, or what a budget chooses
    _: KW_ONLY
    format: Format = DEFAULT_FORMAT
    embedding: str | None = None  # precision, instead of the recipe's
    head: str | None = None
    adapter: str | Path | None = None  # folder of a PEFT LoRA
    rope_theta: float | None = None  # instead of the checkpoint's
    calibration: str | Path | None = None  # .txt, .jsonl or any text; None: text that comes with Python
    max_bytes: float | None = None  # of weights
    max_kld: float | None = None  # predicted, nats/token
    device: Device | None = None  # what a budget chooses precisions for; None: the CPU
    force: bool = False  # replace a bundle that is there

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                object.__setattr__(self, field.name, field.default)
        check_text("recipe", self.recipe, f"a name like {recipes.DEFAULT}")
        check_choice("format", self.format, FORMATS)
        for name in ("embedding", "head"):
            check_text(name, getattr(self, name), "a precision like int4-asym-g128")
        for name in ("adapter", "calibration"):
            check_path(name, getattr(self, name))
        check_number("rope_theta", self.rope_theta, "a number above 0, like 10000", above=0)
        check_number("max_bytes", self.max_bytes, "a number of bytes of at least 1, like 5.2e9", least=1)
        check_number("max_kld", self.max_kld, "a number of nats/token above 0, like 0.05", above=0)
        check_choice("device", self.device, DEVICES)
        check_flag("force", self.force)
        self._check_together()

    @property
    def limits(self) -> Limits | None:
        """The budget that is to choose the precisions; None where a recipe does."""
        if self.max_bytes is None and self.max_kld is None:
            return None
        return Limits(self.max_bytes, self.max_kld, self.device or "CPU")

    def _check_together(self) -> None:
        """Raises RecipeError for names that nobody knows, and for settings that exclude each other."""
        chosen = recipes.find_recipe(recipes.DEFAULT if self.recipe is None else self.recipe)
        for precision in (self.embedding, self.head):
            if precision is not None:
                Precision.parse(precision)
        if self.limits is not None:
            if self.recipe is not None:
                raise RecipeError(
                    f"recipe {self.recipe} and a budget are given; a budget chooses precisions itself, give one"
                )
            return
        if self.device is not None:
            raise RecipeError(f"device {self.device} is given without a budget; give max_bytes or max_kld as well")
        if self.calibration is not None and not chosen.calibrated:
            fitting = ", ".join(name for name, other in recipes.recipes().items() if other.calibrated)
            raise RecipeError(f"recipe {chosen.name} takes no calibration text; leave it out, or use one of {fitting}")


def check_text(name: str, value: Any, expected: str) -> None:
    """None, or text."""
    if value is not None and not (isinstance(value, str) and value):
        raise refusal(name, value, expected)


def check_path(name: str, value: Any, expected: str = "a path") -> None:
    """None, or something that can name a file."""
    if value is None:
        return
    path = fspath(value) if isinstance(value, str | PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise refusal(name, value, expected)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """None, or one of some words."""
    if value is not None and not (isinstance(value, str) and value in choices):
        raise refusal(name, value, f"{', '.join(choices[:-1])} or {choices[-1]}")


def check_number(name: str, value: Any, expected: str, *, least: float = -math.inf, above: float = -math.inf) -> None:
    """None, or a finite number; True and False are none."""
    if value is None:
        return
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= least and number > above):
        raise refusal(name, value, expected)


def check_flag(name: str, value: Any) -> None:
    """True or False, and nothing that would only pass for one."""
    if not isinstance(value, bool):
        raise refusal(name, value, "True or False")


def refusal(name: str, value: Any, expected: str) -> SettingsError:
    """The one form of complaint."""
    shown = repr(value)
    return SettingsError(f"{name} is {shown if len(shown) <= 80 else shown[:77] + '...'}, expected {expected}")
