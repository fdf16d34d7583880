"""Calibration: tokens of real text are carried through the model while it is compressed.

In: windows of tokens, and one stage after the other. Out: the stage's weights, each rounded for the inputs that the
tokens give it. Inputs come from the compressed stages before it, so that every matrix is fitted to what it will see.
All windows go through one matrix before the next, so memory is that of one block and of the activations around one
matrix. Knows nothing about files or checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge.export.compress import twin
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.numpy_parallel import ParallelBuilder
from edge.export.tensors import Float32Array, FloatArray, Weight
from edge.export.weights.names import EMBEDDING
from edge.runtime.spec import ModelSpec

WINDOW = 512  # tokens; fewer where the model takes fewer
WINDOWS = 32


class Calibration:
    """Hidden states of all windows between two stages, float32. Set `hidden` to resume.

    They are those of the compressed model, (n, T, H), or with `twin` those of the float model followed by those of the
    compressed one, (2 n, T, H): matrices are then corrected by the difference between the two (`twin.py`).
    """

    def __init__(self, ids: npt.NDArray[np.int64], spec: ModelSpec, *, twin: bool) -> None:
        """ids: (n, T)."""
        self._ids, self._spec, self._twin = ids, spec, twin
        self.hidden: Float32Array = np.zeros((0,), np.float32)

    def embed(self, embedding: Weight, compressed: Weight) -> None:
        """Start, with the embeddings of both models."""
        models = (embedding, compressed) if self._twin else (compressed,)
        builders = [NumpyBuilder({EMBEDDING: model}, self._spec) for model in models]
        self.hidden = np.concatenate([builder.embedding(self._ids, "embed") for builder in builders])

    def block(self, layer: int, weights: Mapping[str, FloatArray], pack: twin.Round) -> dict[str, Weight]:
        """Compress a block's matrices in the order in which tokens meet them, and move on past the block."""
        if self._twin:
            twins = twin.TwinBuilder(weights, self._spec, pack)
            hidden = decoder.block(twins, self._take_hidden(), layer, self._spec)
            assert isinstance(hidden, np.ndarray), "a sum"
            self.hidden = hidden
            return twins.packed
        builder = ParallelBuilder(weights, self._spec, lambda name, x: pack(name, weights[name], x, None))
        self.hidden = decoder.block(builder, self._take_hidden(), layer, self._spec)
        return builder.packed

    def _take_hidden(self) -> Float32Array:
        """Give up the hidden states, half a gigabyte, so that they are freed as soon as the block has used them."""
        hidden, self.hidden = self.hidden, np.zeros((0,), np.float32)
        return hidden

    def last(self, weights: Mapping[str, Weight]) -> Float32Array:
        """Inputs of the head (T, H) in the compressed model, after the last block."""
        hidden = self.hidden[len(self.hidden) // 2 :] if self._twin else self.hidden
        builder = NumpyBuilder(weights, self._spec)
        return builder.rms_norm(hidden, "norm", self._spec.stream_eps).reshape(-1, self._spec.hidden_size)
