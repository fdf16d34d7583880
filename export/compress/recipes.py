"""Named compression settings, and the rule for weights whose shape does not allow what a recipe asks for.

In: `recipes.toml` and a weight's name and shape. Out: a `Precision` for that weight, with a note if it differs from the
recipe. Asked by `assignment.py` alone. Knows nothing about NNCF or files.

The rule, for a (N, K) weight:
  1. norms and biases keep float32 (float16 in `fp16`);
  2. embedding and vocabulary projection get what the recipe says for them: 8 bits, one scale a row, unless chosen
     otherwise;
  3. groups have the wanted size where it divides K; else the largest power of two from 32 up to it that divides K; else
     the weight gets 8 bits with one scale a row.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from edge.export.compress.precision import FEW_BITS, Precision, Rounding, fit, stored_bytes
from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime.errors import RecipeError, shown

DEFAULT = "int4-asym-g128-awq-data-free"
# Where a bundle is for an NPU, which multiplies symmetric integers only. Of recipes that need no text it loses least:
# KLD 0.26 on the demo's model, 0.36 without scaled channels, 0.66 with a scale a row (docs/float16.md).
FOR_NPU = "int4-sym-g128-awq-data-free"
FITTED = "int4-asym-g128-awq-gptq"  # for examples; of those with text, the one that every model can have
PLAIN = "int4-asym-g128"  # rounding to nearest, as other tools do it; all that a traced graph can get of it
FOR_TOWERS = "int8-asym"  # of pictures
NO_TOWER = "none"  # in the place of a tower's recipe: the bundle gets no tower
CHOSEN = "chosen by its measured error"
# How 4-bit integers are chosen: from the weights alone, or from what calibration text gives them as input, by nncf's
# scale estimation or GPTQ, or by ours (`gptq.py`).
Method = Literal["data-free", "scale-estimation", "nncf-gptq", "gptq"]
METHODS: tuple[Method, ...] = get_args(Method)
FEWEST: Method = "gptq"  # the only one for 2 bits: nncf has none of them, and rounded to nearest they are noise
# What channels are scaled by before a block is rounded: nothing, the size of weights, or that of inputs.
Scaling = Literal["off", "weights", "inputs"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
NAMED = 3  # recipes that may have been meant, in a message
TABLES = "recipes.toml"
KEYS: Mapping[str, type] = {  # of a table
    "description": str,
    "linear": str,
    "embedding": str,
    "head": str,
    "method": str,
    "rotate": bool,
    "awq": str,
    "rank": int,
}
REQUIRED = {"description", "linear"}
EXAMPLES = {str: '"int4-asym-g128", in quotes', bool: "true", int: "16"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named compression setting."""

    name: str
    description: str
    linear: Precision
    embedding: Precision  # also of a head that is tied to it
    head: Precision
    method: Method = "data-free"
    rotate: bool = False  # the residual stream, before anything is rounded
    awq: Scaling = "off"
    rank: int = 0  # of a product that is added to each matrix of 4 bits or fewer and fitted to what it lacks; 0: none
    # Of single matrices, by canonical name, instead of all the above; they fit their shapes.
    choices: Mapping[str, Rounding] = field(default_factory=dict, hash=False)

    @property
    def calibrated(self) -> bool:
        """Whether the recipe needs calibration text."""
        return self.method != "data-free" or self.awq == "inputs" or self.rank > 0

    def with_vocabulary(self, embedding: str | None, head: str | None, *, tied: bool) -> Recipe:
        """A copy with these precisions for embedding and head. Raises RecipeError."""
        if tied and embedding is not None and head is not None and embedding != head:
            raise RecipeError(
                f"embedding {embedding} and head {head}: this model has one matrix for both; give one precision"
            )
        if tied:
            embedding = embedding or head
        chosen = replace(
            self,
            embedding=self.embedding if embedding is None else Precision.parse(embedding),
            head=self.head if head is None else Precision.parse(head),
        )
        for name, precision in (("embedding", chosen.embedding), ("head", chosen.head)):
            if precision.bits < FEW_BITS:
                raise RecipeError(f"{name} {precision}: embedding and head need {FEW_BITS} bits or more")
        return chosen

    def precision_of(self, name: str, shape: tuple[int, ...]) -> tuple[Precision, str]:
        """The precision of a weight, and why it is not that of linear layers ("" if it is). name: canonical."""
        if len(shape) == 1:
            return Precision(16 if self.linear.bits == 16 else 32), "norms and biases stay float"
        if name in self.choices:
            choice = self.choices[name]
            return choice.precision, f"{CHOSEN}, as were scaled channels" if choice.awq else CHOSEN
        if name in (EMBEDDING, HEAD):
            wanted = self.embedding if name == EMBEDDING else self.head
            found, note = fit(wanted, shape)
            return found, note or ("" if found == self.linear else "as chosen for embedding and head")
        return fit(self.linear, shape)

    def scales(self, name: str) -> bool:
        """Whether the channels of this matrix of a block may be scaled."""
        return self.choices[name].awq if name in self.choices else self.awq != "off"

    def bytes_of(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that a weight takes, including scales (float16) and zero points."""
        precision, rank = self.precision_of(name, shape)[0], self.rank_of(name, shape)
        size = stored_bytes(precision, shape)
        if rank:
            narrow = Precision(8, precision.symmetric)
            size += stored_bytes(narrow, (rank, shape[1])) + stored_bytes(narrow, (shape[0], rank))
        return size

    def rank_of(self, name: str, shape: tuple[int, ...]) -> int:
        """The rank of the product that is added to a weight; 0: none is."""
        return (
            0
            if name in (EMBEDDING, HEAD) or self.precision_of(name, shape)[0].bits > FEW_BITS
            else min(self.rank, *shape)
        )


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of the file."""
    tables = tomllib.loads((files("edge.export.compress") / TABLES).read_text(encoding="utf-8"))
    return {name: read_table(name, table) for name, table in tables.items()}


def read_table(name: str, table: object) -> Recipe:
    """A recipe from its table in recipes.toml. Raises RecipeError, which names the table and the key."""
    where = f"{TABLES}, [{name}]"
    if not isinstance(table, dict) or not table.keys() <= KEYS.keys() or not table.keys() >= REQUIRED:
        found = ", ".join(map(shown, table)) if isinstance(table, dict) else "a single value"
        raise RecipeError(
            f"{where} has {found or 'nothing'}, expected {', '.join(sorted(REQUIRED))}, and of the others only "
            f"{', '.join(sorted(KEYS.keys() - REQUIRED))}"
        )
    for key, value in table.items():
        if type(value) is not KEYS[key]:
            raise RecipeError(f"{where}: {key} is {shown(value)}, expected a value like {EXAMPLES[KEYS[key]]}")
    method, awq, rank = table.get("method", "data-free"), table.get("awq", "off"), table.get("rank", 0)
    for key, value, known in (("method", method, METHODS), ("awq", awq, SCALINGS)):
        if value not in known:
            raise RecipeError(f"{where}: {key} is {shown(value)}, expected {', '.join(known)}")
    try:
        linear = Precision.parse(table["linear"])
        if not linear.is_narrow and (method, awq, rank) != ("data-free", "off", 0):
            raise RecipeError("method, awq and rank are for linear layers of 4 bits or fewer; leave them out")
        if linear.bits < FEW_BITS and method != FEWEST:
            raise RecipeError(f"{linear} with method {method}; 2 bits must be fitted to text, use method {FEWEST}")
        if rank < 0:
            raise RecipeError(f"rank is {rank}, expected 0 or more")
        default = linear if linear.is_float else Precision(8, linear.symmetric)
        rotate = table.get("rotate", False)
        recipe = Recipe(name, table["description"], linear, default, default, method, rotate, awq, rank)
        return recipe.with_vocabulary(table.get("embedding"), table.get("head"), tied=False)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def default_for(device: str) -> str:
    """The recipe of a bundle for this kind of device, where none is named."""
    return FOR_NPU if device == "NPU" else DEFAULT


def find_recipe(name: str) -> Recipe:
    """Raises RecipeError, which names the recipes with the closest names."""
    if name not in recipes():
        close = get_close_matches(name.casefold(), recipes(), NAMED)
        meant = (
            f", did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?"
            if close
            else f", expected a name like {DEFAULT};"
        )
        raise RecipeError(f"recipe {shown(name)} is unknown{meant} `edge recipes --all` lists all {len(recipes())}")
    return recipes()[name]


def tower_recipe(name: str | None, text: Recipe | None = None) -> Recipe:
    """The recipe of a picture tower; by default 8 bits, or floats where those of the text are.

    Raises RecipeError for recipes that do more than round: text says nothing of how pictures pass.
    """
    if name is None:
        return find_recipe(text.name if text is not None and text.linear.is_float else FOR_TOWERS)
    found = find_recipe(name)
    if found.calibrated or found.rotate or found.awq != "off":
        raise RecipeError(
            f"pictures {name}: a picture tower is rounded to nearest, without text, rotation or scaled channels; "
            f"expected a recipe like {FOR_TOWERS} or {PLAIN}, or {NO_TOWER} to leave the tower out"
        )
    return found
