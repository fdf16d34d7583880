"""Answers of the runtime as the bodies that the protocol has for them.

In: `Answer`s, one for each choice, and the head of the body: id, time, model. Out: JSON objects. Knows nothing about
who asked, or about streams.

A finish reason is one of stop, length and tool_calls, as clients know no others. An answer that its deadline ended says
length, and beside it `"edge": {"finish_reason": "deadline"}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.runtime.chunk import Answer
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.messages import ToolCall
from edge.runtime.tokenizer import Tokenizer
from edge.wire.errors import TOO_LATE, RequestError

JsonBody = dict[str, Any]  # Any: JSON
WireReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Head:
    """What a body begins with."""

    id: str
    created: int  # seconds since 1970
    model: str
    fingerprint: str | None = None  # of everything that decides an answer, besides the request


def chat_completion(
    head: Head, answers: Sequence[Answer], tokenizer: Tokenizer, *, logprobs: bool, token_ids: bool = False
) -> JsonBody:
    """Return the body that answers a `ChatRequest`. Raises RequestError if a deadline left nothing to send."""
    _check_in_time(answers)
    choices = [
        {
            "index": index,
            "message": message_of(answer),
            "logprobs": _logprobs(answer, tokenizer) if logprobs else None,
            **_ending(answer),
            **({"token_ids": list(answer.token_ids)} if token_ids else {}),
        }
        for index, answer in enumerate(answers)
    ]
    return _body("chat.completion", head, choices, usage(answers))


def text_completion(
    head: Head,
    answers: Sequence[Answer],
    tokenizer: Tokenizer,
    *,
    echoed: Sequence[str] = (),
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
            "text": (echoed[index] if echoed else "") + answer.text,
            "logprobs": _old_logprobs(answer, tokenizer) if logprobs else None,
            **_ending(answer),
            **({"token_ids": list(answer.token_ids)} if token_ids else {}),
        }
        for index, answer in enumerate(answers)
    ]
    return _body("text_completion", head, choices, usage(answers, num_prompts))


def message_of(answer: Answer) -> JsonBody:
    """Return an answer as a message: its content is null if there are only calls."""
    message: JsonBody = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message |= {"content": answer.text or None, "tool_calls": [call_of(call) for call in answer.tool_calls]}
    return message


def call_of(call: ToolCall) -> JsonBody:
    """Return a call of a tool."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage(answers: Sequence[Answer], num_prompts: int = 1) -> JsonBody:
    """Return how many tokens were read and written; each prompt counts once, however many answers it got."""
    stats = [answer.stats for answer in answers if answer.stats is not None]
    each = max(len(answers) // num_prompts, 1)
    read = sum(found.prompt_tokens for found in stats[::each])
    written = sum(found.new_tokens for found in stats)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _body(kind: str, head: Head, choices: list[JsonBody], tokens: JsonBody) -> JsonBody:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": tokens,
        "system_fingerprint": head.fingerprint,
    }


def _check_in_time(answers: Sequence[Answer]) -> None:
    if all(answer.finish_reason == "deadline" and not answer.token_ids for answer in answers):
        raise RequestError(
            "the deadline passed before the first token; allow more time", code="deadline_exceeded", status=TOO_LATE
        )


def _ending(answer: Answer) -> JsonBody:
    if answer.finish_reason == "deadline":
        return {"finish_reason": "length", "edge": {"finish_reason": "deadline"}}
    return {"finish_reason": wire_reason(answer)}


def wire_reason(answer: Answer) -> WireReason:
    """Return the finish reason in the protocol's words."""
    if answer.finish_reason in ("stop", "tool_calls"):
        return answer.finish_reason
    return "length"


def _shown_logprobs(answer: Answer, tokenizer: Tokenizer) -> list[tuple[TokenLogprob, bytes]]:
    """Return the entries of the tokens whose text is shown: no stop id, and nothing of a stop text."""
    entries = [(entry, tokenizer.token_bytes(entry.token_id)) for entry in answer.logprobs]
    if answer.stopped_by is None:
        return entries
    if answer.stopped_by.token_id is not None:
        return entries[:-1]
    if answer.stopped_by.text is None:
        return entries
    left, found = len(answer.text.encode()), list[tuple[TokenLogprob, bytes]]()
    for entry, data in entries:
        if left <= 0:
            break
        found.append((entry, data))
        left -= len(data)
    return found


def _logprobs(answer: Answer, tokenizer: Tokenizer) -> JsonBody:
    def of_token(data: bytes, logprob: float) -> JsonBody:
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {
            **of_token(data, entry.logprob),
            "top_logprobs": [of_token(tokenizer.token_bytes(i), value) for i, value in entry.top],
        }
        for entry, data in _shown_logprobs(answer, tokenizer)
    ]
    return {"content": content, "refusal": None}


def _old_logprobs(answer: Answer, tokenizer: Tokenizer) -> JsonBody:
    """Return log-probabilities in the lists of /v1/completions."""
    shown = _shown_logprobs(answer, tokenizer)
    texts = [data.decode("utf-8", "replace") for _, data in shown]
    offsets, end = list[int](), 0
    for text in texts:
        offsets.append(end)
        end += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry, _ in shown],
        "top_logprobs": [
            {tokenizer.token_bytes(i).decode("utf-8", "replace"): value for i, value in entry.top} for entry, _ in shown
        ],
        "text_offset": offsets,
    }
