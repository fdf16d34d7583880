"""A streamed answer of /v1/responses.

In: chunks of an answer. Out: events, each with its number; the last holds the whole response. There is no [DONE]. Knows
nothing about sockets.

    response.created  response.in_progress
    response.output_item.added  response.content_part.added  response.reasoning_text.delta ...    where a model thinks
        response.reasoning_text.done  response.content_part.done  response.output_item.done
    response.output_item.added  response.content_part.added  response.output_text.delta ...
        response.output_text.done  response.content_part.done  response.output_item.done
    response.output_item.added  response.function_call_arguments.delta ...
        response.function_call_arguments.done  response.output_item.done
    response.completed, response.incomplete, or response.failed and error
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.runtime.chunk import Chunk
from edge.runtime.stream import answer_of
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.progress import PictureProgress
from edge.wire.answers import Head, JsonBody
from edge.wire.blocks import Block, BlockReader, BlockStep, ended_by_itself
from edge.wire.errors import INTERNAL, ErrorAnswer
from edge.wire.events import Event
from edge.wire.responses_answers import (
    ended,
    item_id,
    item_of,
    part_of,
    part_of_thoughts,
    response_body,
    response_of,
)


class ResponsesEvents:
    """The events of one request."""

    def __init__(self, head: Head, asked: JsonObject, tokenizer: Tokenizer) -> None:
        self._head, self._asked, self._tokenizer = head, asked, tokenizer
        self._reader = BlockReader()
        self._chunks: list[Chunk] = []
        self._count = 0

    def begin(self) -> Iterator[Event]:
        """Yield the response before it has begun."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response())

    def looking(self, progress: PictureProgress) -> Iterator[Event]:  # noqa: ARG002  # this protocol has no word for it
        """Pings say that the model is at work."""
        return iter(())

    def push(self, index: int, chunk: Chunk) -> Iterator[Event]:  # noqa: ARG002  # there is one choice
        """Yield what a chunk becomes."""
        self._chunks.append(chunk)
        for step in self._reader.push(chunk):
            yield from self._told(step)

    def end(self) -> Iterator[Event]:
        """Yield the ends of what is open, and the whole response. Raises RequestError if nothing came in time."""
        answer = answer_of(self._chunks)
        response = response_of(self._head, self._asked, answer, self._tokenizer)
        for step in self._reader.end(is_whole=ended_by_itself(answer), at_least_one=True):
            yield from self._told(step)
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, told: ErrorAnswer) -> Iterator[Event]:
        """Yield the failed response for clients that look for it, then the error, which others raise."""
        found = told.to_dict()["error"]
        code = "server_error" if told.status >= INTERNAL else told.code
        blocks = self._reader.blocks
        output = [item_of(self._head, block, "completed") for block in blocks[:-1]]
        output += [item_of(self._head, block, "incomplete") for block in blocks[-1:]]
        response = response_body(self._head, self._asked, "failed", output)
        response["error"] = {"code": code, "message": told.message}
        yield self._event("response.failed", response=response)
        named = {key: found[key] for key in ("code", "message", "param")}
        yield self._event("error", **named, error=found)  # openai-python raises only what has an "error"

    def _told(self, step: BlockStep) -> Iterator[Event]:
        block = step.block
        if block.is_thought:
            yield from self._thoughts(step)
            return
        is_text = block.name is None
        place = {"item_id": item_id(self._head, block), "output_index": block.index}
        inside = {**place, "content_index": 0}
        if step.kind == "open":
            yield self._item("added", block)
            if is_text:
                yield self._event("response.content_part.added", **inside, part=part_of(""))
        elif step.kind == "grow" and is_text:
            yield self._event("response.output_text.delta", **inside, delta=step.piece, logprobs=[])
        elif step.kind == "grow":
            yield self._event("response.function_call_arguments.delta", **place, delta=step.piece)
        else:
            if is_text:
                yield self._event("response.output_text.done", **inside, text=block.content, logprobs=[])
                yield self._event("response.content_part.done", **inside, part=part_of(block.content))
            else:
                done = {"name": block.name, "arguments": block.content}
                yield self._event("response.function_call_arguments.done", **place, **done)
            yield self._item("done", block)

    def _thoughts(self, step: BlockStep) -> Iterator[Event]:
        block = step.block
        inside = {"item_id": item_id(self._head, block), "output_index": block.index, "content_index": 0}
        if step.kind == "open":
            yield self._item("added", block)
            yield self._event("response.content_part.added", **inside, part=part_of_thoughts(""))
        elif step.kind == "grow":
            yield self._event("response.reasoning_text.delta", **inside, delta=step.piece)
        else:
            yield self._event("response.reasoning_text.done", **inside, text=block.content)
            yield self._event("response.content_part.done", **inside, part=part_of_thoughts(block.content))
            yield self._item("done", block)

    def _item(self, what: str, block: Block) -> Event:
        status = "in_progress" if what == "added" else ended(block)
        item = item_of(self._head, block, status)
        return self._event(f"response.output_item.{what}", output_index=block.index, item=item)

    def _response(self) -> JsonBody:
        return response_body(self._head, self._asked, "in_progress", [])

    def _event(self, name: str, /, **fields: object) -> Event:
        number, self._count = self._count, self._count + 1
        return Event({"type": name, "sequence_number": number, **fields}, name)
