"""What the scheduler needs from an engine, and what an engine says about itself.

In: nothing. Out: the `Engine` protocol, the steps it takes, and `EngineInfo`, which tells callers what to ask for.
Knows nothing about any single engine: each has its own file in this folder, and a record in `registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from edge.runtime.arrays import Hidden, Ids, Logits
from edge.runtime.engines.limits import MAX_RUNNING
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.settings import CachePrecision


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an open engine is and can do. It is never asked for anything else."""

    name: str  # in the registry
    device: str
    max_context: int  # tokens that one sequence can hold
    prefill_chunk: int  # best number of new tokens for one forward: more take more memory, and delay an interrupt
    kv_bytes_per_token: int  # all layers
    kv_precision: CachePrecision
    reproducible: bool  # the same bits whatever else is or was computed
    max_sequences: int = 1  # sequences that one `decode` computes in one pass; more of them take turns
    max_step_rows: int | None = None  # new tokens of one sequence in a decode: 1 cannot verify drafts; None: any number
    least_rows: int = 1  # rows that a decode of one token computes: more new tokens, up to so many, cost nothing
    ragged: bool = False  # whether sequences with several new tokens each share a pass, too
    logits_rows: Literal["any", "last"] = "any"  # rows of a forward whose logits are available
    can_trim: bool = True  # a sequence can continue from fewer tokens than were computed into it
    can_fork: bool = True  # tokens of one sequence can be copied or shared to start another
    can_snapshot: bool = True  # the content of blocks can be written to a file and read back
    decodes_as_it_reads: bool = False  # decoding a token leaves the same bits in the cache as reading it in a prompt
    takes_positions: bool = False  # positions of tokens may differ from their indices in the sequence
    position_rows: int = 1  # that each token may have: one, or as many as its rotary frequencies are divided among
    max_prompt: int | None = None  # tokens of the longest prompt, if it may not fill the context
    holds_last: bool = False  # what of the last sequence can be continued, only `ResumingEngine.resume` tells
    max_running: int = MAX_RUNNING  # requests at once
    embedding_size: int | None = None  # width of embeddings that may replace ids; None: only ids are accepted

    @property
    def context_told(self) -> str:
        """How long prompts and answers may be, in words."""
        if self.max_prompt is None:
            return f"{self.max_context:,} tokens of context"
        return (
            f"prompts of up to {self.max_prompt:,} tokens, read in pieces of {self.prefill_chunk:,}, and "
            f"{self.max_context:,} with the answer"
        )

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that leaves room for an answer."""
        return self.max_context - 1 if self.max_prompt is None else self.max_prompt


class Embedding(NamedTuple):
    """Rows that replace the embeddings of consecutive tokens, such as a picture's patches.

    In the checkpoint's own scale: an engine whose residual stream has another multiplies them.
    """

    start: int  # index of the first of them
    rows: Hidden  # (n, hidden_size)


class Inputs(NamedTuple):
    """What describes new tokens besides their ids, if they are more than text."""

    positions: Ids | None = None  # (n,) or (position_rows, n); None: their indices in the sequence
    embeddings: tuple[Embedding, ...] = ()  # in order; `start` is counted from the first new token

    @property
    def are_text(self) -> bool:
        """Whether the ids say everything."""
        return self.positions is None and not self.embeddings


TEXT = Inputs()


class Step(NamedTuple):
    """New tokens of one sequence in a decode step: the last one chosen, and drafts after it."""

    sequence: CacheSequence
    ids: Ids  # (n,), n >= 1
    positions: Ids | None = None  # (n,) or (position_rows, n); None: their indices in the sequence


class StepInterrupted(Exception):
    """A run was ended by `Engine.interrupt`, and nothing was committed. Never leaves the scheduler."""


class Engine(Protocol):
    """A decoder with a KV pool. `interrupt` may be called from any thread, the rest from one thread at a time.

    After an exception in `forward` or `decode`, at any line, the engine is ready for the next call.
    """

    @property
    def info(self) -> EngineInfo:
        """What this engine is and can do."""

    @property
    def pool(self) -> BlockPool:
        """Blocks of this engine's KV memory."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What keys and values in the pool depend on, besides the model.

        Engines with equal identities can exchange them byte by byte.
        """

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        """Run new tokens after those of a sequence and commit them to it: prefill.

        ids: (T,) new token ids. rows: (R,) which of the T tokens to return logits for. Returns (R, vocab) float32,
        valid until the next call. Raises CacheFullError, changing nothing, when the pool is full, and DeviceError.
        """

    def decode(self, steps: list[Step]) -> list[Logits]:
        """Run a few new tokens after those of each of several sequences and commit them.

        Returns (n, vocab) float32 for each step, a row for every new token, valid until the next call. Raises
        CacheFullError, committing nothing, when the pool is full, and DeviceError.
        """

    def interrupt(self, *, final: bool) -> None:
        """Ask a running `forward` or `decode` to end soon, with StepInterrupted; it may also complete.

        final: nothing is computed afterwards.
        """

    def close(self) -> None:
        """Free the model's memory and the KV pool; nothing may be called afterwards, except `close` again."""


@runtime_checkable
class ResumingEngine(Engine, Protocol):
    """An engine with `holds_last`: it has one context, whose tokens nobody else can see, copy or keep.

    Its pool has one block, which a running sequence takes. What is left of an earlier sequence is continued by asking
    for it before a new sequence begins.
    """

    def resume(self, most: int) -> int:
        """Keep up to the first `most` tokens of the sequence that was computed last, and return how many are kept.

        The next sequence has to begin with these, or with none. 0 forgets all of them.
        """
