"""An engine in one file: the example of docs/add-an-engine.md, which holds this text word for word.

The model is a toy: a token's vector is its key and value, and logits come from the mean of all vectors so far, less the
newest. What is real is everything around it: the pool, the block tables, and the order of reserve, write, compute and
commit.
"""

from __future__ import annotations

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import Bundle
from edge.runtime.engines.engine import TEXT, EngineInfo, Inputs, Step
from edge.runtime.engines.limits import cache_budget, context_limit
from edge.runtime.engines.registry import Device, EngineRecord
from edge.runtime.kv.memory import NoMemory, PagedMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.settings import EngineSettings

BLOCK = 16  # tokens
WIDTH = 8  # float32 values that a token leaves in the cache


class MeanEngine:
    """The `Engine` protocol over numpy."""

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        spec = bundle.manifest.spec
        context = context_limit(settings, spec)  # raises SettingsError beyond the model's own
        block_bytes = BLOCK * WIDTH * 4
        num_blocks = max(min(cache_budget(settings) // block_bytes, 4096), 1)
        memory = PagedMemory(num_blocks, [block_bytes])  # untouched memory: pages come as tokens arrive
        self._cells = memory.buffers[0].view(np.float32).reshape(num_blocks, BLOCK, WIDTH)
        self._vectors = np.random.default_rng(0).standard_normal((spec.vocab_size, WIDTH), np.float32)
        self.pool = BlockPool(num_blocks, BLOCK, memory)
        self.info = EngineInfo(
            name="mean",
            device="CPU",
            max_context=min(context, num_blocks * BLOCK),
            prefill_chunk=256,
            kv_bytes_per_token=WIDTH * 4,
            kv_precision="f32",
            reproducible=True,  # a row of logits depends on its own tokens alone
            max_sequences=64,
            ragged=True,
            decodes_as_it_reads=True,
        )
        self.identity = {"engine": "mean", "reproducible": "True", "kv precision": "f32"}  # of prefix files

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert inputs.are_text, "info says nothing of positions or embeddings"
        self._write(ids, sequence)
        logits = self._logits(sequence, sequence.num_tokens + rows + 1)
        sequence.commit(ids.size)  # last: whatever failed before has changed nothing
        return logits

    def decode(self, steps: list[Step]) -> list[Logits]:
        for sequence, ids, _ in steps:
            self._write(ids, sequence)
        found = [self._logits(step.sequence, step.sequence.num_tokens + 1 + np.arange(step.ids.size)) for step in steps]
        for sequence, ids, _ in steps:
            sequence.commit(ids.size)
        return found

    def interrupt(self, *, final: bool) -> None:
        """Steps are too short to be worth ending."""

    def close(self) -> None:
        self._cells = np.zeros((0, BLOCK, WIDTH), np.float32)
        self.pool.memory = NoMemory()

    def _write(self, ids: Ids, sequence: CacheSequence) -> None:
        """Put new tokens after those of a sequence, in its own blocks. Raises CacheFullError, changing nothing."""
        sequence.reserve(ids.size)
        places = sequence.num_tokens + np.arange(ids.size)
        blocks = np.array(sequence.block_table)[places // BLOCK]
        self._cells[blocks, places % BLOCK] = self._vectors[ids]

    def _logits(self, sequence: CacheSequence, lengths: Ids) -> Logits:
        """(len(lengths), vocab) after the first so many tokens of a sequence, read from its blocks."""
        held = self._cells[sequence.block_table].reshape(-1, WIDTH)
        queries = np.stack([held[:length].mean(axis=0) - held[length - 1] for length in lengths])
        logits: Logits = (queries[:, None, :] * self._vectors).sum(axis=2)  # rounds one row like many
        return logits


RECORD = EngineRecord(
    name="mean",
    package="numpy",
    extra="onnx",
    graph="manifest",
    bundle_format="onnx",
    families=("CPU",),
    kv_precisions=("f32",),
    reads_links=True,
    holds=lambda bundle: True,
    weights=lambda bundle: [],  # the toy reads none; a real engine names its files, which are then checked
    open=MeanEngine,
    devices=lambda: [Device("CPU", "any processor")],
)
