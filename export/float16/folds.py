"""Powers of two moved between weights, so that what a device keeps in float16 stays far from its largest number.

In: a source of weights, and `Folds`. Out: weights by the same names, and the spec of the model that they make, which is
the same function: in float32, logits are equal bit for bit. Knows nothing about how folds are chosen.

    residual   what writes the residual stream (o and down, or the norms after them) times 2^-k, and rows of the
               embedding after their lookup; norms that read the stream have 2^-2k of their eps, and give what they gave
    output     o and down of models with norms after them times 2^-k, and 2^-2k of the eps of those norms
    up         the rows of up times 2^-k, down times 2^k: what is between the two is smaller
    values     the rows of v, with their bias, times 2^-k, o times 2^k
    qkv, gate_up, head   the norm before a matrix times 2^-k, and the matrix times 2^k: so are its sums over a group of
               activations times integers, which do not depend on the scale of the matrix
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edge.export.tensors import FloatArray, to_float32
from edge.export.weights.names import FINAL_NORM, HEAD, Sources
from edge.export.weights.source import WeightSource
from edge.runtime.spec import ModelSpec

Rows = tuple[slice, int]  # of a matrix or a vector, and the power of two that they are multiplied by
ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Folds:
    """Exponents k, 0 or more; those of single blocks in the order of the blocks."""

    residual: int
    output: int
    up: tuple[int, ...]
    values: tuple[int, ...]
    qkv: tuple[int, ...]
    gate_up: tuple[int, ...]
    head: int
    safe_norms: bool  # not a fold, but the other change to how the same function is computed

    @classmethod
    def none(cls, spec: ModelSpec, *, safe_norms: bool = False) -> Folds:
        """No change to any weight."""
        zeros = (0,) * spec.num_layers
        return cls(0, 0, zeros, zeros, zeros, zeros, 0, safe_norms)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Folds:  # JSON, as to_json gives it
        made: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**made)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def rows(self, name: str, spec: ModelSpec) -> list[Rows]:
        """What a weight, by its canonical name, is multiplied by; nothing for most. Later entries add to earlier."""
        if name == FINAL_NORM:
            return [(ALL, -self.head)]
        if name == HEAD:
            return [(ALL, self.head)]
        if not name.startswith("layers."):
            return []
        number, kind = name.removeprefix("layers.").split(".", 1)
        layer = int(number)
        up, values, written = self.up[layer], self.values[layer], self.output if spec.output_norms else self.residual
        v_rows, up_rows = slice(spec.q_size + spec.kv_size, None), slice(spec.intermediate_size, None)
        found: dict[str, list[Rows]] = {
            "input_norm.weight": [(ALL, -self.qkv[layer])],
            "attn.qkv.weight": [(ALL, self.qkv[layer]), (v_rows, -values)],
            "attn.qkv.bias": [(v_rows, -values)],
            "attn.o.weight": [(ALL, values - written)],
            "attn.out_norm.weight": [(ALL, -self.residual)],
            "post_norm.weight": [(ALL, -self.gate_up[layer])],
            "mlp.gate_up.weight": [(ALL, self.gate_up[layer]), (up_rows, -up)],
            "mlp.down.weight": [(ALL, up - written)],
            "mlp.out_norm.weight": [(ALL, -self.residual)],
        }
        return found.get(kind, [])

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """The spec of the folded model."""
        return replace(spec, residual_exponent=self.residual, output_exponent=self.output, safe_norms=self.safe_norms)


@dataclass(frozen=True)
class FoldedWeights:
    """Weights of the same function after these folds. Those that change are copies in float32."""

    original: WeightSource
    folds: Folds

    @cached_property
    def spec(self) -> ModelSpec:
        return self.folds.spec(self.original.spec)

    @property
    def sources(self) -> Sources:
        """Tensors of the checkpoint that each weight is made of."""
        return self.original.sources

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name."""
        weight = self.original.read(name)
        changes = [(rows, exponent) for rows, exponent in self.folds.rows(name, self.spec) if exponent]
        if not changes:
            return weight
        folded = np.array(to_float32(weight))
        for rows, exponent in changes:
            folded[rows] *= np.float32(2.0**exponent)
        return folded

    def check_finite(self, name: str) -> None:
        """As `Weights.check_finite`: a fold makes nothing infinite that is not."""
        self.original.check_finite(name)
