"""Engines run the decoder. `Engine` is what the scheduler needs of one; each engine has a file of its own here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import SettingsError
from edge.runtime.kv.pool import BlockPool, Sequence
from edge.runtime.machine import available_bytes
from edge.runtime.spec import ModelSpec

Precision = Literal["f32", "f16", "bf16"]
EngineName = Literal["auto", "openvino", "onnx"]
CachePrecision = Literal["f32", "f16", "bf16", "u8", "u4"]
Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is set up. None leaves the choice to the engine, which documents it."""

    engine: EngineName = "auto"  # auto: as runtime/engines/choice.py says
    device: str = "CPU"
    expected_prompt_tokens: int | None = None  # of the prompts to come, as far as they are known; for auto
    max_context: int | None = None  # tokens; None: the model's limit, as far as the KV cache allows
    kv_cache_bytes: int = 2 << 30  # hard bound of the KV pool; memory is touched only as tokens arrive
    kv_cache_share: float | None = None  # the same as a share of the memory that is free, instead of kv_cache_bytes
    inference_precision: Precision | None = None  # None: the device's own default
    kv_precision: CachePrecision | None = None  # None: 16 bits where the whole context fits, else u8 (CPU)
    dynamic_quantization_group: int | None = None  # None: the engine's rule; 0: activations stay float
    reproducible: bool | None = None  # the same bits whatever else is computed at once; None: where `LLM` speculates
    threads: int | None = None  # None: the device's own default


def context_limit(settings: EngineSettings, spec: ModelSpec) -> int:
    """Tokens of context that are asked for, the model's limit where none are. Raises SettingsError beyond it."""
    limit = spec.max_position_embeddings if settings.max_context is None else settings.max_context
    if limit < 1 or limit > spec.max_position_embeddings:
        raise SettingsError(f"max_context is {limit}, expected 1 to {spec.max_position_embeddings}, the model's limit")
    return limit


def cache_budget(settings: EngineSettings) -> int:
    """Bytes that the KV cache may take: never more than are free. Raises SettingsError for a share outside (0, 1]."""
    share, free = settings.kv_cache_share, available_bytes()
    if share is None:
        return min(settings.kv_cache_bytes, free)
    if not 0 < share <= 1:
        raise SettingsError(f"kv_cache_share is {share}, expected above 0 and at most 1, of the memory that is free")
    return int(free * share)


class Step(NamedTuple):
    """New tokens of one sequence in a decode step: the last one chosen, and drafts behind it."""

    sequence: Sequence
    ids: Ids  # (n,), n >= 1


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

    @property
    def kv_layout(self) -> Mapping[str, str]:
        """What keys and values in the pool depend on besides the model: two engines with equal layouts can exchange
        them byte by byte."""

    def forward(self, ids: Ids, sequence: Sequence, rows: Ids) -> Logits:
        """Run new tokens behind a sequence and commit them to it: prefill.

        ids: (T,) new token ids. rows: (R,) which of the T tokens to return logits for. Returns (R, vocab) float32,
        valid until the next call. Raises ContextLengthError, changing nothing, when the pool is full.
        """

    def decode(self, steps: list[Step]) -> list[Logits]:
        """Run a few new tokens behind each of several sequences and commit them.

        Returns (n, vocab) float32 for each step, a row for every new token, valid until the next call. Raises
        ContextLengthError, committing nothing, when the pool is full.
        """
