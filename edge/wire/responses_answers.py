"""Answers of the runtime as the `response` objects of /v1/responses.

In: an answer, and what was asked. Out: JSON. Knows nothing about streams, but a streamed answer ends with the same
object.

Ids of items are made from the response's own, so that whole and streamed answers have the same ones.
"""

from __future__ import annotations

from typing import Literal

from edge.runtime.chunk import Answer, Stats
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.declared import JsonObject
from edge.wire.answers import Head, JsonBody, nothing_in_time, thought_tokens
from edge.wire.blocks import Block, blocks_of, ended_by_itself

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_ECHOED = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "temperature",
    "top_p",
    "user",
    "prompt_cache_key",
    "safety_identifier",
)


def response_of(head: Head, asked: JsonObject, answer: Answer, tokenizer: Tokenizer) -> JsonBody:
    """Return a whole response. Raises RequestError if a deadline left nothing to send."""
    if answer.finish_reason == "deadline" and not answer.token_ids:
        raise nothing_in_time()
    output = [item_of(head, block, ended(block)) for block in blocks_of(answer, at_least_one=True)]
    status: Status = "completed" if ended_by_itself(answer) else "incomplete"
    response = response_body(head, asked, status, output)
    response["usage"] = None
    if answer.stats is not None:
        thought = thought_tokens(answer.token_ids, tokenizer) if answer.reasoning else 0
        response["usage"] = usage(answer.stats, measured=head.measured, thought=thought)
    if status == "incomplete":
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    edge: JsonBody = {"finish_reason": "deadline"} if answer.finish_reason == "deadline" else {}
    if head.dropped_messages:
        edge["dropped_messages"] = head.dropped_messages
    return {**response, "edge": edge} if edge else response


def response_body(head: Head, asked: JsonObject, status: Status, output: list[JsonBody]) -> JsonBody:
    """Return a response at any time of its life, with what was asked as clients expect to find it again."""
    text = asked.get("text") or {}
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": head.model,
        "output": output,
        "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked["tools"],
        "truncation": "disabled",
        "usage": None,
        **{name: asked.get(name) for name in _ECHOED},
    }


def item_of(head: Head, block: Block, status: Status) -> JsonBody:
    """Return an item of the output; one in progress has nothing in it yet."""
    if block.is_thought:
        content = [] if status == "in_progress" else [part_of_thoughts(block.content)]
        return {"id": item_id(head, block), "type": "reasoning", "status": status, "summary": [], "content": content}
    if block.name is None:
        content = [] if status == "in_progress" else [part_of(block.content)]
        return {"id": item_id(head, block), "type": "message", "status": status, "role": "assistant",
                "content": content}  # fmt: skip
    return {
        "id": item_id(head, block),
        "type": "function_call",
        "status": status,
        "call_id": block.id,
        "name": block.name,
        "arguments": "" if status == "in_progress" else block.content,
    }


def item_id(head: Head, block: Block) -> str:
    """Return the id of an item."""
    kind = "rs" if block.is_thought else "msg" if block.name is None else "fc"
    return f"{kind}_{head.id.removeprefix('resp_')}_{block.index}"


def part_of(text: str) -> JsonBody:
    """Return the only part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def part_of_thoughts(text: str) -> JsonBody:
    """Return the only part of what the model thought."""
    return {"type": "reasoning_text", "text": text}


def ended(block: Block) -> Status:
    """Return the status of a block that has ended."""
    return "completed" if block.is_whole else "incomplete"


def usage(stats: Stats, *, measured: bool, thought: int = 0) -> JsonBody:
    """Return how many tokens were read and written. measured: as in `Head`. thought: of them, thoughts."""
    cached = stats.cached_tokens if measured else 0
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": stats.new_tokens,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
    }
