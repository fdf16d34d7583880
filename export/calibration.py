"""Calibration: tokens of real text carried through the model while it is compressed.

In: windows of tokens, and one stage after the other. Out: the stage's weights, each rounded by what the tokens give it
as input. Inputs come from the compressed stages before, so that every matrix is fitted to what it will see. All windows
go through one matrix after the other, so memory is that of one block and of the activations around one matrix. Knows
nothing about files or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edge.export import twin
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, FloatArray, Weight, rows_of
from edge.runtime.spec import ModelSpec

ROWS = 1 << 8  # of a matrix in float32 at a time
WINDOW = 512  # tokens; less where the model takes less
WINDOWS = 32
Pack = Callable[[str, Float32Array], Weight]  # a matrix's name and inputs (T, K) -> its compressed form


class Calibration:
    """Hidden states of all windows between two stages, float32. Set `hidden` to resume.

    Of the compressed model, (n, T, H), or with `twin` of the float model and then of the compressed one, (2 n, T, H):
    matrices are then corrected by what these differ in (`twin.py`).
    """

    def __init__(self, ids: npt.NDArray[np.int64], spec: ModelSpec, *, twin: bool) -> None:
        """ids: (n, T)."""
        self._ids, self._spec, self._twin = ids, spec, twin
        self.hidden: Float32Array = np.zeros((0,), np.float32)

    def embed(self, embedding: Weight, compressed: Weight) -> None:
        """Start, with the embedding of either model."""
        models = (embedding, compressed) if self._twin else (compressed,)
        builders = [NumpyBuilder({"embed.weight": model}, self._spec) for model in models]
        self.hidden = np.concatenate([builder.embedding(self._ids, "embed") for builder in builders])

    def block(self, layer: int, weights: Mapping[str, FloatArray], pack: twin.Pack) -> dict[str, Weight]:
        """Compress a block's matrices in the order in which tokens meet them, and go behind the block."""
        if self._twin:
            twins = twin.TwinBuilder(weights, self._spec, pack)
            hidden = decoder.block(twins, self._take_hidden(), layer, self._spec)
            assert isinstance(hidden, np.ndarray), "a sum"
            self.hidden = hidden
            return twins.packed
        builder = CalibratingBuilder(weights, self._spec, lambda name, x: pack(name, weights[name], x, None))
        self.hidden = decoder.block(builder, self._take_hidden(), layer, self._spec)
        return builder.packed

    def _take_hidden(self) -> Float32Array:
        """So that nobody keeps them while the block has made others of them: they are half a gigabyte."""
        hidden, self.hidden = self.hidden, np.zeros((0,), np.float32)
        return hidden

    def last(self, weights: Mapping[str, Weight]) -> Float32Array:
        """Inputs of the head (T, H) in the compressed model, behind the last block."""
        hidden = self.hidden[len(self.hidden) // 2 :] if self._twin else self.hidden
        builder = NumpyBuilder(weights, self._spec)
        return builder.rms_norm(hidden, "norm", self._spec.rms_norm_eps).reshape(-1, self._spec.hidden_size)


class CalibratingBuilder(NumpyBuilder):
    """Computes the decoder with matrices that are compressed on the way. Activations are (n, T, ...)."""

    def __init__(self, weights: Mapping[str, Weight], spec: ModelSpec, pack: Pack) -> None:
        super().__init__(weights, spec)
        self._pack = pack
        self.packed: dict[str, Weight] = {}

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        tokens = x.reshape(-1, x.shape[-1])
        weight = self.packed[f"{name}.weight"] = self._pack(f"{name}.weight", tokens)
        n = weight.shape[0]
        y = np.empty((len(tokens), n), np.float32)

        def multiply(start: int) -> None:
            y[:, start : start + ROWS] = tokens @ rows_of(weight, start, start + ROWS).T

        in_parallel(multiply, range(0, n, ROWS))
        if f"{name}.bias" in self._weights:
            y += self._vector(f"{name}.bias")
        return y.reshape(*x.shape[:-1], n)

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        return twin.by_window(lambda window: super(CalibratingBuilder, self).rms_norm(window, name, eps), x)

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        return twin.by_window(lambda window: super(CalibratingBuilder, self).attention(window, layer, spec), qkv)

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:
        return twin.by_window(lambda window: super(CalibratingBuilder, self).swiglu(window, spec), gate_up)

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:  # noqa: ARG002
        b += a  # b is nobody else's: the output of a product or of a norm
        return b
