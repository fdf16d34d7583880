"""A checkpoint turned into another one of the same function whose weights are easier to round.

In: `Weights`. Out: weights by the same names, where the residual stream is seen through one orthogonal matrix Q: what
writes to it (embedding, attention and MLP outputs) is multiplied by Q, what reads from it by its transpose, so that
nothing changes but the basis. Outliers are spread over all channels, which suits rounding that makes up for its errors
(Ashkboos et al., QuaRot, arXiv 2404.00456; Liu et al., SpinQuant, arXiv 2405.16406). It costs nothing at run time.
Norms must not scale channels for this, so their weights move into the matrices after them, and a tied head into one of
its own. Knows nothing about recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.tensors import Float32Array, FloatArray, to_float32
from edge.export.weights.names import EMBEDDING, FINAL_NORM, HEAD, Sources
from edge.export.weights.source import Weights
from edge.runtime.errors import RecipeError
from edge.runtime.spec import ModelSpec

Float64Array = npt.NDArray[np.float64]

SEED = 20_240_405
ROWS = 1 << 10  # of a matrix in float32 at a time
READERS = {"attn.qkv.weight": "input_norm.weight", "mlp.gate_up.weight": "post_norm.weight"}  # and the norm before
WRITERS = ("attn.o.weight", "mlp.down.weight")


def is_rotatable(spec: ModelSpec) -> bool:
    """Whether a model's residual stream can be rotated: norms after attention and MLP prevent it."""
    return not spec.output_norms


def rotated_spec(spec: ModelSpec) -> ModelSpec:
    """The spec of a rotated model, which has a head of its own."""
    return replace(spec, tied_embeddings=False)


@dataclass(frozen=True)
class RotatedWeights:
    """`Weights` in another basis, in float32. Raises RecipeError for a model whose norms prevent it."""

    original: Weights

    def __post_init__(self) -> None:
        if not is_rotatable(self.original.spec):
            raise RecipeError(
                f"{self.original.spec.architecture} has norms after attention and MLP, which a rotation cannot pass; "
                "use -awq-gptq instead of -rot-gptq"
            )

    @property
    def checkpoint(self) -> Checkpoint:
        return self.original.checkpoint

    @cached_property
    def spec(self) -> ModelSpec:
        return rotated_spec(self.original.spec)

    @cached_property
    def sources(self) -> Sources:
        """Tensors of the checkpoint that each weight is made of."""
        found: Mapping[str, tuple[str, ...]] = self.original.sources
        return {HEAD: found[EMBEDDING], **found}

    @cached_property
    def rotation(self) -> Rotation:
        """The rotation of the residual stream."""
        return Rotation(self.spec.hidden_size)

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name."""
        kind = name.split(".", 2)[-1] if name.startswith("layers.") else name
        if kind in (EMBEDDING, HEAD):
            tied = self.original.spec.tied_embeddings
            matrix = self.original.read(EMBEDDING if tied else name)
            return self._rotate_rows(matrix, FINAL_NORM if kind == HEAD else None)
        if kind in READERS:
            return self._rotate_rows(self.original.read(name), name.replace(kind, READERS[kind]))
        if kind in WRITERS:
            columns = np.ascontiguousarray(to_float32(self.original.read(name)).T)
            return np.ascontiguousarray(self.rotation.apply(columns).T)
        if kind in (*READERS.values(), FINAL_NORM):
            return np.ones(self.spec.hidden_size, np.float32)
        return self.original.read(name)

    def check_finite(self, name: str) -> None:
        """As `Weights.check_finite`, of what the weight is made of."""
        self.original.check_finite(EMBEDDING if name == HEAD and self.original.spec.tied_embeddings else name)

    def _rotate_rows(self, matrix: FloatArray, norm: str | None) -> Float32Array:
        scale = np.float32(1) if norm is None else to_float32(self.original.read(norm))
        rotated = np.empty(matrix.shape, np.float32)
        for start in range(0, len(matrix), ROWS):
            rotated[start : start + ROWS] = self.rotation.apply(to_float32(matrix[start : start + ROWS]) * scale)
        return rotated


class Rotation:
    """A random orthogonal matrix Q (size, size), the same every time, as a product of small ones.

    A Hadamard matrix as large as its power of two divides the size, times a random rotation of what is left, with
    random signs before them: Q = signs (R x H x H), whose factors are applied one after the other.
    """

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(SEED)
        power = size & -size
        bits = power.bit_length() - 1
        rest, upper = np.linalg.qr(rng.standard_normal((size // power, size // power)))
        rest *= np.sign(np.diagonal(upper))
        factors = (rest, _hadamard(bits - bits // 2), _hadamard(bits // 2))
        self._factors: list[Float32Array] = [factor.astype(np.float32) for factor in factors if len(factor) > 1]
        self._signs: Float32Array = rng.choice([-1.0, 1.0], size).astype(np.float32)

    def apply(self, rows: Float32Array) -> Float32Array:
        """Rows (n, size) times Q."""
        n, size = rows.shape
        turned: Float32Array = rows * self._signs
        right = size
        for factor in self._factors:
            right //= len(factor)
            turned = np.matmul(factor.T, turned.reshape(-1, len(factor), right))
        return turned.reshape(n, size)


def _hadamard(bits: int) -> Float64Array:
    """(2^bits, 2^bits), orthogonal."""
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    return matrix
