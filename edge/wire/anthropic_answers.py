"""Answers of the runtime as messages of Anthropic's protocol, whole and streamed, and its errors.

In: an answer or its chunks; an error. Out: JSON, and events. Knows nothing about sockets.

    message_start  ping
    content_block_start  content_block_delta ...  content_block_stop    for thoughts, the text, and each call
    message_delta  message_stop
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.runtime.chunk import Answer, Chunk, Stats
from edge.runtime.stream import answer_of
from edge.runtime.vision.progress import PictureProgress
from edge.wire.answers import Head, JsonBody, nothing_in_time
from edge.wire.blocks import Block, BlockReader, BlockStep, blocks_of, ended_by_itself
from edge.wire.errors import (
    FORBIDDEN,
    INTERNAL,
    NOT_FOUND,
    TOO_LARGE,
    TOO_LATE,
    TOO_MANY,
    UNAUTHORIZED,
    UNAVAILABLE,
    ErrorAnswer,
)
from edge.wire.events import Event

_TYPES = {
    UNAUTHORIZED: "authentication_error",
    FORBIDDEN: "permission_error",
    NOT_FOUND: "not_found_error",
    TOO_LARGE: "request_too_large",
    TOO_MANY: "rate_limit_error",
    INTERNAL: "api_error",
    UNAVAILABLE: "overloaded_error",
    TOO_LATE: "timeout_error",
}


def anthropic_error_body(told: ErrorAnswer) -> JsonBody:
    """Return the body of an error. What the protocol does not have, param and code, is beside what it has.

    Clients shorten a conversation and try again when they read that the prompt is too long, in these words.
    """
    message = told.message
    if told.code == "context_length_exceeded" and {"n_prompt_tokens", "n_ctx"} <= told.figures.keys():
        read, context = told.figures["n_prompt_tokens"], told.figures["n_ctx"]
        room = "" if read > context else " and room for an answer"
        message = f"prompt is too long: {read} tokens{room} > {context} maximum"
    known = {"type": _TYPES.get(told.status, "invalid_request_error"), "message": message}
    return {"type": "error", "error": {**known, "param": told.param, "code": told.code, **told.figures}}


def message_body(head: Head, answer: Answer) -> JsonBody:
    """Return a whole message. Raises RequestError if a deadline left nothing to send."""
    _check_in_time(answer)
    content = [_content_block(block) for block in blocks_of(answer, at_least_one=False)]
    body = _message(head, content, _usage(answer.stats, head)) | _ending(answer)
    edge = _extensions(head, answer)
    return {**body, "edge": edge} if edge else body


class AnthropicEvents:
    """The events of one request."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._reader = BlockReader()
        self._chunks: list[Chunk] = []

    def begin(self) -> Iterator[Event]:
        """Yield the message before it has begun; how long the prompt is comes with the end."""
        yield _event("message_start", message=_message(self._head, [], _usage(None, self._head)))
        yield _event("ping")

    def looking(self, progress: PictureProgress) -> Iterator[Event]:  # noqa: ARG002  # this protocol has no word for it
        """Pings say that the model is at work."""
        return iter(())

    def push(self, index: int, chunk: Chunk) -> Iterator[Event]:  # noqa: ARG002  # there is one choice
        """Yield what a chunk becomes."""
        self._chunks.append(chunk)
        for step in self._reader.push(chunk):
            yield _told(step)

    def end(self) -> Iterator[Event]:
        """Yield the end of the last block and of the message. Raises RequestError if nothing came in time."""
        answer = answer_of(self._chunks)
        _check_in_time(answer)
        for step in self._reader.end(is_whole=ended_by_itself(answer), at_least_one=False):
            yield _told(step)
        edge = _extensions(self._head, answer)
        more = {"edge": edge} if edge else {}
        yield _event("message_delta", delta=_ending(answer), usage=_usage(answer.stats, self._head), **more)
        yield _event("message_stop")

    def fail(self, told: ErrorAnswer) -> Iterator[Event]:
        """Yield the error alone."""
        yield Event(anthropic_error_body(told), "error")


def _check_in_time(answer: Answer) -> None:
    if answer.finish_reason == "deadline" and not answer.token_ids:
        raise nothing_in_time()


def _message(head: Head, content: list[JsonBody], usage: JsonBody) -> JsonBody:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _content_block(block: Block) -> JsonBody:
    """Return a block. A call's input is an object; one that was cut has its pieces beside it."""
    if block.is_thought:
        return _thinking(block.content)
    if block.name is None:
        return {"type": "text", "text": block.content}
    parsed = block.call.parsed()
    found = {"type": "tool_use", "id": block.id, "name": block.name, "input": parsed or {}}
    return found if parsed is not None else {**found, "edge": {"partial_json": block.content}}


def _thinking(text: str) -> JsonBody:
    """Return thoughts. They are not signed: nothing here reads them again."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def _told(step: BlockStep) -> Event:
    block = step.block
    if step.kind == "open":
        empty = _thinking("") if block.is_thought else {"type": "text", "text": ""}
        if block.name is not None:
            empty = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        return _event("content_block_start", index=block.index, content_block=empty)
    if step.kind == "close":
        return _event("content_block_stop", index=block.index)
    delta = {"type": "text_delta", "text": step.piece}
    if block.is_thought:
        delta = {"type": "thinking_delta", "thinking": step.piece}
    if block.name is not None:
        delta = {"type": "input_json_delta", "partial_json": step.piece}
    return _event("content_block_delta", index=block.index, delta=delta)


def _ending(answer: Answer) -> JsonBody:
    """Return why the message ends, in reasons that clients know."""
    reason, text = "max_tokens", None
    if answer.finish_reason == "tool_calls":
        reason = "tool_use"
    elif answer.finish_reason == "stop":
        text = answer.stopped_by.text if answer.stopped_by is not None else None
        reason = "end_turn" if text is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": text}


def _usage(stats: Stats | None, head: Head) -> JsonBody:
    """Return how many tokens were read and written; those from the cache are counted apart."""
    cached = stats.cached_tokens if stats is not None and head.measured else 0
    return {
        "input_tokens": stats.prompt_tokens - cached if stats is not None else 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": stats.new_tokens if stats is not None else 0,
    }


def _extensions(head: Head, answer: Answer) -> JsonBody:
    late = {"finish_reason": "deadline"} if answer.finish_reason == "deadline" else {}
    return {**late, **({"dropped_messages": head.dropped_messages} if head.dropped_messages else {})}


def _event(name: str, /, **fields: object) -> Event:
    return Event({"type": name, **fields}, name)
