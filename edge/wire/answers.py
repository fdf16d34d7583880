"""Answers of the runtime as the bodies that the protocol has for them.

In: `Answer`s, one for each choice, and the head of the body: id, time, model. Out: JSON objects. Knows nothing about
who asked, or about streams.

A finish reason is one of stop, length and tool_calls, as clients know no others. An answer that its deadline ended says
length, and beside it `"edge": {"finish_reason": "deadline"}`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.runtime.chunk import Answer, Chunk, FinishReason, Stats
from edge.runtime.messages import ToolCall
from edge.runtime.thinking import CLOSING
from edge.runtime.tokenizer import Tokenizer
from edge.wire.errors import TOO_LATE, RequestError
from edge.wire.logprobs import chat_logprobs, shown_entries
from edge.wire.old_logprobs import Echo, OldLists, joined_lists

JsonBody = dict[str, Any]  # Any: JSON
WireReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Head:
    """What a body begins with."""

    id: str
    created: int  # seconds since 1970
    model: str
    fingerprint: str | None = None  # of everything that decides an answer, besides the request
    measured: bool = False  # whether to tell what depends on other requests and on time: cached tokens, speeds
    dropped_messages: int = 0  # for which the context had no room


def chat_completion(
    head: Head, answers: Sequence[Answer], tokenizer: Tokenizer, *, logprobs: bool, token_ids: bool = False
) -> JsonBody:
    """Return the body that answers a `ChatRequest`. Raises RequestError if a deadline left nothing to send."""
    _check_in_time(answers)
    choices = [
        {
            "index": index,
            "message": message_of(answer),
            "logprobs": chat_logprobs(shown_entries(answer, tokenizer), tokenizer) if logprobs else None,
            **ending(answer.finish_reason),
            **({"token_ids": list(answer.token_ids)} if token_ids else {}),
        }
        for index, answer in enumerate(answers)
    ]
    thought = sum(thought_tokens(answer.token_ids, tokenizer) for answer in answers if answer.reasoning)
    return whole_body("chat.completion", head, choices, answers, thought=thought)


def text_completion(
    head: Head,
    answers: Sequence[Answer],
    tokenizer: Tokenizer,
    *,
    echoed: Sequence[Echo] = (),
    logprobs: bool = False,
    num_prompts: int = 1,
    token_ids: bool = False,
) -> JsonBody:
    """Return the body that answers a `CompletionRequest`; errors as in `chat_completion`.

    echoed: what each choice begins with. num_prompts: how many prompts the choices belong to, in equal parts.
    """
    _check_in_time(answers)
    choices = [
        {
            "index": index,
            "text": (echoed[index].text if echoed else "") + answer.text,
            "logprobs": _old_logprobs(answer, tokenizer, echoed[index] if echoed else None) if logprobs else None,
            **ending(answer.finish_reason),
            **({"token_ids": list(answer.token_ids)} if token_ids else {}),
        }
        for index, answer in enumerate(answers)
    ]
    return whole_body("text_completion", head, choices, answers, num_prompts)


def _old_logprobs(answer: Answer, tokenizer: Tokenizer, echo: Echo | None) -> JsonBody:
    lists, entries = OldLists(tokenizer), shown_entries(answer, tokenizer, with_stop_id=True)
    if echo is None:
        return lists.answer(entries)
    return joined_lists(lists.prompt(echo, answer.prompt_logprobs), lists.answer(entries))


def message_of(answer: Answer) -> JsonBody:
    """Return an answer as a message: its content is null if there are only calls."""
    message: JsonBody = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message |= {"content": answer.text or None, "tool_calls": [call_of(call) for call in answer.tool_calls]}
    return message


def call_of(call: ToolCall) -> JsonBody:
    """Return a call of a tool."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def thought_tokens(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Return how many tokens of an answer that began with thoughts are thoughts, the tags around them included."""
    end = tokenizer.token_id(CLOSING)
    return ids.index(end) + 1 if end in ids else len(ids)


