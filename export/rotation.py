"""A checkpoint turned into another one of the same function whose weights are easier to round.

In: `Weights`. Out: weights by the same names, where the residual stream is seen through one orthogonal matrix Q: what
writes to it (embedding, attention and MLP outputs) is multiplied by Q, what reads from it by its transpose, so that
nothing changes but the basis. Outliers are spread over all channels, which suits rounding that makes up for its errors
(Ashkboos et al., QuaRot, arXiv 2404.00456; Liu et al., SpinQuant, arXiv 2405.16406). It costs nothing at run time.
Norms must not scale channels for this, so their weights move into the matrices behind them, and a tied head into one of
its own. Knows nothing about recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edge.export.checkpoint import Checkpoint
from edge.export.names import Sources, Weights
from edge.export.recipes import EMBEDDING, HEAD
from edge.export.tensors import Float32Array, FloatArray, to_float32
from edge.runtime.errors import RecipeError
from edge.runtime.spec import ModelSpec

SEED = 20_240_405
ROWS = 1 << 13  # of a vocabulary matrix in float32 at a time
READERS = {"attn.qkv.weight": "input_norm.weight", "mlp.gate_up.weight": "post_norm.weight"}  # and the norm before
WRITERS = ("attn.o.weight", "mlp.down.weight")


@dataclass(frozen=True)
class RotatedWeights:
    """`Weights` in another basis, in float32. Raises RecipeError for a model whose norms stand in the way."""

    original: Weights

    def __post_init__(self) -> None:
        if self.original.spec.output_norms:
            raise RecipeError(
                f"{self.original.spec.architecture} has norms behind attention and MLP, which no rotation passes; "
                "use the -gptq recipe instead of -rot-gptq"
            )

    @property
    def checkpoint(self) -> Checkpoint:
        return self.original.checkpoint

    @cached_property
    def spec(self) -> ModelSpec:
        """With a head of its own."""
        return replace(self.original.spec, tied_embeddings=False)

    @cached_property
    def sources(self) -> Sources:
        """Tensors of the checkpoint that each weight is made of."""
        found: Mapping[str, tuple[str, ...]] = self.original.sources
        return {HEAD: found[EMBEDDING], **found}

    @cached_property
    def matrix(self) -> Float32Array:
        """Q, (H, H)."""
        return orthogonal(self.spec.hidden_size)

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name."""
        kind = name.split(".", 2)[-1] if name.startswith("layers.") else name
        if kind in (EMBEDDING, HEAD):
            tied = self.original.spec.tied_embeddings
            matrix = self.original.read(EMBEDDING if tied else name)
            return self._rotate_rows(matrix, "norm.weight" if kind == HEAD else None)
        if kind in READERS:
            return self._rotate_rows(self.original.read(name), name.replace(kind, READERS[kind]))
        if kind in WRITERS:
            written: Float32Array = self.matrix.T @ to_float32(self.original.read(name))
            return written
        if kind in (*READERS.values(), "norm.weight"):
            return np.ones(self.spec.hidden_size, np.float32)
        return self.original.read(name)

    def check_finite(self, name: str) -> None:
        """As `Weights.check_finite`, of what the weight is made of."""
        self.original.check_finite(EMBEDDING if name == HEAD and self.original.spec.tied_embeddings else name)

    def _rotate_rows(self, matrix: FloatArray, norm: str | None) -> Float32Array:
        turn = self.matrix
        if norm is not None:
            turn = to_float32(self.original.read(norm))[:, None] * turn
        rotated = np.empty(matrix.shape, np.float32)
        for start in range(0, len(matrix), ROWS):
            np.matmul(to_float32(matrix[start : start + ROWS]), turn, out=rotated[start : start + ROWS])
        return rotated


def orthogonal(size: int) -> Float32Array:
    """A random orthogonal matrix (size, size), the same every time: a Hadamard matrix with random signs, as large as
    its power of two divides the size, times a random rotation of what is left."""
    rng = np.random.default_rng(SEED)
    power = size & -size
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]]) / np.sqrt(2)
    rest, upper = np.linalg.qr(rng.standard_normal((size // power, size // power)))
    rest *= np.sign(np.diagonal(upper))
    signs = rng.choice([-1.0, 1.0], size)
    turned: Float32Array = (np.kron(rest, hadamard) * signs[:, None]).astype(np.float32)
    return turned
