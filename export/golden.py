"""Proof that what export wrote is the model it read: the same tokens through float and compressed blocks.

In: one decoder block at a time, float and compressed. Out: golden logits of both, and how far apart they are. Memory is
that of one block, whatever the model's size. Knows nothing about files.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from edge.export.graph.openvino import block_model, embedding_model, head_model
from edge.export.tensors import Weight
from edge.runtime.errors import VerificationError
from edge.runtime.spec import ModelSpec
from edge.runtime.verify import Logits, kl_divergence

GOLDEN_TEXT = "The capital of France is Paris. 法国的首都是巴黎。 def f(x): return x + 1"
GOLDEN_ROWS = 4  # rows of logits kept: the last ones, which have seen the most


@dataclass(frozen=True)
class Golden:
    """What a bundle carries to be checked by on any machine."""

    ids: npt.NDArray[np.int64]  # (T,)
    float_logits: Logits  # (GOLDEN_ROWS, vocab), of the checkpoint in float32
    logits: Logits  # (GOLDEN_ROWS, vocab), of the compressed weights in float32

    def write(self, path: Path) -> None:
        """An .npz as numpy writes it, but without the time of writing: same golden, same bytes."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self.ids,
            "float_logits": self.float_logits,
            "logits": self.logits,
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)

    @property
    def kld(self) -> float:
        """Mean KL divergence of the compressed model from the float one, nats/token."""
        return kl_divergence(self.float_logits, self.logits)


class GoldenRun:
    """Carries hidden states of the golden tokens through both models, block by block."""

    def __init__(self, ids: list[int], spec: ModelSpec) -> None:
        self._ids = np.array(ids, np.int64)
        self._spec = spec
        self._positions = np.arange(len(ids), dtype=np.int64)[None]
        self._core = ov.Core()
        self._float = self._packed = np.empty((1, len(ids), spec.hidden_size), np.float32)

    def embed(self, weights: Mapping[str, Weight], packed: Mapping[str, Weight]) -> None:
        """Start: token ids to hidden states."""
        self._float = self._run(embedding_model(weights), self._ids[None])
        self._packed = self._run(embedding_model(packed), self._ids[None])

    def block(self, layer: int, weights: Mapping[str, Weight], packed: Mapping[str, Weight]) -> None:
        """Run one block. Raises VerificationError when its output is not finite."""
        self._float = self._run(block_model(weights, layer, self._spec), self._float, self._positions)
        self._packed = self._run(block_model(packed, layer, self._spec), self._packed, self._positions)
        if not np.isfinite(self._packed).all():
            raise VerificationError(f"block {layer} of the compressed model gives NaN or infinity; try another recipe")

    def head(self, weights: Mapping[str, Weight], packed: Mapping[str, Weight]) -> Golden:
        """Finish: hidden states to logits of the last rows."""
        rows = slice(-GOLDEN_ROWS, None)
        return Golden(
            self._ids,
            self._run(head_model(weights, self._spec), self._float[:, rows])[0],
            self._run(head_model(packed, self._spec), self._packed[:, rows])[0],
        )

    def _run(self, model: ov.Model, *inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """One exact forward: float32 activations, no dynamic quantization."""
        config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        compiled = self._core.compile_model(model, "CPU", config)
        return np.array(compiled(list(inputs))[0], np.float32)