def usage(stats: Sequence[Stats | None], num_prompts: int = 1, *, measured: bool = False, thought: int = 0) -> JsonBody:
    """Return how many tokens were read and written; each prompt counts once, however many answers it got.

    measured: with how many of the prompts' tokens were in the cache already. thought: tokens that are thoughts.
    """
    known = [found for found in stats if found is not None]
    each = max(len(stats) // num_prompts, 1)
    read = sum(found.prompt_tokens for found in known[::each])
    written = sum(found.new_tokens for found in known)
    told: JsonBody = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    if measured:
        prompts = [known[i : i + each] for i in range(0, len(known), each)]
        cached = sum(min(found.cached_tokens for found in prompt) for prompt in prompts)
        told["prompt_tokens_details"] = {"cached_tokens": cached}
    if thought:
        told["completion_tokens_details"] = {"reasoning_tokens": thought}
    return told


def timings(stats: Stats) -> JsonBody:
    """Return the figures of an answer under llama.cpp's names."""
    predicted_ms = stats.tpot_ms * max(stats.new_tokens - 1, 0)
    return {
        "prompt_n": stats.prompt_tokens - stats.cached_tokens,
        "cache_n": stats.cached_tokens,
        "prompt_ms": round(stats.ttft_ms, 3),
        "predicted_n": stats.new_tokens,
        "predicted_ms": round(predicted_ms, 3),
        "predicted_per_second": round(stats.tokens_per_second, 3),
        "draft_n": stats.drafted_tokens,
        "draft_n_accepted": stats.accepted_tokens,
    }


class LiveTimes:
    """Figures of an answer that is not finished, under the same names."""

    def __init__(self) -> None:
        self._first: float | None = None  # when its first tokens came
        self._count, self._later = 0, 0  # of all tokens, and of those after the first
        self._prompt: JsonBody = {}

    def push(self, chunk: Chunk) -> JsonBody:
        """Count tokens that came now, and return the figures; empty before the first."""
        now, num_tokens = time.perf_counter(), len(chunk.token_ids)
        self._count += num_tokens
        if (read := chunk.prompt_read) is not None:
            self._prompt = {
                "prompt_n": read.tokens - read.cached_tokens,
                "cache_n": read.cached_tokens,
                "prompt_ms": round(read.ms, 3),
            }
        if self._first is None:
            if not num_tokens:
                return {}
            self._first = now
        else:
            self._later += num_tokens
        ms = (now - self._first) * 1000
        speed = self._later * 1000 / ms if ms else 0.0
        written = {"predicted_n": self._count, "predicted_ms": round(ms, 3), "predicted_per_second": round(speed, 3)}
        return {**self._prompt, **written}


def whole_body(
    kind: str, head: Head, choices: list[JsonBody], answers: Sequence[Answer], num_prompts: int = 1, thought: int = 0
) -> JsonBody:
    """Return the body of a whole answer around its choices."""
    stats = [answer.stats for answer in answers]
    body = {
        **beginning(kind, head),
        "choices": choices,
        "usage": usage(stats, num_prompts, measured=head.measured, thought=thought),
        "system_fingerprint": head.fingerprint,
    }
    if head.measured:
        body["service_tier"] = "default"
        if len(stats) == 1 and stats[0] is not None:
            body["timings"] = timings(stats[0])
    if head.dropped_messages:
        body["edge"] = {"dropped_messages": head.dropped_messages}
    return body


def beginning(kind: str, head: Head) -> JsonBody:
    """Return what every body of an answer begins with."""
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


def _check_in_time(answers: Sequence[Answer]) -> None:
    if all(answer.finish_reason == "deadline" and not answer.token_ids for answer in answers):
        raise nothing_in_time()


def nothing_in_time() -> RequestError:
    """Return the error for a deadline that left no token to send."""
    return RequestError(
        "the deadline passed before the first token; allow more time", code="deadline_exceeded", status=TOO_LATE
    )


def ending(reason: FinishReason) -> JsonBody:
    """Return how a choice ended, in reasons that clients know."""
    if reason == "deadline":
        return {"finish_reason": "length", "edge": {"finish_reason": "deadline"}}
    return {"finish_reason": wire_reason(reason)}


def wire_reason(reason: FinishReason) -> WireReason:
    """Return the finish reason in the protocol's words."""
    return reason if reason in ("stop", "tool_calls") else "length"
