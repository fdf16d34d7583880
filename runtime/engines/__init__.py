"""Engines run the decoder. `Engine` is what the generator needs of one; each engine has a file of its own here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import SettingsError
from edge.runtime.kv.pool import BlockPool, Sequence
from edge.runtime.spec import ModelSpec

Precision = Literal["f32", "f16", "bf16"]
EngineName = Literal["auto", "openvino", "onnx"]
CachePrecision = Literal["f32", "f16", "bf16", "u8", "u4"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is set up. None leaves the choice to the engine, which documents it."""

    engine: EngineName = "auto"  # auto: as runtime/engines/choice.py says
    device: str = "CPU"
    expected_prompt_tokens: int | None = None  # of the prompts to come, as far as they are known; for auto
    max_context: int | None = None  # tokens; None: the model's limit, as far as kv_cache_bytes allows
    kv_cache_bytes: int = 2 << 30  # hard bound of the KV pool; memory is touched only as tokens arrive
    inference_precision: Precision | None = None  # None: the device's own default
    kv_precision: CachePrecision | None = None  # None: 16 bits where the whole context fits, else u8 (CPU)
    dynamic_quantization_group: int | None = None  # None: the engine's rule; 0: activations stay float
    threads: int | None = None  # None: the device's own default


def context_limit(settings: EngineSettings, spec: ModelSpec) -> int:
    """Tokens of context that are asked for, the model's limit where none are. Raises SettingsError beyond it."""
    limit = spec.max_position_embeddings if settings.max_context is None else settings.max_context
    if limit < 1 or limit > spec.max_position_embeddings:
        raise SettingsError(f"max_context is {limit}, expected 1 to {spec.max_position_embeddings}, the model's limit")
    return limit


class Engine(Protocol):
    """A decoder with a KV pool."""

    @property
    def name(self) -> EngineName:
        """What `EngineSettings.engine` calls it."""

    @property
    def pool(self) -> BlockPool:
        """Blocks of this engine's KV memory."""

    @property
    def max_context(self) -> int:
        """Tokens that one sequence can hold."""

    @property
    def prefill_chunk(self) -> int:
        """New tokens that one forward takes well: more only take more memory, and an interrupt longer."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV memory one token takes, all layers."""

    def forward(
        self, ids: npt.NDArray[np.int64], sequence: Sequence, rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Run new tokens behind a sequence and commit them to it.

        ids: (T,) new token ids. rows: (R,) which of the T tokens to return logits for. Returns (R, vocab) float32,
        valid until the next call. Raises ContextLengthError, changing nothing, when the pool is full.
        """
