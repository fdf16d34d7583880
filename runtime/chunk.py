"""What a reader of an answer gets: chunks while it is written; figures and the whole answer at its end.

In: nothing. Out: frozen records. Knows nothing about how an answer is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edge.runtime.errors import EdgeError
from edge.runtime.kv.loaded import PrefixMatch
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.messages import Message, ToolCall

# Of each token of a prompt. The first one is None: nothing comes before it that could make it likely.
PromptLogprobs = tuple[TokenLogprob | None, ...]
FinishReason = Literal["stop", "length", "tool_calls", "deadline", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one answer."""

    prompt_tokens: int
    cached_tokens: int  # prompt tokens that were already in the KV cache
    new_tokens: int
    ttft_ms: float  # from the request to the first token
    tpot_ms: float  # mean time per token after the first step; 0 if there was only one step
    drafted_tokens: int = 0  # by speculation
    accepted_tokens: int = 0  # those of them that were right
    preemptions: int = 0  # how often it gave up its place in a full KV cache and was continued later
    prefix: PrefixMatch | None = None  # how much of a loaded prefix the prompt began with; None if none was loaded

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 if there was only one step."""
        return 1000 / self.tpot_ms if self.tpot_ms else 0.0


class Prefill(NamedTuple):
    """How much of a long prompt has been read."""

    done: int  # tokens
    total: int


class PromptRead(NamedTuple):
    """How a prompt was read, known with the first token of its answer."""

    tokens: int
    cached_tokens: int  # of them, those that were already in the KV cache
    ms: float  # from the request to the first token


class StoppedBy(NamedTuple):
    """What ended an answer whose reason is "stop"; both fields are None if a constraint allowed nothing more."""

    token_id: int | None = None  # a stop id, of the model or of the settings; it is the answer's last id
    text: str | None = None  # a stop string, which is not shown


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool. The first has the name and no arguments; the arguments of all, joined, are JSON."""

    index: int  # of the call within the answer
    id: str  # of the call, the same in each of its pieces
    name: str = ""  # in the first piece only
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added.

    Each token comes with the step that made it. Its text may come later: it is held back while a character or a stop
    string may be incomplete. The text is empty while a long prompt is read.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token, if they were requested
    prefill: Prefill | None = None  # while a long prompt is read
    prompt_read: PromptRead | None = field(default=None, compare=False)  # set on the first chunk that has tokens only
    finish_reason: FinishReason | None = None  # set on the last chunk only
    stopped_by: StoppedBy | None = None  # set on the last chunk only, if the reason is "stop"
    stats: Stats | None = None  # set on the last chunk only
    calls: tuple[CallPiece, ...] = ()  # of tools; made by `LLM.chat`
    prompt_logprobs: PromptLogprobs = ()  # in one chunk, the first after the prompt was read, if they were requested
    reasoning: str = ""  # what a model thinks before its text; made by `LLM.chat`


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: StoppedBy | None = None
    error: EdgeError | None = None  # if finish_reason is "error"
    tool_calls: tuple[ToolCall, ...] = ()  # the last may be cut if finish_reason is not "tool_calls"
    prompt_logprobs: PromptLogprobs = ()  # empty if it ended before the prompt was read
    reasoning: str = ""  # what the model thought before its text; no part of `message`

    @property
    def message(self) -> Message:
        """The answer as a message of the conversation that it continues."""
        return Message("assistant", self.text, tool_calls=self.tool_calls)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return consecutive chunks, of which there is at least one, as one."""
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    return Chunk(
        "".join(chunk.text for chunk in chunks),
        tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        tuple(entry for chunk in chunks for entry in chunk.logprobs),
        prompt_read=next((chunk.prompt_read for chunk in chunks if chunk.prompt_read is not None), None),
        prefill=next((chunk.prefill for chunk in reversed(chunks) if chunk.prefill is not None), None),
        finish_reason=last.finish_reason,
        stopped_by=last.stopped_by,
        stats=last.stats,
        calls=tuple(piece for chunk in chunks for piece in chunk.calls),
        prompt_logprobs=tuple(entry for chunk in chunks for entry in chunk.prompt_logprobs),
        reasoning="".join(chunk.reasoning for chunk in chunks),
    )
